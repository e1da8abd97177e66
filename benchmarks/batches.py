"""Augmented training images per second: whole batches here, one image at a time in torchvision.

Both do the same to 12,000 random 32x32 colour images, in shuffled batches of 64: crop after padding
by 4, mirror, normalise. torchvision's side is a DataLoader with two persistent workers, once over
PIL images (its usual pipeline) and once over uint8 tensors (its v2 transforms); starting the
workers is not timed. Ours is a `BatchStream` with one and with two threads, without cutout and with
(which the DataLoaders are spared).

Prints the images per second (wall clock, the median over interleaved repeats), and for each of ours
the median of its ratios to the faster DataLoader of the same repeat. Bar: at least 5.

    python benchmarks/batches.py [repeats]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

# Threads that wait sleep: where another process has one of the cores, spinning ones slow torch down
# many times over. On a quiet machine this costs ours a little.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from zoopt_nas.nas.data.augmentation import Augmentation, Transform
from zoopt_nas.nas.data.batches import BatchStream
from zoopt_nas.nas.data.image_sets import ImageSet

N_IMAGES, SIDE, BATCH = 12_000, 32, 64
PADDING, CUTOUT = 4, 16
N_WORKERS = 2
BAR = 5.0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10

PIL_TRANSFORM = transforms.Compose(
    [
        transforms.RandomCrop(SIDE, padding=PADDING),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
TENSOR_TRANSFORM = v2.Compose(
    [
        v2.RandomCrop(SIDE, padding=PADDING),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
)


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images in memory, each transformed when it is asked for."""

    def __init__(
        self, images: Sequence[object], labels: list[int], transform: Callable[[object], Tensor]
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader_epoch(
    images: Sequence[object], labels: list[int], transform: Callable[[object], Tensor]
) -> Callable[[], int]:
    """A pass over the images that returns their number; its workers have started already."""
    loader = DataLoader(
        OneByOne(images, labels, transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=N_WORKERS,
        persistent_workers=True,
    )

    def epoch() -> int:
        return sum(len(batch_labels) for _, batch_labels in loader)

    epoch()
    return epoch


def stream_epoch(image_set: ImageSet, cutout: int, n_threads: int) -> Callable[[], int]:
    """As `loader_epoch`, of a `BatchStream`."""
    augmentation = Augmentation(PADDING, flip=True, cutout=cutout)
    device = image_set.images.device
    stream = BatchStream(
        image_set,
        torch.arange(len(image_set)),
        BATCH,
        transform=Transform(MEAN, STD, augmentation, image_size=SIDE, device=device),
        generator=torch.Generator().manual_seed(0),
    )

    def epoch() -> int:
        torch.set_num_threads(n_threads)
        n_images = sum(len(stream.next_batch()[1]) for _ in range(stream.n_batches))
        torch.set_num_threads(1)
        return n_images

    epoch()
    return epoch


def measure(epochs: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Images per second of each epoch in each repeat."""
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for repeat in range(repeats):
        # Forwards and backwards in turn, so that a drift of the machine's speed cancels.
        for name in list(epochs)[:: -1 if repeat % 2 else 1]:
            started = time.perf_counter()
            n_images = epochs[name]()
            rates[name].append(n_images / (time.perf_counter() - started))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description="augmented training images per second")
    parser.add_argument("repeats", nargs="?", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (N_IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    labels = torch.randint(10, (N_IMAGES,))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    # The workers are forked first, before torch has threads that a fork would lose.
    theirs = {
        "torchvision, PIL images": loader_epoch(pictures, labels.tolist(), PIL_TRANSFORM),
        "torchvision v2, uint8 tensors": loader_epoch(
            list(pixels), labels.tolist(), TENSOR_TRANSFORM
        ),
    }
    ours = {
        f"BatchStream, {n_threads} thread(s), cutout {cutout}": stream_epoch(
            ImageSet(pixels, labels), cutout, n_threads
        )
        for n_threads in (1, 2)
        for cutout in (0, CUTOUT)
    }
    rates = measure(theirs | ours, repeats)
    fastest = [max(pair) for pair in zip(*(rates[name] for name in theirs), strict=True)]
    print(f"{N_IMAGES} images of {SIDE}x{SIDE}, batches of {BATCH}, {repeats} repeats")
    print(f"{'':34} {'images/s':>9}  ratio (from, to)")
    for name in theirs:
        print(f"{name:34} {statistics.median(rates[name]):9.0f}")
    worst = float("inf")
    for name in ours:
        ratios = [rate / other for rate, other in zip(rates[name], fastest, strict=True)]
        ratio = statistics.median(ratios)
        worst = min(worst, ratio)
        print(
            f"{name:34} {statistics.median(rates[name]):9.0f}  {ratio:.1f} "
            f"({min(ratios):.1f}, {max(ratios):.1f})"
        )
    print(f"bar: at least {BAR:g}; {'kept' if worst >= BAR else 'broken'}")


if __name__ == "__main__":
    main()
