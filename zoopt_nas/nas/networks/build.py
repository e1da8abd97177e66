"""Build the supernet or the network of a config."""

from __future__ import annotations

from typing import Any

import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.architecture import Architecture
from zoopt_nas.nas.networks.architectures import load_architecture
from zoopt_nas.nas.networks.darts_network import DartsNetwork
from zoopt_nas.nas.networks.darts_space import DartsSpace
from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.networks.nasbench201 import NasBench201Genotype, NasBench201Space
from zoopt_nas.nas.networks.nasbench201_modules import (
    NasBench201Network,
    NasBench201Supernet,
    reduction_indices,
)
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.networks.skeleton import plan_cells, stem_for
from zoopt_nas.nas.networks.space import Kept, SearchSpace
from zoopt_nas.nas.networks.spaces import space_of
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.seeds import seeded_init


def build_supernet(
    config: SearchConfig,
    dataset: Dataset | DataRecord,
    *,
    seed: int,
    execution: Execution,
    space: SearchSpace | None = None,
    n_cells: int | None = None,
    kept: Kept | None = None,
    drops_skips: bool = False,
) -> Supernet:
    """Build the supernet of a search.

    Args:
        config: The settings.
        dataset: Gives the shape of the images and the number of classes.
        seed: Seed of the initial weights.
        execution: Device and execution.
        space: Replaces the space that ``config`` names.
        n_cells: Replaces the number of cells that ``config`` gives.
        kept: The candidates to build, see ``Supernet``.
        drops_skips: Whether skip connections have dropout.

    Raises:
        InvalidValueError: A setting does not suit the space.
    """
    space = space_of(config, space)
    sizes = (dataset.n_classes, config.init_channels, n_cells or config.n_cells)
    common: dict[str, Any] = {
        "in_channels": dataset.in_channels,
        "partial_channels": config.partial_channels,
        "auxiliary_skip": config.auxiliary_skip > 0,
        "kept": kept,
        "drops_skips": drops_skips,
        "merge_kernels": config.merge_kernels,
    }
    with seeded_init(seed):
        supernet: Supernet
        if isinstance(space, NasBench201Space):
            supernet = NasBench201Supernet(space, *sizes, **common)
        elif isinstance(space, DartsSpace):
            supernet = DartsSupernet(space, *sizes, **common, stem=stem_for(dataset.image_size))
        else:
            raise InvalidValueError(
                f"space must be a DartsSpace or a NasBench201Space, got {type(space).__name__}"
            )
        supernet = supernet.to(execution.device)
    supernet.channels_last = execution.channels_last
    enable_kernels(supernet, execution.cpu_kernels)
    return supernet


def build_network(
    config: TrainConfig, dataset: Dataset | DataRecord, *, seed: int, execution: Execution
) -> Network:
    """Build the network of a retraining; see ``build_supernet``."""
    genotype = load_architecture(config.genotype)
    sizes = (dataset.n_classes, config.init_channels, config.n_cells)
    with seeded_init(seed):
        network = make_network(
            genotype,
            *sizes,
            in_channels=dataset.in_channels,
            auxiliary=config.auxiliary,
            stem=stem_for(dataset.image_size),
        ).to(execution.device)
    network.channels_last = execution.channels_last
    enable_kernels(network, execution.cpu_kernels)
    return network


def make_network(
    genotype: Architecture,
    n_classes: int,
    init_channels: int,
    n_cells: int,
    *,
    in_channels: int = 3,
    auxiliary: bool = False,
    stem: str = "cifar",
) -> Network:
    """Build the trainable network of an architecture, with the skeleton of its space.

    Args:
        genotype: The architecture.
        n_classes: Number of classes.
        init_channels: Width of the first cell.
        n_cells: Number of cells.
        in_channels: Channels of the images.
        auxiliary: Whether to build an auxiliary head; NAS-Bench-201 has none.
        stem: ``"cifar"`` or ``"imagenet"``; NAS-Bench-201 has one of its own.

    Raises:
        InvalidValueError: A number is out of range, or there is no auxiliary head.
    """
    sizes = (n_classes, init_channels, n_cells)
    if isinstance(genotype, NasBench201Genotype):
        if auxiliary:
            raise InvalidValueError("auxiliary must be False with a cell of nasbench201, got True")
        return NasBench201Network(genotype, *sizes, in_channels=in_channels)
    assert isinstance(genotype, Genotype)
    return DartsNetwork(genotype, *sizes, in_channels=in_channels, auxiliary=auxiliary, stem=stem)


def reductions_of(config: TrainConfig, genotype: Architecture, image_size: int) -> tuple[int, ...]:
    """Return the indices of the cells where height and width are halved and the width doubles."""
    if isinstance(genotype, NasBench201Genotype):
        return reduction_indices(config.n_cells)
    plans = plan_cells(config.n_cells, config.init_channels, (1, 1), stem_for(image_size))
    return tuple(i for i, plan in enumerate(plans) if plan.kind == "reduce")


def check_smallest_batch(
    config: SearchConfig | TrainConfig,
    dataset: Dataset,
    n_images: int,
    space: SearchSpace | None = None,
) -> None:
    """Refuse a smallest batch of one image if BatchNorm would get a single number of a channel.

    It runs the model on one image, because the answer depends on the whole model.

    Raises:
        InvalidValueError: ``n_images``, the size of the smallest batch, is too small.
    """
    if n_images > 1:
        return
    on_cpu, side = Execution(torch.device("cpu")), dataset.image_size
    image = torch.zeros(1, dataset.in_channels, side, side)
    what = f"{config.n_cells} cells on {side}x{side} images"
    fix = "raise batch_size" if config.batch_size == 1 else "raise n_train"
    with seeded_init(0), torch.no_grad():  # for noise operations
        try:
            if isinstance(config, SearchConfig):
                supernet = build_supernet(config, dataset, seed=0, execution=on_cpu, space=space)
                supernet(image, torch.zeros(supernet.space.dim))
            else:
                network = build_network(config, dataset, seed=0, execution=on_cpu)
                network(image)
                if config.auxiliary:
                    what = f"the auxiliary head on {side}x{side} images"
                    fix += " or train without auxiliary"
                    network.forward_with_auxiliary(image)
        except ValueError as error:
            if isinstance(error, InvalidValueError):
                raise
            raise InvalidValueError(
                f"batches must have at least 2 images with {what}, where BatchNorm gets one number "
                f"of a channel from one image, got 1: {fix}"
            ) from error
