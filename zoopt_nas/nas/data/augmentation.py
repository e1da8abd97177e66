"""Augment and normalise whole batches on the device of the images.

A CPU generator draws the random numbers, so a seed gives the same augmentation on every device.
`Transform` draws; the functions below it compute from the drawn numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from zoopt_nas.errors import InvalidValueError
from zoopt_nas.nas.data.transfer import to_device


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training batch; the defaults change nothing.

    Attributes:
        crop_padding: Black pixels added on each side before a random crop to the original size.
        flip: Whether to mirror left-right with probability 1/2.
        cutout: Side in pixels of a square set to zero after normalisation; 0 is none.
        resized_crop: Output side of ImageNet's crop (8-100 % of the area, aspect 3:4 to 4:3),
            which replaces the padded crop; None is off.
        colour_jitter: Strengths of brightness, contrast, saturation (0 or more) and hue
            (0 to 0.5); requires ``resized_crop``.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    resized_crop: int | None = None
    colour_jitter: tuple[float, float, float, float] | None = None


class RankSlice(NamedTuple):
    """The part of each batch for one of ``n_ranks`` processes: images rank, rank + n_ranks, ..."""

    rank: int = 0
    n_ranks: int = 1

    def of(self, values: Tensor) -> Tensor:
        """Select from ``values``, whose last dimension runs over the whole batch."""
        return values[..., self.rank :: self.n_ranks]


ONE_RANK = RankSlice()


class Draws(NamedTuple):
    """The random numbers of a batch.

    Attributes:
        tensors: In the order in which ``Transform.apply`` uses them.
        order: Order of the four changes of the colour jitter.
    """

    tensors: tuple[Tensor, ...] = ()
    order: tuple[int, ...] = ()


class Transform:
    """Turns uint8 batches into augmented and normalised network input.

    With augmentation, the order is crop and flip, colour jitter, normalisation, cutout. Without it,
    the images are cropped to the central square and normalised.

    Args:
        mean, std: Per-channel statistics of pixels in 0..1.
        augmentation: Random changes; None is none.
        image_size: Side of the result.
        device: Device of the batches.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
        *,
        image_size: int,
        device: torch.device,
    ) -> None:
        self.augmentation, self.image_size = augmentation, image_size
        # (x/255 - mean) / std as one multiplication and one addition
        scale = [1 / (255 * s) for s in std]
        bias = [-m / s for m, s in zip(mean, std, strict=True)]
        self._scale = torch.tensor(scale, device=device).view(1, -1, 1, 1)
        self._bias = torch.tensor(bias, device=device).view(1, -1, 1, 1)

    def __call__(
        self, images: Tensor, generator: Generator | None = None, rank_slice: RankSlice = ONE_RANK
    ) -> Tensor:
        """Transform uint8 (b, c, h, w) to float32 (b, c, image_size, image_size).

        An augmentation needs a CPU ``generator``, which draws for the whole batch even if
        ``images`` are only the part ``rank_slice`` of it.

        Raises:
            InvalidValueError: There is an augmentation and no generator.
        """
        height, width = images.shape[-2:]
        draws = self.draw(len(images), (height, width), generator, rank_slice)
        moved = to_device(draws.tensors, images.device)
        return self.apply(images, draws._replace(tensors=tuple(moved)))

    def draw(
        self,
        n: int,
        size: tuple[int, int],
        generator: Generator | None,
        rank_slice: RankSlice = ONE_RANK,
    ) -> Draws:
        """Draw for ``n`` images of ``size`` (height, width); see ``__call__``."""
        todo = self.augmentation
        if todo is None:
            return Draws()
        if generator is None:
            raise InvalidValueError("generator must be given to a transform that augments")
        n_drawn, select = n * rank_slice.n_ranks, rank_slice.of
        drawn: list[Tensor] = []
        order: tuple[int, ...] = ()
        if todo.resized_crop is not None:
            boxes = select(draw_boxes(n_drawn, size[1], generator))
            flips = select(_draw_flips(n_drawn, todo, generator))
            drawn.append(crop_maps(boxes, flips, size[1]))
            if todo.colour_jitter is not None:
                factors, order = draw_jitter(n_drawn, todo.colour_jitter, generator)
                drawn.append(select(factors))
            size = (todo.resized_crop,) * 2
        elif todo.crop_padding or todo.flip:
            offsets = torch.randint(0, 2 * todo.crop_padding + 1, (2, n_drawn), generator=generator)
            flips = _draw_flips(n_drawn, todo, generator)
            drawn.append(select(torch.cat((offsets, flips[None]))))
        if todo.cutout:
            rows = torch.randint(0, size[0], (n_drawn,), generator=generator)
            columns = torch.randint(0, size[1], (n_drawn,), generator=generator)
            drawn.append(select(torch.stack((rows, columns))))
        return Draws(tuple(drawn), order)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Transform ``images`` by ``draws``, which are on the same device."""
        todo, drawn = self.augmentation, iter(draws.tensors)
        if todo is None:
            return self._normalise(_centre_crop(images, self.image_size))
        if todo.resized_crop is not None:
            images = resized_crop(images, next(drawn), todo.resized_crop)
            if todo.colour_jitter is not None:
                images = colour_jitter(images / 255, next(drawn), draws.order) * 255
        elif todo.crop_padding or todo.flip:
            grid = next(drawn)
            images = shift_and_flip(images, grid[:2], grid[2], todo.crop_padding)
        normalised = self._normalise(images)
        if todo.cutout:
            cut_out(normalised, next(drawn), todo.cutout)
        return normalised

    def _normalise(self, images: Tensor) -> Tensor:
        # Broadcasting along the last dimension prevents vector instructions on a CPU.
        shape = (1, *images.shape[1:])
        scale, bias = (x.expand(shape).contiguous() for x in (self._scale, self._bias))
        pixels = images.to(torch.float32, copy=True)
        return torch.addcmul(bias, pixels, scale, out=pixels)


def _centre_crop(images: Tensor, size: int) -> Tensor:
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def _draw_flips(n_images: int, todo: Augmentation, generator: Generator) -> Tensor:
    if not todo.flip:
        return torch.zeros(n_images, dtype=torch.int64)
    return torch.randint(0, 2, (n_images,), generator=generator)


def shift_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Pad images (b, c, h, w) with black, crop them to their size and mirror some, in one gather.

    ``offsets`` (2, b) has row and column of each crop in 0..2*padding, ``flips`` (b,) 1 to mirror.
    """
    n, channels, height, width = images.shape
    top, left, flip = *offsets, flips
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None] == 1, width - 1 - columns, columns)
    padded = functional.pad(images, (padding,) * 4)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    pixels = pixels.view(n, 1, -1).expand(n, channels, -1)
    return padded.view(n, channels, -1).gather(2, pixels).view(images.shape)


