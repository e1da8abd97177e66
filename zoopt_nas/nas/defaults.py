"""Defaults that differ by data set and by method, with their sources.

Sources: *paper* is ZARTS (Wang et al., 2022); *released* its published scripts; *DARTS* Liu et al.
(2019) with its code; *ours* a choice made here, with the reason.
"""

from __future__ import annotations

from typing import Any

from zoopt_nas.errors import InvalidValueError, UnknownNameError

GRADIENT_ALGOS = (
    *("darts1", "darts2", "dp", "l2", "es", "ada", "pc"),
    *("sdarts_rs", "sdarts_adv"),
)
RANDOM_ALGOS = ("random", "random_ws")
BASELINES = (*GRADIENT_ALGOS, *RANDOM_ALGOS)  # every other method is a zero-order solver

# The image data sets' own sizes are the papers'; the embedded digits get what two CPU cores manage
# in three minutes (ours, measured by `make demo`).
SEARCH_BY_DATASET: dict[str, dict[str, Any]] = {
    "digits": {
        "epochs": 10,
        "batch_size": 64,
        "init_channels": 4,
        "n_cells": 3,
        "inner_steps": 4,
    },
    # Released run_search_imagenet.sh: batch 256.
    "imagenet": {"batch_size": 256},
}
# What a method is defined with.
_SEARCH_BY_ALGO: dict[str, dict[str, Any]] = {
    # R-DARTS (Zela et al., 2020): of {0.2, 0.4, 0.6} and {9, 27, 81, 243}e-4, which they try all,
    # the least that ends the collapse in S1 (its logs). Cutout goes with drop path.
    "dp": {"drop_path": 0.2, "cutout": 16},
    "l2": {"weight_decay": 81e-4},
    # PC-DARTS (Xu et al., 2020). Its batch of 256 and lr of 0.1 are left to the user, so that
    # methods train the supernet alike (ours); so is its alpha_lr of 6e-4, which goes with them.
    "pc": {"partial_channels": 4, "edge_normalization": True},
}
# The same at the size of the digits: half the side, and two channels of four.
_DIGITS_BY_ALGO: dict[str, dict[str, Any]] = {
    "dp": {"cutout": 4},
    "pc": {"partial_channels": 2},
}
_PC_WARMUP = 0.3  # 15 of 50 epochs
# What a zero-order solver gets on alpha unless the config says otherwise. N = 4: paper B.2.
_SOLVER_OPTIONS: dict[str, dict[str, Any]] = {
    # The paper gives no numbers for RS. smoothing: the released landscape script. learning_rate:
    # ours, of 0.1, 0.5 and 2 the one with the lowest loss on the digits (2 throws alpha about).
    "rs": {"n_samples": 4, "learning_rate": 0.5, "smoothing": 0.1},
    # As RS (ours).
    "lizo": {"n_samples": 4, "learning_rate": 0.5, "smoothing": 0.1},
    # Released run_search_rdarts.sh: sigma 0.2, tau 0.01, lambda 1e-3; the paper gives none.
    "mgs": {"n_samples": 4, "sigma": 0.2, "temperature": 0.01, "mixing": 1e-3},
    # No numbers in the paper either: radii 2, 1, 1/2, 1/4 (ours; 1 and 4 in place of 2 gave the
    # same loss on the digits).
    "gld": {"schedule": "search", "max_radius": 2.0, "min_radius": 0.25},
}
# Released run_search.sh, for the space without `none`: sigma 0.025.
_DARTS_SIGMA = 0.025
# A search as the paper has it, and as the released scripts do; docs/deviations.md compares both
# with the defaults. Neither trains candidates with another optimizer than SGD with momentum 0.9.
_PRESETS: dict[str, dict[str, Any]] = {
    # Algorithm 1 with nothing that it does not say: alpha moves in every epoch, sigma stays, and a
    # candidate is trained by an SGD of its own. An update every M weight steps, as in the released
    # scripts: at every step a search would cost eight times as much, 8 GPU-days where Tables 3
    # and 5 have 1.0.
    "paper": {
        "update_period": None,
        "sigma_schedule": "constant",
        "inner": "sgd",
        "inner_steps": 10,
        "inner_momentum": False,
    },
    # run_search*.sh. In the search script the candidates' optimizer trains nothing (B1); this one
    # is that of the landscape scripts, the only released code that trains candidates.
    "released": {
        "update_period": None,
        "sigma_schedule": "cosine",
        "inner": "sgd",
        "inner_steps": 10,
        "inner_lr": 0.001,
        "inner_momentum": False,
    },
}
_PRESET_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"mgs": {"weighting": "exact"}},  # Eq. 10, divided by q
    "released": {
        "mgs": {"weighting": "density_free"},  # what its density comes to (B5)
        # The script of Fig. 1c, the only one with these two.
        "rs": {"n_samples": 8, "learning_rate": 1e-4, "smoothing": 0.1},
        "gld": {"max_radius": 0.13, "min_radius": 4.69e-6},
    },
}
# PC-DARTS as published: larger batches and rates than the other methods here have.
_PC_PUBLISHED: dict[str, Any] = {"batch_size": 256, "lr": 0.1, "lr_min": 0.0, "alpha_lr": 6e-4}
# Released: 10 of 50 epochs, 20 on ImageNet.
_RELEASED_WARMUP = {"imagenet": 0.4}
# Retraining on small images (DARTS; paper B.2).
_CIFAR: dict[str, Any] = {
    "epochs": 600,
    "batch_size": 96,
    "init_channels": 36,
    "n_cells": 20,
    "lr": 0.025,
    "lr_min": 0.0,
    "schedule": "cosine",
    "warmup_epochs": 0,
    "weight_decay": 3e-4,
    "cutout": 16,
    "auxiliary": True,
    "auxiliary_weight": 0.4,
    "drop_path": 0.2,
    "label_smoothing": 0.0,
}
# Paper 5.2: 14 cells, 48 channels, 250 epochs, batch 1024, lr 0.5. It leaves out the rest, which is
# SmoothDARTS's (Chen and Hsieh, 2020); batch and lr are the same there.
_IMAGENET: dict[str, Any] = {
    "epochs": 250,
    "batch_size": 1024,
    "init_channels": 48,
    "n_cells": 14,
    "lr": 0.5,
    "lr_min": 0.0,
    "schedule": "linear",
    "warmup_epochs": 5,
    "weight_decay": 3e-5,
    "cutout": 0,
    "auxiliary": True,
    "auxiliary_weight": 0.4,
    "drop_path": 0.0,
    "label_smoothing": 0.1,
}
TRAIN_PROTOCOLS: dict[str, dict[str, Any]] = {
    "darts": _CIFAR,
    "sdarts": _CIFAR,  # paper B.4: 20 cells and 36 channels for all spaces and data sets
    "rdarts": _CIFAR,  # with the sizes below
    "imagenet": _IMAGENET,
}
# R-DARTS (Zela et al., 2020) as in paper 5.1: cells and channels by data set and space.
_SMALL = dict.fromkeys(("s1", "s2", "s3", "s4"), (8, 16))
RDARTS_SIZES: dict[str, dict[str, tuple[int, int]]] = {
    "cifar10": {"s1": (20, 36), "s2": (20, 16), "s3": (20, 36), "s4": (20, 16)},
    "cifar100": _SMALL,
    "svhn": _SMALL,
}
TRAIN_BY_DATASET: dict[str, dict[str, Any]] = {
    "digits": {
        "epochs": 20,
        "batch_size": 64,
        "init_channels": 8,
        "n_cells": 4,
        "auxiliary": False,
        "drop_path": 0.0,
        "cutout": 0,
    },
    "imagenet": _IMAGENET,
}


