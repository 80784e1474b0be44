"""Compiled loops: T timesteps of one range of neurons, forward and backward.

Neurons do not touch each other, so the neurons of all samples are one axis. A loop takes a block of them through all
timesteps before it takes the next, with the state in the first-level cache: currents are read once and spikes
written once. The backward loop keeps nothing from the forward one: it charges the block again from the currents,
then goes back through time.

Every loop does the arithmetic of its neuron's `step` in the same order, so that spikes are the same, bit for bit.
Arrays are float32; `x` is [T, n], or [1, n] for a current that stays the same; `spikes`, `grad_spikes` and `grad_x` are
[T, n], states and their gradients [n]. An empty array stands for a gradient that is zero or that nobody wants. What has a
T may also be bfloat16, whose bits are then the items of a uint16 array: it is widened and rounded where it is read and
written, everything else is float32.

All loops are in this file because the compiler's cache sees changes of the file a function is in, not of others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[np.float32]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])

# Neurons a block: states and scratch of a dozen timesteps stay in the cache.
BLOCK = 512

# What `_derivative` makes of u = h - threshold.
RECTANGLE, OPEN_RECTANGLE, ARCTANGENT, SIGMOID = range(4)

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)


def compiled(function: Compiled, **options: Any) -> Compiled:
    """Compile at the first call, and keep the result on disk where a place for it can be written."""
    compile_with: Any = functools.partial(njit, nogil=True, error_model="numpy", **options)
    try:
        return cast(Compiled, compile_with(cache=True)(function))
    except RuntimeError:  # a read-only installation, and no home directory to write to
        return cast(Compiled, compile_with()(function))


def _fused_multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to a whole number between -126 and 127, made of its bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = context.get_value_type(types.int32)
        biased = builder.add(builder.fptosi(arguments[0], word), word(127))
        return builder.bitcast(builder.shl(biased, word(23)), context.get_value_type(types.float32))

    return types.float32(types.float32), generate


def _widened(typing: Any, item: Any) -> Any:
    """The value of an item: float32 as it is, uint16 as the upper half of one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if item == types.float32:
            return arguments[0]
        word = context.get_value_type(types.uint32)
        bits = builder.shl(builder.zext(arguments[0], word), word(16))
        return builder.bitcast(bits, context.get_value_type(types.float32))

    return types.float32(item), generate


def _rounded(typing: Any, value: Any, array: Any) -> Any:
    """A value as an item of `array`: float32 as it is, or bfloat16's bits, to nearest and ties to even, as torch rounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if array.dtype == types.float32:
            return arguments[0]
        word, half = (context.get_value_type(kind) for kind in (types.uint32, types.uint16))
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        upper = builder.lshr(builder.add(bits, builder.add(odd, word(0x7FFF))), word(16))
        no_number = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        return builder.select(no_number, half(0x7FC0), builder.trunc(upper, half))

    return array.dtype(types.float32, array), generate


_fma: Any = intrinsic(_fused_multiply_add)
_exp2: Any = intrinsic(_power_of_two)
_wide: Any = intrinsic(_widened)
_item: Any = intrinsic(_rounded)

# The exponential of torch's vector units (SLEEF's expf, one unit in the last place), so that sigmoids agree in every bit.
_PER_LOG_2 = np.float32(1.4426950408889634)
_LOG_2_HIGH = np.float32(-0.693145751953125)
_LOG_2_LOW = np.float32(-1.428606765330187045e-06)
_ROUND = np.float32(12582912)  # 1.5 * 2^23: adding and subtracting it rounds to a whole number
_LARGEST = np.float32(87)
_E6 = np.float32(0.000198527617612853646278381)
_E5 = np.float32(0.00139304355252534151077271)
_E4 = np.float32(0.00833336077630519866943359)
_E3 = np.float32(0.0416664853692054748535156)
_E2 = np.float32(0.166666671633720397949219)


@compiled
def _sigmoid(x: Any) -> Any:
    z = min(max(-x, -_LARGEST), _LARGEST)
    q = (z * _PER_LOG_2 + _ROUND) - _ROUND
    r = _fma(q, _LOG_2_LOW, _fma(q, _LOG_2_HIGH, z))
    u = _fma(_fma(_fma(_fma(_fma(_E6, r, _E5), r, _E4), r, _E3), r, _E2), r, _HALF)
    return _ONE / (_ONE + (_ONE + _fma(r * r, u, r)) * _exp2(q))


@compiled
def _derivative(kind: int, shape: Any, scale: Any, threshold: Any, h: Array, out: Array) -> None:
    """The surrogate's derivative at h - threshold; `shape` and `scale` as `cpu._surrogate` makes them."""
    if kind == RECTANGLE:
        for i in range(h.size):
            out[i] = scale if abs(h[i] - threshold) <= shape else _ZERO
    elif kind == OPEN_RECTANGLE:
        for i in range(h.size):
            out[i] = scale if abs(h[i] - threshold) < shape else _ZERO
    elif kind == ARCTANGENT:
        for i in range(h.size):
            u = shape * (h[i] - threshold)
            out[i] = scale / (_ONE + u * u)
    else:
        for i in range(h.size):
            y = _sigmoid(shape * (h[i] - threshold))
            out[i] = scale * y * (_ONE - y)


