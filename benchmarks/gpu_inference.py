"""How many pictures a second a spiking ResNet-18 classifies on a GPU: our executor against SpikingJelly.

    python benchmarks/gpu_inference.py

CIFAR-10's shape, CLIF, T = 4, weights as they are drawn (speed does not depend on them, firing rates do and are in the
results). Ours is the server's executor in bfloat16: timestep by timestep, as with an early exit, and all timesteps at
once, as without; from pictures in the host's memory to logits in the host's memory. SpikingJelly's is the same network
with its own neurons in bfloat16 and channels last, eager and under torch.compile, from and to the host's memory as well.
The clock is the wall's, over whole batches in turns, the median; batches of 1, 8, 64 and 256 pictures.

Writes benchmarks/results/gpu-inference.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from gpu_machine import described, require_gpu
from results import save
from rich.console import Console
from torch import Tensor

from spikeserve.engine import Sample
from spiketrain.convert.spikingjelly_export import to_spikingjelly
from spiketrain.energy import fan_out
from spiketrain.networks import Network, build_network
from spiketrain.neurons import CLIFConfig

TIMESTEPS = 4

Run = Callable[[Tensor], Any]


class _Weights:
    """As much of a checkpoint as an export looks at."""

    def __init__(self, network: Network) -> None:
        self.network = lambda: network


def ours(network: Network, slots: int) -> dict[str, Run]:
    from spikeserve.engine.cuda import CudaExecutor

    executor = CudaExecutor(network, slots, fan_out(network))

    def run(pictures: Tensor, timesteps: int | None) -> Any:
        for slot, picture in enumerate(pictures):
            executor.admit(slot, Sample(picture, timesteps))
        return [executor.step(range(len(pictures)), None) for _ in range(TIMESTEPS)]

    return {
        "ours, step by step": lambda pictures: run(pictures, None),
        "ours, at once": lambda pictures: run(pictures, TIMESTEPS),
    }


def theirs(network: Network) -> dict[str, Run]:
    from spikingjelly.activation_based import functional

    weights: Any = _Weights(network)
    model = to_spikingjelly(weights).cuda().bfloat16().eval()
    compiled = torch.compile(model, dynamic=False)

    def runner(call: Any) -> Run:
        def run(pictures: Tensor) -> Tensor:
            functional.reset_net(model)
            x = pictures.cuda().bfloat16().contiguous(memory_format=torch.channels_last)
            return call(x.expand(TIMESTEPS, *x.shape)).float().cpu()  # type: ignore[no-any-return]

        return run

    return {"spikingjelly": runner(model), "spikingjelly, compiled": runner(compiled)}


def seconds(run: Run, pictures: Tensor, budget: float) -> float:
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < budget:
        start = time.perf_counter()
        run(pictures)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main(
    batch: Annotated[list[int], typer.Option(min=1)] = [1, 8, 64, 256],  # noqa: B006 (typer copies it)
    budget: Annotated[float, typer.Option(help="Seconds for each figure.")] = 3.0,
) -> None:
    require_gpu()
    torch.manual_seed(0)
    network = build_network("spiking-resnet18", {}, CLIFConfig(), TIMESTEPS).eval()
    runs = ours(network, max(batch))
    refused: dict[str, str] = {}
    try:
        runs |= theirs(network)
    except Exception as error:  # what cannot be measured is said in the results
        refused["spikingjelly"] = f"{type(error).__name__}: {error}"
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for size in batch:
            pictures = torch.rand(size, 3, 32, 32)
            for name, run in runs.items():
                try:
                    took = seconds(run, pictures, budget)
                except Exception as error:
                    refused[f"{name}, batch {size}"] = f"{type(error).__name__}: {error}"
                    continue
                rows.append(
                    {
                        "run": name,
                        "batch": size,
                        "seconds": took,
                        "pictures_per_second": size / took,
                    }
                )
    best = {size: max((r["pictures_per_second"] for r in rows if r["batch"] == size and r["run"].startswith("ours")), default=0.0) for size in batch}  # fmt: skip
    ratios = {
        f"ours / {row['run']}, batch {row['batch']}": best[row["batch"]]
        / row["pictures_per_second"]
        for row in rows
        if not row["run"].startswith("ours")
    }
    console = Console()
    for row in rows:
        console.print(
            f"{row['run']:24} batch {row['batch']:4} {row['pictures_per_second']:10.1f} pictures/s"
        )
    for name, ratio in (ratios | refused).items():
        console.print(f"{name}: {ratio}")
    settings = {
        "timesteps": TIMESTEPS,
        "network": "spiking-resnet18",
        "neuron": "clif",
        "dtype": "bfloat16",
    }
    path = save(
        "gpu-inference", __doc__ or "", settings, rows, ratios, gpu=described(), refused=refused
    )
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
