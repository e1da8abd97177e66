"""How much memory a retraining needs, known before it starts."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.networks.build import build_network
from zoopt_nas.nas.runs.memory import MemoryEstimate, estimate
from zoopt_nas.nas.settings.config import TrainConfig
from zoopt_nas.nas.steps.devices import pick_device
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.meter import EVAL_BATCH_SIZE
from zoopt_nas.nas.steps.seeds import generator


def estimate_training(config: TrainConfig, dataset: Dataset) -> MemoryEstimate:
    """The memory of ``run_training(config)`` on a data set that is loaded."""
    device = pick_device(config.device)
    network = build_network(config, dataset, seed=0, device=device)
    network.set_generator(generator(0, device))
    network.drop_path_probability = config.drop_path
    execution = Execution.from_config(config, device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with execution.precision():
            if not config.auxiliary:
                return F.cross_entropy(network(images), labels)
            logits, auxiliary = network.forward_with_auxiliary(images)
            return F.cross_entropy(logits, labels) + F.cross_entropy(auxiliary, labels)

    n_test = len(dataset.test or dataset.train)
    sizes = min(config.batch_size, len(dataset.train)), min(EVAL_BATCH_SIZE, n_test)
    return estimate(network, loss, network, dataset, sizes=sizes, n_copies=1, n_batches=1)
