"""The command line ``zoopt-nas``: one file for each command, put together here."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

import zoopt_nas

from . import (
    bench,
    console,
    convergence,
    diagnose,
    export,
    landscape,
    minimize,
    report,
    search,
    show,
    sweep,
    tables,
    train,
)

# A command that hands options of another one on cannot know them.
_HANDS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    name="zoopt-nas",
    help="Zero-order optimization, and neural architecture search with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("search")(search.search)
app.command("train")(train.train)
app.command("show")(show.show)
app.command("landscape")(landscape.landscape)
app.command("diagnose")(diagnose.diagnose)
app.command("convergence")(convergence.convergence)
app.command("sweep", context_settings=_HANDS_ON)(sweep.sweep)
app.command("report")(report.report)
app.command("export")(export.export)
app.add_typer(bench.app, name="bench")
app.command("minimize")(minimize.minimize)
app.command("list")(tables.list_names)


def _version(value: bool) -> None:
    if value:
        console.say(f"zoopt-nas {zoopt_nas.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command ``zoopt-nas``: errors become one line and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; only bugs raise."""
    try:
        code = app(arguments, prog_name="zoopt-nas", standalone_mode=False)
    except TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no command: the message is the help
            console.say(error.format_message())
            return 0
        return console.fail(error.format_message(), error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return console.fail("interrupted", console.INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - report() raises what is not an expected error
        return console.report(error)
    if code == console.INTERRUPTED:  # Typer has swallowed the KeyboardInterrupt
        return console.fail("interrupted", console.INTERRUPTED)
    return int(code or 0)
