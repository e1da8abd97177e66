"""Find what makes a run smaller than in the paper, for a note in its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.settings.defaults import RDARTS_SIZES
from zoopt_nas.nas.settings.methods import GRADIENT, RANDOM, ZERO_ORDER, kind_of
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.registry import installed
from zoopt_nas.solvers import GLD, SOLVERS, make_solver

# Batches and rates follow the data.
_SIZES = ("epochs", "n_cells", "init_channels")
_IMAGE_SIZES = {"cifar10": 32, "cifar100": 32, "svhn": 32, "imagenet": 224}
_SMALLEST_IMAGE = min(_IMAGE_SIZES.values())  # in the paper, for data that it does not have
_NAMES = {"search": "search", "train": "retraining"}
_N, _M = 4, 10  # samples of an update, and inner steps of each (paper B.2)
_PC_CHANNELS = 4  # K of PC-DARTS

Largest = Mapping[tuple[str, str], int]
"""The largest value of a setting in several searches, by method and name of the setting."""


def reductions(*configs: RunConfig) -> list[str]:
    """Return what is smaller than in the paper: ``["dataset digits", "epochs 3 of 50", ...]``.

    It compares with the defaults and the R-DARTS protocol for the data set, and in a search with
    N, M, the period of the updates and the full width. Data sets of installed packages count as
    full size; the digits, files and folders do not.

    Args:
        *configs: One config, or the configs of a search and its retraining.
    """
    return _reductions(configs, {})


def reductions_of_all(runs: Iterable[Sequence[RunConfig]]) -> list[str]:
    """Return what is smaller in any of several runs, each with its configs for ``reductions``.

    For N and M the largest value counts, because the paper compares values (Tables 5 and 6).
    """
    runs = list(runs)
    largest: dict[tuple[str, str], int] = {}
    searches = [one for configs in runs for one in configs if isinstance(one, SearchConfig)]
    for config in searches:
        for name, value, _ in _update_sizes(config):
            key = config.algo, name
            largest[key] = max(value, largest.get(key, value))
    return list(dict.fromkeys(one for configs in runs for one in _reductions(configs, largest)))


def _reductions(configs: Sequence[RunConfig], largest: Largest) -> list[str]:
    found: dict[str, None] = {}
    for config in configs:
        if config.dataset not in {*_IMAGE_SIZES, *installed("zoopt_nas.datasets")} - {"digits"}:
            found[f"dataset {config.dataset}"] = None
    for config in configs:
        kind = f"{_NAMES[config.kind]} " if len(configs) > 1 else ""
        smaller = [] if config.n_train is None else [f"n_train {config.n_train}"]
        for name, usual in _paper_sizes(config).items():
            size = getattr(config, name)
            if size is not None and size < usual:
                smaller.append(f"{name} {size} of {usual}")
        if isinstance(config, SearchConfig):
            smaller += _search_reductions(config, largest)
        found |= dict.fromkeys(kind + one for one in smaller)
    return list(found)


def _paper_sizes(config: RunConfig) -> dict[str, int]:
    dataset = config.dataset if config.dataset in _IMAGE_SIZES else ""
    if isinstance(config, SearchConfig):
        usual = config.defaults_for(dataset, config.algo, config.space)
    else:
        assert isinstance(config, TrainConfig)
        usual = config.defaults_for(dataset, config.genotype)
    sizes = {name: usual[name] for name in (*_SIZES, "sampled_paths") if name in usual}
    published = RDARTS_SIZES.get(config.dataset, {}).values()
    if isinstance(config, TrainConfig) and (config.n_cells, config.init_channels) in published:
        sizes["n_cells"], sizes["init_channels"] = config.n_cells, config.init_channels
    if config.dataset in _IMAGE_SIZES or config.dataset not in installed("zoopt_nas.datasets"):
        sizes["image_size"] = _IMAGE_SIZES.get(config.dataset, _SMALLEST_IMAGE)
    return sizes


def _search_reductions(config: SearchConfig, largest: Largest) -> list[str]:
    kind = kind_of(config.algo)
    smaller = [
        f"{name} {value} of {usual}"
        for name, value, usual in _update_sizes(config)
        if largest.get((config.algo, name), value) < usual
    ]
    if kind == ZERO_ORDER and config.inner != "sgd":
        smaller.append(f"inner {config.inner}, not sgd")
    period = 1 if kind == GRADIENT else max(config.inner_steps, 1)
    if kind != RANDOM and (config.update_period or 0) > period:
        smaller.append(f"update_period {config.update_period}, not {period}")
    parts = _PC_CHANNELS if config.algo == "pc" else 1
    if config.partial_channels > parts:
        smaller.append(f"partial_channels {config.partial_channels}, not {parts}")
    if config.merge_kernels and config.algo != "merge_nas":
        smaller.append("merge_kernels")
    return smaller


def _update_sizes(config: SearchConfig) -> list[tuple[str, int, int]]:
    """Return name, value and the paper's value of M and N in a zero-order search."""
    if kind_of(config.algo) != ZERO_ORDER:
        return []
    sizes = [("inner_steps", config.inner_steps, _M)] if config.inner == "sgd" else []
    n_samples = _n_samples(config)
    return sizes if n_samples is None else [*sizes, ("n_samples", n_samples, _N)]


def _n_samples(config: SearchConfig) -> int | None:
    """Return N, the number of samples, pairs or radii; None if a search leaves it to the solver."""
    if "n_samples" in config.solver:
        return int(config.solver["n_samples"])
    if config.algo not in SOLVERS:
        return None
    solver = make_solver(config.algo, dict(config.solver))
    return len(solver.radii(1)) if isinstance(solver, GLD) else None