@compiled
def _start(initial: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = initial[i]


@compiled
def _resume(gradient: Array, first: int, out: Array) -> None:
    """The gradient of the last state, where there is one."""
    for i in range(out.size):
        out[i] = gradient[first + i] if gradient.size else _ZERO


@compiled
def _keep(values: Array, first: int, out: Array) -> None:
    if out.size:
        for i in range(values.size):
            out[first + i] = values[i]


# LIF and PLIF. constants: leak (1/tau), 1 - leak, rest, threshold, subtract, reset value, cutoff


@compiled
def _lif_charge(constants: Any, decay_input: bool, x: Array, v: Array, h: Array) -> None:
    leak, keep, rest = constants[:3]
    if decay_input and rest == _ZERO:
        for i in range(h.size):
            h[i] = v[i] + (_wide(x[i]) - v[i]) * leak
    elif decay_input:
        for i in range(h.size):
            h[i] = v[i] + (_wide(x[i]) - (v[i] - rest)) * leak
    elif rest == _ZERO:
        for i in range(h.size):
            h[i] = v[i] * keep + _wide(x[i])
    else:
        for i in range(h.size):
            h[i] = v[i] - (v[i] - rest) * leak + _wide(x[i])


@compiled
def _lif_reset(constants: Any, hard: bool, h: Array, v: Array) -> None:
    threshold, subtract, reset_value, cutoff = constants[3:]
    if hard:
        for i in range(h.size):
            v[i] = reset_value if h[i] - threshold >= cutoff else h[i]
    else:
        for i in range(h.size):
            v[i] = h[i] - (subtract if h[i] - threshold >= cutoff else _ZERO)


@compiled
def _fire(threshold: Any, cutoff: Any, h: Array, spikes: Array) -> None:
    for i in range(h.size):
        spikes[i] = _item(_ONE if h[i] - threshold >= cutoff else _ZERO, spikes)


@compiled
def lif_forward(
    constants: Any,
    modes: Any,
    x: Array,
    initial: Any,
    spikes: Array,
    last: Any,
    start: int,
    stop: int,
) -> None:
    decay_input, hard, _ = modes
    v = np.empty(BLOCK, np.float32)
    h = np.empty(BLOCK, np.float32)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        _start(initial[0][first:end], v[:n])
        for t in range(spikes.shape[0]):
            _lif_charge(constants, decay_input, x[min(t, x.shape[0] - 1), first:end], v[:n], h[:n])
            _fire(constants[3], constants[6], h[:n], spikes[t, first:end])
            _lif_reset(constants, hard, h[:n], v[:n])
        _keep(v[:n], first, last[0])


@compiled
def _lif_back(
    constants: Any, modes: Any, h: Array, grad_spikes: Array, d: Array, gv: Array, gh: Array
) -> None:
    """From the gradient of v after the reset to that of h."""
    threshold, subtract, reset_value, cutoff = constants[3:]
    _, hard, detach_reset = modes
    through = _ZERO if detach_reset else _ONE
    if hard:
        for i in range(gh.size):
            fired = h[i] - threshold >= cutoff
            gs = _wide(grad_spikes[i]) + through * gv[i] * (reset_value - h[i])
            gh[i] = (_ZERO if fired else gv[i]) + gs * d[i]
    else:
        for i in range(gh.size):
            gh[i] = gv[i] + (_wide(grad_spikes[i]) - through * gv[i] * subtract) * d[i]


@compiled
def _lif_leak(decay_input: bool, rest: Any, x: Array, v: Array, gh: Array, gleak: Array) -> None:
    if decay_input:
        for i in range(gh.size):
            gleak[i] += gh[i] * (_wide(x[i]) - (v[i] - rest))
    else:
        for i in range(gh.size):
            gleak[i] -= gh[i] * (v[i] - rest)


@compiled
def _scale(factor: Any, values: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = _item(factor * values[i], out)


@compiled
def lif_backward(
    constants: Any,
    modes: Any,
    surrogate: Any,
    x: Array,
    initial: Any,
    grad_spikes: Array,
    grad_last: Any,
    grad_x: Array,
    grad_initial: Any,
    grad_parameters: Any,
    start: int,
    stop: int,
) -> None:
    """`grad_parameters`, float64 [1] or empty: the gradient of the leak, summed over this range."""
    leak, keep, rest, threshold = constants[:4]
    decay_input, hard, _ = modes
    kind, shape, scale = surrogate
    steps = grad_spikes.shape[0]
    vs = np.empty((steps + 1, BLOCK), np.float32)
    hs = np.empty((steps, BLOCK), np.float32)
    d = np.empty(BLOCK, np.float32)
    gv = np.empty(BLOCK, np.float32)
    gh = np.empty(BLOCK, np.float32)
    gleak = np.empty(BLOCK, np.float32)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        _start(initial[0][first:end], vs[0, :n])
        for t in range(steps):
            now = x[min(t, x.shape[0] - 1), first:end]
            _lif_charge(constants, decay_input, now, vs[t, :n], hs[t, :n])
            _lif_reset(constants, hard, hs[t, :n], vs[t + 1, :n])
        _resume(grad_last[0], first, gv[:n])
        gleak[:] = _ZERO
        for t in range(steps - 1, -1, -1):
            h = hs[t, :n]
            _derivative(kind, shape, scale, threshold, h, d[:n])
            _lif_back(constants, modes, h, grad_spikes[t, first:end], d[:n], gv[:n], gh[:n])
            if grad_parameters.size:
                now = x[min(t, x.shape[0] - 1), first:end]
                _lif_leak(decay_input, rest, now, vs[t, :n], gh[:n], gleak[:n])
            _scale(leak if decay_input else _ONE, gh[:n], grad_x[t, first:end])
            _scale(keep, gh[:n], gv[:n])
        _keep(gv[:n], first, grad_initial[0])
        if grad_parameters.size:
            for i in range(n):
                grad_parameters[0] += gleak[i]


# CLIF. constants: 1 - 1/tau, tau, threshold, cutoff


@compiled
def _clif_charge(keep: Any, tau: Any, x: Array, v: Array, h: Array, p: Array) -> None:
    for i in range(h.size):
        u = keep * v[i] + _wide(x[i])
        h[i] = u
        p[i] = _sigmoid(u / tau)


@compiled
def _clif_reset(
    threshold: Any, cutoff: Any, h: Array, p: Array, before: Array, m: Array, q: Array, v: Array
) -> None:
    for i in range(h.size):
        s = _ONE if h[i] - threshold >= cutoff else _ZERO
        after = before[i] * p[i] + s
        y = _sigmoid(after)
        m[i] = after
        q[i] = y
        v[i] = h[i] - s * (threshold + y)


@compiled
def clif_forward(
    constants: Any,
    modes: Any,
    x: Array,
    initial: Any,
    spikes: Array,
    last: Any,
    start: int,
    stop: int,
) -> None:
    keep, tau, threshold, cutoff = constants
    v = np.empty(BLOCK, np.float32)
    ms = np.empty((2, BLOCK), np.float32)
    h = np.empty(BLOCK, np.float32)
    p = np.empty(BLOCK, np.float32)
    q = np.empty(BLOCK, np.float32)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        _start(initial[0][first:end], v[:n])
        _start(initial[1][first:end], ms[0, :n])
        for t in range(spikes.shape[0]):
            m, after = ms[t % 2, :n], ms[(t + 1) % 2, :n]
            _clif_charge(keep, tau, x[min(t, x.shape[0] - 1), first:end], v[:n], h[:n], p[:n])
            _fire(threshold, cutoff, h[:n], spikes[t, first:end])
            _clif_reset(threshold, cutoff, h[:n], p[:n], m, after, q[:n], v[:n])
        _keep(v[:n], first, last[0])
        _keep(ms[spikes.shape[0] % 2, :n], first, last[1])


@compiled
def _clif_back_spike(
    threshold: Any,
    cutoff: Any,
    h: Array,
    q: Array,
    grad_spikes: Array,
    gv: Array,
    gm: Array,
    gs: Array,
) -> None:
    """Through the reset: the gradients of m and of the spike from that of v."""
    for i in range(gs.size):
        s = _ONE if h[i] - threshold >= cutoff else _ZERO
        y = q[i]
        g = gm[i] - gv[i] * s * (y * (_ONE - y))
        gm[i] = g
        gs[i] = _wide(grad_spikes[i]) - gv[i] * (threshold + y) + g


@compiled
def _clif_back_charge(
    keep: Any,
    tau: Any,
    p: Array,
    before: Array,
    d: Array,
    gs: Array,
    gv: Array,
    gm: Array,
    grad_x: Array,
) -> None:
    per_tau = _ONE / tau
    for i in range(gs.size):
        y = p[i]
        g = gv[i] + gs[i] * d[i] + gm[i] * before[i] * (y * (_ONE - y)) * per_tau
        gm[i] = gm[i] * y
        grad_x[i] = _item(g, grad_x)
        gv[i] = keep * g


@compiled
def clif_backward(
    constants: Any,
    modes: Any,
    surrogate: Any,
    x: Array,
    initial: Any,
    grad_spikes: Array,
    grad_last: Any,
    grad_x: Array,
    grad_initial: Any,
    grad_parameters: Any,
    start: int,
    stop: int,
) -> None:
    keep, tau, threshold, cutoff = constants
    kind, shape, scale = surrogate
    steps = grad_spikes.shape[0]
    ms = np.empty((steps + 1, BLOCK), np.float32)
    hs = np.empty((steps, BLOCK), np.float32)
    ps = np.empty((steps, BLOCK), np.float32)
    qs = np.empty((steps, BLOCK), np.float32)
    v = np.empty(BLOCK, np.float32)
    d = np.empty(BLOCK, np.float32)
    gs = np.empty(BLOCK, np.float32)
    gv = np.empty(BLOCK, np.float32)
    gm = np.empty(BLOCK, np.float32)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        _start(initial[0][first:end], v[:n])
        _start(initial[1][first:end], ms[0, :n])
        for t in range(steps):
            h, p = hs[t, :n], ps[t, :n]
            _clif_charge(keep, tau, x[min(t, x.shape[0] - 1), first:end], v[:n], h, p)
            _clif_reset(threshold, cutoff, h, p, ms[t, :n], ms[t + 1, :n], qs[t, :n], v[:n])
        _resume(grad_last[0], first, gv[:n])
        _resume(grad_last[1], first, gm[:n])
        for t in range(steps - 1, -1, -1):
            h = hs[t, :n]
            now = grad_spikes[t, first:end]
            _derivative(kind, shape, scale, threshold, h, d[:n])
            _clif_back_spike(threshold, cutoff, h, qs[t, :n], now, gv[:n], gm[:n], gs[:n])
            _clif_back_charge(
                keep, tau, ps[t, :n], ms[t, :n], d[:n], gs[:n], gv[:n], gm[:n], grad_x[t, first:end]
            )
        _keep(gv[:n], first, grad_initial[0])
        _keep(gm[:n], first, grad_initial[1])


# ILIF. constants: 1 - 1/tau, threshold, current decay, potential decay, cutoff


@compiled
def _ilif_charge(keep: Any, x: Array, v: Array, inhibition: Array, h: Array) -> None:
    for i in range(h.size):
        h[i] = keep * v[i] + _wide(x[i]) - max(inhibition[i], _ZERO)


@compiled
def _ilif_reset(constants: Any, h: Array, before: Array, m: Array, q: Array, v: Array) -> None:
    _, threshold, _, potential_decay, cutoff = constants
    for i in range(h.size):
        s = _ONE if h[i] - threshold >= cutoff else _ZERO
        w = h[i] - s * threshold
        after = potential_decay * (before[i] + s * w)
        y = _sigmoid(after)
        m[i] = after
        q[i] = y
        v[i] = w - s * y


@compiled
def _ilif_inhibit(constants: Any, x: Array, h: Array, before: Array, after: Array) -> None:
    _, threshold, current_decay, _, cutoff = constants
    for i in range(h.size):
        s = _ONE if h[i] - threshold >= cutoff else _ZERO
        after[i] = current_decay * (before[i] + _wide(x[i]) * s)


@compiled
def ilif_forward(
    constants: Any,
    modes: Any,
    x: Array,
    initial: Any,
    spikes: Array,
    last: Any,
    start: int,
    stop: int,
) -> None:
    keep, threshold, _, _, cutoff = constants
    v = np.empty(BLOCK, np.float32)
    ms = np.empty((2, BLOCK), np.float32)
    inhibitions = np.empty((2, BLOCK), np.float32)
    h = np.empty(BLOCK, np.float32)
    q = np.empty(BLOCK, np.float32)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        _start(initial[0][first:end], v[:n])
        _start(initial[1][first:end], ms[0, :n])
        _start(initial[2][first:end], inhibitions[0, :n])
        for t in range(spikes.shape[0]):
            even, odd = t % 2, (t + 1) % 2
            now = x[min(t, x.shape[0] - 1), first:end]
            _ilif_charge(keep, now, v[:n], inhibitions[even, :n], h[:n])
            _fire(threshold, cutoff, h[:n], spikes[t, first:end])
            _ilif_reset(constants, h[:n], ms[even, :n], ms[odd, :n], q[:n], v[:n])
            _ilif_inhibit(constants, now, h[:n], inhibitions[even, :n], inhibitions[odd, :n])
        odd = spikes.shape[0] % 2
        _keep(v[:n], first, last[0])
        _keep(ms[odd, :n], first, last[1])
        _keep(inhibitions[odd, :n], first, last[2])


@compiled
def _ilif_back_units(
    constants: Any,
    h: Array,
    q: Array,
    x: Array,
    gv: Array,
    gm: Array,
    gi: Array,
    gs: Array,
    gh: Array,
) -> None:
    """Through the reset and the two units: the gradients of the spike (but the one from outside) and of h."""
    _, threshold, current_decay, potential_decay, cutoff = constants
    for i in range(gs.size):
        s = _ONE if h[i] - threshold >= cutoff else _ZERO
        y = q[i]
        w = h[i] - s * threshold
        m = potential_decay * (gm[i] - gv[i] * s * (y * (_ONE - y)))
        current = current_decay * gi[i]
        potential = gv[i] + m * s
        gs[i] = m * w + current * _wide(x[i]) - gv[i] * y - potential * threshold
        gh[i] = potential
        gm[i] = m
        gi[i] = current


@compiled
def _ilif_back_charge(
    constants: Any,
    h: Array,
    inhibition: Array,
    d: Array,
    gs: Array,
    gh: Array,
    gi: Array,
    grad_x: Array,
) -> None:
    _, threshold, _, _, cutoff = constants
    for i in range(gs.size):
        g = gh[i] + gs[i] * d[i]
        current = gi[i]
        gh[i] = g
        grad_x[i] = _item(g + (current if h[i] - threshold >= cutoff else _ZERO), grad_x)
        # At zero the clamp lets the gradient through, as torch's does.
        gi[i] = current - (g if inhibition[i] >= _ZERO else _ZERO)


@compiled
def _add(values: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] += _wide(values[i])


@compiled
def ilif_backward(
    constants: Any,
    modes: Any,
    surrogate: Any,
    x: Array,
    initial: Any,
    grad_spikes: Array,
    grad_last: Any,
    grad_x: Array,
    grad_initial: Any,
    grad_parameters: Any,
    start: int,
    stop: int,
) -> None:
    keep, threshold = constants[:2]
    kind, shape, scale = surrogate
    steps = grad_spikes.shape[0]
    inhibitions = np.empty((steps + 1, BLOCK), np.float32)
    hs = np.empty((steps, BLOCK), np.float32)
    qs = np.empty((steps, BLOCK), np.float32)
    v = np.empty(BLOCK, np.float32)
    ms = np.empty((2, BLOCK), np.float32)
    d = np.empty(BLOCK, np.float32)
    gs = np.empty(BLOCK, np.float32)
    gh = np.empty(BLOCK, np.float32)
    gv = np.empty(BLOCK, np.float32)
    gm = np.empty(BLOCK, np.float32)
    gi = np.empty(BLOCK, np.float32)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        _start(initial[0][first:end], v[:n])
        _start(initial[1][first:end], ms[0, :n])
        _start(initial[2][first:end], inhibitions[0, :n])
        for t in range(steps):
            h = hs[t, :n]
            now = x[min(t, x.shape[0] - 1), first:end]
            _ilif_charge(keep, now, v[:n], inhibitions[t, :n], h)
            _ilif_reset(constants, h, ms[t % 2, :n], ms[(t + 1) % 2, :n], qs[t, :n], v[:n])
            _ilif_inhibit(constants, now, h, inhibitions[t, :n], inhibitions[t + 1, :n])
        _resume(grad_last[0], first, gv[:n])
        _resume(grad_last[1], first, gm[:n])
        _resume(grad_last[2], first, gi[:n])
        for t in range(steps - 1, -1, -1):
            h = hs[t, :n]
            now = x[min(t, x.shape[0] - 1), first:end]
            _derivative(kind, shape, scale, threshold, h, d[:n])
            _ilif_back_units(constants, h, qs[t, :n], now, gv[:n], gm[:n], gi[:n], gs[:n], gh[:n])
            _add(grad_spikes[t, first:end], gs[:n])
            _ilif_back_charge(
                constants,
                h,
                inhibitions[t, :n],
                d[:n],
                gs[:n],
                gh[:n],
                gi[:n],
                grad_x[t, first:end],
            )
            _scale(keep, gh[:n], gv[:n])
        _keep(gv[:n], first, grad_initial[0])
        _keep(gm[:n], first, grad_initial[1])
        _keep(gi[:n], first, grad_initial[2])


# GLIF. constants: the parameters [5 + T, C], one row each for decay, gamma, leak, subtract, threshold (as
# `cpu._glif` makes them from the gates) and the scale of the current at each timestep; how many neurons in a row in
# memory are of one channel; cutoff


@compiled
def _spread(values: Array, inner: int, first: int, out: Array) -> None:
    """From one value a channel to one a neuron, for the neurons from `first` on."""
    i, neuron = 0, first
    while i < out.size:
        channel = (neuron // inner) % values.size
        if inner == 1:
            run = min(values.size - channel, out.size - i)
            for j in range(run):
                out[i + j] = values[channel + j]
        else:
            run = min(inner - neuron % inner, out.size - i)
            value = values[channel]
            for j in range(run):
                out[i + j] = value
        i, neuron = i + run, neuron + run


def _sum(values: Array) -> Any:
    total = _ZERO
    for i in range(values.size):
        total += values[i]
    return total


# The order of this sum decides no spike, so the compiler may choose it.
_sum_in_any_order = compiled(_sum, fastmath={"reassoc"})


@compiled
def _collect(values: Array, inner: int, first: int, out: Any) -> None:
    """The other way around: sums over the neurons of each channel, in float64."""
    i, neuron = 0, first
    while i < values.size:
        channel = (neuron // inner) % out.size
        if inner == 1:
            run = min(out.size - channel, values.size - i)
            for j in range(run):
                out[channel + j] += values[i + j]
        else:
            run = min(inner - neuron % inner, values.size - i)
            out[channel] += _sum_in_any_order(values[i : i + run])
        i, neuron = i + run, neuron + run


@compiled
def _glif_charge(p: Array, scale: Array, x: Array, u: Array, s: Array, after: Array) -> None:
    for i in range(after.size):
        kept = p[0, i] * u[i] * (_ONE - p[1, i] * s[i])
        after[i] = kept - p[2, i] + _wide(x[i]) * scale[i] - p[3, i] * s[i]


@compiled
def _glif_fire(threshold: Array, cutoff: Any, u: Array, s: Array) -> None:
    for i in range(s.size):
        s[i] = _ONE if u[i] - threshold[i] >= cutoff else _ZERO


@compiled
def glif_forward(
    constants: Any,
    modes: Any,
    x: Array,
    initial: Any,
    spikes: Array,
    last: Any,
    start: int,
    stop: int,
) -> None:
    parameters, inner, cutoff = constants
    p = np.empty((5, BLOCK), np.float32)
    us = np.empty((2, BLOCK), np.float32)
    s = np.empty(BLOCK, np.float32)
    scale = np.empty(BLOCK, np.float32)
    steps = spikes.shape[0]
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        for k in range(5):
            _spread(parameters[k], inner, first, p[k, :n])
        _start(initial[0][first:end], us[0, :n])
        _start(initial[1][first:end], s[:n])
        for t in range(steps):
            u, after = us[t % 2, :n], us[(t + 1) % 2, :n]
            _spread(parameters[5 + t], inner, first, scale[:n])
            _glif_charge(p, scale, x[min(t, x.shape[0] - 1), first:end], u, s[:n], after)
            _glif_fire(p[4], cutoff, after, s[:n])
            _scale(_ONE, s[:n], spikes[t, first:end])
        _keep(us[steps % 2, :n], first, last[0])
        _keep(s[:n], first, last[1])


@compiled
def _glif_back_spike(gs: Array, d: Array, gu: Array, gthreshold: Array) -> None:
    for i in range(gu.size):
        g = gs[i] * d[i]
        gu[i] += g
        gthreshold[i] -= g


@compiled
def _glif_back_parameters(p: Array, u: Array, s: Array, gu: Array, g: Array) -> None:
    for i in range(gu.size):
        g[0, i] += gu[i] * u[i] * (_ONE - p[1, i] * s[i])
        g[1, i] -= gu[i] * p[0, i] * u[i] * s[i]
    for i in range(gu.size):
        g[2, i] -= gu[i]
        g[3, i] -= gu[i] * s[i]


@compiled
def _glif_back_charge(p: Array, u: Array, s: Array, gu: Array, gs: Array) -> None:
    """From the gradient of u to those of u and s one timestep before."""
    for i in range(gu.size):
        g = gu[i] * p[0, i]
        gs[i] = -(g * u[i] * p[1, i] + gu[i] * p[3, i])
        gu[i] = g * (_ONE - p[1, i] * s[i])


@compiled
def _multiply(a: Array, b: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = _item(a[i] * _wide(b[i]), out)


@compiled
def _subtract(a: Array, b: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = a[i] - b[i]


@compiled
def glif_backward(
    constants: Any,
    modes: Any,
    surrogate: Any,
    x: Array,
    initial: Any,
    grad_spikes: Array,
    grad_last: Any,
    grad_x: Array,
    grad_initial: Any,
    grad_parameters: Any,
    start: int,
    stop: int,
) -> None:
    """`grad_parameters`, float64 [(5 + T) C] or empty: summed over this range."""
    parameters, inner, cutoff = constants
    kind, shape, height = surrogate
    steps, channels = grad_spikes.shape[0], parameters.shape[1]
    p = np.empty((5, BLOCK), np.float32)
    g = np.empty((5, BLOCK), np.float32)
    us = np.empty((steps + 1, BLOCK), np.float32)
    ss = np.empty((steps + 1, BLOCK), np.float32)
    scale = np.empty(BLOCK, np.float32)
    d = np.empty(BLOCK, np.float32)
    gu = np.empty(BLOCK, np.float32)
    gs = np.empty(BLOCK, np.float32)
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        n = end - first
        for k in range(5):
            _spread(parameters[k], inner, first, p[k, :n])
        _start(initial[0][first:end], us[0, :n])
        _start(initial[1][first:end], ss[0, :n])
        for t in range(steps):
            now = x[min(t, x.shape[0] - 1), first:end]
            _spread(parameters[5 + t], inner, first, scale[:n])
            _glif_charge(p, scale, now, us[t, :n], ss[t, :n], us[t + 1, :n])
            _glif_fire(p[4], cutoff, us[t + 1, :n], ss[t + 1, :n])
        _resume(grad_last[0], first, gu[:n])
        _resume(grad_last[1], first, gs[:n])
        g[:] = _ZERO
        for t in range(steps - 1, -1, -1):
            now = x[min(t, x.shape[0] - 1), first:end]
            _add(grad_spikes[t, first:end], gs[:n])
            _subtract(us[t + 1, :n], p[4], d[:n])
            _derivative(kind, shape, height, _ZERO, d[:n], scale[:n])
            _glif_back_spike(gs[:n], scale[:n], gu[:n], g[4])
            _spread(parameters[5 + t], inner, first, scale[:n])
            _multiply(gu[:n], scale[:n], grad_x[t, first:end])
            if grad_parameters.size:
                _glif_back_parameters(p, us[t, :n], ss[t, :n], gu[:n], g)
                _multiply(gu[:n], now, d[:n])
                row = (5 + t) * channels
                _collect(d[:n], inner, first, grad_parameters[row : row + channels])
            _glif_back_charge(p, us[t, :n], ss[t, :n], gu[:n], gs[:n])
        _keep(gu[:n], first, grad_initial[0])
        _keep(gs[:n], first, grad_initial[1])
        if grad_parameters.size:
            for k in range(5):
                _collect(g[k, :n], inner, first, grad_parameters[k * channels : (k + 1) * channels])
