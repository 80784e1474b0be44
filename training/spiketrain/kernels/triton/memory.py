"""How kernels read and write states and parameters."""

from __future__ import annotations

import triton.language as tl

from spiketrain.kernels.triton.dialect import GLIF, LEAK, PER_CHANNEL, Constants, compiled


@compiled
def load_state(
    pointers: tl.tuple, at: tl.tensor, mask: tl.tensor, other: tl.tensor, PARTS: tl.constexpr
) -> tl.tuple:
    """A state of blocks in float32; where the mask is false, the first part is `other` and the rest 0."""
    state = (tl.load(pointers[0] + at, mask=mask, other=other).to(tl.float32),)
    for i in tl.static_range(1, PARTS):
        state = state + (tl.load(pointers[i] + at, mask=mask, other=0.0).to(tl.float32),)
    return state


@compiled
def store_state(
    pointers: tl.tuple, at: tl.tensor, mask: tl.tensor, state: tl.tuple, PARTS: tl.constexpr
) -> None:
    for i in tl.static_range(PARTS):
        tl.store(pointers[i] + at, state[i], mask=mask)


@compiled
def filled(like: tl.tensor, value: tl.tensor, PARTS: tl.constexpr) -> tl.tuple:
    """A state of blocks: the first part has this value, the rest is 0."""
    state = (tl.zeros_like(like) + value,)
    for _ in tl.static_range(1, PARTS):
        state = state + (tl.zeros_like(like),)
    return state


@compiled
def chosen(condition: tl.tensor, new: tl.tuple, old: tl.tuple, PARTS: tl.constexpr) -> tl.tuple:
    state = (tl.where(condition, new[0], old[0]),)
    for i in tl.static_range(1, PARTS):
        state = state + (tl.where(condition, new[i], old[i]),)
    return state


@compiled
def with_parameters(
    c: tl.tuple,
    parameters: tl.tensor,
    channel: tl.tensor,
    channels: tl.tensor,
    mask: tl.tensor,
    M: tl.constexpr,
) -> tl.tuple:
    """The constants with what this layer has as parameters, one value for each neuron of a block."""
    if M.parameters == LEAK:
        leak = tl.load(parameters)
        c = Constants(
            1.0 - leak,
            leak,
            c.rest,
            c.threshold,
            c.subtract,
            c.reset_value,
            c.current_decay,
            c.potential_decay,
            c.gamma,
            c.cutoff,
            c.shape,
            c.scale,
        )
    elif M.parameters == PER_CHANNEL:
        row = parameters + channel
        if M.neuron == GLIF:
            c = Constants(
                tl.load(row, mask=mask, other=0.0),
                tl.load(row + 2 * channels, mask=mask, other=0.0),
                c.rest,
                tl.load(row + 4 * channels, mask=mask, other=0.0),
                tl.load(row + 3 * channels, mask=mask, other=0.0),
                c.reset_value,
                c.current_decay,
                c.potential_decay,
                tl.load(row + channels, mask=mask, other=0.0),
                c.cutoff,
                c.shape,
                c.scale,
            )
        else:
            c = Constants(
                c.keep,
                c.leak,
                c.rest,
                tl.load(row, mask=mask, other=0.0),
                tl.load(row + channels, mask=mask, other=0.0),
                tl.load(row + 2 * channels, mask=mask, other=0.0),
                c.current_decay,
                c.potential_decay,
                c.gamma,
                c.cutoff,
                c.shape,
                c.scale,
            )
    return c


@compiled
def current_scale(
    parameters: tl.tensor, t: tl.tensor, channel: tl.tensor, channels: tl.tensor, mask: tl.tensor
) -> tl.tensor:
    """What a GLIF multiplies the current of timestep t with: the rows of its parameters behind the first five."""
    return tl.load(parameters + (5 + t) * channels + channel, mask=mask, other=0.0)
