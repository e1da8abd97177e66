"""Searches over several values of settings and several seeds (paper, B.3: Tables 5 and 6).

::

    sweep/sweep.toml                      the varied settings, the seeds, the fixed settings
    sweep/n_samples=2-seed0/              a search
    sweep/n_samples=2-seed0/train/        its retraining, if the sweep has one
    sweep/logs/                           what its processes print, if it has several

``engines`` and ``ray_engine`` run the searches side by side.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
import tomllib
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from zoopt_nas._checks import check_at_least
from zoopt_nas._files import creating
from zoopt_nas.errors import (
    FailedRunsError,
    InvalidValueError,
    RunError,
    RunInterrupted,
    UnknownNameError,
    ZooptNasError,
)
from zoopt_nas.nas.analyses.engines import Engine, Outcome
from zoopt_nas.nas.analyses.run_once import (
    GENOTYPE,
    RESULT,
    last_row,
    retraining_of,
    search_once,
    train_once,
    train_result,
)
from zoopt_nas.nas.networks.genotype import GENOTYPES
from zoopt_nas.nas.networks.spaces import space_of
from zoopt_nas.nas.networks.supernet import check_merging
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

    def needs_gpu(self) -> bool | None:
        """Return whether runs need a GPU; None means that they use one if there is any."""
        devices = {config.device for configs in self._configs() for config in configs}
        if any(device.startswith("cuda") for device in devices):
            return True
        return None if "auto" in devices else False

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
    sweep: Sweep,
    folder: str | Path,
    *,
    observer: Observer | None = None,
    engine: Engine | None = None,
    retries: int = 1,
) -> Iterator[SweepResult]:
    """Run what is left of a sweep in ``folder``, which is created if needed; yield each result.

    The results of finished runs come first, then the others as they finish.

    Args:
        sweep: the runs.
        folder: the folder.
        observer: watches the runs in this process, and may stop the sweep with any engine.
        engine: how the runs are executed; None executes one after the other in this process.
        retries: how often a run that fails is continued, after the runs that are still waiting.

    Raises:
        FailedRunsError: runs failed; it is raised after all others have finished.
        RunError: the folder holds something else.
        DataError: the data of a finished run differ from the present ones.
        RunInterrupted: the observer stopped a run; running the sweep again continues it.
    """
    check_at_least("retries", retries, 0)
    folder = Path(folder)
    if not folder.exists():
        _create(folder, sweep.to_toml())
    there, asked = Sweep.load(folder), Sweep.from_toml(sweep.to_toml())
    for spec in fields(Sweep):
        if spec.name != "command" and getattr(there, spec.name) != getattr(asked, spec.name):
            raise RunError(f"{folder} is a sweep with other {spec.name}; name another folder")
    runs = {run.name: run for run in sweep.runs()}
    finished = [name for name in runs if _is_finished(folder / name, sweep)]
    for name in finished:
        yield run_one(sweep, runs[name], folder)  # returns at once
    queue = deque(name for name in runs if name not in finished)
    should_stop = observer.should_stop if observer is not None else lambda: False
    n_failures, failures = Counter[str](), dict[str, str]()
    engine = engine or _ThisProcess(sweep, observer)
    with closing(engine.execute(folder, queue, should_stop)) as outcomes:
        for name, error in outcomes:
            if error is None:
                yield _result(sweep, runs[name], folder)
                continue
            n_failures[name] += 1
            if n_failures[name] <= retries:
                warnings.warn(f"{name} failed and will be continued: {error}", stacklevel=2)
                queue.append(name)
            else:
                failures[name] = error
    if failures:
        raise FailedRunsError(failures, len(runs))


def run_one(
    sweep: Sweep, run: SweepRun, folder: str | Path, *, observer: Observer | None = None
) -> SweepResult:
    """Execute what is left of one run of the sweep in ``folder``, in this process."""
    searched = search_once(run.config, Path(folder) / run.name, observer=observer)
    if sweep.train is not None:
        config = retraining_of(run.config, searched.genotype(), **sweep.train)
        train_once(config, searched.path / TrainConfig.kind, observer=observer)
    return _result(sweep, run, folder)


@dataclass(frozen=True)
class _ThisProcess:
    """The engine that executes one run after the other in this process."""

    sweep: Sweep
    observer: Observer | None

    def execute(
        self, folder: Path, queue: deque[str], should_stop: Callable[[], bool]
    ) -> Generator[Outcome, None, None]:
        runs = {run.name: run for run in self.sweep.runs()}
        while queue:
            name, error = queue.popleft(), None
            try:
                run_one(self.sweep, runs[name], folder, observer=self.observer)
            except RunInterrupted:
                raise
            except (ZooptNasError, OSError, MemoryError, RuntimeError) as failure:
                error = str(failure) or type(failure).__name__
            yield Outcome(name, error)


def _is_finished(path: Path, sweep: Sweep) -> bool:
    last = GENOTYPE if sweep.train is None else f"{TrainConfig.kind}/{RESULT}"
    return (path / last).is_file()


def _result(sweep: Sweep, run: SweepRun, folder: str | Path) -> SweepResult:
    """Return the result of a finished run."""
    searched = RunFolder.open(Path(folder) / run.name)
    numbers = _searched(searched)
    if sweep.train is not None:
        result = train_result(searched.path / TrainConfig.kind)
        numbers["test_error"] = 1 - result.test_accuracy
        numbers["n_parameters"] = result.n_parameters
    return SweepResult(run.point, run.seed, run.name, numbers)


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
    method, space = METHODS[config.algo], space_of(config)
    if options and method.kind != ZERO_ORDER:
        raise UnknownNameError(f"setting of {config.algo}", next(iter(options)), names)
    method.check(config)
    method.check_supernet(config)
    method.check_space(config, space)
    if config.merge_kernels:
        check_merging(space)
    return config


def _searched(folder: RunFolder) -> dict[str, float]:
    numbers: dict[str, float] = {"skip_connections": folder.genotype().count("skip_connect")}
    last = last_row(folder)
    for name in (*_LAST_EPOCH, *TRUE_ACCURACIES):
        if last.get(name) is not None:
            numbers[name] = last[name]
    numbers["seconds"] = math.fsum(row["seconds"] for row in folder.rows(METRICS))
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
