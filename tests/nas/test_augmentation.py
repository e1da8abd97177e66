"""Augmentation against independent per-image references, and the statistics of what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2
from torchvision import transforms
from torchvision.transforms import functional as reference
from torchvision.transforms.v2 import functional as reference_v2

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.augmentation import (
    Augmentation,
    Transform,
    colour_jitter,
    crop_maps,
    cut_out,
    draw_boxes,
    draw_jitter,
    resized_crop,
    shift_and_flip,
    turn_hue,
)
from zoopt_nas.nas.data.batches import BatchStream
from zoopt_nas.nas.data.image_sets import ImageSet

CPU = torch.device("cpu")
MEAN, STD = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, channels: int = 3, side: int = 12) -> torch.Tensor:
    shape = (n, channels, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(7))


def transform(augmentation: Augmentation | None = None, size: int = 12) -> Transform:
    return Transform(MEAN, STD, augmentation, image_size=size, device=CPU)


def test_shift_and_flip_is_the_crop_of_every_offset():
    padding = 2
    images = random_images(2 * (2 * padding + 1) ** 2)
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(5), torch.arange(2)).T
    result = shift_and_flip(images, grid[:2], grid[2], padding)
    for i, (top, left, flip) in enumerate(grid.T.tolist()):
        padded = np.pad(images[i].numpy(), ((0, 0), (padding, padding), (padding, padding)))
        expected = padded[:, top : top + 12, left : left + 12]
        expected = expected[:, :, ::-1] if flip else expected
        np.testing.assert_array_equal(result[i].numpy(), expected)
    assert result.dtype == torch.uint8


def test_normalisation_is_torchvisions():
    images = random_images(5)
    expected = torch.stack(
        [
            reference.normalize(reference.to_tensor(x.permute(1, 2, 0).numpy()), MEAN, STD)
            for x in images
        ]
    )
    result = transform()(images)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def test_without_augmentation_the_middle_is_kept():
    images = random_images(2, side=16)
    assert torch.equal(transform(size=12)(images), transform(size=16)(images)[..., 2:14, 2:14])


def test_padding_is_black_not_zero_after_normalisation():
    white = torch.full((64, 3, 12, 12), 255, dtype=torch.uint8)
    result = transform(Augmentation(crop_padding=4))(white, seeded())
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    lowest = result.amin(dim=(0, 2, 3))
    torch.testing.assert_close(lowest, black, rtol=1e-6, atol=0)


def assert_counts_fit(counts: torch.Tensor, expected: torch.Tensor, freedom: int) -> None:
    """Pearson's test at a level of 1 in 10^4; the seed is fixed."""
    assert expected.min() > 5  # or the statistic is not chi squared
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < chi2.isf(1e-4, freedom)
    assert statistic > chi2.ppf(1e-4, freedom)  # as even as this is not random


def assert_independent(one: torch.Tensor, other: torch.Tensor) -> None:
    table = torch.zeros(int(one.max()) + 1, int(other.max()) + 1, dtype=torch.float64)
    table.index_put_((one, other), torch.ones((), dtype=torch.float64), accumulate=True)
    expected = table.sum(dim=1, keepdim=True) * table.sum(dim=0) / len(one)
    assert_counts_fit(table, expected, (table.shape[0] - 1) * (table.shape[1] - 1))


@pytest.fixture(scope="module")
def draws() -> dict[str, torch.Tensor]:
    """What a stream drew for each image in its order, read off the pixels.

    All images are the same: each pixel holds its own position.
    """
    n_images, n_epochs, side = 54, 600, 11
    position = torch.arange(side**2, dtype=torch.uint8).view(1, 1, side, side)
    stream = BatchStream(
        ImageSet(position.repeat(n_images, 1, 1, 1), torch.arange(n_images)),
        torch.arange(n_images),
        18,
        transform=Transform((0.0,), (1 / 255,), Augmentation(4, True), image_size=11, device=CPU),
        generator=seeded(3),
    )
    batches = [stream.next_batch() for _ in range(n_epochs * stream.n_batches)]
    images, index = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    middle, beside = images[:, 0, 5, 5].round().long(), images[:, 0, 5, 6].round().long()
    assert set((beside - middle).tolist()) == {-1, 1}
    return {
        "row": middle // side - 1,  # the middle of the crop shows row 5 + offset - padding
        "column": middle % side - 1,
        "flip": (beside < middle).long(),
        "index": index,
        "place": torch.arange(len(index)) % 18,  # in the batch
    }


