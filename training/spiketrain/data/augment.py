"""Augmentation on tensors. Every transform draws from the generator it is given and changes each sample by itself."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as functional
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class _Transform(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Flip(_Transform):
    """Mirror left and right with probability 1/2."""

    kind: Literal["flip"] = "flip"

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(x), generator=generator) < 0.5
        return torch.where(chosen.view(-1, *(1,) * (x.dim() - 1)), x.flip(-1), x)


class Crop(_Transform):
    """Pad by `padding` pixels with the value of an empty corner and cut the old size out at a random place."""

    kind: Literal["crop"] = "crop"
    padding: int = Field(2, gt=0)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        p, height, width = self.padding, x.shape[-2], x.shape[-1]
        flat = x.flatten(1, -3) if x.dim() > 4 else x
        padded = functional.pad(flat, (p, p, p, p), mode="replicate")
        top = torch.randint(0, 2 * p + 1, (len(x), 1, 1, 1), generator=generator)
        left = torch.randint(0, 2 * p + 1, (len(x), 1, 1, 1), generator=generator)
        rows = top + torch.arange(height).view(1, 1, -1, 1)
        columns = left + torch.arange(width).view(1, 1, 1, -1)
        sample = torch.arange(len(x)).view(-1, 1, 1, 1)
        channel = torch.arange(flat.shape[1]).view(1, -1, 1, 1)
        return padded[sample, channel, rows, columns].view_as(x)


class Cutout(_Transform):
    """Set a square of `size` pixels at a random place to 0, with probability `p`."""

    kind: Literal["cutout"] = "cutout"
    size: int = Field(8, gt=0)
    p: float = Field(0.5, gt=0, le=1)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        height, width = x.shape[-2:]
        y0 = torch.randint(
            -self.size // 2, height - self.size // 2, (len(x), 1), generator=generator
        )
        x0 = torch.randint(
            -self.size // 2, width - self.size // 2, (len(x), 1), generator=generator
        )
        rows, columns = torch.arange(height), torch.arange(width)
        in_rows = (rows >= y0) & (rows < y0 + self.size)
        in_columns = (columns >= x0) & (columns < x0 + self.size)
        chosen = torch.rand(len(x), 1, 1, generator=generator) < self.p
        hole = in_rows.unsqueeze(2) & in_columns.unsqueeze(1) & chosen
        return x.masked_fill(hole.view(len(x), *(1,) * (x.dim() - 3), height, width), 0.0)


class Affine(_Transform):
    """Rotate by up to `degrees`, shift by up to `shift` pixels, scale and shear within the bounds; bilinear.

    All timesteps of a sample move alike.
    """

    kind: Literal["affine"] = "affine"
    degrees: float = Field(10.0, ge=0)
    shift: float = Field(2.0, ge=0)
    scale: float = Field(0.1, ge=0, lt=1)
    shear: float = Field(0.1, ge=0)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        count = len(x)

        def uniform(bound: float) -> Tensor:
            return (torch.rand(count, generator=generator) * 2 - 1) * bound

        angle, scale, shear = (
            uniform(math.radians(self.degrees)),
            1 + uniform(self.scale),
            uniform(self.shear),
        )
        cos, sin = torch.cos(angle), torch.sin(angle)
        dx, dy = uniform(2 * self.shift / x.shape[-1]), uniform(2 * self.shift / x.shape[-2])
        top = torch.stack((cos * scale, shear - sin * scale, dx), 1)
        bottom = torch.stack((sin * scale, cos * scale, dy), 1)
        flat = x.flatten(1, -3) if x.dim() > 4 else x
        grid = functional.affine_grid(
            torch.stack((top, bottom), 1), list(flat.shape), align_corners=False
        )
        return functional.grid_sample(flat, grid, align_corners=False).view_as(x)


class EventDropout(_Transform):
    """Thin out event counts: each sample loses a share of its counts drawn from 0 to `most`."""

    kind: Literal["event-dropout"] = "event-dropout"
    most: float = Field(0.3, gt=0, lt=1)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(len(x), *(1,) * (x.dim() - 1), generator=generator) * self.most
        return x * (torch.rand(x.shape, generator=generator) >= share)


Transform = Annotated[Flip | Crop | Cutout | Affine | EventDropout, Field(discriminator="kind")]


class Pipeline:
    """Transforms one after another."""

    def __init__(self, transforms: tuple[Transform, ...]) -> None:
        self.transforms = transforms

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        for transform in self.transforms:
            x = transform(x, generator)
        return x
