"""Find the runs in folders, and join searches that differ only by their seed.

A run folder is read as it is: it may be unfinished, and it is never changed. What cannot be read
becomes a problem of the report instead of an error, so that one damaged run hides no other.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoopt_nas.errors import RunError, ZooptNasError
from zoopt_nas.nas.analyses.landscape.compute import SUMMARY
from zoopt_nas.nas.analyses.run_once import last_row
from zoopt_nas.nas.analyses.sweep import FILE as SWEEP_FILE
from zoopt_nas.nas.analyses.sweep import Sweep
from zoopt_nas.nas.runs.folder import MAY_CHANGE, METRICS, RunFolder
from zoopt_nas.nas.runs.machine import machine_in_words
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.methods import kind_of
from zoopt_nas.nas.settings.paper_size import reductions
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.tabular.table import TRUE_ACCURACIES

# Settings that do not change a result: how a run is executed, and where its files lie.
NOT_A_DIFFERENCE = ({"seed"} | set(MAY_CHANGE)) - {"dataset"}
_CONFIGS: dict[str, type[RunConfig]] = {cls.kind: cls for cls in (SearchConfig, TrainConfig)}
_OF_RESULT = ("test_accuracy", "n_parameters", "n_multiply_adds")
_FIGURES = ("landscape.png", "sweep.svg", "convergence.svg", "diagnostics.svg")
_CONVERGENCE = "epoch-"  # folders of retrainings that belong to an epoch, not to the result


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: the folder.
        config: its settings.
        rows: of ``metrics.jsonl``.
        result: ``result.json`` of a finished retraining, otherwise empty.
        is_finished: whether the run has its result.
        machine: the hardware in words.
        sweep: the sweep that the run belongs to.
    """

    folder: RunFolder
    config: RunConfig
    rows: list[dict[str, Any]] = field(repr=False)
    result: dict[str, Any]
    is_finished: bool
    machine: str
    sweep: Sweep | None

    @property
    def path(self) -> Path:
        """The path of the folder."""
        return self.folder.path

    @property
    def where(self) -> str:
        """The path, from the working directory if it is inside."""
        return _from_here(self.path)

    @property
    def seconds(self) -> float:
        """The time of all epochs."""
        return math.fsum(row.get("seconds") or 0.0 for row in self.rows)

    @property
    def state(self) -> str:
        """Say how far the run is."""
        if self.is_finished:
            return "finished"
        return f"{len(self.rows)} of {self.config.epochs} epochs"

    @property
    def command(self) -> str:
        """The command that runs it again."""
        config = shlex.quote(_from_here(self.path / "config.toml"))
        what = [self.config.kind]
        if isinstance(self.config, TrainConfig):
            what.append(shlex.quote(self.config.genotype))
        return f"zoopt-nas {' '.join(what)} --config {config}"


@dataclass(frozen=True)
class Result:
    """A finished search with its number of parameters, test error, ...; or one of its retrainings.

    ``numbers`` are ``test_error``, ``n_parameters`` and ``n_multiply_adds`` of the retraining, and
    ``seconds``, ``skip_connections`` and the true accuracies of the search, as far as known.
    """

    search: Run | None
    training: Run | None
    numbers: dict[str, float]

    @property
    def runs(self) -> list[Run]:
        """The search and the retraining, as far as there are any."""
        return [run for run in (self.search, self.training) if run is not None]

    @property
    def seed(self) -> int:
        """The seed."""
        return self.runs[0].config.seed


@dataclass(frozen=True)
class Group:
    """Results with the same settings and different seeds, in the order of the seeds."""

    number: int
    results: tuple[Result, ...]

    @property
    def search(self) -> SearchConfig | None:
        """The settings of the first search."""
        run = self.results[0].search
        return run.config if run and isinstance(run.config, SearchConfig) else None

    @property
    def training(self) -> TrainConfig | None:
        """The settings of the first retraining."""
        run = self.results[0].training
        return run.config if run and isinstance(run.config, TrainConfig) else None

    @property
    def configs(self) -> list[RunConfig]:
        """The settings of the first search and retraining."""
        return [config for config in (self.search, self.training) if config is not None]

    @property
    def size(self) -> list[str]:
        """What is smaller than in the paper."""
        return reductions(*self.configs)

    @property
    def machines(self) -> list[str]:
        """The hardware of all runs."""
        return list(dict.fromkeys(run.machine for one in self.results for run in one.runs))

    @property
    def varied(self) -> set[str]:
        """The settings that the sweep of the results varies."""
        sweeps = [run.sweep for run in self.results[0].runs if run.sweep is not None]
        return {name for sweep in sweeps for name in sweep.vary}


