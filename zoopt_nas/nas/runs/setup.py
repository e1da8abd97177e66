"""What a run works with, decided once, before its model is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.loading import load_dataset
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.settings.config import RunConfig
from zoopt_nas.nas.steps.devices import free_memory, pick_device
from zoopt_nas.nas.steps.execution import Execution


@dataclass(frozen=True)
class Setup:
    """The device of a run, how steps are executed there, and the images.

    Attributes:
        execution: the device, and how steps run on it.
        dataset: the images, on that device.
        free: bytes that were free on the device before the images; None if unknown.
    """

    execution: Execution
    dataset: Dataset
    free: int | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.execution.device


def load_images(
    config: RunConfig,
    device: torch.device,
    splits: tuple[str, ...] = ("train",),
    *,
    check_test: bool = False,
) -> Dataset:
    """Loads the data set that the settings of a run name; see ``load_dataset``."""
    return load_dataset(
        config.dataset,
        data_dir=Path(config.data_dir),
        device=device,
        download=config.download,
        splits=splits,
        image_size=config.image_size,
        n_train=config.n_train,
        check_test=check_test,
    )


def prepare(
    config: RunConfig,
    splits: tuple[str, ...] = ("train",),
    *,
    dataset: Dataset | None = None,
    record: DataRecord | None = None,
    device: torch.device | None = None,
    check_test: bool = False,
) -> Setup:
    """Decides what the settings of a run mean on this machine, and loads its images.

    Args:
        config: the settings.
        splits: the parts of the data set to load.
        dataset: loaded images, in place of the data set that ``config`` names.
        record: the data of an earlier part of the run. Its statistics are used, and other images
            are refused.
        device: where the run computes; None picks the device that ``config`` names.
        check_test: whether to read and check the test images too.

    Raises:
        UnknownNameError: no such data set.
        DataError: files of the data set are missing or damaged.
        InvalidValueError: a setting does not suit the device, or ``dataset`` is on another one.
    """
    device = device or pick_device(config.device)
    execution = Execution.from_config(config, device)
    free = free_memory(device)  # before the images, which an estimate counts
    if dataset is None:
        dataset = load_images(config, device, splits, check_test=check_test)
    elif dataset.train.labels.device.type != device.type:
        raise InvalidValueError(
            f"dataset must be on {device}, where the run computes, "
            f"got one on {dataset.train.labels.device}"
        )
    if record is not None:
        dataset = record.restore(dataset, config.dataset)
    return Setup(execution, dataset, free)
