"""Batches of images go to a device without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from simulated_device import CUDA, Device, kinds
from torch import Tensor
from torch.nn import functional as F

from zoopt_nas.nas.data.augmentation import Augmentation, Transform
from zoopt_nas.nas.data.batches import BatchStream, sequential_batches
from zoopt_nas.nas.data.image_sets import HostImageSet, ImageSet, LazyImageSet
from zoopt_nas.nas.steps.meter import evaluate

CPU = torch.device("cpu")


AUGMENTATIONS = {
    "cifar": Augmentation(crop_padding=2, flip=True, cutout=3),
    "flip": Augmentation(flip=True),
    "cutout": Augmentation(cutout=3),
    "imagenet": Augmentation(
        flip=True, resized_crop=6, colour_jitter=(0.4, 0.4, 0.4, 0.2), cutout=2
    ),
    "none": Augmentation(),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    paths = [folder / f"{k}.png" for k in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


def image_set(kind: str, where: torch.device, files: list[Any]) -> ImageSet:
    labels = torch.arange(12).to(where)
    if kind == "files":
        return LazyImageSet(files, labels, 8)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=generator)
    if kind == "host":
        return HostImageSet(images, labels)
    return ImageSet(images.to(where), labels)


@pytest.mark.parametrize("kind", ["device", "host", "files"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_batch_goes_to_the_device_in_one_pinned_copy(name, kind, files, device: Device):
    def batches(where: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        augmentation = AUGMENTATIONS[name]
        size = augmentation.resized_crop or 8
        transform = Transform([0.4] * 3, [0.2] * 3, augmentation, image_size=size, device=where)
        stream = BatchStream(
            image_set(kind, where, files),
            torch.arange(12),
            5,
            transform=transform,
            generator=torch.Generator().manual_seed(1),
        )
        for _ in range(4):  # 5, 5, 2, and 5 of the next permutation
            device.forget()
            yield stream.next_batch()

    expected = list(batches(CPU))
    for (images, labels), (x, y) in zip(batches(CUDA), expected, strict=True):
        # The draws, and the pixels where those are on the host.
        assert kinds(device) == ["pinned"] * (1 if kind == "device" else 2)
        assert images.device == labels.device == CUDA
        assert torch.equal(images.cpu(), x)
        assert torch.equal(labels.cpu(), y)


@pytest.mark.parametrize("kind", ["device", "host", "files"])
def test_an_evaluation_waits_only_where_it_is_read(kind, files, device: Device):
    measured = {}
    for where in (CPU, CUDA):
        transform = Transform([0.4] * 3, [0.2] * 3, image_size=8, device=where)
        images = image_set(kind, where, files)
        weight = torch.linspace(-1, 1, 12 * 192).view(12, 192).to(where)
        device.forget()
        meter = evaluate(
            lambda x, weight=weight: F.linear(x.flatten(1), weight),
            sequential_batches(images, None, 5, transform),
            where,
        )
        found = kinds(device)
        measured[where] = (meter.loss, meter.accuracy)
    assert found == ["pinned"] * 3 * (1 if kind == "device" else 2)
    assert kinds(device) == ["value"] * 2
    assert measured[CUDA] == measured[CPU]


# --- Supernets and candidates --------------------------------------------------------------------
