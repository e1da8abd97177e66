"""``zoopt-nas train``: trains a found network from scratch and tests it once."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from zoopt_nas.errors import InvalidValueError, RunError
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.paper_size import reductions
from zoopt_nas.nas.settings.setting import WHAT

from . import console
from .options import (
    RUN,
    ConfigFile,
    Json,
    Log,
    dated,
    given,
    let_threads_sleep,
    option,
    read_config_file,
    resume_alone,
    with_settings,
)

_SOURCE = "Run folder of a search, file with a genotype, its published string, or DARTS_V2."
_PROTOCOL = (
    "Published settings: rdarts, sdarts, darts, imagenet, nasbench201. Other options override it."
)
_SPACE = "Where the genotype was found; rdarts sizes depend on it."
_FIRST = (
    "dataset", "protocol", "space", "seed", "config",
    "epochs", "batch_size", "lr", "schedule", "warmup_epochs",
)  # fmt: skip
_FOLDER = "RUN/train-<date>-seed<k>, or runs/<date>-train-..."


@with_settings(TrainConfig, first=_FIRST, dataset="from the search, or digits")
def train(
    ctx: typer.Context,
    source: Annotated[str | None, typer.Argument(metavar="RUN_OR_GENOTYPE", help=_SOURCE)] = None,
    protocol: Annotated[str | None, option(_PROTOCOL, WHAT, "by data set")] = None,
    space: Annotated[str | None, option(_SPACE, WHAT, "from the search")] = None,
    config: ConfigFile = None,
    run_dir: Annotated[Path | None, option("Folder to create.", RUN, _FOLDER)] = None,
    resume: Annotated[
        Path | None, option("Resume this retraining; takes no other option.", RUN)
    ] = None,
    json: Json = False,
    log: Log = None,
) -> None:
    """Train the network of a genotype on the full training set, and test it at the end."""
    let_threads_sleep()
    from zoopt_nas import nas

    if (source is None) == (resume is None):
        raise InvalidValueError("give either RUN_OR_GENOTYPE or --resume")
    inherited, searched = "", None
    if resume is not None:
        resume_alone(ctx)
    else:
        asked = read_config_file(config, TrainConfig) | given(ctx, TrainConfig)
        genotype, taken, parent, found_in = _find(str(source), asked.get("dataset"))
        chosen = {**taken, **asked, "genotype": str(genotype)}
        resolved = TrainConfig.for_dataset(
            **{"dataset": "digits", **chosen}, protocol=protocol, space=space or found_in
        )
        seeded = f"seed{resolved.seed}"
        if parent is not None:
            run_dir = run_dir or parent / f"train-{dated(seeded)}"
            inherited = _in_words(parent, resolved, taken, asked)
            searched = parent if "dataset" in taken else None
        else:
            run_dir = run_dir or Path("runs") / dated("train", resolved.dataset, seeded)

    processes = _processes()
    if processes.rank > 0:  # only process 0 prints
        console.be_silent()
    if inherited and not json:
        console.say(inherited)
    resume_with = f"zoopt-nas train --resume {shlex.quote(str(resume or run_dir))}"
    with console.watched(quiet=json, resume_with=resume_with) as live:
        is_first = processes.rank == 0
        observer = console.logged(live, log, resume or run_dir) if is_first else live
        if resume is not None:
            result = nas.resume_training(resume, observer=observer, processes=processes)
        else:
            result = nas.run_training(
                resolved, run_dir=run_dir, observer=observer, processes=processes
            )
    if processes.rank > 0:
        return

    folder = nas.RunFolder.open(str(resume or run_dir))
    reduced = reductions(folder.config(TrainConfig))
    if json:
        console.say_json({"run_dir": folder.path, **asdict(result), "reduced": reduced})
    else:
        _say_result(result, reduced, _on_other_images(searched, folder), folder.path)


def _say_result(result: Any, reduced: list[str], notice: str, path: Path) -> None:
    if result.selected_on_test_set:
        console.say(
            f"best test accuracy, of epoch {result.epoch + 1} and selected on the test set; "
            f"the last epoch has {result.last_test_accuracy:.2%}"
        )
    console.say(
        f"test accuracy {result.test_accuracy:.2%} (loss {result.test_loss:.4f}) "
        f"with {result.n_parameters:,} parameters and {result.n_multiply_adds / 1e6:.1f} M "
        f"multiply-adds after {result.seconds:.0f} s"
    )
    console.say_reduced(reduced)
    if notice:
        console.say(notice)
    console.say(f"run folder: {path}")


def _processes() -> Any:
    """Return the rank of this process among those that torchrun started, if it did."""
    from zoopt_nas import nas

    environment = os.environ
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return nas.Processes()
    host = environment.get("MASTER_ADDR", "127.0.0.1")
    port = environment.get("MASTER_PORT", "29500")
    try:
        rank, n = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
    except ValueError as error:
        raise InvalidValueError(
            "RANK, WORLD_SIZE and LOCAL_RANK must be integers, as torchrun sets them"
        ) from error
    return nas.Processes(rank, n, local_rank, f"tcp://{host}:{port}")


def _find(source: str, dataset: str | None) -> tuple[Any, dict[str, Any], Path | None, str | None]:
    """Return the genotype that ``source`` names, with settings, folder and space of its run."""
    from zoopt_nas import nas
    from zoopt_nas.nas.analyses.run_once import settings_from

    if not os.path.isdir(source):  # Path.is_dir raises for long texts such as genotypes
        return nas.load_architecture(source), {}, None, None
    folder = nas.RunFolder.open(source)
    cls = SearchConfig if folder.kind == SearchConfig.kind else TrainConfig
    config = folder.config(cls)
    space = config.space if isinstance(config, SearchConfig) else None
    return folder.genotype(), settings_from(config, dataset), folder.path, space


def _in_words(run: Path, config: TrainConfig, taken: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return one line on what is taken from a run: non-defaults that are not set anew."""
    usual = TrainConfig.usual()
    parts = [
        f"{name} {value}"
        for name, value in taken.items()
        if name not in asked and (name in ("dataset", "seed") or value != usual[name])
    ]
    line = f"from {run}: {', '.join(['the genotype', *parts])}"
    if "dataset" in taken:
        return line
    size = f"image_size {config.image_size}" if config.image_size else "images as they are"
    return f"{line}; not from it, for {config.dataset}: seed {config.seed}, {size}"


def _on_other_images(run: Path | None, trained: Any) -> str:
    """Return a notice if the training images have changed since a run."""
    from zoopt_nas import nas

    if run is None:
        return ""
    try:
        before, now = nas.RunFolder.open(run).data(), trained.data()
    except RunError:
        return ""
    if before.fingerprints.get("train") == now.fingerprints.get("train"):
        return ""
    return f"the training images or labels have changed since {run}"
