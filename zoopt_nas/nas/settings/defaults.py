"""Defaults that depend on the data set or the method, with their sources as in ``config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoopt_nas.errors import InvalidValueError, UnknownNameError
from zoopt_nas.nas.settings.methods import ZERO_ORDER, kind_of

# DARTS; paper B.2.
_SEARCH: dict[str, Any] = {
    "epochs": 50, "batch_size": 64, "init_channels": 16, "n_cells": 8, "lr_min": 0.001, "cutout": 0,
    "alpha_penalty": 0.0, "skip_dropout": (0.0, 0.0, 0.0),
}  # fmt: skip
_SEARCH_BY_DATASET: dict[str, dict[str, Any]] = {
    # zoopt-nas: three minutes on two CPU cores (`make demo`).
    "digits": {
        "epochs": 10, "batch_size": 64, "init_channels": 4, "n_cells": 3, "inner_steps": 4,
    },
    "imagenet": {"batch_size": 256},  # released run_search_imagenet.sh
}  # fmt: skip
_SEARCH_BY_SPACE: dict[str, dict[str, Any]] = {
    # Dong and Yang (2020): 3 stages of 5 cells.
    "nasbench201": {"n_cells": 15, "weight_decay": 5e-4, "nesterov": True},
}
_SEARCH_BY_ALGO: dict[str, dict[str, Any]] = {
    # R-DARTS (Zela et al., 2020) tries {0.2, 0.4, 0.6} and {9, 27, 81, 243}e-4; these are the
    # smallest values without a collapse in S1. Cutout goes with drop path.
    "dp": {"drop_path": 0.2, "cutout": 16},
    "l2": {"weight_decay": 81e-4},
    # PC-DARTS (Xu et al., 2020), but with the batch size and learning rates of the other methods,
    # so that all methods train the supernet in the same way (zoopt-nas).
    "pc": {"partial_channels": 4, "edge_normalization": True},
    # FairDARTS (Chu et al., 2020), released code.
    "fair_darts": {
        "relaxation": "sigmoid", "alpha_lr": 3e-3, "alpha_betas": (0.9, 0.999),
        "alpha_penalty": 10.0,
    },
    # DARTS- (Chu et al., 2021), released script.
    "darts_minus": {"auxiliary_skip": 1.0},
    # Beta-DARTS (Ye et al., 2022), released code.
    "beta_darts": {"alpha_penalty": 50.0},
    # DARTS-PT (Wang et al., 2021), released code: five epochs for each of 17 decisions, and a tenth
    # of the learning rate.
    "darts_pt": {"epochs": 85, "lr": 0.0025},
    # DrNAS (Chen et al., 2021), released code: the penalty is the weight decay of alpha.
    "drnas": {"relaxation": "dirichlet"},
    # MergeNAS (Wang et al., 2020).
    "merge_nas": {"merge_kernels": True},
    # ROME (Wang et al., 2023), section 4.1: K.
    "rome": {"edge_normalization": True, "sampled_paths": 7},
    # P-DARTS (Chen et al., 2019): three stages of 25 epochs, the first with 5 cells.
    "p_darts": {"epochs": 75, "n_cells": 5, "skip_dropout": (0.0, 0.4, 0.7)},
}  # fmt: skip
# The same in one space or on one data set.
_SEARCH_BY_ALGO_AND: dict[tuple[str, str], dict[str, Any]] = {
    # The size of the digits: half the side, and two channels of four.
    ("dp", "digits"): {"cutout": 4},
    ("pc", "digits"): {"partial_channels": 2},
    ("darts_pt", "digits"): {"epochs": 17},
    ("p_darts", "digits"): {"epochs": 12, "n_cells": 2},
    ("p_darts", "cifar100"): {"skip_dropout": (0.1, 0.2, 0.3)},
    # The last of its stages has the 15 cells of the benchmark (zoopt-nas).
    ("p_darts", "nasbench201"): {"n_cells": 3},
}  # fmt: skip
_PC_WARMUP = 0.3  # 15 of 50 epochs
_P_DARTS_WARMUP = 0.4  # 10 of the 25 epochs of a stage
_P_DARTS_STAGES = 3
# Options of the zero-order solvers. N = 4: paper B.2.
_SOLVER_OPTIONS: dict[str, dict[str, Any]] = {
    # The paper gives no numbers for RS. smoothing: the released landscape script. learning_rate:
    # zoopt-nas, the best of 0.1, 0.5 and 2 on the digits.
    "rs": {"n_samples": 4, "learning_rate": 0.5, "smoothing": 0.1},
    # As RS (zoopt-nas).
    "lizo": {"n_samples": 4, "learning_rate": 0.5, "smoothing": 0.1},
    # As RS, with other learning rates (zoopt-nas), because a step has the length of the rate.
    "zo_signsgd": {"n_samples": 4, "learning_rate": 0.05, "smoothing": 0.1},
    "zo_adamm": {"n_samples": 4, "learning_rate": 0.1, "smoothing": 0.1},
    # Released run_search_rdarts.sh: sigma 0.2, tau 0.01, lambda 1e-3; the paper gives none.
    "mgs": {"n_samples": 4, "sigma": 0.2, "temperature": 0.01, "mixing": 1e-3},
    # The paper gives no numbers for GLD, either. zoopt-nas: radii 2, 1, 1/2, 1/4.
    "gld": {"schedule": "search", "max_radius": 2.0, "min_radius": 0.25},
    # zoopt-nas, on the scale of alpha: near that of mgs, since all coordinates move at once. N is
    # 4 + floor(3 ln dim), which the covariance needs. A restart would go back to the first alpha.
    "cma": {"sigma": 0.3, "restart": False},
}
# The options that state the steps of a solver.
_STEPS = ("sigma", "smoothing", "learning_rate", "schedule", "max_radius", "min_radius")
# Released run_search.sh, for the space without `none`: sigma 0.025.
_DARTS_SIGMA = 0.025
# The search as in the paper, and as in the released scripts; docs/deviations.md compares both with
# the defaults.
_PRESETS: dict[str, dict[str, Any]] = {
    # Algorithm 1: alpha moves in every epoch, sigma is constant, and candidates start without
    # momentum. An update every M weight steps as in the released scripts, because one at every step
    # would cost eight times as much as Tables 3 and 5 say.
    "paper": {
        "update_period": None, "sigma_schedule": "constant", "inner": "sgd", "inner_steps": 10,
        "inner_momentum": False, "score": "loss", "noise_aware": False,
    },
    # run_search*.sh, but with the inner learning rate of the landscape scripts, because in the
    # search script the candidates' optimizer trains nothing (docs/deviations.md, B1).
    "released": {
        "update_period": None, "sigma_schedule": "cosine", "inner": "sgd", "inner_steps": 10,
        "inner_lr": 0.001, "inner_momentum": False, "score": "loss", "noise_aware": False,
    },
    # zoopt-nas: cells are trained from the initial weights and compared on one draw, and a model of
    # all cells chooses the next one (docs/single-path.md). Use it with gld.
    "robust": {
        "paths": "fair", "weights": "fresh", "epochs": 90, "update_period": None, "lr": 0.1,
        "lr_min": 0.1, "inner": "sgd", "inner_steps": 2000, "inner_momentum": False,
        "inner_average": 0.98, "extrapolate": True, "surrogate": True, "score": "loss",
        "val_batches": 80, "noise_aware": False,
    },
}  # fmt: skip
_PRESET_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"mgs": {"weighting": "exact"}},  # Eq. 10, divided by q
    "released": {
        "mgs": {"weighting": "density_free"},  # docs/deviations.md, B5
        # The script of Fig. 1c, the only one with these two.
        "rs": {"n_samples": 8, "learning_rate": 1e-4, "smoothing": 0.1},
        "gld": {"max_radius": 0.13, "min_radius": 4.69e-6},
    },
}
# How baselines train the supernet in their released code, where it differs from DARTS.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "pc": {"batch_size": 256, "lr": 0.1, "lr_min": 0.0, "alpha_lr": 6e-4},
    "fair_darts": {"batch_size": 128, "lr": 0.005},
    "snas": {"drop_path": 0.3},
    "p_darts": {"batch_size": 96, "lr_min": 0.0, "alpha_lr": 6e-4},
    "rome": {"lr": 0.05},
}
# The same in the spaces of two cells.
_PUBLISHED_FOR_TWO_CELLS: dict[str, dict[str, Any]] = {
    "drnas": {"lr": 0.1, "lr_min": 0.0, "alpha_lr": 6e-4},
}
# Released: 10 of 50 epochs, 20 on ImageNet.
_RELEASED_WARMUP = {"imagenet": 0.4}
# Retraining on small images (DARTS; paper B.2).
_CIFAR: dict[str, Any] = {
    "epochs": 600, "batch_size": 96, "init_channels": 36, "n_cells": 20,
    "lr": 0.025, "lr_min": 0.0, "schedule": "cosine", "warmup_epochs": 0, "weight_decay": 3e-4,
    "cutout": 16, "auxiliary": True, "auxiliary_weight": 0.4, "drop_path": 0.2,
    "label_smoothing": 0.0,
}  # fmt: skip
# Paper 5.2: 14 cells, 48 channels, 250 epochs, batch 1024, lr 0.5. The rest is from SmoothDARTS
# (Chen and Hsieh, 2020), which has the same batch and lr.
_IMAGENET: dict[str, Any] = {
    "epochs": 250, "batch_size": 1024, "init_channels": 48, "n_cells": 14,
    "lr": 0.5, "lr_min": 0.0, "schedule": "linear", "warmup_epochs": 5, "weight_decay": 3e-5,
    "cutout": 0, "auxiliary": True, "auxiliary_weight": 0.4, "drop_path": 0.0,
    "label_smoothing": 0.1,
}  # fmt: skip
# Dong and Yang (2020), for the 200 epochs of the table.
_NASBENCH201: dict[str, Any] = {
    "epochs": 200, "batch_size": 256, "init_channels": 16, "n_cells": 15,
    "lr": 0.1, "lr_min": 0.0, "schedule": "cosine", "warmup_epochs": 0, "weight_decay": 5e-4,
    "nesterov": True, "cutout": 0, "auxiliary": False, "auxiliary_weight": 0.0, "drop_path": 0.0,
    "label_smoothing": 0.0,
}  # fmt: skip
TRAIN_PROTOCOLS: dict[str, dict[str, Any]] = {
    "darts": _CIFAR,
    "sdarts": _CIFAR,  # paper B.4: 20 cells and 36 channels for all spaces and data sets
    "rdarts": _CIFAR,  # with RDARTS_SIZES
    "imagenet": _IMAGENET,
    "nasbench201": _NASBENCH201,
}
# R-DARTS (Zela et al., 2020) as in paper 5.1: cells and channels by data set and space.
_SMALL = dict.fromkeys(("s1", "s2", "s3", "s4"), (8, 16))
RDARTS_SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "cifar10": {"s1": (20, 36), "s2": (20, 16), "s3": (20, 36), "s4": (20, 16)},
    "cifar100": _SMALL,
    "svhn": _SMALL,
}
_TRAIN_BY_DATASET: dict[str, dict[str, Any]] = {
    "digits": {
        "epochs": 20, "batch_size": 64, "init_channels": 8, "n_cells": 4, "auxiliary": False,
        "drop_path": 0.0, "cutout": 0,
    },
    "imagenet": _IMAGENET,
}  # fmt: skip


def search_defaults(dataset: str, algo: str, space: str) -> dict[str, Any]:
    """Return the defaults of a search that depend on the data set, the method or the space."""
    defaults = _SEARCH | _SEARCH_BY_SPACE.get(space, {})
    defaults |= _SEARCH_BY_DATASET.get(dataset, {}) | _SEARCH_BY_ALGO.get(algo, {})
    for where in (dataset, space):
        defaults |= _SEARCH_BY_ALGO_AND.get((algo, where), {})
    return defaults


def preset_fields(preset: str | None, algo: str, space: str) -> dict[str, Any]:
    """Return the settings that a preset fixes for a method, without the warm-up.

    Args:
        preset: ``paper``, ``released`` or ``robust``; None fixes nothing.
        algo: The method. Baselines follow their papers.
        space: The search space.

    Raises:
        UnknownNameError: There is no such preset.
    """
    if preset is None:
        return {}
    if preset not in _PRESETS:
        raise UnknownNameError("preset", preset, _PRESETS)
    if kind_of(algo) != ZERO_ORDER:
        of_space = {} if space == "nasbench201" else _PUBLISHED_FOR_TWO_CELLS.get(algo, {})
        return _PUBLISHED.get(algo, {}) | of_space
    return dict(_PRESETS[preset])


def solver_options(
    algo: str,
    space: str,
    preset: str | None = None,
    given: Mapping[str, Any] | None = None,
    *,
    on_paths: bool = False,
    is_fresh: bool = False,
) -> dict[str, Any]:
    """Return ``given``, and the defaults of all other options that a zero-order search sets.

    On paths the steps depend on the space (``search.vertices``), so they have no defaults here.
    """
    options = dict(_SOLVER_OPTIONS.get(algo, {}))
    if algo == "mgs" and space.startswith("darts"):
        options["sigma"] = _DARTS_SIGMA
    options |= _PRESET_OPTIONS.get(preset or "", {}).get(algo, {})
    if on_paths:
        options = {name: value for name, value in options.items() if name not in _STEPS}
    if is_fresh:  # values do not drift, so cma may restart
        options.pop("restart", None)
    given = dict(given or {})
    if given.get("schedule", "search") != "search":
        options.pop("min_radius", None)  # GLD-Fast has no smallest radius, and refuses one
    return options | given


def warmup_epochs(algo: str, epochs: int, dataset: str = "", preset: str | None = None) -> int:
    """Return the number of epochs, of ``epochs``, in which alpha is frozen."""
    if algo == "pc":
        return int(_PC_WARMUP * epochs)
    if algo == "p_darts":
        return int(_P_DARTS_WARMUP * (epochs // _P_DARTS_STAGES))
    if kind_of(algo) != ZERO_ORDER or preset == "paper":
        return 0
    fraction = _RELEASED_WARMUP.get(dataset, 0.2) if preset == "released" else 0.2
    return int(fraction * epochs)


def train_defaults(
    dataset: str, protocol: str | None, space: str | None, genotype: str = ""
) -> dict[str, Any]:
    """Return the settings of a retraining that depend on the data set or the protocol.

    Args:
        dataset: A name or a path.
        protocol: A key of ``TRAIN_PROTOCOLS``; None is the default of the data set.
        space: The search space of the genotype; only ``rdarts`` depends on it.
        genotype: The architecture; without a protocol, a cell of NAS-Bench-201 has its own.

    Raises:
        UnknownNameError: There is no such protocol.
        InvalidValueError: ``rdarts`` has no size for this data set and space.
    """
    if protocol is None and "~0|" in genotype:
        small = _TRAIN_BY_DATASET["digits"] | {"n_cells": 3}
        return {**_NASBENCH201, **(small if dataset == "digits" else {})}
    if protocol is None:
        return {**_CIFAR, **_TRAIN_BY_DATASET.get(dataset, {})}
    if protocol not in TRAIN_PROTOCOLS:
        raise UnknownNameError("protocol", protocol, TRAIN_PROTOCOLS)
    fields = dict(TRAIN_PROTOCOLS[protocol])
    if protocol == "rdarts":
        sizes = RDARTS_SIZES.get(dataset, {})
        for name, value, known in (("dataset", dataset, RDARTS_SIZES), ("space", space, sizes)):
            if value not in known:
                raise InvalidValueError(
                    f"{name} must be one of {', '.join(known)} for protocol rdarts, "
                    f"got {'none' if value is None else value}"
                )
        fields["n_cells"], fields["init_channels"] = sizes[space or ""]
    return fields


def shortened_warmup(warmup: int, epochs: int) -> int:
    """Limit the epochs of growing learning rate to a fifth, for short runs (zoopt-nas)."""
    return min(warmup, epochs // 5)
