"""The search methods by name: the kind and the class of each. Imports no torch.

A method is a solver of ``SOLVERS`` or an entry of ``BASELINES``.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

from zoopt_nas.registry import Registry
from zoopt_nas.solvers import SOLVERS

# Steps by losses; steps by the gradient of the validation loss; no steps.
ZERO_ORDER, GRADIENT, RANDOM = KINDS = ("zero-order", "gradient", "random")

# The kind, and the class in `zoopt_nas.nas.search.methods`.
_TABLE = {
    "darts1": (GRADIENT, "darts:FirstOrder"),
    "darts2": (GRADIENT, "darts:SecondOrder"),
    "dp": (GRADIENT, "robust:DropPath"),
    "l2": (GRADIENT, "robust:MoreWeightDecay"),
    "es": (GRADIENT, "robust:EarlyStopping"),
    "ada": (GRADIENT, "robust:AdaptiveRegularization"),
    "pc": (GRADIENT, "darts:PartialChannels"),
    "merge_nas": (GRADIENT, "darts:MergedKernels"),
    "fair_darts": (GRADIENT, "fair_darts:FairSwitches"),
    "darts_minus": (GRADIENT, "darts:AuxiliarySkip"),
    "beta_darts": (GRADIENT, "beta_darts:BetaDecay"),
    "drnas": (GRADIENT, "drnas:DirichletSamples"),
    "amended_darts": (GRADIENT, "amended:AmendedGradient"),
    "sgas": (GRADIENT, "sgas:GreedyEdges"),
    "sgas2": (GRADIENT, "sgas:StableGreedyEdges"),
    "p_darts": (GRADIENT, "progressive:ProgressiveStages"),
    "darts_pt": (GRADIENT, "perturbation:PerturbationSelection"),
    "snas": (GRADIENT, "snas:ConcreteSamples"),
    "gdas": (GRADIENT, "gdas:GumbelPaths"),
    "rome": (GRADIENT, "rome:GumbelCells"),
    "sdarts_rs": (GRADIENT, "smooth:RandomSmoothing"),
    "sdarts_adv": (GRADIENT, "smooth:AdversarialSmoothing"),
    "random": (RANDOM, "random_search:RandomArchitecture"),
    "random_ws": (RANDOM, "random_search:WeightSharingSearch"),
}
_GROUP = "zoopt_nas.methods"

BASELINES: Registry[Any] = Registry(
    "method",
    {
        name: EntryPoint(name, f"zoopt_nas.nas.search.methods.{target}", _GROUP)
        for name, (_, target) in _TABLE.items()
    },
    group=_GROUP,
    check=lambda method: getattr(method, "kind", None) in KINDS,
)
"""The methods other than solvers: classes of updaters, imported on demand."""


def kind_of(method: str) -> str:
    """Return the kind of a method, one of ``KINDS``; ``"zero-order"`` for an unknown name.

    Raises:
        EntryPointError: The method of another package cannot be used.
    """
    if method in _TABLE:
        return _TABLE[method][0]
    if method in SOLVERS or method not in BASELINES:
        return ZERO_ORDER
    kind: str = BASELINES[method].kind
    return kind
