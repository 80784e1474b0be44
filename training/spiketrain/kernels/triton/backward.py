"""The way back through T timesteps: the gradients of currents, of the first state and of what a layer learns.

Nothing of the forward pass is kept but the currents. A program charges its block again, holds the potentials in
registers, and goes back through time. More than one chunk of timesteps needs the states between the chunks, which go
through memory. Sums for the gradients of parameters are written one row a program and added up afterwards, in the same
order every time.
"""

from __future__ import annotations

import triton.language as tl

from spiketrain.kernels.triton.dialect import GLIF, LEAK, PER_CHANNEL, compiled
from spiketrain.kernels.triton.forward import SIZES, read, run_chunk
from spiketrain.kernels.triton.memory import (
    chosen,
    current_scale,
    filled,
    load_state,
    store_state,
    with_parameters,
)
from spiketrain.kernels.triton.neurons import back


@compiled
def reverse_chunk(
    x_ptr: tl.tensor,
    grad_spikes: tl.tensor,
    grad_x: tl.tensor,
    partial: tl.tensor,
    parameters: tl.tensor,
    trail: tl.tuple,
    grads: tl.tuple,
    total: tl.tensor,
    sums: tl.tuple,
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
    LEARN: tl.constexpr,
) -> tl.tuple:
    """Back through CHUNK timesteps. `total` is the gradient of a constant current, `sums` those of parameters."""
    for j in tl.static_range(CHUNK - 1, -1, -1):
        t = first + j
        live = mask & (t < steps) if RAGGED else mask
        h, before = trail[j]
        x = read(x_ptr, t, n, at, live, CONSTANT)
        gs = tl.load(grad_spikes + t * n.to(tl.int64) + at, mask=live, other=0.0).to(tl.float32)
        gx, earlier, gh, through = back(x, h, before, gs, grads, c, M)
        if RAGGED:
            gx, gh = tl.where(live, gx, 0.0), tl.where(live, gh, 0.0)
            through = tl.where(live, through, 0.0)
            earlier = chosen(t < steps, earlier, grads, M.parts)
        if LEARN:
            if M.parameters == LEAK:
                inward = x - (before[0] - c.rest) if M.decay_input else c.rest - before[0]
                sums = (sums[0] + gh * inward,)
            else:
                silent = 1.0 - c.gamma * before[1]
                kept = gh * before[0]
                sums = (
                    sums[0] + kept * silent,
                    sums[1] - kept * c.keep * before[1],
                    sums[2] - gh,
                    sums[3] - gh * before[1],
                    sums[4] - through,
                )
                row = partial + (5 + t) * channels + channel
                there = (channel < channels) & (t < steps)
                tl.store(row, tl.sum(gh * x, 0, keep_dims=True), mask=there)
        if M.neuron == GLIF:
            gx = gx * current_scale(parameters, t, channel, channels, live)
        if CONSTANT:
            total = total + gx
        else:
            out = gx.to(grad_x.dtype.element_ty)
            tl.store(grad_x + t * n.to(tl.int64) + at, out, mask=live)
        grads = earlier
    return grads, total, sums


@compiled
def between(scratch: tl.tensor, chunk: tl.tensor, n: tl.tensor, PARTS: tl.constexpr) -> tl.tuple:
    """Where the state before a chunk is kept; scratch [chunks, parts, n]."""
    pointers = (scratch + n.to(tl.int64) * (chunk * PARTS),)
    for i in tl.static_range(1, PARTS):
        pointers = pointers + (scratch + n.to(tl.int64) * (chunk * PARTS + i),)
    return pointers


