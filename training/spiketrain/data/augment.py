"""Augmentation on tensors, on whatever device they are. Each transform changes each sample by itself.

What a transform draws for a batch is apart from what it does with it, so that a part of a batch on another process or
device is changed as it would be within the whole. All timesteps of a sample are changed alike.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as functional
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from spiketrain.data.crops import crop_draws, resized_crop

Shape = tuple[int, ...]
Drawn = tuple[Any, ...]


class Levels(NamedTuple):
    """What pixels of 0 and 255 are after normalisation, [C, 1, 1] each."""

    black: Tensor
    white: Tensor


class _Transform(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    _later: ClassVar[tuple[str, ...]] = ()

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        """Draws for a batch of this shape, each with a row for a sample."""
        raise NotImplementedError(f"{type(self).__name__} must draw")

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        """Samples [n, ...] by the n rows drawn for them; `levels` are those of a picture's pixels."""
        raise NotImplementedError(f"{type(self).__name__} must apply what it drew")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(x, self.draw(tuple(x.shape), generator))

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A stopped run goes on only with a recipe that is written as it was before these fields were there.
        content: dict[str, Any] = handler(self)
        for name in self._later:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content


class Flip(_Transform):
    """Mirror left and right with probability 1/2."""

    kind: Literal["flip"] = "flip"

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        return (torch.rand(shape[0], generator=generator) < 0.5,)

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        return torch.where(_column(drawn[0], x), x.flip(-1), x)


class Crop(_Transform):
    """Pad by `padding` pixels, with the border's values or with black, and cut the old size out at a random place."""

    kind: Literal["crop"] = "crop"
    padding: int = Field(2, gt=0)
    fill: Literal["border", "black"] = "border"

    _later = ("fill",)

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        size = (shape[0], 1, 1, 1)
        return tuple(
            torch.randint(0, 2 * self.padding + 1, size, generator=generator) for _ in "yx"
        )

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        p, height, width = self.padding, x.shape[-2], x.shape[-1]
        flat = _flat(x)
        if self.fill == "border":
            padded = functional.pad(flat, (p, p, p, p), mode="replicate")
        else:
            padded = flat.new_zeros(*flat.shape[:2], height + 2 * p, width + 2 * p)
            if levels is not None:
                padded += levels.black
            padded[..., p:-p, p:-p] = flat
        top, left = drawn
        rows = top + torch.arange(height, device=x.device).view(1, 1, -1, 1)
        columns = left + torch.arange(width, device=x.device).view(1, 1, 1, -1)
        sample = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
        channel = torch.arange(flat.shape[1], device=x.device).view(1, -1, 1, 1)
        return padded[sample, channel, rows, columns].view_as(x)


class ResizedCrop(_Transform):
    """Cut out a rectangle of a share of the area within `scale` and resize it to the whole, as for ImageNet.

    Pictures on disk are cut before they are resized to the network's input.
    """

    kind: Literal["resized-crop"] = "resized-crop"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @model_validator(mode="after")
    def _in_order(self) -> ResizedCrop:
        _check_bounds(self.scale, self.ratio)
        return self

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        return (crop_draws(shape[0], self.scale, self.ratio, generator),)

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        flat = _flat(x)
        size = (x.shape[-2], x.shape[-1])
        cut = [
            resized_crop(one, row, size)
            for one, row in zip(flat, drawn[0].to("cpu", copy=False), strict=True)
        ]
        return torch.stack(cut).view_as(x)


