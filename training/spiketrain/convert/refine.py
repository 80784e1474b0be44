"""Reset values and thresholds of one layer, chosen by how well its spikes repeat the parent's.

Candidates are run on the currents that the converted layers before give, so that each layer makes up for what they
did. A layer's spikes are 0 or 1 and many candidates give the same ones: a grid is the honest way to search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiketrain.neurons import LIFConfig
from spiketrain.surrogate import Rectangle

# A channel with fewer spikes of the parent than this has no say: it takes its layer's choice.
FEWEST_SPIKES = 200
# Between a reset value and the threshold, or subtracted by a soft reset.
LEAST = 0.01


class Grid(NamedTuple):
    """Offsets from the present value and factors of the present threshold."""

    offsets: tuple[float, ...]
    factors: tuple[float, ...]


def _offsets(reach: float, step: float) -> tuple[float, ...]:
    count = round(reach / step)
    return tuple(step * i for i in range(-count, count + 1))


SOFT = (Grid(_offsets(0.25, 0.05), (1.0,)), Grid(_offsets(0.04, 0.01), (0.99, 1.0, 1.01)))
HARD = (
    Grid(_offsets(1.5, 0.1), (0.94, 1.0, 1.06)),
    Grid(_offsets(0.06, 0.03), (0.97, 0.985, 1.0, 1.015, 1.03)),
)
# Of a value that stays at 0.
AT_ZERO = (
    Grid((0.0,), tuple(0.8 + 0.05 * i for i in range(11))),
    Grid((0.0,), (0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03)),
)


class Choice(NamedTuple):
    """Reset values and thresholds by channel [C], float64."""

    value: Tensor
    threshold: Tensor


@torch.no_grad()
def refined(
    config: LIFConfig,
    start: Choice,
    currents: Tensor,
    wanted: Tensor,
    grids: Sequence[Grid],
    per_channel: bool,
) -> Choice:
    """The choice on the grids, one after the other, with the fewest spikes that are not `wanted` ([T, N, C, ...]).

    Without `per_channel` one offset and factor is chosen for the layer.
    """
    axes = [axis for axis in range(wanted.dim()) if axis != 2]
    spikes = wanted.sum(axes, dtype=torch.float64)
    choice = start
    for grid in grids:
        candidates = [
            _within(config, Choice(choice.value + offset, choice.threshold * factor))
            for offset in grid.offsets
            for factor in grid.factors
        ]
        # In order of distance, so that of equal ones the nearest is taken.
        candidates.sort(key=lambda c: _distance(c, choice))
        wrong = wrong_spikes(config, candidates, currents, wanted)
        best = wrong.argmin(0)
        of_layer = wrong.sum(1).argmin()
        if per_channel:
            best = torch.where(spikes < FEWEST_SPIKES, of_layer, best)
        else:
            best = of_layer.expand_as(best)
        columns = torch.arange(len(best))
        choice = Choice(
            torch.stack([c.value for c in candidates])[best, columns],
            torch.stack([c.threshold for c in candidates])[best, columns],
        )
    return choice


def wrong_spikes(
    config: LIFConfig, candidates: Sequence[Choice], currents: Tensor, wanted: Tensor
) -> Tensor:
    """How many spikes of each candidate differ from those wanted ([T, N, C, ...]), by channel [K, C], float64."""
    from spiketrain.convert.count import count_wrong  # which takes a second to import

    values = torch.stack([choice.value for choice in candidates])
    thresholds = torch.stack([choice.threshold for choice in candidates])
    out = np.zeros(values.shape, np.int64)
    constants = np.array(
        [1 / config.tau, config.rest, 1 / config.tau if config.decay_input else 1.0], np.float32
    )
    surrogate = config.surrogate
    count_wrong(
        _as_rows(currents[:1] if currents.stride(0) == 0 else currents),
        _as_rows(wanted),
        values.float().numpy(),
        thresholds.float().numpy(),
        constants,
        config.reset == "hard",
        isinstance(surrogate, Rectangle) and surrogate.strict,
        out,
    )
    return torch.from_numpy(out).double()


def _as_rows(values: Tensor) -> NDArray[np.float32]:
    """[T, N, C, ...] as [T, N, C, positions]."""
    rows: NDArray[np.float32] = values.float().reshape(*values.shape[:3], -1).contiguous().numpy()
    return rows


def _within(config: LIFConfig, choice: Choice) -> Choice:
    """The choice, with what makes no neuron moved to where it just does.

    Where currents are many thresholds, as event counts can be, a parent's potential is above the threshold even after
    its reset, and no hard reset can lead there.
    """
    threshold = (
        choice.threshold.clamp(min=config.rest + LEAST) if config.rest > 0 else choice.threshold
    )
    if config.reset == "soft":
        return Choice(choice.value.clamp(min=LEAST), threshold)
    return Choice(choice.value.minimum(threshold - LEAST), threshold)


def _distance(choice: Choice, origin: Choice) -> float:
    far = (choice.value - origin.value).abs() + (choice.threshold - origin.threshold).abs()
    return far.mean().item()
