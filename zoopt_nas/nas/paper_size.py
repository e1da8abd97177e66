"""What makes a run smaller than the one that the paper describes: results say so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zoopt_nas.nas.config import RunConfig, TrainConfig
from zoopt_nas.nas.defaults import RDARTS_SIZES

# Batches and rates follow the data.
_SIZES = ("epochs", "n_cells", "init_channels")
_DATASETS = ("cifar10", "cifar100", "svhn", "imagenet")
_NAMES = {"search": "search", "train": "retraining"}


def reductions(*configs: RunConfig) -> list[str]:
    """What is smaller than in the paper: ``["dataset digits", "epochs 3 of 50", ...]``.

    The paper's sizes are the defaults of the config's class for its data set, and those that the
    protocol of R-DARTS has for it. Empty at full size.

    Args:
        *configs: of one run, or of a search and its retraining, whose sizes are then told apart.
    """
    found: dict[str, None] = {}
    for config in configs:
        if config.dataset not in _DATASETS:
            found[f"dataset {config.dataset}"] = None
    for config in configs:
        kind = f"{_NAMES[config.kind]} " if len(configs) > 1 else ""
        own = [] if config.n_train is None else [f"n_train {config.n_train}"]
        for name, usual in _paper_sizes(config).items():
            size = getattr(config, name)
            if size < usual:
                own.append(f"{name} {size} of {usual}")
        found |= dict.fromkeys(kind + one for one in own)
    return list(found)


def reductions_of_all(runs: Iterable[Sequence[RunConfig]]) -> list[str]:
    """What is smaller in any of several runs, each as ``reductions`` takes its configs."""
    return list(dict.fromkeys(one for configs in runs for one in reductions(*configs)))


def _paper_sizes(config: RunConfig) -> dict[str, int]:
    cls = type(config)
    known = cls.defaults_for(config.dataset) if config.dataset in _DATASETS else {}
    sizes = {name: known.get(name, getattr(cls(), name)) for name in _SIZES}
    published = RDARTS_SIZES.get(config.dataset, {}).values()
    if isinstance(config, TrainConfig) and (config.n_cells, config.init_channels) in published:
        sizes["n_cells"], sizes["init_channels"] = config.n_cells, config.init_channels
    return sizes
