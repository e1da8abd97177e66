"""What makes a run smaller than the one that the paper describes: results say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from zoopt_nas.nas.config import RunConfig, SearchConfig, TrainConfig
from zoopt_nas.nas.defaults import BASELINES, GRADIENT_ALGOS, RDARTS_SIZES
from zoopt_nas.solvers import GLD, SOLVERS, make_solver

# Batches and rates follow the data.
_SIZES = ("epochs", "n_cells", "init_channels")
_IMAGE_SIZES = {"cifar10": 32, "cifar100": 32, "svhn": 32, "imagenet": 224}
_NAMES = {"search": "search", "train": "retraining"}
_N, _M = 4, 10  # samples of an update, and steps that fit each of them (paper B.2)
_PC_CHANNELS = 4  # K of PC-DARTS

Largest = Mapping[tuple[str, str], int]
"""The largest value of a setting among several searches, by method and name of the setting."""


def reductions(*configs: RunConfig) -> list[str]:
    """What is smaller than in the paper: ``["dataset digits", "epochs 3 of 50", ...]``.

    The paper's sizes are the defaults of the config's class for its data set, and those that the
    protocol of R-DARTS has for it; in a search also N, M and the period of the updates, and the
    whole width of the supernet. Empty at full size.

    Args:
        *configs: of one run, or of a search and its retraining, whose sizes are then told apart.
    """
    return _reductions(configs, {})


def reductions_of_all(runs: Iterable[Sequence[RunConfig]]) -> list[str]:
    """What is smaller in any of several runs, each as ``reductions`` takes its configs.

    The paper itself compares values of N and of M (Tables 5 and 6): searches that differ in one of
    them are as large in it as the largest.
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
        if config.dataset not in _IMAGE_SIZES:
            found[f"dataset {config.dataset}"] = None
    for config in configs:
        kind = f"{_NAMES[config.kind]} " if len(configs) > 1 else ""
        own = [] if config.n_train is None else [f"n_train {config.n_train}"]
        for name, usual in _paper_sizes(config).items():
            size = getattr(config, name)
            if size is not None and size < usual:
                own.append(f"{name} {size} of {usual}")
        if isinstance(config, SearchConfig):
            own += _search_reductions(config, largest)
        found |= dict.fromkeys(kind + one for one in own)
    return list(found)


def _paper_sizes(config: RunConfig) -> dict[str, int]:
    cls = type(config)
    known = cls.defaults_for(config.dataset) if config.dataset in _IMAGE_SIZES else {}
    sizes = {name: known.get(name, getattr(cls(), name)) for name in _SIZES}
    published = RDARTS_SIZES.get(config.dataset, {}).values()
    if isinstance(config, TrainConfig) and (config.n_cells, config.init_channels) in published:
        sizes["n_cells"], sizes["init_channels"] = config.n_cells, config.init_channels
    if config.dataset in _IMAGE_SIZES:
        sizes["image_size"] = _IMAGE_SIZES[config.dataset]
    return sizes


def _search_reductions(config: SearchConfig, largest: Largest) -> list[str]:
    own = [
        f"{name} {value} of {usual}"
        for name, value, usual in _update_sizes(config)
        if largest.get((config.algo, name), value) < usual
    ]
    if config.algo in SOLVERS and config.algo not in BASELINES and config.inner != "sgd":
        own.append(f"inner {config.inner}, not sgd")
    is_gradient = config.algo in GRADIENT_ALGOS
    period = 1 if is_gradient else max(config.inner_steps, 1)
    if config.algo not in ("random", "random_ws") and (config.update_period or 0) > period:
        own.append(f"update_period {config.update_period}, not {period}")
    parts = _PC_CHANNELS if config.algo == "pc" else 1
    if config.partial_channels > parts:
        own.append(f"partial_channels {config.partial_channels}, not {parts}")
    return own


def _update_sizes(config: SearchConfig) -> list[tuple[str, int, int]]:
    """M and N of a zero-order search: name, value, and the paper's; nothing for a baseline."""
    if config.algo in BASELINES:
        return []
    sizes = [("inner_steps", config.inner_steps, _M)] if config.inner == "sgd" else []
    n_samples = _n_samples(config)
    return sizes if n_samples is None else [*sizes, ("n_samples", n_samples, _N)]


def _n_samples(config: SearchConfig) -> int | None:
    """N: samples, pairs or radii; None where the solver has no such number."""
    options = dict(config.solver)
    if "n_samples" in options:
        return int(options["n_samples"])
    if config.algo not in SOLVERS:
        return None
    solver = make_solver(config.algo, options)
    if isinstance(solver, GLD):
        return len(solver.radii(1))
    n: int | None = getattr(solver, "n_samples", None)
    return n
