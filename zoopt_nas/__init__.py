"""Zero-order (gradient-free) optimization, and neural architecture search with it.

``minimize`` optimizes a black-box function. The solvers in ``SOLVERS`` also have an ask-and-tell
interface. ``zoopt_nas.nas`` (extra ``nas``) searches architectures.
"""

from zoopt_nas import solvers
from zoopt_nas._minimize import minimize
from zoopt_nas._run import Status
from zoopt_nas.bounds import Box
from zoopt_nas.checkpoint import load_state, save_state
from zoopt_nas.errors import (
    DataError,
    InvalidValueError,
    MissingDataError,
    MissingDependencyError,
    RunError,
    UnknownNameError,
    ZooptNasError,
)
from zoopt_nas.integrations.scipy import scipy_method
from zoopt_nas.plots import plot_history
from zoopt_nas.solvers import *  # noqa: F403 (the solvers, SOLVERS and their base classes)

__version__ = "0.1.0"

__all__ = [
    "Box",
    "DataError",
    "InvalidValueError",
    "MissingDataError",
    "MissingDependencyError",
    "RunError",
    "Status",
    "UnknownNameError",
    "ZooptNasError",
    "load_state",
    "minimize",
    "plot_history",
    "save_state",
    "scipy_method",
]
__all__ += solvers.__all__
