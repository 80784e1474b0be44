"""Compiled loops of the CPU executor: one pass over a layer of neurons, from its currents to its spikes.

A pass does all that stands between two products: it adds up the parts of the current, charges, fires, resets, counts
the spikes and weighs them by what they reach. It takes `steps` timesteps at once, with the state of a block of neurons
in the first-level cache meanwhile. The arithmetic is that of each neuron's `step`, operation by operation, but for sigmoids.

Memory is channels last: the neurons of one sample are [positions, channels], flat. Row i * steps + t is timestep t of
sample i.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.kernels.loops import _exp2, _fma, compiled

Array = NDArray[Any]

# Neurons of a block, which has one position at least.
BLOCK = 1024

LIF, CHANNEL_LIF, CLIF, ILIF, GLIF = range(5)

# Timesteps that need less than others.
FIRST, LAST = 1, 2

_LOW_BYTES = np.uint64(0x00FF00FF00FF00FF)
_ONES = np.uint64(0x0001000100010001)

_ZERO = np.float32(0)
_ONE = np.float32(1)

# A polynomial for 2^f, f between -1/2 and 1/2, with the least relative error for its degree: 8e-8.
_E0, _E1, _E2, _E3, _E4, _E5 = (
    np.float32(value)
    for value in (1.0000001, 0.69314694, 0.2402212, 0.055507135, 0.009675542, 0.0013276458)
)
_PER_LOG_2 = np.float32(-1.4426950408889634)
_ROUND = np.float32(12582912)  # 1.5 * 2^23: adding and subtracting it rounds to a whole number
_LARGEST = np.float32(120)


@compiled
def sigmoid(x: Any) -> Any:
    """Off by 1e-7 at most; the one that agrees with torch in every bit takes longer."""
    y = min(max(x * _PER_LOG_2, -_LARGEST), _LARGEST)
    q = (y + _ROUND) - _ROUND
    f = y - q
    power = _fma(_fma(_fma(_fma(_fma(_E5, f, _E4), f, _E3), f, _E2), f, _E1), f, _E0)
    return _ONE / (_ONE + power * _exp2(q))


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
def _lif(
    k: Array, decay_input: bool, hard: bool, x: Array, v: Array, s: Array, near: Array
) -> None:
    leak, keep, rest = k[0], k[1], k[2]
    threshold, subtract, reset_value, cutoff = k[3], k[4], k[5], k[6]
    if not decay_input and not hard and rest == _ZERO:
        for i in range(v.size):
            h = v[i] * keep + x[i]
            above = h - threshold
            fired = above >= cutoff
            near[i] = min(near[i], abs(above))
            s[i] = fired
            v[i] = h - (subtract if fired else _ZERO)
        return
    _lif_charge(leak, keep, rest, decay_input, x, v)
    for i in range(v.size):
        above = v[i] - threshold
        fired = above >= cutoff
        near[i] = min(near[i], abs(above))
        s[i] = fired
        v[i] = (reset_value if fired else v[i]) if hard else v[i] - (subtract if fired else _ZERO)


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
    k: Array, p: Array, decay_input: bool, hard: bool, x: Array, v: Array, s: Array, near: Array
) -> None:
    """Threshold, subtract and reset value by channel: `p` [3, width]."""
    cutoff = k[6]
    _lif_charge(k[0], k[1], k[2], decay_input, x, v)
    for i in range(v.size):
        above = v[i] - p[0, i]
        fired = above >= cutoff
        near[i] = min(near[i], abs(above))
        s[i] = fired
        v[i] = (p[2, i] if fired else v[i]) if hard else v[i] - (p[1, i] if fired else _ZERO)


# 1 - 1/tau, tau, threshold, cutoff, and 1/tau where dividing by tau is the same to the last bit, else 0.


@compiled
def _clif(k: Array, x: Array, v: Array, m: Array, s: Array, near: Array) -> None:
    keep, tau, threshold, cutoff, inverse = k[0], k[1], k[2], k[3], k[4]
    if inverse:
        for i in range(v.size):
            h = keep * v[i] + x[i]
            above = h - threshold
            fired = above >= cutoff
            near[i] = min(near[i], abs(above))
            s[i] = fired
            after = m[i] * sigmoid(h * inverse) + (_ONE if fired else _ZERO)
            m[i] = after
            v[i] = h - (threshold + sigmoid(after) if fired else _ZERO)
    else:
        for i in range(v.size):
            h = keep * v[i] + x[i]
            above = h - threshold
            fired = above >= cutoff
            near[i] = min(near[i], abs(above))
            s[i] = fired
            after = m[i] * sigmoid(h / tau) + (_ONE if fired else _ZERO)
            m[i] = after
            v[i] = h - (threshold + sigmoid(after) if fired else _ZERO)


@compiled
def _clif_first(k: Array, x: Array, v: Array, m: Array, s: Array, near: Array) -> None:
    """`_clif` from a potential and a memory of zero, to the last bit: what it multiplies by them falls away."""
    threshold, cutoff = k[2], k[3]
    subtract = threshold + sigmoid(_ONE)
    for i in range(v.size):
        h = x[i]
        above = h - threshold
        fired = above >= cutoff
        near[i] = min(near[i], abs(above))
        s[i] = fired
        m[i] = _ONE if fired else _ZERO
        v[i] = h - (subtract if fired else _ZERO)


@compiled
def _clif_last(k: Array, x: Array, v: Array, s: Array, near: Array) -> None:
    """The spikes of `_clif`, without the state after them."""
    keep, threshold, cutoff = k[0], k[2], k[3]
    for i in range(v.size):
        above = keep * v[i] + x[i] - threshold
        near[i] = min(near[i], abs(above))
        s[i] = above >= cutoff


# 1 - 1/tau, threshold, current decay, potential decay, cutoff.


@compiled
def _ilif(k: Array, x: Array, v: Array, m: Array, inhibition: Array, s: Array, near: Array) -> None:
    keep, threshold, current_decay, potential_decay, cutoff = k[0], k[1], k[2], k[3], k[4]
    for i in range(v.size):
        h = keep * v[i] + x[i] - max(inhibition[i], _ZERO)
        above = h - threshold
        fired = above >= cutoff
        near[i] = min(near[i], abs(above))
        s[i] = fired
        w = h - (threshold if fired else _ZERO)
        after = potential_decay * (m[i] + (w if fired else _ZERO))
        m[i] = after
        inhibition[i] = current_decay * (inhibition[i] + (x[i] if fired else _ZERO))
        v[i] = w - (sigmoid(after) if fired else _ZERO)


# The cutoff; `p` [5, width] and `scale` [width] as `cells._gates` makes them.


@compiled
def _glif(
    k: Array, p: Array, scale: Array, x: Array, u: Array, before: Array, s: Array, near: Array
) -> None:
    for i in range(u.size):
        kept = p[0, i] * u[i] * (_ONE - p[1, i] * before[i])
        after = kept - p[2, i] + x[i] * scale[i] - p[3, i] * before[i]
        above = after - p[4, i]
        fired = above >= k[0]
        near[i] = min(near[i], abs(above))
        s[i] = fired
        before[i] = _ONE if fired else _ZERO
        u[i] = after


@compiled
def _fire(
    kind: int,
    modes: Any,
    constants: Array,
    channel: Array,
    time: int,
    x: Array,
    held: Array,
    s: Array,
    near: Array,
    edge: int,
) -> None:
    """One timestep of some neurons. `near` becomes how close a potential came to the threshold, if that is closer.

    `edge` is FIRST where the state is the initial one, LAST where nobody needs the state afterwards, else 0.
    """
    decay_input, hard = modes
    n = x.size
    if kind == LIF:
        _lif(constants, decay_input, hard, x, held[0, :n], s, near)
    elif kind == CHANNEL_LIF:
        _channel_lif(constants, channel, decay_input, hard, x, held[0, :n], s, near)
    elif kind == CLIF and edge == LAST:
        _clif_last(constants, x, held[0, :n], s, near)
    elif kind == CLIF and edge == FIRST:
        _clif_first(constants, x, held[0, :n], held[1, :n], s, near)
    elif kind == CLIF:
        _clif(constants, x, held[0, :n], held[1, :n], s, near)
    elif kind == ILIF:
        _ilif(constants, x, held[0, :n], held[1, :n], held[2, :n], s, near)
    else:
        scale = channel[min(5 + time, channel.shape[0] - 1)]
        _glif(constants, channel[:5], scale, x, held[0, :n], held[1, :n], s, near)


def _dot_product(weights: Array, values: Array) -> Any:
    total = _ZERO
    for i in range(weights.size):
        total += weights[i] * np.float32(values[i])
    return total


_dot: Any = compiled(_dot_product, fastmath={"reassoc", "nsz", "contract"})


@compiled
def _exact_product(
    weights: Array, geometry: Array, values: Array, channel: int, y: int, x: int
) -> Any:
    """One value of a convolution, weights [K, kh, kw, C], of a map [H, W, C]."""
    total = _ZERO
    top, left = y * geometry[0] - geometry[2], x * geometry[1] - geometry[3]
    for dy in range(weights.shape[1]):
        row = top + dy * geometry[4]
        if 0 <= row < values.shape[0]:
            for dx in range(weights.shape[2]):
                column = left + dx * geometry[5]
                if 0 <= column < values.shape[1]:
                    total += _dot(weights[channel, dy, dx], values[row, column])
    return total


@compiled
def _exact_current(exact: Any, neuron: int, row: int) -> Any:
    """What reaches a neuron through its products, computed in float32."""
    _, bias, layout, first, second = exact
    channel, position = neuron % layout[0], neuron // layout[0]
    y, x = position // layout[1], position % layout[1]
    total = bias[channel] + _exact_product(first[0], first[1], first[2][row], channel, y, x)
    if second[0].shape[0]:
        total += _exact_product(second[0], second[1], second[2][row], channel, y, x)
    return total


@compiled
def _fire_again(
    kind: int,
    modes: Any,
    constants: Array,
    channel: Array,
    held: Array,
    exact: Any,
    residual: Array,
    gain: Any,
    neuron: int,
    row: int,
    time: int,
    spikes: Array,
    changes: Array,
) -> None:
    """All timesteps of one neuron, from its start that is in `held` [parts, 1], with exact currents.

    `changes` [timesteps] becomes how many more spikes there are than before.
    """
    x, near = np.empty(1, np.float32), np.empty(1, np.float32)
    for t in range(changes.size):
        x[0] = _exact_current(exact, neuron, row + t)
        if residual.shape[0]:
            x[0] += gain * np.float32(residual[row + t, neuron])
        before = np.int64(spikes[row + t, neuron])
        s = spikes[row + t, neuron : neuron + 1]
        _fire(kind, modes, constants, channel, time + t, x, held, s, near, 0)
        changes[t] = np.int64(s[0]) - before


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
    exact: Any,
    span: Any,
) -> None:
    """`steps` timesteps of some samples of one layer, of the neurons from span[0] to before span[1].

    `current` is x, low, further x, further low, residual, gain, rows, stride: sample i's current at timestep t is row
    rows[i] + t * stride of x [rows, N], plus that row of `low`, plus gain times row i * steps + t of `residual`; the latter
    two may have no rows. Rows beyond those of x are in further x and low, which may have none. What goes by channel (`gain`, `channel`, `initial`) is repeated to the width of a block. `state` is
    [parts, slots, N]; a sample that is `fresh` starts from `initial` [parts, width] instead, and state is written only
    to be kept. `times` is the timestep to come of each sample. Spikes [n * steps, N], and the same memory as `words` of
    eight where spikes are bytes and channels come in eights, else words without rows; `reach` [positions] or [N];
    `counts` and `operations`, int64 [n * steps], are added to.

    `exact` is margin, bias [K], (K, width of the map), and two times weights, geometry, values of `_exact_product`,
    the second without weights where there is one product. A neuron of a fresh sample whose potential comes closer to the
    threshold than `margin`, [width of a block] or empty, is computed once more with currents in float32, so that it
    fires as it would with the weights themselves.
    """
    x, low, more_x, more_low, residual, gain, rows, stride = current
    margin = exact[0]
    changes = np.empty(steps, np.int64)
    parts, width = state.shape[0], gain.size
    channels = spikes.shape[1] // reach.size
    held = np.empty((parts, width), np.float32)
    summed = np.empty(width, np.float32)
    near = np.empty(width, np.float32)
    for sample in range(slots.size):
        slot = slots[sample]
        for first in range(span[0], span[1], width):
            stop = min(first + width, span[1])
            size = stop - first
            for part in range(parts):
                if fresh[sample]:
                    _copy(initial[part, :size], held[part, :size])
                else:
                    _copy(state[part, slot, first:stop], held[part, :size])
            near[:] = np.inf
            for t in range(steps):
                row = sample * steps + t
                at = rows[sample] + t * stride
                further = at >= x.shape[0]
                at -= x.shape[0] if further else 0
                now = (more_x if further else x)[at, first:stop]
                if low.shape[0]:
                    _add_low(now, (more_low if further else low)[at, first:stop], summed[:size])
                    now = summed[:size]
                if residual.shape[0]:
                    _add_residual(now, gain[:size], residual[row, first:stop], summed[:size])
                    now = summed[:size]
                s = spikes[row, first:stop]
                time = times[sample] + t
                edge = FIRST if fresh[sample] and t == 0 else 0
                if not keep and t == steps - 1:
                    edge = LAST
                _fire(kind, modes, constants, channel, time, now, held, s, near[:size], edge)
                here = reach[first // channels : stop // channels]
                if words.shape[0]:
                    word = words[row, first // 8 : stop // 8]
                    total, caused = _count_words(word, channels, here)
                else:
                    total, caused = _count(s, channels, here)
                counts[row] += total
                operations[row] += caused
            if margin.size and fresh[sample] and (near[:size] < margin[:size]).any():
                for i in range(size):
                    if near[i] >= margin[i]:
                        continue
                    one = channel[:, i : i + 1].copy()
                    alone = initial[:, i : i + 1].copy()
                    row = sample * steps
                    _fire_again(
                        kind,
                        modes,
                        constants,
                        one,
                        alone,
                        exact,
                        residual,
                        gain[i],
                        first + i,
                        row,
                        times[sample],
                        spikes,
                        changes,
                    )
                    for part in range(parts):
                        held[part, i] = alone[part, 0]
                    for t in range(steps):
                        counts[row + t] += changes[t]
                        operations[row + t] += changes[t] * reach[(first + i) // channels]
            if keep:
                for part in range(parts):
                    _copy(held[part, :size], state[part, slot, first:stop])
