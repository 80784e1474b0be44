"""T timesteps at once on a GPU: the kernels as differentiable functions of torch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spiketrain.kernels.triton import dialect
from spiketrain.kernels.triton.backward import backward_kernel
from spiketrain.kernels.triton.forward import forward_kernel
from spiketrain.kernels.triton.plans import Plan, plan_of
from spiketrain.neurons.glif import GLIFState

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# So many timesteps are unrolled at most; more are taken in chunks of the smaller number.
MOST_STEPS, CHUNK = 16, 8

_WARPS = 4
_THREADS = 32 * _WARPS
# 16 bytes of bfloat16 for each thread.
_PER_THREAD = 8
# Values of one neuron and timestep that are held from the forward to the backward pass through time, by the parts of
# a state, and how many of them a thread may hold, so that they stay in registers.
_HELD = {1: 1, 2: 4, 3: 4}
_MOST_HELD = 64
# Channels side by side that a program sums over.
_LANES = 32


class _Layout(NamedTuple):
    """The order of the axes of one timestep in memory, and how channels lie in it."""

    order: tuple[int, ...]
    shape: tuple[int, ...]
    inner: int
    channels: int

    def flat(self, one: Tensor) -> Tensor:
        """[N, C, ...] as [n]: a view where the tensor lies in this order, else a copy."""
        return one.permute(self.order).reshape(-1)

    def unflat(self, one: Tensor) -> Tensor:
        return one.view(self.shape).permute(
            [self.order.index(axis) for axis in range(len(self.shape))]
        )


def _layout(x: Tensor) -> _Layout:
    one = x[0]
    order = tuple(sorted(range(one.dim()), key=one.stride, reverse=True))
    shape = tuple(one.shape[axis] for axis in order)
    inner = math.prod(shape[order.index(1) + 1 :]) if one.dim() > 1 else 1
    return _Layout(order, shape, inner, one.shape[1] if one.dim() > 1 else 1)


def run(neuron: Any, x: Tensor, state: Any = None, keep: bool = True) -> tuple[Tensor, Any] | None:
    """Currents [T, N, C, ...] in; spikes of the same shape, dtype and layout, and the last state in float32 out.

    Without a state neurons start from their initial one, which then is neither made nor read; without `keep` the last
    state is not written, and None. The result is None where there is no kernel: another neuron, dtype or state. A GLIF
    with a state looks at its timesteps, for which it waits for the GPU.
    """
    plan = plan_of(neuron) if x.dtype in DTYPES and x.dim() > 1 and len(x) else None
    if plan is None:
        return None
    layout = _layout(x)
    at: int | None = 0
    parts = () if state is None else tuple(state)
    if plan.modes.neuron == dialect.GLIF.value:
        if state is not None:
            at, parts = _timestep(state), parts[:2]
        if at is None:
            return None
        plan = plan._replace(parameters=_rows(plan, at, len(x)))
    if not _fits(plan, layout, x, parts):
        return None
    steps = len(x)
    if x.stride(0) == 0:
        currents = layout.flat(x[0]).unsqueeze(0)
    else:
        axes = [0, *(axis + 1 for axis in layout.order)]
        currents = x.permute(axes).reshape(steps, -1)
    spikes, *last = _Run.apply(  # type: ignore[no-untyped-call]
        plan, (steps, layout.inner, keep), plan.parameters, currents, *map(layout.flat, parts)
    )
    spikes = spikes.view(steps, *layout.shape)
    back = [layout.order.index(axis) + 1 for axis in range(len(layout.order))]
    spikes = spikes.permute(0, *back)
    if not keep:
        return spikes, None
    tensors: list[Any] = list(map(layout.unflat, last))
    if plan.state is GLIFState:
        ages = torch.full((x.shape[1],), cast(int, at) + steps, dtype=torch.long, device=x.device)
        return spikes, GLIFState(tensors[0], tensors[1], ages)
    return spikes, plan.state(*tensors)


def _timestep(state: GLIFState) -> int | None:
    """Where all samples are, None where they are at different timesteps and so have different conductances."""
    at = int(state.t[0]) if len(state.t) else 0
    return None if bool((state.t != at).any()) else at


def _rows(plan: Plan, at: int, steps: int) -> Tensor:
    """The parameters of a GLIF with one row of scales for each of these timesteps."""
    parameters = cast(Tensor, plan.parameters)
    scales = parameters[5 + at : 5 + at + steps]
    last = parameters[-1:].expand(steps - len(scales), -1)
    return torch.cat([parameters[:5], scales, last])


def _fits(plan: Plan, layout: _Layout, x: Tensor, parts: tuple[Tensor, ...]) -> bool:
    """Whether the step would take these shapes without broadcasting; what does not fit is for it to refuse."""
    per_channel = plan.modes.parameters == dialect.PER_CHANNEL.value
    return (not per_channel or (x.dim() > 2 and layout.channels == plan.channels)) and all(
        part.shape == x.shape[1:] and part.dtype in DTYPES and part.device == x.device
        for part in parts
    )


class _Shape(NamedTuple):
    """What of the sizes the kernels are compiled for, and what they are told."""

    sizes: dict[str, int]
    kinds: dict[str, Any]

    @classmethod
    def of(cls, n: int, steps: int, inner: int, channels: int) -> _Shape:
        unit, channel_unit = (16 if size % 16 == 0 else 1 for size in (n, channels))
        chunk = steps if steps <= MOST_STEPS else CHUNK
        return cls(
            {
                "units": n // unit,
                "steps": steps,
                "inner": inner,
                "channel_units": channels // channel_unit,
            },
            {
                "CHUNK": chunk,
                "ONE_CHUNK": chunk == steps,
                "RAGGED": steps % chunk != 0,
                "UNIT": unit,
                "CHANNEL_UNIT": channel_unit,
                "num_warps": _WARPS,
                # As the step rounds, after each operation.
                "enable_fp_fusion": False,
            },
        )


def _padded(tensors: tuple[Tensor, ...], parts: int, other: Tensor) -> tuple[Tensor, ...]:
    """As many tensors as a state has parts: the kernels do not touch those that stand in."""
    return tensors if tensors else (other,) * parts


class _Run(torch.autograd.Function):
    """Currents [T, n], or [1, n] for one that stays the same, and state [n]; spikes [T, n] and last state [n]."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        run: tuple[int, int, bool],
        parameters: Tensor | None,
        x: Tensor,
        *state: Tensor,
    ) -> Any:
        steps, inner, keep = run
        ctx.plan, ctx.run = plan._replace(parameters=None), run
        ctx.save_for_backward(x, parameters, *state)
        ctx.set_materialize_grads(False)
        n = x.shape[1]
        spikes = x.new_empty(steps, n)
        parts = plan.modes.parts
        last = tuple(x.new_empty(n, dtype=torch.float32) for _ in range(parts if keep else 0))
        shape = _Shape.of(n, steps, inner, plan.channels)
        block = _PER_THREAD * _THREADS
        if n:
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                forward_kernel[(-(-n // block),)](
                    x,
                    spikes,
                    _padded(state, parts, x),
                    _padded(last, parts, x),
                    x if parameters is None else parameters,
                    plan.constants,
                    **shape.sizes,
                    **shape.kinds,
                    M=plan.modes,
                    CONSTANT=len(x) != steps,
                    RESUME=bool(state),
                    KEEP=keep,
                    BLOCK=block,
                )
        return spikes, *last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, *grad_last: Tensor | None) -> Any:
        x, parameters, *state = ctx.saved_tensors
        plan: Plan = ctx.plan
        steps, inner, _ = ctx.run
        n, parts = x.shape[1], plan.modes.parts
        if grad_spikes is None:
            grad_spikes = x.new_zeros(steps, n)
        resumed = any(grad is not None for grad in grad_last)
        last = tuple(
            (x.new_zeros(n) if grad is None else grad).contiguous() for grad in grad_last if resumed
        )
        wanted = any(ctx.needs_input_grad[4:])
        grad_x = torch.empty_like(x)
        grad_state = tuple(torch.empty_like(part, dtype=torch.float32) for part in state if wanted)
        learn = ctx.needs_input_grad[2]
        grid, lanes, block = _grid(plan, n, steps, learn)
        partial = _partial(plan, x, grid, steps, learn)
        shape = _Shape.of(n, steps, inner, plan.channels)
        chunks = -(-steps // shape.kinds["CHUNK"])
        scratch = x if chunks == 1 else x.new_empty((chunks, parts, n), dtype=torch.float32)
        if n:
            with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
                backward_kernel[grid](
                    x,
                    grad_spikes.contiguous(),
                    grad_x,
                    _padded(tuple(state), parts, x),
                    _padded(last, parts, x),
                    _padded(grad_state, parts, x),
                    x if parameters is None else parameters,
                    partial,
                    scratch,
                    plan.constants,
                    **shape.sizes,
                    **shape.kinds,
                    M=plan.modes,
                    CONSTANT=len(x) != steps,
                    RESUME=bool(state),
                    GRAD_LAST=resumed,
                    GRAD_INITIAL=bool(grad_state),
                    LEARN=learn,
                    LAST_AXIS=inner == 1,
                    BLOCK=block,
                    LANES=lanes,
                )
        learned = None
        if learn:
            learned = partial.sum(0, dtype=torch.float64).to(parameters).view_as(parameters)
        states = (
            grad.to(part.dtype) if needed else None
            for grad, part, needed in zip(
                grad_state, state, ctx.needs_input_grad[4:], strict=bool(grad_state)
            )
        )
        return None, None, learned, grad_x, *(states if grad_state else (None,) * len(state))


def _grid(plan: Plan, n: int, steps: int, learn: bool) -> tuple[tuple[int, ...], int, int]:
    """Programs, the channels that each sums over, and the neurons that each takes."""
    values = 3 if learn else _HELD[plan.modes.parts]
    held = values * (steps if steps <= MOST_STEPS else CHUNK)
    per_thread = max(2, min(_PER_THREAD, 1 << max(0, (_MOST_HELD // held).bit_length() - 1)))
    block = per_thread * _THREADS
    if not learn or plan.modes.parameters != dialect.PER_CHANNEL.value:
        return (-(-n // block),), 1, block
    positions = block // _LANES
    return (-(-(n // plan.channels) // positions), -(-plan.channels // _LANES)), _LANES, block


def _partial(plan: Plan, x: Tensor, grid: tuple[int, ...], steps: int, learn: bool) -> Tensor:
    """One row a program for the sums of the gradients of parameters."""
    if not learn:
        return x
    if plan.modes.parameters == dialect.LEAK.value:
        return x.new_empty((grid[0], 1), dtype=torch.float32)
    return x.new_empty((grid[0], 5 + steps, plan.channels), dtype=torch.float32)
