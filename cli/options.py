"""What the commands have in common: settings as options, and how they override each other."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.settings.setting import GROUPS, NETWORK, WHAT, settings_of

RUN, SUPERNET = "Run folder", "Supernet"
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_PANELS = (WHAT, RUN, SUPERNET, *GROUPS[1:])

Command = Callable[..., Any]


def option(
    text: str,
    panel: str | None = None,
    shown: str | bool = True,
    *,
    flag: str | None = None,
    **more: Any,
) -> Any:
    """Return an option; ``shown`` is its default in words, or False to show none."""
    flags = [flag] if flag else []
    return typer.Option(*flags, help=text, rich_help_panel=panel, show_default=shown, **more)


Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders of searches.")]
Pictures = Annotated[
    Path | None, option("Folder of the figure.", shown="pictures of the first RUN")
]
Json = Annotated[bool, option("Print the result as JSON only.", flag="--json")]
Log = Annotated[
    str | None, option("Log in RUN/tensorboard: tensorboard. A resumed run goes on with it.", RUN)
]
ConfigFile = Annotated[Path | None, option("TOML file with settings; options override it.", WHAT)]
RETRAININGS = "NAME=VALUE of the retrainings, for example epochs=600; may be repeated."


def with_settings(
    cls: type[RunConfig], *, first: Sequence[str], network: str = NETWORK, **shown: str
) -> Callable[[Command], Command]:
    """Return a decorator that gives a command one option for each setting of ``cls``.

    The command receives only the options that it declares; ``given`` returns the settings on the
    command line. A setting that is left out takes the config's default.

    Args:
        cls: the config.
        first: options that lead their panel in ``--help``. The command's other options follow, then
            the settings in the order of their fields.
        network: the panel of the network's settings.
        **shown: defaults in words that differ from the config's.
    """

    def decorate(command: Command) -> Command:
        declared = list(inspect.signature(command, eval_str=True).parameters.values())
        hints = get_type_hints(cls)
        parameters = [one.replace(kind=_KEYWORD) for one in declared]
        for name, known in settings_of(cls).items():
            if not known.has_option:
                continue
            is_table = hints[name] == dict[str, Any]
            value: Any = list[str] if is_table else hints[name]
            panel = network if known.group == NETWORK else known.group
            default = not is_table and shown.get(name, cls.shown_default(name))
            setting = Annotated[value | None, option(known.help, panel, default, flag=known.option)]
            parameters.append(inspect.Parameter(name, _KEYWORD, default=None, annotation=setting))

        def place(parameter: inspect.Parameter) -> tuple[int, int]:
            (info,) = getattr(parameter.annotation, "__metadata__", (None,))
            panel = getattr(info, "rich_help_panel", None)
            name = parameter.name
            return (
                _PANELS.index(panel) if panel in _PANELS else -1,
                first.index(name) if name in first else len(first),
            )

        def run(**arguments: Any) -> Any:
            return command(**{one.name: arguments[one.name] for one in declared})

        parameters.sort(key=place)
        run.__doc__ = command.__doc__
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def let_threads_sleep() -> None:
    """Make idle OpenMP threads sleep instead of spin, unless the user has set OMP_WAIT_POLICY.

    Call it before torch is imported. Spinning threads slow down other processes on the same cores.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def given(ctx: typer.Context, cls: type[RunConfig]) -> dict[str, Any]:
    """Return the settings on the command line; pairs of a list become one dictionary."""
    found, hints = {}, get_type_hints(cls)
    for name, known in settings_of(cls).items():
        value = ctx.params.get(name) if known.has_option else None
        if hints[name] == dict[str, Any]:  # typer may give an empty tuple for no pairs
            value = parse_pairs(value or (), known.option or "") or None
        if value is not None:
            found[name] = value
    return found


def read_config_file(path: Path | None, cls: type[RunConfig]) -> dict[str, Any]:
    """Return the settings in a ``--config`` file, if there is one."""
    if path is None:
        return {}
    try:
        return cls.read_fields(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read --config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"cannot read --config {path}: it is not text") from error


def parse_pairs(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """Parse ``["sigma=0.2", "weighting=exact"]``; values are TOML, or else strings."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidValueError(f"{flag} must read NAME=VALUE, got {pair}")
        parsed[key] = _value(value)
    return parsed


def parse_values(pairs: Sequence[str], flag: str) -> dict[str, tuple[Any, ...]]:
    """Parse ``["n_samples=2,4"]`` as ``{"n_samples": (2, 4)}``; values as in ``parse_pairs``."""
    parsed: dict[str, tuple[Any, ...]] = {}
    for pair in pairs:
        name, equals, values = pair.partition("=")
        if not equals or not name or name in parsed:
            raise InvalidValueError(f"{flag} must read NAME=VALUE,VALUE,... once, got {pair}")
        parsed[name] = tuple(_value(value) for value in values.split(",") if value)
    return parsed


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def resume_alone(ctx: typer.Context) -> None:
    """Refuse other options beside ``--resume``: a resumed run keeps its settings."""
    flags = {param.name: param.opts[0] for param in ctx.command.params}
    values = {name: value for name, value in ctx.params.items() if name not in ("resume", "json")}
    others = [flags[name] for name, value in values.items() if value not in (None, [], ())]
    if others:
        raise InvalidValueError(
            f"--resume takes every setting from the run; leave out {', '.join(others)}"
        )


def make_folder(path: Path) -> None:
    """Create a folder for results, if it does not exist."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror}") from error


def dated(*parts: object) -> str:
    """Return a name for a run folder: date, time and ``parts``."""
    names = [Path(str(part)).stem for part in parts]
    return "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *names])
