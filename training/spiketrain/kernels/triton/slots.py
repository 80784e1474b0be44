"""One timestep, or a few, of the samples of a batch whose states lie in slots: what serving uses.

State is [slots, n] and stays where it is: row b of the batch reads and writes that of slot `slots[b]`, so a graph of
launches can be replayed for whatever samples are there. A row whose slot is PAD is passed over. A sample of age 0 starts
from the initial state, whatever its slot held: nothing has to be cleared.

A row's current may be given as two summands, and as one value a channel to multiply with and one to add: a residual
connection and the batch norm behind it, which then cost no pass over memory of their own. Spikes are counted, and
weighted by the synaptic operations that each causes, before they are written.

Neurons of a sample are taken in the order of memory, channels last.
"""

from __future__ import annotations

import triton.language as tl

from spiketrain.kernels.triton.dialect import GLIF, PAD, compiled
from spiketrain.kernels.triton.memory import (
    current_scale,
    load_state,
    store_state,
    with_parameters,
)
from spiketrain.kernels.triton.neurons import step


@compiled
def current_of(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    channel: tl.tensor,
    TWO: tl.constexpr,
    AFFINE: tl.constexpr,
) -> tl.tensor:
    x = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if TWO:
        x += tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if AFFINE:
        x = x * tl.load(gain + channel, mask=mask, other=0.0)
        x += tl.load(shift + channel, mask=mask, other=0.0)
    return x


@compiled(do_not_specialize=["rows", "last_row", "steps_of_scale"])
def slots_kernel(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    spikes_ptr: tl.tensor,
    state: tl.tuple,
    slots: tl.tensor,
    ages: tl.tensor,
    counts: tl.tensor,
    operations: tl.tensor,
    fan_out: tl.tensor,
    gain: tl.tensor,
    shift: tl.tensor,
    parameters: tl.tensor,
    c: tl.tuple,
    rows: tl.tensor,
    steps_of_scale: tl.tensor,
    n: tl.constexpr,
    channels: tl.constexpr,
    layers: tl.constexpr,
    M: tl.constexpr,
    STEPS: tl.constexpr,
    BY_SLOT: tl.constexpr,
    CONSTANT: tl.constexpr,
    TWO: tl.constexpr,
    AFFINE: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Currents [STEPS, rows, n], or [rows, n] where CONSTANT, to spikes [STEPS, rows, n].

    BY_SLOT: currents are [slots, n], the same in each step. counts [STEPS, rows, layers] points at this layer's column,
    operations is [STEPS, rows], both float64. The size of a sample is the network's, so the compiler may know it.
    """
    row = tl.program_id(1)
    slot = tl.load(slots + row)
    if slot == PAD:
        return
    age = tl.load(ages + row)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    channel = at % channels
    c = with_parameters(c, parameters, channel, channels, mask, M)
    home = slot.to(tl.int64) * n + at
    before = load_state(state, home, mask & (age > 0), c.rest, M.parts)
    for t in tl.static_range(STEPS):
        here = (t * rows + row).to(tl.int64)
        if BY_SLOT:
            source = home
        elif CONSTANT:
            source = row.to(tl.int64) * n + at
        else:
            source = here * n + at
        x = current_of(a_ptr, b_ptr, gain, shift, source, mask, channel, TWO, AFFINE)
        if M.neuron == GLIF:
            now = tl.minimum(age + t, steps_of_scale - 1)
            x = x * current_scale(parameters, now, channel, channels, mask)
        s, _, before = step(x, before, c, M)
        s = tl.where(mask, s, 0.0)
        tl.store(spikes_ptr + here * n + at, s.to(spikes_ptr.dtype.element_ty), mask=mask)
        if COUNT:
            reach = tl.load(fan_out + at, mask=mask, other=0.0)
            tl.atomic_add(counts + here * layers, tl.sum(s, 0).to(tl.float64), sem="relaxed")
            caused = tl.sum((s * reach).to(tl.float64), 0)
            tl.atomic_add(operations + here, caused, sem="relaxed")
    store_state(state, home, mask, before, M.parts)
