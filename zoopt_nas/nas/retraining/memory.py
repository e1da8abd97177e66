"""Estimates the memory of a retraining before it starts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.networks.network import Network
from zoopt_nas.nas.runs.memory import MemoryEstimate, estimate
from zoopt_nas.nas.runs.setup import Setup
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE


def memory_of(
    config: TrainConfig,
    setup: Setup,
    network: Network,
    batch_size: int,
    drop_path: torch.Generator,
) -> MemoryEstimate:
    """Estimate the memory of a retraining whose network is built; the network is restored.

    ``batch_size`` is the number of images of a batch in this process.
    """
    execution, dataset = setup.execution, setup.dataset

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with execution.precision():
            if not config.auxiliary:
                return F.cross_entropy(network(images), labels)
            logits, auxiliary = network.forward_with_auxiliary(images)
            return F.cross_entropy(logits, labels) + F.cross_entropy(auxiliary, labels)

    n_test = len(dataset.test or dataset.train)
    sizes = min(batch_size, len(dataset.train)), min(EVAL_BATCH_SIZE, n_test)
    before = network.drop_path_probability
    network.drop_path_probability = config.drop_path
    try:
        return estimate(
            network, loss, network, dataset, sizes=sizes, n_copies=1, n_batches=1,
            generators=[drop_path],
        )  # fmt: skip
    finally:
        network.drop_path_probability = before
