"""Neural architecture search with zero-order optimization (ZARTS): the adapter for PyTorch.

Needs the extra: ``pip install 'zoopt-nas[nas]'``. Names are imported when first used, so that the
command line can show the defaults of ``zoopt_nas.nas.config`` without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zoopt_nas.errors import MissingDependencyError

if TYPE_CHECKING:
    from zoopt_nas.nas.analyses.landscape import Landscape as Landscape
    from zoopt_nas.nas.analyses.landscape import LandscapeSettings as LandscapeSettings
    from zoopt_nas.nas.analyses.landscape_run import compute_landscape as compute_landscape
    from zoopt_nas.nas.bilevel import BilevelObjective as BilevelObjective
    from zoopt_nas.nas.capacity import free_memory as free_memory
    from zoopt_nas.nas.config import SearchConfig as SearchConfig
    from zoopt_nas.nas.config import TrainConfig as TrainConfig
    from zoopt_nas.nas.data import BatchStream as BatchStream
    from zoopt_nas.nas.data import Dataset as Dataset
    from zoopt_nas.nas.data import load_dataset as load_dataset
    from zoopt_nas.nas.data import split_indices as split_indices
    from zoopt_nas.nas.datasets import DATASETS as DATASETS
    from zoopt_nas.nas.distributed import Processes as Processes
    from zoopt_nas.nas.exports.run import ExportResult as ExportResult
    from zoopt_nas.nas.exports.run import export_network as export_network
    from zoopt_nas.nas.genotype import GENOTYPES as GENOTYPES
    from zoopt_nas.nas.genotype import Genotype as Genotype
    from zoopt_nas.nas.loop import Observer as Observer
    from zoopt_nas.nas.loop import Progress as Progress
    from zoopt_nas.nas.loop import Start as Start
    from zoopt_nas.nas.loop import StartObserver as StartObserver
    from zoopt_nas.nas.memory import MemoryEstimate as MemoryEstimate
    from zoopt_nas.nas.memory import estimate_search as estimate_search
    from zoopt_nas.nas.memory import estimate_training as estimate_training
    from zoopt_nas.nas.methods import METHODS as METHODS
    from zoopt_nas.nas.network import Network as Network
    from zoopt_nas.nas.network import count_multiply_adds as count_multiply_adds
    from zoopt_nas.nas.network import count_parameters as count_parameters
    from zoopt_nas.nas.operations import OPERATIONS as OPERATIONS
    from zoopt_nas.nas.retrain import TrainResult as TrainResult
    from zoopt_nas.nas.retrain import resume_training as resume_training
    from zoopt_nas.nas.retrain import run_training as run_training
    from zoopt_nas.nas.runs import RunFolder as RunFolder
    from zoopt_nas.nas.search import SearchResult as SearchResult
    from zoopt_nas.nas.search import resume_search as resume_search
    from zoopt_nas.nas.search import run_search as run_search
    from zoopt_nas.nas.spaces import SPACES as SPACES
    from zoopt_nas.nas.spaces import SearchSpace as SearchSpace
    from zoopt_nas.nas.supernet import Supernet as Supernet
    from zoopt_nas.nas.updaters import AlphaUpdater as AlphaUpdater
    from zoopt_nas.nas.updaters import ZeroOrderUpdater as ZeroOrderUpdater

_EXPORTS = {
    "bilevel": ("BilevelObjective",),
    "capacity": ("free_memory",),
    "config": ("SearchConfig", "TrainConfig"),
    "data": ("BatchStream", "Dataset", "load_dataset", "split_indices"),
    "datasets": ("DATASETS",),
    "distributed": ("Processes",),
    "exports.run": ("ExportResult", "export_network"),
    "genotype": ("GENOTYPES", "Genotype"),
    "analyses.landscape": ("Landscape", "LandscapeSettings"),
    "analyses.landscape_run": ("compute_landscape",),
    "loop": ("Observer", "Progress", "Start", "StartObserver"),
    "memory": ("MemoryEstimate", "estimate_search", "estimate_training"),
    "methods": ("METHODS",),
    "network": ("Network", "count_multiply_adds", "count_parameters"),
    "operations": ("OPERATIONS",),
    "retrain": ("TrainResult", "resume_training", "run_training"),
    "runs": ("RunFolder",),
    "search": ("SearchResult", "resume_search", "run_search"),
    "spaces": ("SPACES", "SearchSpace"),
    "supernet": ("Supernet",),
    "updaters": ("AlphaUpdater", "ZeroOrderUpdater"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_MODULE_OF[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("zoopt_nas"):
            raise
        raise MissingDependencyError(
            f"architecture search needs {error.name}: pip install 'zoopt-nas[nas]'"
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
