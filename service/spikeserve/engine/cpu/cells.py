"""Neurons as the compiled loops see them: a number for the kind, and arrays of constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeserve.engine.choose import UnsupportedError
from spikeserve.engine.cpu import loops
from spiketrain.neurons import CLIF, GLIF, ILIF, LIF, PLIF, NeuronLayer
from spiketrain.surrogate import Rectangle

Array = NDArray[Any]

# A difference h - threshold that is not zero is at least this.
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Cells:
    """`channel` [k, width] and `initial` [parts, width] repeat the channels over a block of `loops.BLOCK` neurons."""

    kind: int
    constants: Array
    channel: Array
    initial: Array
    modes: tuple[bool, bool] = (False, False)
    timed: bool = False  # whether the timestep is part of the state

    @property
    def parts(self) -> int:
        return len(self.initial)


@torch.no_grad()
def cells_of(name: str, layer: NeuronLayer, channels: int) -> Cells:
    """Raises UnsupportedError for a neuron that the loops do not know."""
    neuron: Any = layer.neuron()
    match neuron:
        case LIF() | PLIF():
            return _lif(name, neuron, channels)
        case CLIF():
            tau = neuron.tau
            inverse = 1 / tau if math.frexp(tau)[0] == 0.5 else 0.0  # a power of two
            constants = (1 - 1 / tau, tau, neuron.threshold, _cutoff(neuron), inverse)
            return _cells(loops.CLIF, constants, _zeros(2, channels))
        case ILIF():
            constants = (
                1 - 1 / neuron.tau,
                neuron.threshold,
                neuron.current_decay,
                neuron.potential_decay,
                _cutoff(neuron),
            )
            return _cells(loops.ILIF, constants, _zeros(3, channels))
        case GLIF():
            return _cells(
                loops.GLIF, (_cutoff(neuron),), _zeros(2, channels), _gates(neuron), timed=True
            )
        case _:
            raise UnsupportedError(f"{name}: a {type(neuron).__name__} is not among its neurons")


def _lif(name: str, neuron: LIF | PLIF, channels: int) -> Cells:
    if isinstance(neuron, PLIF):
        leak = torch.sigmoid(neuron.w)
        # Rounded as the step rounds them.
        leaks = (leak.item(), (1 - leak).item())
    elif isinstance(neuron.tau, Tensor):
        raise UnsupportedError(f"{name}: a leak for each channel is not among its neurons")
    else:
        leaks = (1 / neuron.tau, 1 - 1 / neuron.tau)
    if isinstance(neuron.rest, Tensor):
        raise UnsupportedError(f"{name}: a rest for each channel is not among its neurons")
    subtract = neuron.threshold if neuron.subtract is None else neuron.subtract
    values = (neuron.threshold, subtract, neuron.reset_value)
    modes = (neuron.decay_input, neuron.reset == "hard")
    initial = torch.full((1, channels), neuron.rest)
    if any(isinstance(value, Tensor) for value in values):
        rows = torch.stack([torch.as_tensor(value).float().expand(channels) for value in values])
        constants = (*leaks, neuron.rest, 0.0, 0.0, 0.0, _cutoff(neuron))
        return _cells(loops.CHANNEL_LIF, constants, initial, rows, modes)
    constants = (*leaks, neuron.rest, *values, _cutoff(neuron))  # type: ignore[assignment]
    return _cells(loops.LIF, constants, initial, modes=modes)


def _gates(neuron: GLIF) -> Tensor:
    """What `loops._glif` wants by channel, then the scale of the current by timestep: [5 + T, channels]."""
    return torch.cat(
        [
            torch.stack(
                [
                    1 - neuron.alpha * (1 - neuron.tau),
                    neuron.gamma,
                    (1 - neuron.alpha) * neuron.leak,
                    (1 - neuron.gamma) * neuron.subtract,
                    neuron.threshold,
                ]
            ),
            1 - neuron.beta * (1 - neuron.conduct),
        ]
    )


def _cells(
    kind: int,
    constants: tuple[float, ...],
    initial: Tensor,
    channel: Tensor | None = None,
    modes: tuple[bool, bool] = (False, False),
    timed: bool = False,
) -> Cells:
    rows = torch.zeros(1, initial.shape[1]) if channel is None else channel
    return Cells(kind, np.array(constants, np.float32), tiled(rows), tiled(initial), modes, timed)


def tiled(values: Tensor) -> Array:
    """[k, channels] repeated to the width of a block."""
    times = max(1, loops.BLOCK // values.shape[1])
    array: Array = values.detach().float().repeat(1, times).contiguous().numpy()
    return array


def _zeros(parts: int, channels: int) -> Tensor:
    return torch.zeros(parts, channels)


def _cutoff(neuron: Any) -> float:
    """What h - threshold must reach for a spike."""
    strict = isinstance(neuron.fire, Rectangle) and neuron.fire.strict
    return _LEAST if strict else 0.0
