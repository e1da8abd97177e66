"""What a run works with, decided once before its model is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zoopt_nas.errors import DataError, InvalidValueError, UnknownNameError
from zoopt_nas.nas.data.datasets import DatasetSpec
from zoopt_nas.nas.data.image_sets import Dataset
from zoopt_nas.nas.data.loading import load_dataset, with_fingerprints
from zoopt_nas.nas.data.record import DataRecord
from zoopt_nas.nas.settings.run_config import RunConfig
from zoopt_nas.nas.steps.devices import free_memory, pick_device
from zoopt_nas.nas.steps.execution import Execution


@dataclass(frozen=True)
class Setup:
    """The execution of steps, on the device of a run, and the images there."""

    execution: Execution
    dataset: Dataset
    free: int | None  # bytes on the device before the images were loaded; None if unknown

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.execution.device


def load_images(
    config: RunConfig,
    device: torch.device,
    splits: tuple[str, ...] = ("train",),
    *,
    check_test: bool = False,
    spec: DatasetSpec | None = None,
) -> Dataset:
    """Load ``spec``, or the data set that ``config`` names; see ``load_dataset``."""
    return load_dataset(
        spec or config.dataset,
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
    dataset: Dataset | DatasetSpec | None = None,
    record: DataRecord | None = None,
    device: torch.device | None = None,
    check_test: bool = False,
) -> Setup:
    """Resolve the settings of a run on this machine and load its images.

    Args:
        config: the settings.
        splits: the parts of the data set to load.
        dataset: loaded images, or a loader, in place of the data set that ``config`` names.
        record: the data set of the run that is resumed; other images are refused.
        device: the device; None picks the one that ``config`` names.
        check_test: whether to read and check the test images too.

    Raises:
        UnknownNameError: no such data set.
        DataError: files of the data set are missing or damaged, or the images differ.
        InvalidValueError: a setting does not suit the device or the given data set.
    """
    device = device or pick_device(config.device)
    execution = Execution.from_config(config, device)
    free = free_memory(device)  # before the images, which an estimate counts
    if isinstance(dataset, Dataset):
        _check_loaded(dataset, config, device, splits)
        dataset = with_fingerprints(dataset)
    else:
        try:
            dataset = load_images(config, device, splits, check_test=check_test, spec=dataset)
        except UnknownNameError as error:
            if record is None:
                raise
            raise DataError(
                f"dataset {config.dataset} of the run has no loader here: install the package that "
                "brings it, or resume from Python with dataset=..."
            ) from error
    if record is not None:
        dataset = record.restore(dataset, config.dataset)
    return Setup(execution, dataset, free)


def _check_loaded(
    dataset: Dataset, config: RunConfig, device: torch.device, splits: tuple[str, ...]
) -> None:
    """Refuse loaded images that contradict the device or the settings."""
    where = dataset.train.labels.device
    if where.type != device.type:
        raise InvalidValueError(
            f"dataset must be on {device}, where the run computes, got one on {where}"
        )
    if config.n_train is not None and config.n_train != len(dataset.train):
        raise InvalidValueError(
            f"n_train must be left out with loaded images, got {config.n_train}"
        )
    if config.image_size not in (None, dataset.image_size):
        raise InvalidValueError(
            f"image_size must be {dataset.image_size}, the size of the loaded images, "
            f"got {config.image_size}"
        )
    if "test" in splits and dataset.test is None:
        raise InvalidValueError("dataset must have test images, got none")