def test_crop_offsets_are_uniform_over_the_9x9_grid(draws):
    assert (draws["row"].min(), draws["column"].min()) == (0, 0)
    assert (draws["row"].max(), draws["column"].max()) == (8, 8)
    counts = torch.bincount(draws["row"] * 9 + draws["column"], minlength=81).double()
    assert_counts_fit(counts, torch.full((81,), len(draws["row"]) / 81), 80)


def test_half_of_the_images_are_flipped(draws):
    n = len(draws["flip"])
    low, high = binom.ppf([5e-5, 1 - 5e-5], n, 0.5)
    assert low <= int(draws["flip"].sum()) <= high


def test_flips_are_independent_of_the_crops(draws):
    assert_independent(draws["flip"], draws["row"] * 9 + draws["column"])


@pytest.mark.parametrize("where", ["index", "place"])
@pytest.mark.parametrize("drawn", ["row", "column", "flip"])
def test_what_is_drawn_is_independent_of_which_image_it_is(draws, drawn, where):
    assert_independent(draws[drawn], draws[where])


@pytest.mark.parametrize("drawn", ["row", "column", "flip"])
def test_successive_images_and_epochs_are_drawn_for_independently(draws, drawn):
    values = draws[drawn]
    assert_independent(values[1:], values[:-1])
    by_index = values[draws["index"].argsort(stable=True)].view(54, 600)  # each in its epochs
    assert_independent(by_index[:, 1:].flatten(), by_index[:, :-1].flatten())


def test_the_results_are_exactly_those_that_torchvision_can_give():
    image = random_images(1, side=9)[0]
    padded = reference.pad(image, [4])
    crops = [reference.crop(padded, top, left, 9, 9) for top in range(9) for left in range(9)]
    possible = {x.numpy().tobytes() for crop in crops for x in (crop, reference.hflip(crop))}
    assert len(possible) == 162
    # With 20 draws for each of the 162, one is missed with probability 162 e^-20 = 3e-7.
    n = 20 * 162
    pixels = Transform([0.0] * 3, [1 / 255] * 3, Augmentation(4, True), image_size=9, device=CPU)
    ours = pixels(image.expand(n, -1, -1, -1), seeded()).round().to(torch.uint8)
    assert {x.numpy().tobytes() for x in ours} == possible
    random_crop = transforms.Compose(
        [transforms.RandomCrop(9, padding=4), transforms.RandomHorizontalFlip()]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = {random_crop(image).numpy().tobytes() for _ in range(n)}
    assert theirs == possible


def test_no_flip_when_not_asked():
    images = random_images(50)
    result = transform(Augmentation(crop_padding=0, flip=False))(images, seeded())
    assert torch.equal(result, transform()(images))


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cut_out_zeroes_a_clipped_square_at_every_centre(side):
    centres = torch.cartesian_prod(torch.arange(6), torch.arange(6)).T
    images = torch.ones(36, 2, 6, 6)
    cut_out(images, centres, side)
    for i, (row, column) in enumerate(centres.T.tolist()):
        expected = np.ones((2, 6, 6))
        top, left = row - side // 2, column - side // 2
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        np.testing.assert_array_equal(images[i].numpy(), expected)


def test_cutout_comes_after_normalisation():
    images = torch.full((400, 3, 12, 12), 255, dtype=torch.uint8)
    result = transform(Augmentation(cutout=4))(images, seeded())
    n_zero = (result == 0).sum(dim=(1, 2, 3))
    inside = n_zero == 3 * 16
    # The square is whole if both centre coordinates lie in 2..10, at 9 of 12 places each.
    share = (9 / 12) ** 2
    spread = math.sqrt(share * (1 - share) / 400)
    assert abs(float(inside.double().mean()) - share) < 5 * spread
    assert n_zero.min() >= 3 * 4  # a corner keeps 2 x 2
    untouched = result[result != 0].view(-1)
    assert untouched.min() > 1.9  # white, normalised


def test_resized_crop_is_torchvisions_inside_the_box():
    images = random_images(4, side=32)
    boxes = torch.tensor([[0.0, 3, 10, 5], [0, 7, 1, 5], [32, 20, 16, 9], [32, 18, 24, 9]])
    flips = torch.tensor([0, 1, 0, 1])
    result = resized_crop(images, crop_maps(boxes, flips, 32), 24)
    assert result.shape == (4, 3, 24, 24)
    for i, (top, left, height, width) in enumerate(boxes.T.int().tolist()):
        expected = reference.resized_crop(
            images[i].float(), top, left, height, width, [24, 24], antialias=False
        )
        expected = expected.flip(-1) if flips[i] else expected
        # Pixels that blend with a neighbour outside the box differ: half an input pixel wide.
        edge = math.ceil(24 / min(height, width) / 2)
        inner = slice(edge, 24 - edge)
        torch.testing.assert_close(
            result[i, :, inner, inner], expected[:, inner, inner], rtol=0, atol=2e-3
        )


def test_boxes_have_the_areas_and_aspects_of_imagenet():
    n, side = 20_000, 256
    top, left, height, width = draw_boxes(n, side, seeded())
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= side).all()
    assert (left + width <= side).all()
    assert torch.equal(height, height.round())
    area, aspect = height * width / side**2, width / height
    assert 0.075 < area.min() < 0.09
    assert area.max() > 0.98
    assert 0.74 < aspect.min() < aspect.max() < 1.35
    # Below an area of 3/4 every aspect fits, so the area is uniform there.
    small = area[area < 0.7]
    spread = (0.7 - 0.08) / math.sqrt(12 * len(small))
    assert abs(float(small.mean()) - 0.39) < 5 * spread + 1e-3  # sides are whole pixels
    # Height and width are alike, and so are the margins on both sides.
    gap = height - width
    assert abs(float(gap.mean())) < 5 * float(gap.std()) / math.sqrt(n)
    lean = left - (side - width - left)
    assert abs(float(lean.mean())) < 5 * float(lean.std()) / math.sqrt(n)


