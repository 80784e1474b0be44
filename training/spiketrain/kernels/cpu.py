"""T timesteps at once on a CPU: the compiled loops as differentiable functions of torch.

Needs numba (the extra `train`); without it the plain loop runs, with the same spikes.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from spiketrain.kernels import loops
from spiketrain.neurons.clif import CLIF, CLIFState
from spiketrain.neurons.glif import GLIF, GLIFState
from spiketrain.neurons.ilif import ILIF, ILIFState
from spiketrain.neurons.lif import LIF, LIFState
from spiketrain.neurons.plif import PLIF
from spiketrain.surrogate import Arctangent, Rectangle, Sigmoid

Array = NDArray[np.float32]

# Neurons times timesteps that are worth a thread of their own.
_WORTH_A_THREAD = 1 << 16

# A difference h - threshold that is not zero is at least this.
_LEAST = float(np.finfo(np.float32).tiny)


class Kernel(NamedTuple):
    """A neuron as the loops see it, for one run."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    constants: tuple[Any, ...]  # in the order that the loops name
    surrogate: tuple[Any, ...]
    state: tuple[Tensor, ...]  # the parts that every neuron has one of
    last: Callable[..., Any]  # makes the neuron's state of them
    modes: tuple[bool, ...] = ()
    parameters: Tensor | None = None  # those that are learned, [k]


def kernel_of(neuron: Any, x: Tensor, state: Any) -> Kernel | None:
    """None where there are no compiled loops: another kind of neuron, or a LIF with values per channel."""
    if type(neuron.fire) not in (Rectangle, Arctangent, Sigmoid):
        return None
    make = _KERNELS.get(type(neuron))
    kernel = None if make is None else make(neuron, x, state)
    if kernel is None or any(
        part.shape != x.shape[1:] or part.dtype != torch.float32 for part in kernel.state
    ):
        return None  # what does not fit is for the step to broadcast or to refuse
    return kernel


def _surrogate(fire: Rectangle | Arctangent | Sigmoid) -> tuple[tuple[Any, ...], float]:
    """Kind, shape and scale for `loops._derivative`, and what h - threshold must reach for a spike."""
    if isinstance(fire, Rectangle):
        kind = loops.OPEN_RECTANGLE if fire.strict else loops.RECTANGLE
        shape, scale = fire.width / 2, 1 / fire.width
        return (kind, np.float32(shape), np.float32(scale)), _LEAST if fire.strict else 0.0
    if isinstance(fire, Arctangent):
        shape, scale = np.pi / 2 * fire.alpha, fire.alpha / 2
        return (loops.ARCTANGENT, np.float32(shape), np.float32(scale)), 0.0
    return (loops.SIGMOID, np.float32(fire.alpha), np.float32(fire.alpha)), 0.0


def _float32(*values: float) -> tuple[Any, ...]:
    return tuple(np.float32(value) for value in values)


def _lif(neuron: LIF | PLIF, x: Tensor, state: LIFState) -> Kernel | None:
    values = (
        neuron.rest,
        neuron.threshold,
        neuron.threshold if neuron.subtract is None else neuron.subtract,
        neuron.reset_value,
    )
    if any(isinstance(value, Tensor) for value in values):
        return None
    leak = None
    if isinstance(neuron, PLIF):
        leak = torch.sigmoid(neuron.w)
        if leak.numel() != 1 or leak.dtype != torch.float32:
            return None
        # Rounded as the step rounds them.
        leaks = _float32(leak.item(), (1 - leak).item())
    elif isinstance(neuron.tau, Tensor):
        return None
    else:
        leaks = _float32(1 / neuron.tau, 1 - 1 / neuron.tau)
    surrogate, cutoff = _surrogate(neuron.fire)
    return Kernel(
        loops.lif_forward,
        loops.lif_backward,
        (*leaks, *_float32(*values, cutoff)),  # type: ignore[arg-type]
        surrogate,
        state,
        LIFState,
        (neuron.decay_input, neuron.reset == "hard", neuron.detach_reset),
        None if leak is None else leak.reshape(1),
    )


def _clif(neuron: CLIF, x: Tensor, state: CLIFState) -> Kernel:
    surrogate, cutoff = _surrogate(neuron.fire)
    constants = _float32(1 - 1 / neuron.tau, neuron.tau, neuron.threshold, cutoff)
    return Kernel(loops.clif_forward, loops.clif_backward, constants, surrogate, state, CLIFState)


def _ilif(neuron: ILIF, x: Tensor, state: ILIFState) -> Kernel:
    surrogate, cutoff = _surrogate(neuron.fire)
    constants = _float32(
        1 - 1 / neuron.tau, neuron.threshold, neuron.current_decay, neuron.potential_decay, cutoff
    )
    return Kernel(loops.ilif_forward, loops.ilif_backward, constants, surrogate, state, ILIFState)


def _glif(neuron: GLIF, x: Tensor, state: GLIFState) -> Kernel | None:
    at = int(state.t[0]) if len(state.t) else 0
    if bool((state.t != at).any()):
        return None  # samples at different timesteps have different conductances
    if (
        x.dim() < 3
        or neuron.conduct.shape[1] != x.shape[2]
        or neuron.conduct.dtype != torch.float32
    ):
        return None
    rows = torch.arange(at, at + len(x)).clamp(max=len(neuron.conduct) - 1)
    parameters = torch.cat(
        [
            torch.stack(
                [
                    1 - neuron.alpha * (1 - neuron.tau),
                    neuron.gamma,
                    (1 - neuron.alpha) * neuron.leak,
                    (1 - neuron.gamma) * neuron.subtract,
                    neuron.threshold,
                ]
            ),
            1 - neuron.beta * (1 - neuron.conduct[rows]),
        ]
    )
    order = _order(x)
    inner = math.prod(x.shape[axis] for axis in order[order.index(2) + 1 :])
    surrogate, cutoff = _surrogate(neuron.fire)
    return Kernel(
        loops.glif_forward,
        loops.glif_backward,
        (_array(parameters), inner, np.float32(cutoff)),
        surrogate,
        (state.u, state.s),
        lambda u, s: GLIFState(u, s, state.t + len(x)),
        parameters=parameters.flatten(),
    )


