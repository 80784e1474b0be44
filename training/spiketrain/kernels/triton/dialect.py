"""What the kernels share: how they are compiled, the kinds they are compiled for, and a neuron's constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import triton
import triton.language as tl


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`triton.jit`, which has no types. Annotations of kernels are names that Triton can look up."""
    return triton.jit(function, **options)


# Neurons. PLIF is a LIF whose leak is a parameter.
LIF, CLIF, ILIF, GLIF = (tl.constexpr(kind) for kind in range(4))

# Surrogates.
RECTANGLE, OPEN_RECTANGLE, ARCTANGENT, SIGMOID = (tl.constexpr(kind) for kind in range(4))

# What the tensor of parameters holds: nothing; the leak of the layer [1]; or rows of one value a channel, which are
# threshold, subtract and reset value of a LIF, and those of `Constants.of_channel` for a GLIF.
NO_PARAMETERS, LEAK, PER_CHANNEL = (tl.constexpr(kind) for kind in range(3))

# The slot of a row that stands for no sample.
PAD = tl.constexpr(-1)


class Constants(NamedTuple):
    """Numbers in float32, or, where they are parameters, one value for each neuron of a block.

    keep             1 - 1/tau of LIF, CLIF and ILIF, the decay 1 - alpha (1 - tau) of GLIF
    leak             1/tau; of GLIF (1 - alpha) leak
    subtract         of LIF; of GLIF (1 - gamma) subtract
    gamma            GLIF's gate
    cutoff           what h - threshold must reach for a spike: 0, or the least positive number
    shape, scale     the surrogate's
    """

    keep: Any = 0.0
    leak: Any = 0.0
    rest: Any = 0.0
    threshold: Any = 1.0
    subtract: Any = 1.0
    reset_value: Any = 0.0
    current_decay: Any = 0.0
    potential_decay: Any = 0.0
    gamma: Any = 0.0
    cutoff: Any = 0.0
    shape: Any = 0.5
    scale: Any = 1.0


class Modes(NamedTuple):
    """What the kernels are compiled for, besides types and the number of timesteps."""

    neuron: Any
    surrogate: Any
    decay_input: Any = False
    rests: Any = False  # at another potential than 0
    hard: Any = False
    detach: Any = False
    parameters: Any = NO_PARAMETERS.value
    parts: Any = 1  # tensors of a state