@compiled(do_not_specialize=SIZES)
def backward_kernel(
    x_ptr: tl.tensor,
    grad_spikes: tl.tensor,
    grad_x: tl.tensor,
    initial: tl.tuple,
    grad_last: tl.tuple,
    grad_initial: tl.tuple,
    parameters: tl.tensor,
    partial: tl.tensor,
    scratch: tl.tensor,
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
    GRAD_LAST: tl.constexpr,
    GRAD_INITIAL: tl.constexpr,
    LEARN: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNEL_UNIT: tl.constexpr,
    LAST_AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """A block is BLOCK neurons in a row. Where values a channel are learned, it is LANES channels of BLOCK / LANES
    positions, so that their sums are taken within it; LAST_AXIS says that channels lie side by side in memory.
    """
    n, channels = units * UNIT, channel_units * CHANNEL_UNIT
    if LEARN and M.parameters == PER_CHANNEL:
        position = tl.program_id(0) * (BLOCK // LANES) + tl.arange(0, BLOCK // LANES)[:, None]
        channel = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
        if LAST_AXIS:
            at = position * channels + channel
        else:
            at = (position // inner) * (channels * inner) + channel * inner + position % inner
        mask = (position < n // channels) & (channel < channels)
        partial = partial + tl.program_id(0).to(tl.int64) * (5 + steps) * channels
        zero = tl.zeros([BLOCK // LANES, LANES], tl.float32)
        c = with_parameters(c, parameters, channel, channels, channel < channels, M)
        sums = (zero, zero, zero, zero, zero)
    else:
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = at < n
        channel = (at // inner) % channels
        zero = tl.zeros([BLOCK], tl.float32)
        c = with_parameters(c, parameters, channel, channels, mask, M)
        sums = (zero,)
    if RESUME:
        state = load_state(initial, at, mask, 0.0, M.parts)
    else:
        state = filled(zero, c.rest, M.parts)
    if GRAD_LAST:
        grads = load_state(grad_last, at, mask, 0.0, M.parts)
    else:
        grads = filled(zero, 0.0, M.parts)
    total = zero
    if ONE_CHUNK:
        _, trail = run_chunk(
            x_ptr, grad_x, parameters, state, c, 0, steps, n, at, mask, channel, channels,
            M, CHUNK, RAGGED, CONSTANT, False,
        )  # fmt: skip
        grads, total, sums = reverse_chunk(
            x_ptr, grad_spikes, grad_x, partial, parameters, trail, grads, total, sums, c, 0, steps,
            n, at, mask, channel, channels, M, CHUNK, RAGGED, CONSTANT, LEARN,
        )  # fmt: skip
    else:
        chunks = (steps + CHUNK - 1) // CHUNK
        for chunk in range(chunks - 1):
            store_state(between(scratch, chunk, n, M.parts), at, mask, state, M.parts)
            state, _ = run_chunk(
                x_ptr, grad_x, parameters, state, c, chunk * CHUNK, steps, n, at, mask, channel,
                channels, M, CHUNK, RAGGED, CONSTANT, False,
            )  # fmt: skip
        store_state(between(scratch, chunks - 1, n, M.parts), at, mask, state, M.parts)
        # What one thread wrote another may read.
        tl.debug_barrier()
        for done in range(chunks):
            chunk = chunks - 1 - done
            state = load_state(between(scratch, chunk, n, M.parts), at, mask, 0.0, M.parts)
            _, trail = run_chunk(
                x_ptr, grad_x, parameters, state, c, chunk * CHUNK, steps, n, at, mask, channel,
                channels, M, CHUNK, RAGGED, CONSTANT, False,
            )  # fmt: skip
            grads, total, sums = reverse_chunk(
                x_ptr, grad_spikes, grad_x, partial, parameters, trail, grads, total, sums, c,
                chunk * CHUNK, steps, n, at, mask, channel, channels,
                M, CHUNK, RAGGED, CONSTANT, LEARN,
            )  # fmt: skip
    if CONSTANT:
        tl.store(grad_x + at, total.to(grad_x.dtype.element_ty), mask=mask)
    if GRAD_INITIAL:
        store_state(grad_initial, at, mask, grads, M.parts)
    if LEARN:
        if M.parameters == LEAK:
            tl.store(partial + tl.program_id(0), tl.sum(sums[0], 0))
        else:
            for k in tl.static_range(5):
                row = partial + k * channels + channel
                tl.store(row, tl.sum(sums[k], 0, keep_dims=True), mask=channel < channels)
