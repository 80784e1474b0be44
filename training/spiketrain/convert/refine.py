"""Reset values and thresholds of one layer, chosen by how well its spikes repeat the parent's.

Candidates are run on the currents that the converted layers before give, so that each layer makes up for what they
did. A layer's spikes are 0 or 1 and many candidates give the same ones: a grid is the honest way to search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spiketrain.kernels import run_steps
from spiketrain.neurons import LIFConfig

# A channel with fewer spikes of the parent than this has no say: it takes its layer's choice.
FEWEST_SPIKES = 200


class Grid(NamedTuple):
    """Offsets from the present value and factors of the present threshold."""

    offsets: tuple[float, ...]
    factors: tuple[float, ...]


def _offsets(reach: float, step: float) -> tuple[float, ...]:
    count = round(reach / step)
    return tuple(step * i for i in range(-count, count + 1))


SOFT = (Grid(_offsets(0.25, 0.05), (1.0,)), Grid(_offsets(0.04, 0.01), (0.99, 1.0, 1.01)))
HARD = (
    Grid(_offsets(0.5, 0.1), (0.94, 1.0, 1.06)),
    Grid(_offsets(0.06, 0.03), (0.97, 0.985, 1.0, 1.015, 1.03)),
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
            Choice(choice.value + offset, choice.threshold * factor)
            for offset in grid.offsets
            for factor in grid.factors
        ]
        candidates = [c for c in candidates if _is_neuron(config, c)]
        # In order of distance, so that of equal ones the nearest is taken.
        candidates.sort(key=lambda c: _distance(c, choice))
        wrong = torch.stack(
            [
                (run(config, c, currents) != wanted).sum(axes, dtype=torch.float64)
                for c in candidates
            ]
        )
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


def run(config: LIFConfig, choice: Choice, currents: Tensor) -> Tensor:
    """Spikes [T, N, C, ...] of a layer of these neurons."""
    constants = {
        name: _number_or_tensor(getattr(choice, name), currents) for name in ("threshold",)
    }
    field = "subtract" if config.reset == "soft" else "reset_value"
    constants[field] = _number_or_tensor(choice.value, currents)
    plain = config.model_copy(update={"per_channel": (), "threshold": 1.0})
    neuron = plain.neuron({})._replace(**constants)  # type: ignore[arg-type]
    spikes, _ = run_steps(neuron, currents, neuron.initial_state(currents[0]))
    return spikes


def _number_or_tensor(values: Tensor, like: Tensor) -> float | Tensor:
    """One number where all channels have the same: the compiled loops take no more."""
    if bool((values == values[0]).all()):
        return values[0].item()
    return values.to(like)


def _is_neuron(config: LIFConfig, choice: Choice) -> bool:
    if config.reset == "soft":
        return bool((choice.value > 0).all())
    below = bool((choice.value < choice.threshold).all())
    return below and config.rest < choice.threshold.min().item()


def _distance(choice: Choice, origin: Choice) -> float:
    far = (choice.value - origin.value).abs() + (choice.threshold - origin.threshold).abs()
    return far.mean().item()