_KERNELS: dict[type, Callable[..., Kernel | None]] = {
    LIF: _lif,
    PLIF: _lif,
    CLIF: _clif,
    ILIF: _ilif,
    GLIF: _glif,
}


def _order(x: Tensor) -> list[int]:
    """The axes of [T, N, C, ...] but the first, in the order in which they lie in memory."""
    return sorted(range(1, x.dim()), key=lambda axis: -x.stride()[axis])


def run(kernel: Kernel, x: Tensor) -> tuple[Tensor, Any]:
    """Currents [T, N, C, ...] in float32 or bfloat16 in; spikes of the same shape and type and the last state out."""
    # Neurons do not touch each other: in whatever order they lie in memory, they are one axis.
    order = _order(x)
    back = [order.index(axis) for axis in range(1, x.dim())]
    shape = [x.shape[axis] for axis in order]

    def flat(one: Tensor) -> Tensor:
        return one.permute([axis - 1 for axis in order]).reshape(-1)

    def unflat(one: Tensor) -> Tensor:
        return one.view(shape).permute(back)

    constant = x.stride(0) == 0
    currents = (
        flat(x[0]).expand(len(x), -1) if constant else x.permute(0, *order).reshape(len(x), -1)
    )
    spikes, *last = _Run.apply(kernel, kernel.parameters, currents, *map(flat, kernel.state))  # type: ignore[no-untyped-call]
    spikes = spikes.view(len(x), *shape).permute(0, *(axis + 1 for axis in back))
    return spikes, kernel.last(*map(unflat, last))


class _Run(torch.autograd.Function):
    """Currents [T, n] and state [n] in; spikes [T, n] and last state [n] out."""

    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, parameters: Tensor | None, x: Tensor, *state: Tensor
    ) -> Any:
        # Without its tensors, which would keep the graph alive from within itself.
        ctx.kernel = kernel._replace(state=(), last=tuple, parameters=None)
        ctx.parameters = 0 if parameters is None else parameters.numel()
        ctx.save_for_backward(x, *state)
        ctx.set_materialize_grads(False)
        spikes = x.new_empty(x.shape)
        last = tuple(torch.empty_like(value) for value in state)
        arguments = (
            kernel.constants,
            kernel.modes,
            _currents(x),
            tuple(map(_array, state)),
            _array(spikes),
            tuple(map(_array, last)),
        )
        _in_parallel(x, lambda start, stop, _: kernel.forward(*arguments, start, stop))
        return spikes, *last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor | None, *grad_last: Tensor | None) -> Any:
        x, *state = ctx.saved_tensors
        kernel: Kernel = ctx.kernel
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(x)
        nothing = x.new_empty(0, dtype=torch.float32)
        grad_x = x.new_empty(x.shape)
        grad_state = tuple(
            torch.empty_like(value) if needed else nothing
            for value, needed in zip(state, ctx.needs_input_grad[3:], strict=True)
        )
        grad_parameters = np.zeros((_threads(x), ctx.parameters if ctx.needs_input_grad[1] else 0))
        arguments = (
            kernel.constants,
            kernel.modes,
            kernel.surrogate,
            _currents(x),
            tuple(map(_array, state)),
            _array(grad_spikes),
            tuple(_array(nothing if grad is None else grad) for grad in grad_last),
            _array(grad_x),
            tuple(map(_array, grad_state)),
        )
        _in_parallel(
            x,
            lambda start, stop, part: kernel.backward(
                *arguments, grad_parameters[part], start, stop
            ),
        )
        learned = (
            torch.from_numpy(grad_parameters.sum(0)).float() if ctx.needs_input_grad[1] else None
        )
        needed = (grad if grad is not nothing else None for grad in grad_state)
        return None, learned, grad_x, *needed


def _array(one: Tensor) -> Array:
    """bfloat16, which numpy has not, as the bits of its numbers."""
    one = one.detach().contiguous()
    array: Array = (one.view(torch.uint16) if one.dtype == torch.bfloat16 else one).numpy()
    return array


def _currents(x: Tensor) -> Array:
    return _array(x[:1] if x.stride(0) == 0 else x)


def _threads(x: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), x.numel() // _WORTH_A_THREAD))


def _in_parallel(x: Tensor, work: Callable[[int, int, int], None]) -> None:
    """Calls work(start, stop, part) for parts of the n neurons, one for each thread that torch may use."""
    neurons, parts = x.shape[1], _threads(x)
    size = -(-neurons // parts // loops.BLOCK) * loops.BLOCK or loops.BLOCK
    starts = [(part, part * size) for part in range(parts) if part * size < neurons]
    others = [
        _pool(os.getpid(), torch.get_num_threads()).submit(
            work, start, min(start + size, neurons), part
        )
        for part, start in starts[1:]
    ]
    try:
        if neurons:
            work(0, min(size, neurons), 0)
    finally:
        wait(others)
    for other in others:
        other.result()


@functools.lru_cache(maxsize=8)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads for the loops, which run outside the interpreter's lock. A process that was forked gets its own."""
    return ThreadPoolExecutor(max(1, threads - 1), "spiketrain-kernel")
