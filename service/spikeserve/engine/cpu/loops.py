"""Compiled loops of the CPU executor: one pass over a layer of neurons, from its currents to its spikes.

A pass does all that stands between two products: it adds up the parts of the current, charges, fires, resets, counts
the spikes and weighs them by what they reach. It takes `steps` timesteps at once, with the state of a block of neurons
in the first-level cache meanwhile. The arithmetic is that of each neuron's `step`, operation by operation.

Memory is channels last: the neurons of one sample are [positions, channels], flat. Row i * steps + t is timestep t of
sample i.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.kernels.loops import _sigmoid as sigmoid
from spiketrain.kernels.loops import compiled

Array = NDArray[Any]

# Neurons of a block, which has one position at least.
BLOCK = 1024

LIF, CHANNEL_LIF, CLIF, ILIF, GLIF = range(5)

_LOW_BYTES = np.uint64(0x00FF00FF00FF00FF)
_ONES = np.uint64(0x0001000100010001)

_ZERO = np.float32(0)
_ONE = np.float32(1)


@compiled
def _copy(values: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = values[i]


@compiled
def _add_low(x: Array, low: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = x[i] + low[i]


@compiled
def _add_residual(x: Array, gain: Array, residual: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = x[i] + gain[i] * np.float32(residual[i])


@compiled
def _count(spikes: Array, channels: int, reach: Array) -> Any:
    """Spikes of a block, and the operations that they cause: `reach` [positions] is what one spike reaches there."""
    total, operations = 0, 0
    for position in range(reach.size):
        fired: Any = np.int32(0)
        first = position * channels
        for i in range(first, first + channels):
            fired += np.int32(spikes[i])
        total += fired
        operations += fired * reach[position]
    return total, operations


@compiled
def _count_words(words: Array, channels: int, reach: Array) -> Any:
    """`_count` of spikes that are bytes, eight in a word, for channels in eights."""
    total, operations = 0, 0
    each = channels // 8
    for position in range(reach.size):
        first = position * each
        fired: Any = 0
        while first < (position + 1) * each:
            # Up to 255 words are added byte by byte before a byte could run over.
            stop = min(first + 255, (position + 1) * each)
            sums = np.uint64(0)
            for i in range(first, stop):
                sums += words[i]
            pairs = (sums & _LOW_BYTES) + ((sums >> np.uint64(8)) & _LOW_BYTES)
            fired += np.int64((pairs * _ONES) >> np.uint64(48))
            first = stop
        total += fired
        operations += fired * reach[position]
    return total, operations


# `k` are the constants of the layer: leak (1/tau), 1 - leak, rest, threshold, subtract, reset value, cutoff.


@compiled
def _lif(k: Array, decay_input: bool, hard: bool, x: Array, v: Array, s: Array) -> None:
    leak, keep, rest = k[0], k[1], k[2]
    threshold, subtract, reset_value, cutoff = k[3], k[4], k[5], k[6]
    if not decay_input and not hard and rest == _ZERO:
        for i in range(v.size):
            h = v[i] * keep + x[i]
            fired = h - threshold >= cutoff
            s[i] = fired
            v[i] = h - (subtract if fired else _ZERO)
        return
    _lif_charge(leak, keep, rest, decay_input, x, v)
    if hard:
        for i in range(v.size):
            fired = v[i] - threshold >= cutoff
            s[i] = fired
            v[i] = reset_value if fired else v[i]
    else:
        for i in range(v.size):
            fired = v[i] - threshold >= cutoff
            s[i] = fired
            v[i] = v[i] - (subtract if fired else _ZERO)


@compiled
def _lif_charge(leak: Any, keep: Any, rest: Any, decay_input: bool, x: Array, v: Array) -> None:
    if decay_input and rest == _ZERO:
        for i in range(v.size):
            v[i] = v[i] + (x[i] - v[i]) * leak
    elif decay_input:
        for i in range(v.size):
            v[i] = v[i] + (x[i] - (v[i] - rest)) * leak
    elif rest == _ZERO:
        for i in range(v.size):
            v[i] = v[i] * keep + x[i]
    else:
        for i in range(v.size):
            v[i] = v[i] - (v[i] - rest) * leak + x[i]


@compiled
def _channel_lif(
    k: Array, p: Array, decay_input: bool, hard: bool, x: Array, v: Array, s: Array
) -> None:
    """Threshold, subtract and reset value by channel: `p` [3, width]."""
    cutoff = k[6]
    _lif_charge(k[0], k[1], k[2], decay_input, x, v)
    for i in range(v.size):
        fired = v[i] - p[0, i] >= cutoff
        s[i] = fired
        v[i] = (p[2, i] if fired else v[i]) if hard else v[i] - (p[1, i] if fired else _ZERO)


# 1 - 1/tau, tau, threshold, cutoff, and 1/tau where dividing by tau is the same to the last bit, else 0.


@compiled
def _clif(k: Array, x: Array, v: Array, m: Array, s: Array) -> None:
    keep, tau, threshold, cutoff, inverse = k[0], k[1], k[2], k[3], k[4]
    if inverse:
        for i in range(v.size):
            h = keep * v[i] + x[i]
            fired = h - threshold >= cutoff
            s[i] = fired
            after = m[i] * sigmoid(h * inverse) + (_ONE if fired else _ZERO)
            m[i] = after
            v[i] = h - (threshold + sigmoid(after) if fired else _ZERO)
    else:
        for i in range(v.size):
            h = keep * v[i] + x[i]
            fired = h - threshold >= cutoff
            s[i] = fired
            after = m[i] * sigmoid(h / tau) + (_ONE if fired else _ZERO)
            m[i] = after
            v[i] = h - (threshold + sigmoid(after) if fired else _ZERO)


# 1 - 1/tau, threshold, current decay, potential decay, cutoff.


@compiled
def _ilif(k: Array, x: Array, v: Array, m: Array, inhibition: Array, s: Array) -> None:
    keep, threshold, current_decay, potential_decay, cutoff = k[0], k[1], k[2], k[3], k[4]
    for i in range(v.size):
        h = keep * v[i] + x[i] - max(inhibition[i], _ZERO)
        fired = h - threshold >= cutoff
        s[i] = fired
        w = h - (threshold if fired else _ZERO)
        after = potential_decay * (m[i] + (w if fired else _ZERO))
        m[i] = after
        inhibition[i] = current_decay * (inhibition[i] + (x[i] if fired else _ZERO))
        v[i] = w - (sigmoid(after) if fired else _ZERO)


# The cutoff; `p` [5, width] and `scale` [width] as `cells._gates` makes them.


@compiled
def _glif(k: Array, p: Array, scale: Array, x: Array, u: Array, before: Array, s: Array) -> None:
    for i in range(u.size):
        kept = p[0, i] * u[i] * (_ONE - p[1, i] * before[i])
        after = kept - p[2, i] + x[i] * scale[i] - p[3, i] * before[i]
        fired = after - p[4, i] >= k[0]
        s[i] = fired
        before[i] = _ONE if fired else _ZERO
        u[i] = after


@compiled
def advance(
    kind: int,
    modes: Any,
    constants: Array,
    channel: Array,
    initial: Array,
    current: Any,
    state: Array,
    slots: Array,
    fresh: Array,
    times: Array,
    keep: bool,
    steps: int,
    spikes: Array,
    words: Array,
    reach: Array,
    counts: Array,
    operations: Array,
) -> None:
    """`steps` timesteps of some samples of one layer.

    `current` is x, low, residual, gain, rows, stride: sample i's current at timestep t is row rows[i] + t * stride of x
    [rows, N], plus that row of `low`, plus gain times row i * steps + t of `residual`; the latter two may have no
    rows. What goes by channel (`gain`, `channel`, `initial`) is repeated to the width of a block. `state` is
    [parts, slots, N]; a sample that is `fresh` starts from `initial` [parts, width] instead, and state is written only
    to be kept. `times` is the timestep to come of each sample. Spikes [n * steps, N], and the same memory as `words` of
    eight where spikes are bytes and channels come in eights, else words without rows; `reach` [positions] or [N];
    `counts` and `operations`, int64 [n * steps], are added to.
    """
    x, low, residual, gain, rows, stride = current
    decay_input, hard = modes
    parts, width, neurons = state.shape[0], gain.size, spikes.shape[1]
    channels = neurons // reach.size
    held = np.empty((parts, width), np.float32)
    summed = np.empty(width, np.float32)
    for sample in range(slots.size):
        slot = slots[sample]
        for first in range(0, neurons, width):
            stop = min(first + width, neurons)
            size = stop - first
            for part in range(parts):
                if fresh[sample]:
                    _copy(initial[part, :size], held[part, :size])
                else:
                    _copy(state[part, slot, first:stop], held[part, :size])
            for t in range(steps):
                row = sample * steps + t
                at = rows[sample] + t * stride
                now = x[at, first:stop]
                if low.shape[0]:
                    _add_low(now, low[at, first:stop], summed[:size])
                    now = summed[:size]
                if residual.shape[0]:
                    _add_residual(now, gain[:size], residual[row, first:stop], summed[:size])
                    now = summed[:size]
                s = spikes[row, first:stop]
                if kind == LIF:
                    _lif(constants, decay_input, hard, now, held[0, :size], s)
                elif kind == CHANNEL_LIF:
                    _channel_lif(constants, channel, decay_input, hard, now, held[0, :size], s)
                elif kind == CLIF:
                    _clif(constants, now, held[0, :size], held[1, :size], s)
                elif kind == ILIF:
                    _ilif(constants, now, held[0, :size], held[1, :size], held[2, :size], s)
                else:
                    last = channel.shape[0] - 1
                    scale = channel[min(5 + times[sample] + t, last)]
                    _glif(constants, channel[:5], scale, now, held[0, :size], held[1, :size], s)
                here = reach[first // channels : stop // channels]
                if words.shape[0]:
                    word = words[row, first // 8 : stop // 8]
                    total, caused = _count_words(word, channels, here)
                else:
                    total, caused = _count(s, channels, here)
                counts[row] += total
                operations[row] += caused
            if keep:
                for part in range(parts):
                    _copy(held[part, :size], state[part, slot, first:stop])


@compiled
def sum_pool(spikes: Array, width: int, kernel: Any, stride: Any, pooled: Array) -> None:
    """Sums over windows: [rows, height * width * channels] to [rows, out height, out width, channels]."""
    rows, out_height, out_width, channels = pooled.shape
    for row in range(rows):
        for y in range(out_height):
            for x in range(out_width):
                out = pooled[row, y, x]
                out[:] = 0
                for dy in range(kernel[0]):
                    for dx in range(kernel[1]):
                        first = ((y * stride[0] + dy) * width + x * stride[1] + dx) * channels
                        for c in range(channels):
                            out[c] += spikes[row, first + c]


@compiled
def unfold(values: Array, kernel: Any, stride: Any, padding: Any, windows: Array) -> None:
    """Windows of values [rows, height, width, channels] as [rows, out height, out width, kernel, kernel, channels]."""
    rows, height, width, channels = values.shape
    for row in range(rows):
        for y in range(windows.shape[1]):
            for x in range(windows.shape[2]):
                for dy in range(kernel[0]):
                    for dx in range(kernel[1]):
                        out = windows[row, y, x, dy, dx]
                        top = y * stride[0] + dy - padding[0]
                        left = x * stride[1] + dx - padding[1]
                        if 0 <= top < height and 0 <= left < width:
                            _copy(values[row, top, left], out)
                        else:
                            for c in range(channels):
                                out[c] = 0
