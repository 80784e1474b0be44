"""T timesteps of all neurons at once: what training and whole runs use.

Neurons do not touch each other, so the neurons of all samples are one axis. A program takes a block of them through all
timesteps with the state in registers: currents are read once and spikes written once, and a chunk of timesteps is
unrolled so that its reads are under way together.

The number of neurons is given at run time; of it the compiler knows only whether rows stay aligned (`UNIT` is 16, or 1),
so that a new batch size compiles nothing.
"""

from __future__ import annotations

import triton.language as tl

from spiketrain.kernels.triton.dialect import GLIF, compiled
from spiketrain.kernels.triton.memory import (
    chosen,
    current_scale,
    filled,
    load_state,
    store_state,
    with_parameters,
)
from spiketrain.kernels.triton.neurons import step

# Sizes that change from call to call: the compiler is to make nothing of their values.
SIZES = ["units", "steps", "inner", "channel_units"]


@compiled
def read(
    x_ptr: tl.tensor,
    t: tl.tensor,
    n: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    CONSTANT: tl.constexpr,
) -> tl.tensor:
    row = 0 if CONSTANT else t
    return tl.load(x_ptr + row * n.to(tl.int64) + at, mask=mask, other=0.0).to(tl.float32)


@compiled
def run_chunk(
    x_ptr: tl.tensor,
    spikes_ptr: tl.tensor,
    parameters: tl.tensor,
    state: tl.tuple,
    c: tl.tuple,
    first: tl.tensor,
    steps: tl.tensor,
    n: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    channel: tl.tensor,
    channels: tl.tensor,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    RAGGED: tl.constexpr,
    CONSTANT: tl.constexpr,
    WRITE: tl.constexpr,
) -> tl.tuple:
    """CHUNK timesteps from `first` on. Returns the state, and of each timestep the potential and the state before."""
    trail = ()
    for j in tl.static_range(CHUNK):
        t = first + j
        live = mask & (t < steps) if RAGGED else mask
        x = read(x_ptr, t, n, at, live, CONSTANT)
        if M.neuron == GLIF:
            x = x * current_scale(parameters, t, channel, channels, live)
        s, h, after = step(x, state, c, M)
        trail = trail + ((h, state),)
        if WRITE:
            out = s.to(spikes_ptr.dtype.element_ty)
            tl.store(spikes_ptr + t * n.to(tl.int64) + at, out, mask=live)
        state = chosen(t < steps, after, state, M.parts) if RAGGED else after
    return state, trail


@compiled(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr: tl.tensor,
    spikes_ptr: tl.tensor,
    initial: tl.tuple,
    last: tl.tuple,
    parameters: tl.tensor,
    c: tl.tuple,
    units: tl.tensor,
    steps: tl.tensor,
    inner: tl.tensor,
    channel_units: tl.tensor,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    RAGGED: tl.constexpr,
    CONSTANT: tl.constexpr,
    RESUME: tl.constexpr,
    KEEP: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNEL_UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """x [T, n], or [1, n] where CONSTANT, to spikes [T, n]. RESUME reads the initial state, KEEP writes the last one."""
    n, channels = units * UNIT, channel_units * CHANNEL_UNIT
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    channel = (at // inner) % channels
    c = with_parameters(c, parameters, channel, channels, mask, M)
    if RESUME:
        state = load_state(initial, at, mask, 0.0, M.parts)
    else:
        state = filled(tl.zeros([BLOCK], tl.float32), c.rest, M.parts)
    if ONE_CHUNK:
        state, _ = run_chunk(
            x_ptr, spikes_ptr, parameters, state, c, 0, steps, n, at, mask, channel, channels,
            M, CHUNK, RAGGED, CONSTANT, True,
        )  # fmt: skip
    else:
        for first in range(0, steps, CHUNK):
            state, _ = run_chunk(
                x_ptr, spikes_ptr, parameters, state, c, first, steps, n, at, mask, channel, channels,
                M, CHUNK, RAGGED, CONSTANT, True,
            )  # fmt: skip
    if KEEP:
        store_state(last, at, mask, state, M.parts)
