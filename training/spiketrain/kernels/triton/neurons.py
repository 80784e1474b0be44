"""One timestep of each neuron for a block of neurons: charge, fire and reset, and the way back.

The arithmetic is that of the neuron's `step`, in the same order and in float32, and kernels are compiled without fused
multiply-adds, so that spikes of neurons without a sigmoid are the step's bit for bit. The sigmoid is made of the GPU's
approximations of 2^x and 1/x, each wrong by some 2^-22 of its value: potentials of CLIF and ILIF differ from the
step's by some millionths, and a spike may flip where a potential is as close to the threshold as that.

A state is a tuple of blocks: v of a LIF, (v, m) of CLIF, (v, m, i) of ILIF, (u, s) of GLIF.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spiketrain.kernels.triton.dialect import (
    ARCTANGENT,
    CLIF,
    ILIF,
    LIF,
    OPEN_RECTANGLE,
    RECTANGLE,
    compiled,
)

# Of 1 / (1 + 2^z), and so of the sigmoid with z = -x / log 2: the GPU's own approximations, without the instructions
# for numbers below 2^-126 around them, which a sigmoid is as good as never and a spike never depends on.
_APPROXIMATION = tl.constexpr(
    """{
        .reg .f32 e;
        ex2.approx.ftz.f32 e, $1;
        add.f32 e, e, 0f3F800000;
        rcp.approx.ftz.f32 $0, e;
    }"""
)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@compiled
def sigmoid(x: tl.tensor) -> tl.tensor:
    if _INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-x))
    else:
        z = x * -1.4426950408889634
        return tl.inline_asm_elementwise(
            _APPROXIMATION, "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1
        )


@compiled
def derivative(u: tl.tensor, c: tl.tuple, SURROGATE: tl.constexpr) -> tl.tensor:
    """The surrogate's, at u = h - threshold."""
    if SURROGATE == RECTANGLE:
        return tl.where(tl.abs(u) <= c.shape, c.scale, 0.0)
    elif SURROGATE == OPEN_RECTANGLE:
        return tl.where(tl.abs(u) < c.shape, c.scale, 0.0)
    elif SURROGATE == ARCTANGENT:
        return c.scale / (1.0 + (c.shape * u) * (c.shape * u))
    else:
        y = sigmoid(c.shape * u)
        return c.scale * y * (1.0 - y)


@compiled
def lif_charge(
    x: tl.tensor, v: tl.tensor, c: tl.tuple, DECAY_INPUT: tl.constexpr, RESTS: tl.constexpr
) -> tl.tensor:
    if DECAY_INPUT:
        if RESTS:
            h = v + (x - (v - c.rest)) * c.leak
        else:
            h = v + (x - v) * c.leak
    else:
        if RESTS:
            h = v - (v - c.rest) * c.leak + x
        else:
            h = v * c.keep + x
    return h


@compiled
def step(x: tl.tensor, state: tl.tuple, c: tl.tuple, M: tl.constexpr) -> tl.tuple:
    """Current, state and constants in; spikes (0 or 1), the potential before the reset, and the state out.

    For a GLIF the current is scaled already, and the potential is the one after the reset of the step before.
    """
    if M.neuron == LIF:
        h = lif_charge(x, state[0], c, M.decay_input, M.rests)
    elif M.neuron == CLIF:
        h = c.keep * state[0] + x
    elif M.neuron == ILIF:
        h = c.keep * state[0] + x - tl.maximum(state[2], 0.0)
    else:
        h = c.keep * state[0] * (1.0 - c.gamma * state[1])
        h = h - c.leak + x - c.subtract * state[1]
    s = tl.where(h - c.threshold >= c.cutoff, 1.0, 0.0)
    if M.neuron == LIF:
        if M.hard:
            after = (tl.where(s > 0.0, c.reset_value, h),)
        else:
            after = (h - s * c.subtract,)
    elif M.neuron == CLIF:
        m = state[1] * sigmoid(h * c.leak) + s
        after = (h - s * (c.threshold + sigmoid(m)), m)
    elif M.neuron == ILIF:
        w = h - s * c.threshold
        m = c.potential_decay * (state[1] + s * w)
        after = (w - s * sigmoid(m), m, c.current_decay * (state[2] + x * s))
    else:
        after = (h, s)
    return s, h, after


@compiled
def back(
    x: tl.tensor,
    h: tl.tensor,
    before: tl.tuple,
    gs: tl.tensor,
    grads: tl.tuple,
    c: tl.tuple,
    M: tl.constexpr,
) -> tl.tuple:
    """Through one timestep: from the gradients of its spikes and of the state after it to those of its current and
    of the state before it. The last two values are the gradients of h and of the spikes, for the parameters.
    """
    d = derivative(h - c.threshold, c, M.surrogate)
    s = tl.where(h - c.threshold >= c.cutoff, 1.0, 0.0)
    gv = grads[0]
    if M.neuron == LIF:
        if M.hard:
            if not M.detach:
                gs = gs + gv * (c.reset_value - h)
            gh = tl.where(s > 0.0, 0.0, gv) + gs * d
        else:
            if not M.detach:
                gs = gs - gv * c.subtract
            gh = gv + gs * d
        earlier = (c.keep * gh,)
        gx = c.leak * gh if M.decay_input else gh
    elif M.neuron == CLIF:
        p = sigmoid(h * c.leak)
        y = sigmoid(before[1] * p + s)
        gm = grads[1] - gv * s * (y * (1.0 - y))
        gs = gs - gv * (c.threshold + y) + gm
        gh = gv + gs * d + gm * before[1] * (p * (1.0 - p)) * c.leak
        earlier = (c.keep * gh, gm * p)
        gx = gh
    elif M.neuron == ILIF:
        w = h - s * c.threshold
        y = sigmoid(c.potential_decay * (before[1] + s * w))
        gm = c.potential_decay * (grads[1] - gv * s * (y * (1.0 - y)))
        gi = c.current_decay * grads[2]
        gw = gv + gm * s
        gs = gs + gm * w + gi * x - gv * y - gw * c.threshold
        gh = gw + gs * d
        gx = gh + gi * s
        # At zero the clamp lets the gradient through, as torch's does.
        earlier = (c.keep * gh, gm, gi - tl.where(before[2] >= 0.0, gh, 0.0))
    else:
        gs = (gs + grads[1]) * d
        gh = gv + gs
        decayed = gh * c.keep
        earlier = (
            decayed * (1.0 - c.gamma * before[1]),
            -(decayed * before[0] * c.gamma + gh * c.subtract),
        )
        gx = gh
    return gx, earlier, gh, gs
