"""What the commands' options have in common: how defaults are shown, and who overrides whom."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.settings.config import RunConfig

# The panels of --help.
WHAT, RUN, SUPERNET, NETWORK, WEIGHTS, ALPHA, DATA, MACHINE = (
    "What to do",
    "Run folder",
    "Supernet",
    "Network",
    "Weights",
    "Alpha",
    "Data",
    "Machine",
)


def setting(cls: type[RunConfig], name: str, help_text: str, panel: str, **more: Any) -> Any:
    """The option of a config's field: left out, it means what the config says for the data set.

    The default shown is that of the config, with the one for the embedded digits if it differs.
    """
    usual = {spec.name: spec.default for spec in dataclasses.fields(cls)}[name]
    shown = "none" if usual is None else _shown(usual)
    digits = cls.defaults_for("digits").get(name, usual)
    if digits != usual:
        shown += f"; digits: {_shown(digits)}"
    return typer.Option(help=help_text, rich_help_panel=panel, show_default=shown, **more)


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _common(name: str, help_text: str, panel: str) -> Any:
    return setting(RunConfig, name, help_text, panel)


# The options that search and train have alike.
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="TOML file with settings; options override it.", rich_help_panel=WHAT),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON only.")]
Seed = Annotated[int | None, _common("seed", "Seeds everything.", WHAT)]
LearningRate = Annotated[float | None, _common("lr", "Learning rate at the start.", WEIGHTS)]
WeightDecay = Annotated[float | None, _common("weight_decay", "Weight decay.", WEIGHTS)]
DataDir = Annotated[str | None, _common("data_dir", "Folder of the data sets' files.", DATA)]
Download = Annotated[bool | None, _common("download", "Fetch missing files into it.", DATA)]
NTrain = Annotated[int | None, _common("n_train", "Use only so many training images.", DATA)]
ImageSize = Annotated[int | None, _common("image_size", "Resize images to this side.", DATA)]
Device = Annotated[str | None, _common("device", "auto, cpu, cuda, mps.", MACHINE)]
Threads = Annotated[int | None, _common("threads", "CPU threads; none: torch's choice.", MACHINE)]
Amp = Annotated[
    str | None,
    _common("amp", "Precision of the weights' steps: bf16, off; auto: bf16 on CUDA.", MACHINE),
]
Compile = Annotated[
    str | None,
    _common("compile", "Weight steps as CUDA graphs, or compiled: on, off; auto: CUDA.", MACHINE),
]
ChannelsLast = Annotated[
    str | None, _common("channels_last", "Memory order: on, off; auto: CPU and CUDA.", MACHINE)
]

Native = Annotated[
    str | None, _common("native", "Own CPU kernels: on, off; auto: with a C compiler.", MACHINE)
]


def let_threads_sleep() -> None:
    """Makes OpenMP threads that wait sleep instead of spin, unless the user has said otherwise.

    Call it before torch is imported, which is when OpenMP reads it. A spinning thread takes its
    core from other processes: with one of them on a core, making batches took 80 times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def given(ctx: typer.Context, cls: type[RunConfig]) -> dict[str, Any]:
    """The config fields that were set on the command line."""
    names = {spec.name for spec in dataclasses.fields(cls)}
    return {
        name: value for name, value in ctx.params.items() if name in names and value is not None
    }


def read_config_file(path: Path | None, cls: type[RunConfig]) -> dict[str, Any]:
    """The settings in a ``--config`` file, none if there is no file."""
    if path is None:
        return {}
    try:
        return cls.read_fields(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read --config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"cannot read --config {path}: it is not text") from error


def parse_pairs(pairs: list[str], flag: str = "--solver-option") -> dict[str, Any]:
    """``["sigma=0.2", "weighting=exact"]`` as a mapping; values are TOML, or else strings."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidValueError(f"{flag} must read NAME=VALUE, got {pair}")
        try:
            parsed[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key] = value
    return parsed


def parse_values(pairs: list[str], flag: str = "--vary") -> dict[str, list[Any]]:
    """``["n_samples=2,4"]`` as ``{"n_samples": [2, 4]}``; values as in ``parse_pairs``."""
    parsed: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, values = pair.partition("=")
        if not equals or not name or name in parsed:
            raise InvalidValueError(f"{flag} must read NAME=VALUE,VALUE,... once, got {pair}")
        parsed[name] = [
            parse_pairs([f"{name}={value}"])[name] for value in values.split(",") if value
        ]
    return parsed


def resume_alone(ctx: typer.Context) -> None:
    """A resumed run has its settings already; another one beside ``--resume`` is a mistake."""
    others = [
        name
        for name, value in ctx.params.items()
        if name not in ("resume", "json") and value not in (None, [], ())
    ]
    if others:
        flags = ", ".join("--" + name.replace("_", "-") for name in others)
        raise InvalidValueError(f"--resume takes every setting from the run; leave out {flags}")


def make_folder(path: Path) -> None:
    """Makes a folder for results, if it is not there.

    Raises:
        RunError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {path}: {error.strerror}") from error


def dated(*parts: object) -> str:
    """A name for a run folder: date, time and what it is about."""
    names = [Path(str(part)).stem for part in parts]
    return "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *names])