@dataclass(frozen=True)
class Collection:
    """All that was found: runs, groups of finished results, problems, and runs still to come.

    Attributes:
        runs: all run folders, sorted by path.
        groups: finished results with the same settings.
        figures: files of the figures that other commands have drawn.
        problems: what could not be read or counted, in words.
        missing: names of the runs that a sweep has not started.
    """

    runs: list[Run]
    groups: list[Group]
    figures: list[Path]
    problems: list[str]
    missing: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is still to come."""
        return not self.missing and all(run.is_finished for run in self.runs)


def collect(paths: Sequence[str | Path]) -> Collection:
    """Read all runs in and below the folders.

    Raises:
        RunError: a path is not a folder, or there is no run in it.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path} is not a folder")
        below = list(_folders(path))
        if not any(_is_run(folder) or (folder / SWEEP_FILE).is_file() for folder in below):
            raise RunError(f"{path} holds no run: no folder in it has a config.toml")
        found |= {folder.resolve(): None for folder in below}
    problems: list[str] = []
    sweeps = _read_sweeps(found, problems)
    runs = []
    for folder in filter(_is_run, found):
        try:
            runs.append(read_run(folder, _sweep_of(folder, sweeps)))
        except ZooptNasError as error:
            problems.append(str(error))
    missing = [
        _from_here(folder / run.name)
        for folder, sweep in sweeps.items()
        for run in sweep.runs()
        if not _is_run(folder / run.name)
    ]
    groups = _group(_results(runs), problems)
    drawn = (folder / name for folder in found for name in _FIGURES)
    figures = [path for path in drawn if path.is_file()]
    problems += [
        f"{folder} has no picture of its landscape; draw it with zoopt-nas landscape"
        for folder in found
        if (folder / SUMMARY).is_file() and folder / _FIGURES[0] not in figures
    ]
    return Collection(runs, groups, figures, problems, missing)


def read_run(path: Path, sweep: Sweep | None = None) -> Run:
    """Read one run folder.

    Raises:
        ZooptNasError: its files are damaged.
    """
    folder = RunFolder.open(path)
    if folder.kind not in _CONFIGS:
        raise RunError(f"{path / 'config.toml'} is not the config of a run")
    config = folder.config(_CONFIGS[folder.kind])
    if isinstance(config, SearchConfig):
        kind_of(config.algo)  # refuse the damaged method of another package
    is_training = isinstance(config, TrainConfig)
    result = _read_result(path / "result.json") if is_training else {}
    is_finished = bool(result) if is_training else (path / "genotype.json").is_file()
    machine = folder.machine()
    words = "not recorded" if machine is None else machine_in_words(machine)
    return Run(folder, config, folder.rows(METRICS), result, is_finished, words, sweep)


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _folders(path: Path) -> Iterator[Path]:
    """Yield a folder and all folders below, sorted, without hidden ones."""
    for name, inner, _ in os.walk(path):
        inner[:] = sorted(one for one in inner if not one.startswith("."))
        yield Path(name)


def _is_run(folder: Path) -> bool:
    return (folder / "config.toml").is_file()


def _read_sweeps(folders: Iterable[Path], problems: list[str]) -> dict[Path, Sweep]:
    sweeps = {}
    for folder in folders:
        if (folder / SWEEP_FILE).is_file():
            try:
                sweeps[folder] = Sweep.load(folder)
            except ZooptNasError as error:
                problems.append(str(error))
    return sweeps


def _sweep_of(folder: Path, sweeps: dict[Path, Sweep]) -> Sweep | None:
    """Return the sweep whose folder holds the search ``folder``, or the search of a retraining."""
    return next((sweeps[parent] for parent in folder.parents if parent in sweeps), None)


def _read_result(path: Path) -> dict[str, Any]:
    """Return the result of a retraining; empty if it has none yet."""
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(math.isfinite(found[name]) for name in _OF_RESULT):
            return found
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise RunError(f"{path} is not the result of a retraining")


def _results(runs: Sequence[Run]) -> Iterator[Result]:
    """Yield each finished retraining with its search, and each search that has none."""
    searches = {run.path: run for run in runs if isinstance(run.config, SearchConfig)}
    retrained = set()
    for run in runs:
        if run.path in searches or run.path.name.startswith(_CONVERGENCE) or not run.is_finished:
            continue
        search = next((searches[path] for path in run.path.parents if path in searches), None)
        retrained |= {search.path} if search else set()
        yield Result(search, run, _numbers(search) | _numbers(run))
    for search in searches.values():
        if search.is_finished and search.path not in retrained:
            yield Result(search, None, _numbers(search))


def _numbers(run: Run | None) -> dict[str, float]:
    if run is None:
        return {}
    if isinstance(run.config, TrainConfig):
        accuracy, *sizes = (run.result[name] for name in _OF_RESULT)
        return {"test_error": 1.0 - accuracy} | dict(zip(_OF_RESULT[1:], sizes, strict=True))
    last = last_row(run.folder) if run.is_finished else {}
    known = {name: last.get(name) for name in ("skip_connections", *TRUE_ACCURACIES)}
    return {name: value for name, value in known.items() if value is not None} | {
        "seconds": run.seconds
    }


def _group(results: Iterable[Result], problems: list[str]) -> list[Group]:
    """Join results that differ only by the seed; each seed counts once."""
    groups: dict[str, dict[int, Result]] = {}
    for result in results:
        group = groups.setdefault(_key(result), {})
        if result.seed in group:
            path, counted = result.runs[-1].path, group[result.seed].runs[-1].path
            problems.append(f"{path} has the settings and the seed of {counted}; it is not counted")
        else:
            group[result.seed] = result
    return [
        Group(i, tuple(group[seed] for seed in sorted(group)))
        for i, group in enumerate(groups.values(), start=1)
    ]


def _key(result: Result) -> str:
    """Return a text that two results have in common if only their seeds differ."""
    parts = []
    for run in result.runs:
        settings = {k: v for k, v in vars(run.config).items() if k not in NOT_A_DIFFERENCE}
        if result.search is not None:
            settings.pop("genotype", None)  # what the search found
        parts.append((run.config.kind, sorted(settings.items())))
    return repr(parts)
