"""Searches over several values of a setting and several seeds (paper, B.3: Tables 5 and 6).

::

    sweep/sweep.toml                      what is varied, the seeds, the settings that stay
    sweep/n_samples=2-seed0/              a search, as ``run_search`` leaves it
    sweep/n_samples=2-seed0/train/        its retraining, if the sweep has one
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from zoopt_nas._files import creating
from zoopt_nas.errors import InvalidValueError, RunError, UnknownNameError, ZooptNasError
from zoopt_nas.nas.analyses.run_once import retraining_of, search_once, train_once
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.runs.folder import METRICS, RunFolder
from zoopt_nas.nas.runs.loop import Observer
from zoopt_nas.nas.search.methods import METHODS
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.methods import ZERO_ORDER
from zoopt_nas.nas.settings.paper_size import reductions_of_all

_FILE = "sweep.toml"
_KIND = "sweep"


class SweepRun(NamedTuple):
    """One search of a sweep: the varied settings at their values, the seed, its name and config."""

    point: dict[str, Any]
    seed: int
    name: str
    config: SearchConfig


@dataclass(frozen=True)
class SweepResult:
    """What one search of a sweep came to.

    Attributes:
        point: the varied settings at their values.
        seed: of the search and the retraining.
        name: of the run folder in that of the sweep.
        numbers: by name: ``val_accuracy`` of the supernet, ``skip_connections`` of the normal cell,
            ``n_effective`` and ``effective_ratio`` of the last epoch (MGS), ``seconds`` of the
            search, and after a retraining ``test_error`` in [0, 1] and ``n_parameters``.
    """

    point: dict[str, Any]
    seed: int
    name: str
    numbers: dict[str, float]


class MeanStd(NamedTuple):
    """Over seeds: the mean, the standard deviation with n - 1 (None for one seed), n, the least."""

    mean: float
    std: float | None
    n: int
    least: float


@dataclass(frozen=True)
class Sweep:
    """A grid of searches.

    Attributes:
        vary: the values of each varied setting, a field of ``SearchConfig`` or an option of the
            solver; of several settings all combinations are run.
        seeds: each combination is run with each.
        search: the settings that stay, as ``SearchConfig.for_dataset`` takes them.
        train: settings of a retraining of each result, and ``protocol``; None = no retraining.
        command: the command line that asked for it, for the record.

    Raises:
        InvalidValueError: a list is empty or has a value twice, or a run's setting is wrong.
        UnknownNameError: there is no such setting, space or method.
    """

    vary: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    search: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if not self.vary:
            raise InvalidValueError("vary must name a setting, got none")
        for name, values in {**self.vary, "seeds": self.seeds}.items():
            if not values or len({str(value) for value in values}) < len(values):
                raise InvalidValueError(
                    f"{name} must have one or more different values, got {list(values)}"
                )
        if "seed" in self.vary or "seed" in self.search:
            raise InvalidValueError("seed must be left to seeds, got it as a setting")
        names = [run.name for run in self.runs()]
        if len(set(names)) < len(names):
            raise InvalidValueError(f"vary must give each run a name of its own, got {names}")
        if self.train is not None:
            for run in self.runs():
                retraining_of(run.config, GENOTYPES["DARTS_V2"], **self.train)

    def runs(self) -> list[SweepRun]:
        """Every search, all seeds of a combination together."""
        runs = []
        for values in itertools.product(*self.vary.values()):
            point = dict(zip(self.vary, values, strict=True))
            label = ",".join(f"{name}={_in_a_name(value)}" for name, value in point.items())
            for seed in self.seeds:
                config = _config({**self.search, "seed": seed}, point)
                runs.append(SweepRun(point, seed, f"{label}-seed{seed}", config))
        return runs

    def reductions(self) -> list[str]:
        """What is smaller than in the paper, see ``paper_size``; of any of the runs."""
        runs = [run.config for run in self.runs()]
        if self.train is None:
            return reductions_of_all([search] for search in runs)
        any_genotype, train = GENOTYPES["DARTS_V2"], self.train
        return reductions_of_all(
            (search, retraining_of(search, any_genotype, **train)) for search in runs
        )

    def to_toml(self) -> str:
        """The sweep as TOML."""
        import tomli_w

        parts: dict[str, Any] = {"kind": _KIND, "command": self.command, "seeds": list(self.seeds)}
        parts |= {"vary": {name: list(values) for name, values in self.vary.items()}}
        parts |= {"search": self.search}
        return tomli_w.dumps(parts if self.train is None else {**parts, "train": self.train})

    @classmethod
    def from_toml(cls, text: str) -> Sweep:
        """The inverse of ``to_toml``; tuples within the settings come back as lists.

        Raises:
            InvalidValueError: it is no sweep.
        """
        try:
            parts = tomllib.loads(text)
            kind, vary = parts.pop("kind"), parts.pop("vary")
            if kind != _KIND:
                raise InvalidValueError(f"kind must be {_KIND}, got {kind}")
            values = {name: tuple(there) for name, there in vary.items()}
            return cls(vary=values, seeds=tuple(parts.pop("seeds")), **parts)
        except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ZooptNasError):
                raise
            raise InvalidValueError(f"not a sweep: {error}") from error

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """The sweep in a folder.

        Raises:
            RunError: there is none, or its file is damaged.
        """
        path = Path(folder) / _FILE
        if not path.is_file():
            raise RunError(f"{folder} is not the folder of a sweep: it has no {_FILE}")
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except (ZooptNasError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}") from error


def run_sweep(
    sweep: Sweep, folder: str | Path, *, observer: Observer | None = None
) -> Iterator[SweepResult]:
    """Does what is left of a sweep in ``folder``, and gives each result as it is known.

    The folder is made if it is not there. Runs that have ended are read, not done again.

    Raises:
        RunError: the folder is that of something else.
        RunInterrupted: the observer asked to stop. Run the sweep again to go on.
    """
    folder = Path(folder)
    if not folder.exists():
        _create(folder, sweep.to_toml())
    there, asked = Sweep.load(folder), Sweep.from_toml(sweep.to_toml())
    for spec in fields(Sweep):
        if spec.name != "command" and getattr(there, spec.name) != getattr(asked, spec.name):
            raise RunError(f"{folder} is a sweep with other {spec.name}; name another folder")
    for run in sweep.runs():
        searched = search_once(run.config, folder / run.name, observer=observer)
        numbers = _searched(searched)
        if sweep.train is not None:
            config = retraining_of(run.config, searched.genotype(), **sweep.train)
            result = train_once(config, searched.path / TrainConfig.kind, observer=observer)
            numbers["test_error"] = 1 - result.test_accuracy
            numbers["n_parameters"] = result.n_parameters
        yield SweepResult(run.point, run.seed, run.name, numbers)


def summarize(results: Sequence[SweepResult]) -> list[tuple[dict[str, Any], dict[str, MeanStd]]]:
    """Mean and deviation over the seeds of each combination, in the order in which they came.

    A number that no run of a combination has is left out of it.
    """
    groups: dict[str, list[SweepResult]] = {}
    for result in results:
        groups.setdefault(str(result.point), []).append(result)
    rows = []
    for group in groups.values():
        names = dict.fromkeys(name for result in group for name in result.numbers)
        rows.append((group[0].point, {name: _over_seeds(group, name) for name in names}))
    return rows


def _over_seeds(group: Sequence[SweepResult], name: str) -> MeanStd:
    values = [result.numbers[name] for result in group if name in result.numbers]
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanStd(statistics.fmean(values), std, len(values), min(values))


def _config(settings: Mapping[str, Any], point: Mapping[str, Any]) -> SearchConfig:
    """The search at a point, checked as far as it can be without running it."""
    names = ["preset", *(spec.name for spec in fields(SearchConfig))]
    options = {name: value for name, value in point.items() if name not in names}
    chosen = {**settings, **{name: value for name, value in point.items() if name in names}}
    if options:
        chosen["solver"] = {**chosen.get("solver", {}), **options}
    config = SearchConfig.for_dataset(**chosen)
    method, _ = METHODS[config.algo], SPACES[config.space]
    if options and method.kind != ZERO_ORDER:
        raise UnknownNameError(f"setting of {config.algo}", next(iter(options)), names)
    method.check(config)
    return config


def _searched(folder: RunFolder) -> dict[str, float]:
    rows = folder.rows(METRICS)
    numbers: dict[str, float] = {"skip_connections": folder.genotype().count("skip_connect")}
    for name in ("val_accuracy", "n_effective", "effective_ratio"):
        if rows and rows[-1].get(name) is not None:
            numbers[name] = rows[-1][name]
    numbers["seconds"] = math.fsum(row["seconds"] for row in rows)
    return numbers


def _in_a_name(value: Any) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^\w.+-]", "_", Path(str(value)).name or str(value))


def _create(folder: Path, text: str) -> None:
    """Makes the folder with its file in one step."""
    try:
        with creating(folder) as temporary:
            (temporary / _FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}") from error