def test_turn_hue_is_torchvisions():
    images = torch.rand(6, 3, 5, 5, generator=seeded())
    images[0] = images[0, :1]  # grey
    turns = torch.tensor([0.1, -0.2, 0.0, 0.2, 0.5, 0.05])
    result = turn_hue(images, turns.view(-1, 1, 1, 1))
    for i, turn in enumerate(turns.tolist()):
        expected = reference_v2.adjust_hue(images[i], turn)
        torch.testing.assert_close(result[i], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("which", "adjust"),
    [
        (0, reference.adjust_brightness),
        (1, reference.adjust_contrast),
        (2, reference.adjust_saturation),
    ],
)
def test_colour_jitter_changes_one_thing_as_torchvision_does(which, adjust):
    images = torch.rand(3, 3, 6, 6, generator=seeded())
    strengths = tuple(0.4 if i == which else 0.0 for i in range(4))
    result = colour_jitter(images, *draw_jitter(3, strengths, seeded(5)))
    factors = 1 + 0.4 * (2 * torch.rand(4, 3, generator=seeded(5)) - 1)[which]
    assert (factors - 1).abs().min() > 0.01
    for i, factor in enumerate(factors.tolist()):
        expected = adjust(images[i], factor)
        torch.testing.assert_close(result[i], expected, rtol=0, atol=1e-5)


def test_the_same_seed_augments_alike_and_the_global_generator_rests():
    everything = Augmentation(crop_padding=2, flip=True, cutout=4)
    imagenet = Augmentation(flip=True, resized_crop=8, colour_jitter=(0.4, 0.4, 0.4, 0.2))
    images = random_images(20)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for augmentation in (everything, imagenet):
        augment = transform(augmentation)
        assert torch.equal(augment(images, seeded(1)), augment(images, seeded(1)))
        assert not torch.equal(augment(images, seeded(1)), augment(images, seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert torch.equal(images, random_images(20))  # the input is unchanged


def test_augmentation_needs_a_generator():
    with pytest.raises(InvalidValueError, match="generator"):
        transform(Augmentation(flip=True))(random_images(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_seed_augments_alike_on_the_gpu():
    images = random_images(20)
    cuda = torch.device("cuda")
    for augmentation in (
        Augmentation(crop_padding=2, flip=True, cutout=4),
        Augmentation(flip=True, resized_crop=12, colour_jitter=(0.4, 0.4, 0.4, 0.2)),
    ):
        on_gpu = Transform(MEAN, STD, augmentation, image_size=12, device=cuda)
        expected = transform(augmentation)(images, seeded())
        result = on_gpu(images.to(cuda), seeded()).cpu()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