def cut_out(images: Tensor, centres: Tensor, side: int) -> None:
    """Zero a square of each image (b, c, h, w) in place (DeVries & Taylor, 2017).

    It starts at ``centres`` (2, b), row and column, minus side//2, and is clipped at the borders.
    """
    row, column = (centres - side // 2)[..., None]
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= row) & (rows < row + side)
    in_columns = (columns >= column) & (columns < column + side)
    images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)


def draw_boxes(n_images: int, side: int, generator: Generator) -> Tensor:
    """Draw ImageNet's random crops of square images: 8-100 % of the area, aspect 3:4 to 4:3.

    Returns float32 (4, n_images): top, left, height and width in whole pixels.
    """
    # As in torchvision: ten tries for a box inside the image, then the whole image.
    n_tries = 10
    area = torch.empty(n_tries, n_images).uniform_(0.08, 1.0, generator=generator)
    log_aspect = torch.empty(n_tries, n_images)
    log_aspect.uniform_(math.log(3 / 4), math.log(4 / 3), generator=generator)
    width = (side * (area * log_aspect.exp()).sqrt()).round()
    height = (side * (area / log_aspect.exp()).sqrt()).round()
    fits = (width <= side) & (height <= side)
    sizes = torch.stack((height, width)).clamp(1, side)
    first = fits.int().argmax(dim=0)
    chosen = sizes[:, first, torch.arange(n_images)]
    chosen = torch.where(fits.any(dim=0), chosen, torch.tensor(float(side)))
    corner = (torch.rand(2, n_images, generator=generator) * (side - chosen + 1)).floor()
    return torch.cat((corner, chosen))


def crop_maps(boxes: Tensor, flips: Tensor, side: int) -> Tensor:
    """Return the affine maps (b, 2, 3) from crops to their square images.

    ``boxes`` are as from ``draw_boxes``; ``flips`` (b,) has 1 to mirror the crop left-right.
    """
    top, left, height, width = boxes / side
    maps = torch.zeros(len(flips), 2, 3)
    maps[:, 0, 0] = width * (1 - 2 * flips)
    maps[:, 1, 1] = height
    maps[:, 0, 2] = 2 * left + width - 1  # grid coordinates run over -1..1
    maps[:, 1, 2] = 2 * top + height - 1
    return maps


def resized_crop(images: Tensor, maps: Tensor, size: int) -> Tensor:
    """Crop each square image (b, c, h, w) by ``maps`` and resize it to float32 (b, c, size, size).

    Unlike a crop and a resize, the bilinear interpolation uses pixels just outside the crop.
    """
    shape = [len(images), images.shape[1], size, size]
    grid = functional.affine_grid(maps, shape, align_corners=False)
    return functional.grid_sample(
        images.to(torch.float32), grid, padding_mode="border", align_corners=False
    )


def draw_jitter(
    n_images: int, strengths: tuple[float, float, float, float], generator: Generator
) -> tuple[Tensor, tuple[int, ...]]:
    """Draw the factors of a colour jitter, and the order of its changes (torchvision: per image).

    Returns float32 (4, n_images) in -s..s for each strength s, and a permutation of 0..3.
    """
    factors = 2 * torch.rand(4, n_images, generator=generator) - 1
    factors *= torch.tensor(strengths)[:, None]
    order = torch.randperm(4, generator=generator).tolist()
    return factors, tuple(order)


def colour_jitter(images: Tensor, factors: Tensor, order: Sequence[int]) -> Tensor:
    """Change brightness, contrast, saturation and hue of images (b, 3, h, w) in 0..1.

    With ``factors`` f (4, b), it multiplies the first three by 1 + f and turns the hue by f
    circles. ``order`` is a permutation of 0..3.
    """
    factors = factors[..., None, None, None]
    for i in order:
        if i == 3:
            images = turn_hue(images, factors[3])
            continue
        grey = _grey(images)
        blend = (torch.zeros_like(grey), grey.mean(dim=(2, 3), keepdim=True), grey)[i]
        images = torch.lerp(blend.expand_as(images), images, 1 + factors[i]).clamp(0, 1)
    return images


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return 0.2989 * red + 0.587 * green + 0.114 * blue  # ITU-R 601-2 luma


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of images (b, 3, h, w) in 0..1 by ``turns`` (b, 1, 1, 1) circles."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    value = images.amax(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    divisor = torch.where(chroma > 0, chroma, 1.0)  # grey has no hue
    sixths = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # 5, 3, 1, computed on the device to avoid a copy.
    phase = torch.arange(5.0, 0.0, -2.0, device=images.device).view(1, 3, 1, 1)
    k = torch.remainder(phase + sixths + 6 * turns, 6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
