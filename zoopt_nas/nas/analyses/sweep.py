"""Searches over several values of settings and several seeds (paper, B.3: Tables 5 and 6).

::

    sweep/sweep.toml                      the varied settings, the seeds, the fixed settings
    sweep/n_samples=2-seed0/              a search
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
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.tabular.table import TRUE_ACCURACIES

FILE = "sweep.toml"
_KIND = "sweep"
# The metrics of the last epoch among the numbers of a search.
_LAST_EPOCH = ("val_accuracy", "n_effective", "effective_ratio", "evaluations")


class SweepRun(NamedTuple):
    """One search of a sweep: its values of the varied settings, seed, name and config."""

    point: dict[str, Any]
    seed: int
    name: str
    config: SearchConfig


@dataclass(frozen=True)
class SweepResult:
    """The result of one search of a sweep.

    ``numbers`` has ``val_accuracy`` of the supernet (with fresh weights, of the cell),
    ``skip_connections`` of the normal cell, ``n_effective`` and ``effective_ratio`` of the last
    epoch (MGS), ``evaluations`` of zero-order methods, ``seconds`` of the search, with a table the
    true accuracies ``true_cifar10``, ``true_cifar100`` and ``true_imagenet16``, and after a
    retraining ``test_error`` in [0, 1] and ``n_parameters``.
    """

    point: dict[str, Any]  # the values of the varied settings
    seed: int
    name: str
    numbers: dict[str, float]


class MeanStd(NamedTuple):
    """Statistics over seeds: mean, standard deviation with n - 1 (None if n = 1), n, minimum."""

    mean: float
    std: float | None
    n: int
    least: float


@dataclass(frozen=True)
class Sweep:
    """A grid of searches.

    Attributes:
        vary: the values of each varied setting, a field of ``SearchConfig`` or an option of the
            solver; all combinations are run.
        seeds: every combination is run with each.
        search: the fixed settings, as for ``SearchConfig.for_dataset``.
        train: settings of the retrainings, including ``protocol``; None for no retraining.
        command: the command line, for the record.

    Raises:
        InvalidValueError: a list is empty or repeats a value, or a setting is wrong.
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
            raise InvalidValueError(f"vary must give each run a different name, got {names}")
        self._configs()  # checks the retrainings

    def runs(self) -> list[SweepRun]:
        """Return every search, grouped by combination."""
        runs = []
        for values in itertools.product(*self.vary.values()):
            point = dict(zip(self.vary, values, strict=True))
            label = ",".join(f"{name}={_in_a_name(value)}" for name, value in point.items())
            for seed in self.seeds:
                config = _config({**self.search, "seed": seed}, point)
                runs.append(SweepRun(point, seed, f"{label}-seed{seed}", config))
        return runs

    def reductions(self) -> list[str]:
        """Return what is smaller than in the paper in any of the runs; see ``paper_size``."""
        return reductions_of_all(self._configs())

    def _configs(self) -> list[list[RunConfig]]:
        """Return the config of each search and of its retraining, with any genotype."""
        configs: list[list[RunConfig]] = []
        for run in self.runs():
            configs.append([run.config])
            if self.train is not None:
                retraining = retraining_of(run.config, GENOTYPES["DARTS_V2"], **self.train)
                configs[-1].append(retraining)
        return configs

    def to_toml(self) -> str:
        """Return the sweep as TOML."""
        import tomli_w

        vary = {name: list(values) for name, values in self.vary.items()}
        parts = {"kind": _KIND, "command": self.command, "seeds": list(self.seeds), "vary": vary}
        parts |= {"search": self.search} | ({} if self.train is None else {"train": self.train})
        return tomli_w.dumps(parts)

    @classmethod
    def from_toml(cls, text: str) -> Sweep:
        """Return the sweep in a TOML text; tuples within the settings come back as lists.

        Raises:
            InvalidValueError: the text is not a sweep.
        """
        try:
            parts = tomllib.loads(text)
            kind, vary = parts.pop("kind"), parts.pop("vary")
            if kind != _KIND:
                raise InvalidValueError(f"kind must be {_KIND}, got {kind}")
            vary = {name: tuple(values) for name, values in vary.items()}
            return cls(vary=vary, seeds=tuple(parts.pop("seeds")), **parts)
        except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ZooptNasError):
                raise
            raise InvalidValueError(f"not a sweep: {error}") from error

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """Return the sweep in a folder.

        Raises:
            RunError: there is none, or its file is damaged.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise RunError(f"{folder} is not the folder of a sweep: it has no {FILE}")
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except (ZooptNasError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}") from error


def run_sweep(
    sweep: Sweep, folder: str | Path, *, observer: Observer | None = None
) -> Iterator[SweepResult]:
    """Run what is left of a sweep in ``folder``, which is created if needed; yield each result.

    Raises:
        RunError: the folder holds something else.
        RunInterrupted: the observer stopped a run; running the sweep again continues it.
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
    """Return the statistics over the seeds of each combination, in the order of the results."""
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
    """Return the search at a point, checked as far as possible without running it."""
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
    for name in (*_LAST_EPOCH, *TRUE_ACCURACIES):
        if rows and rows[-1].get(name) is not None:
            numbers[name] = rows[-1][name]
    numbers["seconds"] = math.fsum(row["seconds"] for row in rows)
    return numbers


def _in_a_name(value: Any) -> str:
    """Return a value as part of a file name."""
    return re.sub(r"[^\w.+-]", "_", Path(str(value)).name or str(value))


def _create(folder: Path, text: str) -> None:
    """Create the folder with its file in one step."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with creating(folder) as temporary:
            (temporary / FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}") from error
