"""Compiles every kernel as a launch would, for GPUs that are not there, and writes what came out as JSON.

Run by test_triton_compile.py in a process of its own, as Triton either compiles or interprets: its driver is replaced by
one that names a GPU, and launches end after the compiler.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from spiketrain.kernels import triton as gpu
from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronLayer,
    PLIFConfig,
)
from spiketrain.surrogate import arctangent, sigmoid

CONFIGS = [
    LIFConfig(),
    LIFConfig(reset="hard", rest=0.1, decay_input=True, surrogate=sigmoid),
    PLIFConfig(),
    CLIFConfig(),
    ILIFConfig(surrogate=arctangent),
    GLIFConfig(),
]
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class AbsentGpu:
    """What the compiler asks of a driver."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    built: list[tuple[str, Any]] = []

    def compile_only(kernel: JITFunction, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            binary = kernel.run(*arguments, grid=grid, warmup=True, **options)
            built.append((kernel.fn.__name__, binary))

        return launch

    JITFunction.__getitem__ = compile_only
    report: dict[str, Any] = {"kernels": [], "versions": {}}
    for capability in (80, 90):
        driver.set_active(AbsentGpu(capability))
        for config in CONFIGS:
            built.clear()
            steps_and_back(config, 2, 4)
            one_timestep(config)
            for name, binary in built:
                report["kernels"].append(described(name, config.kind, capability, binary))
    for batch in (1, 3, 4, 8):
        before = versions()
        steps_and_back(CONFIGS[0], 4, batch)
        report["versions"][batch] = versions() - before
    json.dump(report, sys.stdout)


def steps_and_back(config: Any, steps: int, batch: int) -> None:
    x = torch.zeros(steps, batch, 4, 4, 16, dtype=torch.bfloat16).movedim(-1, 2).requires_grad_()
    spikes, _ = gpu.run(NeuronLayer(config, 16, steps).neuron(), x)
    spikes.backward(torch.zeros_like(spikes))


def one_timestep(config: Any) -> None:
    plan = gpu.plan_of(NeuronLayer(config, 16, 4).neuron())
    ones = torch.ones(16)
    layer = gpu.SlotLayer(
        plan, 3, (16, 4, 4), torch.ones(16, 1, 1), 0, gpu.Affine(ones, ones), torch.device("cpu")
    )
    x = torch.zeros(2, 4, 4, 16, dtype=torch.bfloat16).movedim(-1, 1)
    slots, counts = torch.zeros(2, dtype=torch.int32), torch.zeros(1, 2, 1, dtype=torch.float64)
    batch = gpu.Batch(slots, slots, counts, counts[..., 0])
    layer.fire(x, x, batch, torch.bfloat16)


def versions() -> int:
    """How many versions of the kernels for T timesteps there are for the present GPU."""
    kernels = (gpu.forward.forward_kernel, gpu.backward.backward_kernel)
    return sum(len(kernel.device_caches[90][0]) for kernel in kernels)


def described(name: str, neuron: str, capability: int, binary: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    target = re.search(r"^\.target (\w+)", binary.asm["ptx"], re.MULTILINE)
    return {
        "kernel": name,
        "neuron": neuron,
        "capability": capability,
        "target": target and target[1],
        "registers": found and int(found[1]),
        "stack": found and int(found[2]),
        "local": found and int(found[4]),
        "wide_reads": bool(re.search(r"ld\.global\.v[24]", binary.asm["ptx"])),
    }


if __name__ == "__main__":
    main()