def search_defaults(dataset: str, algo: str) -> dict[str, Any]:
    """The settings of a search that differ for a data set and a method."""
    own = _DIGITS_BY_ALGO.get(algo, {}) if dataset == "digits" else {}
    return {**SEARCH_BY_DATASET.get(dataset, {}), **_SEARCH_BY_ALGO.get(algo, {}), **own}


def preset_fields(preset: str | None, algo: str) -> dict[str, Any]:
    """The settings of a search that a preset fixes for a method, but for the warm-up.

    Args:
        preset: ``paper`` or ``released``; None fixes nothing.
        algo: a method. Baselines are as their own papers have them with either preset, which
            differs from the defaults for ``pc`` alone.

    Raises:
        UnknownNameError: no such preset.
    """
    if preset is None:
        return {}
    if preset not in _PRESETS:
        raise UnknownNameError("preset", preset, _PRESETS)
    if algo in BASELINES:
        return dict(_PC_PUBLISHED) if algo == "pc" else {}
    return dict(_PRESETS[preset])


def solver_options(algo: str, space: str, preset: str | None = None) -> dict[str, Any]:
    """The options of a zero-order solver in a space; none for other methods."""
    options = dict(_SOLVER_OPTIONS.get(algo, {}))
    if algo == "mgs" and space.startswith("darts"):
        options["sigma"] = _DARTS_SIGMA
    return options | _PRESET_OPTIONS.get(preset or "", {}).get(algo, {})


def warmup_epochs(algo: str, epochs: int, dataset: str = "", preset: str | None = None) -> int:
    """Epochs in which alpha is frozen, of ``epochs``."""
    if algo == "pc":
        return int(_PC_WARMUP * epochs)
    if algo in BASELINES or preset == "paper":
        return 0
    share = _RELEASED_WARMUP.get(dataset, 0.2) if preset == "released" else 0.2
    return int(share * epochs)


def train_defaults(dataset: str, protocol: str | None, space: str | None) -> dict[str, Any]:
    """The settings of a retraining that differ for a data set, or those of a protocol.

    Args:
        dataset: a name or a path.
        protocol: a key of ``TRAIN_PROTOCOLS``; None is what the data set has of its own.
        space: where the genotype was found; ``rdarts`` alone depends on it.

    Raises:
        UnknownNameError: no such protocol.
        InvalidValueError: ``rdarts`` has no size for this data set and space.
    """
    if protocol is None:
        return dict(TRAIN_BY_DATASET.get(dataset, {}))
    if protocol not in TRAIN_PROTOCOLS:
        raise UnknownNameError("protocol", protocol, TRAIN_PROTOCOLS)
    fields = dict(TRAIN_PROTOCOLS[protocol])
    if protocol == "rdarts":
        if dataset not in RDARTS_SIZES:
            known = ", ".join(RDARTS_SIZES)
            raise InvalidValueError(
                f"dataset must be one of {known} for protocol rdarts, got {dataset}"
            )
        sizes = RDARTS_SIZES[dataset]
        if space not in sizes:
            got = "none" if space is None else space
            raise InvalidValueError(
                f"space must be one of {', '.join(sizes)} for protocol rdarts (--space), got {got}"
            )
        fields["n_cells"], fields["init_channels"] = sizes[space]
    return fields


def shortened_warmup(warmup: int, epochs: int) -> int:
    """Epochs of growing learning rate: at most a fifth of all (ours, for short runs)."""
    return min(warmup, epochs // 5)
