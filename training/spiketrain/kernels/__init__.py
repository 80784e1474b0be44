"""T timesteps of a neuron at once."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor

_NARROW = (torch.bfloat16, torch.float16)


def run_steps(neuron: Any, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Currents [T, N, C, ...] and a state in; spikes of the same shape and the last state out.

    Without a state neurons start from their initial one. Currents in bfloat16 or float16 give spikes in that type, which
    holds 0 and 1 exactly; the state stays float32, as a potential that is leaked and added to needs more digits than
    they have.

    Runs a fused kernel where there is one for this neuron, dtype and device, else the plain loop; both give the
    same spikes, but for potentials within some millionths of the threshold on a GPU. SPIKETRAIN_KERNELS=plain in the
    environment turns the kernels off.
    """
    fuse = not _observed(x) and os.environ.get("SPIKETRAIN_KERNELS") != "plain"
    if (
        fuse
        and _on_gpu(x)
        and (gpu := _triton()) is not None
        and (result := gpu.run(neuron, x, state)) is not None
    ):
        return result  # type: ignore[no-any-return]
    if fuse and x.dtype == torch.bfloat16 and (result := _on_cpu(neuron, x, state)) is not None:
        return result
    if x.dtype in _NARROW:
        # The same current at all timesteps stays one.
        wide = x[0].float().expand(x.shape) if x.stride(0) == 0 else x.float()
        spikes, last = run_steps(neuron, wide, state)
        return spikes.to(x.dtype), last
    if state is None:
        state = neuron.initial_state(x[0])
    if fuse and x.dtype == torch.float32 and (result := _on_cpu(neuron, x, state)) is not None:
        return result
    return plain_steps(neuron, x, state)


def _on_cpu(neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any] | None:
    """Currents in float32 or bfloat16 through the compiled loops; None where there are none for them."""
    if not _fusable(x) or (cpu := _cpu()) is None:
        return None
    if state is None:
        state = neuron.initial_state(torch.zeros_like(x[0], dtype=torch.float32))
    kernel = cpu.kernel_of(neuron, x, state)
    return None if kernel is None else cpu.run(kernel, x)


def plain_steps(neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """`run_steps` as a loop over the neuron's own step: what the kernels are measured against."""
    spikes = []
    for current in x:
        s, state = neuron.step(current, state)
        spikes.append(s)
    return torch.stack(spikes), state


def _fusable(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dim() > 1 and len(x) > 0


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _observed(x: Tensor) -> bool:
    """Whether something looks at the operations of the step: export, compile, vmap, a counter of operations."""
    return (
        type(x) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or bool(torch._C._functorch.peek_interpreter_stack())
        or torch._C._len_torch_dispatch_stack() > 0
    )


@functools.cache
def _cpu() -> Any:
    """The module of CPU kernels, None without numba."""
    try:
        return importlib.import_module("spiketrain.kernels.cpu")
    except ImportError:
        return None


@functools.cache
def _triton() -> Any:
    """The GPU kernels, None without Triton."""
    try:
        return importlib.import_module("spiketrain.kernels.triton")
    except ImportError:
        return None
