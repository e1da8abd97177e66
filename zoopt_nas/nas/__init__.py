"""Neural architecture search with zero-order optimization (ZARTS) in PyTorch.

Requires the extra: ``pip install 'zoopt-nas[nas]'``. Names are imported on first use, so that the
command line can show the settings without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zoopt_nas.errors import MissingDependencyError

if TYPE_CHECKING:
    from zoopt_nas.nas.analyses.landscape.compute import compute_landscape as compute_landscape
    from zoopt_nas.nas.analyses.landscape.plane import Landscape as Landscape
    from zoopt_nas.nas.analyses.landscape.plane import LandscapeSettings as LandscapeSettings
    from zoopt_nas.nas.data.augmentation import Augmentation as Augmentation
    from zoopt_nas.nas.data.batches import BatchStream as BatchStream
    from zoopt_nas.nas.data.batches import split_indices as split_indices
    from zoopt_nas.nas.data.datasets import DATASETS as DATASETS
    from zoopt_nas.nas.data.datasets import DatasetSpec as DatasetSpec
    from zoopt_nas.nas.data.image_sets import Dataset as Dataset
    from zoopt_nas.nas.data.loading import load_dataset as load_dataset
    from zoopt_nas.nas.exports.run import ExportResult as ExportResult
    from zoopt_nas.nas.exports.run import export_network as export_network
    from zoopt_nas.nas.networks.architecture import Architecture as Architecture
    from zoopt_nas.nas.networks.architectures import load_architecture as load_architecture
    from zoopt_nas.nas.networks.build import make_network as make_network
    from zoopt_nas.nas.networks.counting import count_multiply_adds as count_multiply_adds
    from zoopt_nas.nas.networks.counting import count_parameters as count_parameters
    from zoopt_nas.nas.networks.darts_network import DartsNetwork as DartsNetwork
    from zoopt_nas.nas.networks.darts_space import DartsSpace as DartsSpace
    from zoopt_nas.nas.networks.darts_supernet import DartsSupernet as DartsSupernet
    from zoopt_nas.nas.networks.genotype import GENOTYPES as GENOTYPES
    from zoopt_nas.nas.networks.genotype import Genotype as Genotype
    from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype as NasBench201Genotype
    from zoopt_nas.nas.networks.nasbench201 import NasBench201Space as NasBench201Space
    from zoopt_nas.nas.networks.nasbench201_modules import (
        NasBench201Network as NasBench201Network,
    )
    from zoopt_nas.nas.networks.nasbench201_modules import (
        NasBench201Supernet as NasBench201Supernet,
    )
    from zoopt_nas.nas.networks.network import Network as Network
    from zoopt_nas.nas.networks.operations import OPERATIONS as OPERATIONS
    from zoopt_nas.nas.networks.space import SearchSpace as SearchSpace
    from zoopt_nas.nas.networks.spaces import SPACES as SPACES
    from zoopt_nas.nas.networks.spaces import space_from_json as space_from_json
    from zoopt_nas.nas.networks.supernet import Supernet as Supernet
    from zoopt_nas.nas.retraining.processes import Processes as Processes
    from zoopt_nas.nas.retraining.retrain import TrainResult as TrainResult
    from zoopt_nas.nas.retraining.retrain import estimate_training as estimate_training
    from zoopt_nas.nas.retraining.retrain import resume_training as resume_training
    from zoopt_nas.nas.retraining.retrain import run_training as run_training
    from zoopt_nas.nas.runs.folder import RunFolder as RunFolder
    from zoopt_nas.nas.runs.loop import Observer as Observer
    from zoopt_nas.nas.runs.loop import Progress as Progress
    from zoopt_nas.nas.runs.loop import Start as Start
    from zoopt_nas.nas.runs.loop import StartObserver as StartObserver
    from zoopt_nas.nas.runs.memory import MemoryEstimate as MemoryEstimate
    from zoopt_nas.nas.runs.observers import Observers as Observers
    from zoopt_nas.nas.runs.observers import TensorBoardLog as TensorBoardLog
    from zoopt_nas.nas.search.methods import METHODS as METHODS
    from zoopt_nas.nas.search.objective import BilevelObjective as BilevelObjective
    from zoopt_nas.nas.search.run import SearchResult as SearchResult
    from zoopt_nas.nas.search.run import estimate_search as estimate_search
    from zoopt_nas.nas.search.run import resume_search as resume_search
    from zoopt_nas.nas.search.run import run_search as run_search
    from zoopt_nas.nas.search.updater import AlphaUpdater as AlphaUpdater
    from zoopt_nas.nas.search.zero_order import ZeroOrderUpdater as ZeroOrderUpdater
    from zoopt_nas.nas.settings.config import SearchConfig as SearchConfig
    from zoopt_nas.nas.settings.config import TrainConfig as TrainConfig
    from zoopt_nas.nas.steps.devices import free_memory as free_memory
    from zoopt_nas.nas.tabular.table import CellTable as CellTable

_EXPORTS = {
    "analyses.landscape.compute": ("compute_landscape",),
    "analyses.landscape.plane": (
        "Landscape",
        "LandscapeSettings",
    ),
    "data.augmentation": ("Augmentation",),
    "data.batches": (
        "BatchStream",
        "split_indices",
    ),
    "data.datasets": (
        "DATASETS",
        "DatasetSpec",
    ),
    "data.image_sets": ("Dataset",),
    "data.loading": ("load_dataset",),
    "exports.run": (
        "ExportResult",
        "export_network",
    ),
    "networks.counting": (
        "count_multiply_adds",
        "count_parameters",
    ),
    "networks.genotype": (
        "GENOTYPES",
        "Genotype",
    ),
    "networks.architecture": ("Architecture",),
    "networks.architectures": ("load_architecture",),
    "networks.build": ("make_network",),
    "networks.darts_network": ("DartsNetwork",),
    "networks.darts_space": ("DartsSpace",),
    "networks.darts_supernet": ("DartsSupernet",),
    "networks.nasbench201": (
        "NasBench201Genotype",
        "NasBench201Space",
    ),
    "networks.nasbench201_modules": (
        "NasBench201Network",
        "NasBench201Supernet",
    ),
    "networks.network": ("Network",),
    "networks.operations": ("OPERATIONS",),
    "networks.space": ("SearchSpace",),
    "networks.spaces": (
        "SPACES",
        "space_from_json",
    ),
    "networks.supernet": ("Supernet",),
    "retraining.processes": ("Processes",),
    "retraining.retrain": (
        "TrainResult",
        "estimate_training",
        "resume_training",
        "run_training",
    ),
    "runs.folder": ("RunFolder",),
    "runs.loop": (
        "Observer",
        "Progress",
        "Start",
        "StartObserver",
    ),
    "runs.memory": ("MemoryEstimate",),
    "runs.observers": (
        "Observers",
        "TensorBoardLog",
    ),
    "search.methods": ("METHODS",),
    "search.objective": ("BilevelObjective",),
    "search.run": (
        "SearchResult",
        "estimate_search",
        "resume_search",
        "run_search",
    ),
    "search.updater": ("AlphaUpdater",),
    "search.zero_order": ("ZeroOrderUpdater",),
    "settings.config": (
        "SearchConfig",
        "TrainConfig",
    ),
    "steps.devices": ("free_memory",),
    "tabular.table": ("CellTable",),
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
