"""The supernet and the network that a config describes, for a data set and on a device."""

from __future__ import annotations

import dataclasses

import torch

from zoopt_nas.nas.config import SearchConfig, TrainConfig
from zoopt_nas.nas.data import Dataset
from zoopt_nas.nas.data_record import DataRecord
from zoopt_nas.nas.execution import Execution
from zoopt_nas.nas.genotype import Genotype
from zoopt_nas.nas.network import Network
from zoopt_nas.nas.operations import use_native
from zoopt_nas.nas.spaces import SPACES
from zoopt_nas.nas.supernet import Supernet
from zoopt_nas.nas.training import seeded_init, stem_for


def build_supernet(
    config: SearchConfig, dataset: Dataset, *, seed: int, device: torch.device
) -> Supernet:
    """The supernet of a search, with initial weights from ``seed``."""
    space = dataclasses.replace(SPACES[config.space], edge_normalization=config.edge_normalization)
    with seeded_init(seed):
        supernet = Supernet(
            space,
            dataset.n_classes,
            config.init_channels,
            config.n_cells,
            in_channels=dataset.in_channels,
            stem=stem_for(dataset.image_size),
            partial_channels=config.partial_channels,
        ).to(device)
    execution = Execution.from_config(config, device)
    supernet.channels_last = execution.channels_last
    use_native(supernet, execution.native)
    return supernet


def build_network(
    config: TrainConfig, dataset: Dataset | DataRecord, *, seed: int, device: torch.device
) -> Network:
    """The network of a retraining, with initial weights from ``seed``.

    Of ``dataset`` only the shape of an image and the number of classes matter.
    """
    with seeded_init(seed):
        network = Network(
            Genotype.load(config.genotype),
            dataset.n_classes,
            config.init_channels,
            config.n_cells,
            in_channels=dataset.in_channels,
            auxiliary=config.auxiliary,
            stem=stem_for(dataset.image_size),
        ).to(device)
    execution = Execution.from_config(config, device)
    network.channels_last = execution.channels_last
    use_native(network, execution.native)
    return network
