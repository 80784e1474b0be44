"""Mixup and CutMix: a batch in which each sample has something of its neighbour, and labels to match.

Partners are the samples of each pair 2k, 2k+1 of the batch. Its order is random, so they are drawn as well as by a
permutation, and both of a pair are in the same part of a batch that several processes share.

mixup (Zhang et al., ICLR 2018): x = l x1 + (1 - l) x2, with l from Beta(alpha, alpha) for the batch.
CutMix (Yun et al., ICCV 2019): a rectangle of a share 1 - l of the area, at a random place, is the other sample's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class MixDraw(NamedTuple):
    """`share` is that of a sample's own; `box` (top, bottom, left, right) the other's rectangle, None for mixup."""

    share: float
    box: tuple[int, int, int, int] | None


class Mixing(BaseModel):
    """One of the two for each batch where both are given, with probability `p`; `mixup` and `cutmix` are the alphas."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mixup: float | None = Field(None, gt=0)
    cutmix: float | None = Field(None, gt=0)
    p: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _one_at_least(self) -> Mixing:
        if self.mixup is None and self.cutmix is None:
            raise ValueError("mix: give mixup, cutmix or both")
        return self

    def draw(self, height: int, width: int, generator: torch.Generator) -> MixDraw | None:
        """What to do with one batch; None for nothing."""
        # Beta is not among torch's distributions that take a generator.
        draws = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=generator)))
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self, kind) is not None]
        chosen = kinds[draws.integers(len(kinds))]
        alpha = getattr(self, chosen)
        share = float(draws.beta(alpha, alpha))
        down, right = float(draws.random()) * height, float(draws.random()) * width
        if draws.random() >= self.p:
            return None
        if chosen == "mixup":
            return MixDraw(share, None)
        half_h, half_w = (math.sqrt(1 - share) * side / 2 for side in (height, width))
        top, bottom = max(0, round(down - half_h)), min(height, round(down + half_h))
        left, right_edge = max(0, round(right - half_w)), min(width, round(right + half_w))
        cut = (bottom - top) * (right_edge - left)
        return MixDraw(1 - cut / (height * width), (top, bottom, left, right_edge))


def mixed(x: Tensor, y: Tensor, draw: MixDraw, classes: int) -> tuple[Tensor, Tensor]:
    """Samples whose batch is the first axis, and labels [N], mixed; labels become shares of the classes [N, classes].

    The last sample of an odd number stays as it is.
    """
    partner = torch.arange(len(x), device=x.device) ^ 1
    if len(x) % 2:
        partner[-1] = len(x) - 1
    own = functional.one_hot(y, classes).to(x.dtype)
    labels = draw.share * own + (1 - draw.share) * own[partner]
    if draw.box is None:
        return draw.share * x + (1 - draw.share) * x[partner], labels
    top, bottom, left, right = draw.box
    result = x.clone()
    result[..., top:bottom, left:right] = x[partner][..., top:bottom, left:right]
    return result, labels
