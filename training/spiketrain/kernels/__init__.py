"""T timesteps of a neuron at once."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor


def run_steps(neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Currents [T, N, C, ...] and a state in; spikes of the same shape and the last state out.

    Runs a fused kernel where there is one for this neuron, dtype and device, else the plain loop; both give the
    same spikes. SPIKETRAIN_KERNELS=plain in the environment turns the kernels off.
    """
    if (
        _fusable(x)
        and (cpu := _cpu()) is not None
        and (kernel := cpu.kernel_of(neuron, x, state)) is not None
    ):
        return cpu.run(kernel, x)  # type: ignore[no-any-return]
    return plain_steps(neuron, x, state)


def plain_steps(neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """`run_steps` as a loop over the neuron's own step: what the kernels are measured against."""
    spikes = []
    for current in x:
        s, state = neuron.step(current, state)
        spikes.append(s)
    return torch.stack(spikes), state


def _fusable(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() > 1
        and len(x) > 0
        and not _observed(x)
        and os.environ.get("SPIKETRAIN_KERNELS") != "plain"
    )


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
