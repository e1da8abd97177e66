"""Augmentation against independent per-image references, and the statistics of what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference
from torchvision.transforms.v2 import functional as reference_v2

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.augmentation import (
    Augmentation,
    Transform,
    colour_jitter,
    cut_out,
    draw_boxes,
    resized_crop,
    shift_and_flip,
    turn_hue,
)

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


def chi_squared_limit(n_bins: int) -> float:
    """Mean plus five standard deviations of chi squared: passed by all but 1 in 10^4 seeds."""
    freedom = n_bins - 1
    return freedom + 5 * math.sqrt(2 * freedom)


def test_crop_offsets_and_flips_are_uniform_and_independent():
    # The pixel at the centre holds its own position, so the result tells what was drawn.
    n, side, padding = 20_000, 9, 2
    position = torch.arange(81, dtype=torch.uint8).view(1, 1, side, side).expand(n, 1, -1, -1)
    grey = Transform((0.0,), (1 / 255,), Augmentation(padding, True), image_size=9, device=CPU)
    result = grey(position, seeded(3))
    middle, beside = result[:, 0, 4, 4].long(), result[:, 0, 4, 5].long()
    flip = (beside < middle).long()
    rows, columns = middle // side - 2, middle % side - 2
    drawn = (rows * 5 + columns) * 2 + flip
    assert rows.min() == columns.min() == 0
    assert rows.max() == columns.max() == 2 * padding
    counts = torch.bincount(drawn, minlength=50).double()
    expected = n / 50
    assert float(((counts - expected) ** 2 / expected).sum()) < chi_squared_limit(50)
    # The rate of flips: half, to within five standard deviations.
    assert abs(float(flip.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(n)


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
    result = resized_crop(images, boxes, flips, 24)
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
    result = colour_jitter(images, strengths, seeded(5))
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
