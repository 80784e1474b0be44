"""A neuron as the kernels see it: what they are compiled for, its constants, and its parameters as one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiketrain.kernels.triton import dialect
from spiketrain.kernels.triton.dialect import Constants, Modes
from spiketrain.neurons.clif import CLIF, CLIFState
from spiketrain.neurons.glif import GLIF, GLIFState
from spiketrain.neurons.ilif import ILIF, ILIFState
from spiketrain.neurons.lif import LIF, LIFState
from spiketrain.neurons.plif import PLIF
from spiketrain.surrogate import Arctangent, Rectangle, Sigmoid

# A difference h - threshold that is not zero is at least this.
_LEAST = float(np.finfo(np.float32).tiny)


class Plan(NamedTuple):
    modes: Modes
    constants: Constants
    parameters: Tensor | None = None  # float32: [1], or [rows, C]
    state: Callable[..., Any] = LIFState
    channels: int = 1


def plan_of(neuron: Any) -> Plan | None:
    """None for what has no kernel: another kind of neuron or surrogate, or a tau or rest of each channel."""
    make = _PLANS.get(type(neuron))
    if make is None or type(neuron.fire) not in (Rectangle, Arctangent, Sigmoid):
        return None
    return make(neuron)


def _surrogate(fire: Rectangle | Arctangent | Sigmoid) -> tuple[int, dict[str, float]]:
    if isinstance(fire, Rectangle):
        kind = dialect.OPEN_RECTANGLE if fire.strict else dialect.RECTANGLE
        numbers = {"shape": fire.width / 2, "scale": 1 / fire.width}
        return kind.value, numbers | {"cutoff": _LEAST if fire.strict else 0.0}
    if isinstance(fire, Arctangent):
        numbers = {"shape": math.pi / 2 * fire.alpha, "scale": fire.alpha / 2}
        return dialect.ARCTANGENT.value, numbers
    return dialect.SIGMOID.value, {"shape": fire.alpha, "scale": fire.alpha}


def _lif(neuron: LIF | PLIF) -> Plan | None:
    threshold, rest, reset_value = neuron.threshold, neuron.rest, neuron.reset_value
    subtract = threshold if neuron.subtract is None else neuron.subtract
    kind, numbers = _surrogate(neuron.fire)
    modes = Modes(
        dialect.LIF.value,
        kind,
        neuron.decay_input,
        rest != 0.0 if isinstance(rest, float) else True,
        neuron.reset == "hard",
        neuron.detach_reset,
    )
    if isinstance(rest, Tensor):
        return None
    constants = Constants(rest=rest, **numbers)
    of_channel = [threshold, subtract, reset_value]
    parameters = None
    if isinstance(neuron, PLIF):
        if neuron.w.numel() != 1 or any(isinstance(value, Tensor) for value in of_channel):
            return None
        parameters = torch.sigmoid(neuron.w).reshape(1).float()
        modes = modes._replace(parameters=dialect.LEAK.value)
    elif isinstance(neuron.tau, Tensor):
        return None
    else:
        constants = constants._replace(leak=1 / neuron.tau, keep=1 - 1 / neuron.tau)
    tensors = [value for value in of_channel if isinstance(value, Tensor)]
    if not tensors:
        numbers = dict(zip(("threshold", "subtract", "reset_value"), of_channel, strict=True))  # type: ignore[arg-type]
        return Plan(modes, constants._replace(**numbers), parameters)
    if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
        return None  # no kernel has their gradients
    full = tensors[0].detach().float()
    rows = [full * 0 + value for value in of_channel]
    modes = modes._replace(parameters=dialect.PER_CHANNEL.value)
    return Plan(modes, constants, torch.stack(rows).detach(), channels=len(full))


def _clif(neuron: CLIF) -> Plan:
    kind, numbers = _surrogate(neuron.fire)
    constants = Constants(1 - 1 / neuron.tau, 1 / neuron.tau, threshold=neuron.threshold, **numbers)
    return Plan(Modes(dialect.CLIF.value, kind, parts=2), constants, state=CLIFState)


def _ilif(neuron: ILIF) -> Plan:
    kind, numbers = _surrogate(neuron.fire)
    constants = Constants(
        1 - 1 / neuron.tau,
        threshold=neuron.threshold,
        current_decay=neuron.current_decay,
        potential_decay=neuron.potential_decay,
        **numbers,
    )
    return Plan(Modes(dialect.ILIF.value, kind, parts=3), constants, state=ILIFState)


def _glif(neuron: GLIF) -> Plan:
    kind, numbers = _surrogate(neuron.fire)
    parameters = torch.cat(
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
    ).float()
    modes = Modes(dialect.GLIF.value, kind, parameters=dialect.PER_CHANNEL.value, parts=2)
    return Plan(modes, Constants(**numbers), parameters, GLIFState, parameters.shape[1])


_PLANS: dict[type, Callable[[Any], Plan | None]] = {
    LIF: _lif,
    PLIF: _lif,
    CLIF: _clif,
    ILIF: _ilif,
    GLIF: _glif,
}
