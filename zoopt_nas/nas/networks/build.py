"""Build the supernet or the network of a config."""

from __future__ import annotations

import dataclasses

import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.networks.fused import enable_kernels
from zoopt_nas.nas.networks.genotype import Genotype
from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.networks.skeleton import stem_for
from zoopt_nas.nas.networks.spaces import SPACES, SearchSpace
from zoopt_nas.nas.networks.supernet import Supernet
from zoopt_nas.nas.settings.config import SearchConfig, TrainConfig
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.seeds import seeded_init


def build_supernet(
    config: SearchConfig,
    dataset: Dataset,
    *,
    seed: int,
    execution: Execution,
    space: SearchSpace | None = None,
) -> Supernet:
    """Build the supernet of a search.

    Args:
        config: The settings.
        dataset: Gives the shape of the images and the number of classes.
        seed: Seed of the initial weights.
        execution: Device and execution.
        space: Replaces the space that ``config`` names.
    """
    space = dataclasses.replace(
        space or SPACES[config.space], edge_normalization=config.edge_normalization
    )
    with seeded_init(seed):
        supernet = Supernet(
            space,
            dataset.n_classes,
            config.init_channels,
            config.n_cells,
            in_channels=dataset.in_channels,
            stem=stem_for(dataset.image_size),
            partial_channels=config.partial_channels,
        ).to(execution.device)
    supernet.channels_last = execution.channels_last
    enable_kernels(supernet, execution.cpu_kernels)
    return supernet


def build_network(
    config: TrainConfig, dataset: Dataset | DataRecord, *, seed: int, execution: Execution
) -> Network:
    """Build the network of a retraining; see ``build_supernet``."""
    with seeded_init(seed):
        network = Network(
            Genotype.load(config.genotype),
            dataset.n_classes,
            config.init_channels,
            config.n_cells,
            in_channels=dataset.in_channels,
            auxiliary=config.auxiliary,
            stem=stem_for(dataset.image_size),
        ).to(execution.device)
    network.channels_last = execution.channels_last
    enable_kernels(network, execution.cpu_kernels)
    return network


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