class Cutout(_Transform):
    """Fill a rectangle at a random place, with probability `p`.

    A square of `size` pixels, which may reach over the border; or, with `scale`, a share of the area within its bounds
    and an aspect ratio within `ratio`, wholly inside. `fill` is the mean colour (0 after normalisation), black, or one
    random grey between black and white.
    """

    kind: Literal["cutout"] = "cutout"
    size: int = Field(8, gt=0)
    p: float = Field(0.5, gt=0, le=1)
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (0.4, 2.5)
    fill: Literal["mean", "black", "random"] = "mean"

    _later = ("scale", "ratio", "fill")

    @model_validator(mode="after")
    def _in_order(self) -> Cutout:
        _check_bounds(self.scale or (0.5, 0.5), self.ratio)
        return self

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        count, (height, width) = shape[0], shape[-2:]
        if self.scale is None:
            tall = wide = torch.full((count, 1), self.size)
            y0, x0 = (
                torch.randint(
                    -self.size // 2, side - self.size // 2, (count, 1), generator=generator
                )
                for side in (height, width)
            )
        else:
            area = _between(self.scale, count, generator) * height * width
            ratio = _between(self.ratio, count, generator)
            tall = (area * ratio).sqrt().round().clamp(1, height).long()
            wide = (area / ratio).sqrt().round().clamp(1, width).long()
            y0 = (torch.rand(count, 1, generator=generator) * (height - tall + 1)).long()
            x0 = (torch.rand(count, 1, generator=generator) * (width - wide + 1)).long()
        chosen = torch.rand(count, 1, generator=generator) < self.p
        grey = torch.rand(count, 1, generator=generator) if self.fill == "random" else chosen
        return y0, x0, tall, wide, chosen, grey

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        height, width = x.shape[-2:]
        y0, x0, tall, wide, chosen, grey = drawn
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        in_rows = (rows >= y0) & (rows < y0 + tall) & chosen
        in_columns = (columns >= x0) & (columns < x0 + wide)
        hole = (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).view(
            len(x), *(1,) * (x.dim() - 3), height, width
        )
        if self.fill == "mean" or levels is None:
            return x.masked_fill(hole, 0.0)
        black, white = levels
        colour = black if self.fill == "black" else black + grey.view(-1, 1, 1, 1) * (white - black)
        return torch.where(hole, colour, x)


class Affine(_Transform):
    """Rotate by up to `degrees`, shift by up to `shift` pixels, scale and shear within the bounds.

    What comes from outside is the mean colour (0 after normalisation), or black. Events are best moved by "nearest",
    which leaves counts whole.
    """

    kind: Literal["affine"] = "affine"
    degrees: float = Field(10.0, ge=0)
    shift: float = Field(2.0, ge=0)
    scale: float = Field(0.1, ge=0, lt=1)
    shear: float = Field(0.1, ge=0)
    fill: Literal["mean", "black"] = "mean"
    sampling: Literal["bilinear", "nearest"] = "bilinear"

    _later = ("fill", "sampling")

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        count, (height, width) = shape[0], shape[-2:]

        def uniform(bound: float) -> Tensor:
            return (torch.rand(count, generator=generator) * 2 - 1) * bound

        angle, scale, shear = (
            uniform(math.radians(self.degrees)),
            1 + uniform(self.scale),
            uniform(self.shear),
        )
        return (
            angle,
            scale,
            shear,
            uniform(2 * self.shift / width),
            uniform(2 * self.shift / height),
        )

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        angle, scale, shear, dx, dy = drawn
        cos, sin = torch.cos(angle), torch.sin(angle)
        top = torch.stack((cos * scale, shear - sin * scale, dx), 1)
        bottom = torch.stack((sin * scale, cos * scale, dy), 1)
        flat = _flat(x)
        grid = functional.affine_grid(
            torch.stack((top, bottom), 1), list(flat.shape), align_corners=False
        )
        outside = levels.black if levels is not None and self.fill == "black" else None
        if outside is not None:
            flat = flat - outside
        moved = functional.grid_sample(flat, grid, self.sampling, align_corners=False)
        return (moved if outside is None else moved + outside).view_as(x)


class Roll(_Transform):
    """Shift by up to `most` pixels in both directions; what leaves on one side comes back on the other."""

    kind: Literal["roll"] = "roll"
    most: int = Field(5, gt=0)

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        size = (shape[0], 1)
        return tuple(
            torch.randint(-self.most, self.most + 1, size, generator=generator) for _ in "yx"
        )

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        for shifts, axis in zip(drawn, (-2, -1), strict=True):
            side = x.shape[axis]
            index = (torch.arange(side, device=x.device) - shifts) % side
            index = index.view(len(x), *(1,) * (x.dim() - 3), *((-1, 1) if axis == -2 else (1, -1)))
            x = x.gather(axis, index.expand_as(x))
        return x


