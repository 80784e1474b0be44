"""A random rectangle of a picture, resized: the crop of ImageNet's training, from draws made beforehand.

As in common practice (GoogLeNet's): of ten tries of an area and an aspect ratio the first that fits is taken, and the
largest centred rectangle within the bounds of the ratio if none does.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

_TRIES = 10


def crop_draws(
    count: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """[count, 11, 4]: share of the area, aspect ratio, and position from top and left, 0 to 1, of each try.

    The last row holds the bounds of the ratio.
    """
    tries = torch.rand(count, _TRIES, 4, generator=generator)
    area = scale[0] + tries[..., 0] * (scale[1] - scale[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + tries[..., 1] * (high - low))
    drawn = torch.stack((area, aspect, tries[..., 2], tries[..., 3]), 2)
    bounds = torch.tensor([ratio[0], ratio[1], 0.0, 0.0]).expand(count, 1, 4)
    return torch.cat((drawn, bounds), 1)


def rectangle(draws: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width in a picture of this size, by one picture's draws [11, 4]."""
    *tries, (low, high, _, _) = draws.tolist()
    for area, aspect, down, right in tries:
        w = round(math.sqrt(area * height * width * aspect))
        h = round(math.sqrt(area * height * width / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    w = min(width, round(height * high))
    h = min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(picture: Tensor, draws: Tensor, size: tuple[int, int]) -> Tensor:
    """The drawn rectangle of a picture [C, H, W], bilinear with antialiasing, at `size`; in the picture's own type."""
    top, left, height, width = rectangle(draws, picture.shape[-2], picture.shape[-1])
    return resized(picture[:, top : top + height, left : left + width], size)


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture [C, H, W] at another height and width, bilinear with antialiasing; bytes are rounded to bytes."""
    if tuple(picture.shape[-2:]) == size:
        return picture
    scaled = functional.interpolate(
        picture.unsqueeze(0).float(), size, mode="bilinear", antialias=True
    )[0]
    if picture.dtype == torch.uint8:
        return scaled.round().clamp(0, 255).to(torch.uint8)
    return scaled.to(picture.dtype)


def centre_crop(picture: Tensor, size: tuple[int, int], share: float = 1.0) -> Tensor:
    """The shorter side resized to `size / share`, and the centre cut out."""
    height, width = picture.shape[-2:]
    scale = max(size[0] / share / height, size[1] / share / width)
    grown = resized(
        picture, (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    )
    top, left = ((grown.shape[i - 2] - size[i]) // 2 for i in (0, 1))
    return grown[:, top : top + size[0], left : left + size[1]]