class Rotate(_Transform):
    """Turn by up to `degrees` to either side, without blurring counts; outside is empty."""

    kind: Literal["rotate"] = "rotate"
    degrees: float = Field(15.0, gt=0)

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        return (_angles(self.degrees, shape[0], generator),)

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        still = torch.zeros_like(drawn[0])
        return _NEAREST.apply(x, (drawn[0], still + 1, still, still, still), levels)


class Shear(_Transform):
    """Shear sideways by up to `degrees` to either side, without blurring counts; outside is empty."""

    kind: Literal["shear"] = "shear"
    degrees: float = Field(30.0, gt=0, lt=90)

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        return (torch.tan(_angles(self.degrees, shape[0], generator)),)

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        still = torch.zeros_like(drawn[0])
        return _NEAREST.apply(x, (still, still + 1, drawn[0], still, still), levels)


class EventDropout(_Transform):
    """Thin out event counts: each sample loses a share of its counts drawn from 0 to `most`."""

    kind: Literal["event-dropout"] = "event-dropout"
    most: float = Field(0.3, gt=0, lt=1)

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        share = torch.rand(shape[0], *(1,) * (len(shape) - 1), generator=generator) * self.most
        return (torch.rand(shape, generator=generator) >= share,)

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        kept: Tensor = drawn[0]
        return x * kept


Simple = Annotated[
    Flip | Crop | ResizedCrop | Cutout | Affine | Roll | Rotate | Shear | EventDropout,
    Field(discriminator="kind"),
]


class OneOf(_Transform):
    """One of the transforms, drawn for each sample, all alike; with `nothing` the sample may also stay as it is."""

    kind: Literal["one-of"] = "one-of"
    transforms: tuple[Simple, ...] = Field(min_length=1)
    nothing: bool = False

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        choices = len(self.transforms) + self.nothing
        which = torch.randint(0, choices, (shape[0],), generator=generator)
        return (which, *(each.draw(shape, generator) for each in self.transforms))

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        which, *each_drawn = drawn
        result = x
        for i, (transform, its) in enumerate(zip(self.transforms, each_drawn, strict=True)):
            result = torch.where(_column(which == i, x), transform.apply(x, its, levels), result)
        return result


Transform = Annotated[
    Flip | Crop | ResizedCrop | Cutout | Affine | Roll | Rotate | Shear | EventDropout | OneOf,
    Field(discriminator="kind"),
]


class Pipeline:
    """Transforms one after another."""

    def __init__(self, transforms: tuple[Transform, ...]) -> None:
        self.transforms = transforms

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(x, self.draw(tuple(x.shape), generator))

    def draw(self, shape: Shape, generator: torch.Generator) -> Drawn:
        return tuple(transform.draw(shape, generator) for transform in self.transforms)

    def before_decoding(self, drawn: Drawn) -> tuple[Tensor | None, Drawn]:
        """The draws of a resized crop that comes first, which is made of the picture as it is on disk; the others."""
        if self.transforms and isinstance(self.transforms[0], ResizedCrop):
            return drawn[0][0], (None, *drawn[1:])
        return None, drawn

    def apply(self, x: Tensor, drawn: Drawn, levels: Levels | None = None) -> Tensor:
        for transform, its in zip(self.transforms, drawn, strict=True):
            if its is not None:
                x = transform.apply(x, _on(its, x.device), levels)
        return x


_NEAREST = Affine(degrees=0, shift=0, scale=0, shear=0, sampling="nearest")


def _flat(x: Tensor) -> Tensor:
    """[N, T, C, H, W] as [N, T * C, H, W]."""
    return x.flatten(1, -3) if x.dim() > 4 else x


def _column(values: Tensor, x: Tensor) -> Tensor:
    """One value a sample, shaped to broadcast against x."""
    return values.view(-1, *(1,) * (x.dim() - 1))


def _between(bounds: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(count, 1, generator=generator)


def _angles(degrees: float, count: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) * 2 - 1) * math.radians(degrees)


def _on(drawn: Any, device: torch.device) -> Any:
    if isinstance(drawn, Tensor):
        return drawn.to(device)
    return tuple(_on(each, device) for each in drawn)


def _check_bounds(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale {scale}: shares of the area, from above 0 to 1 and in order")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio {ratio}: aspect ratios above 0, in order")
