"""How fast T timesteps of one layer of neurons are, forward and backward, on a CPU.

Compares, in one process and in turns: the fused kernel, the plain loop over the neuron's step, and SpikingJelly's own
multi-step neuron where it has the same one (it has no temporal inhibitory ILIF). A turn is one forward and one backward
pass of each; the figure is the median over the turns, after one turn that does not count. Reported is the time for
one neuron and timestep, in nanoseconds, and the ratios to the fused kernel in the same run. The clock is the wall's, or
with --clock cpu the processor time of all threads, which says more on a machine that has other work.

    python benchmarks/neurons.py --threads 1 --threads 2
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import neuron as spikingjelly
from spikingjelly.activation_based import surrogate
from torch import Tensor

from spiketrain.kernels import plain_steps, run_steps
from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronConfig,
    NeuronLayer,
    PLIFConfig,
)

SHAPES = ["4,128,32,14,14", "6,64,64,32,32"]

Run = Callable[[Tensor], Tensor]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Contest(NamedTuple):
    name: str
    config: NeuronConfig
    theirs: (
        Callable[[int, int], Any] | None
    )  # from timesteps and channels, the same neuron of SpikingJelly


CONTESTS = [
    Contest(
        "LIF soft",
        LIFConfig(),
        lambda steps, channels: spikingjelly.LIFNode(
            2.0, False, 1.0, None, surrogate.Rect(), step_mode="m"
        ),
    ),
    Contest(
        "LIF hard",
        LIFConfig(reset="hard"),
        lambda steps, channels: spikingjelly.LIFNode(
            2.0, False, 1.0, 0.0, surrogate.Rect(), step_mode="m"
        ),
    ),
    Contest(
        "PLIF",
        PLIFConfig(),
        lambda steps, channels: spikingjelly.ParametricLIFNode(
            2.0, True, 1.0, 0.0, surrogate.ATan(), detach_reset=True, step_mode="m"
        ),
    ),
    Contest(
        "CLIF",
        CLIFConfig(),
        lambda steps, channels: spikingjelly.ComplementaryLIFNode(2.0, step_mode="m"),
    ),
    Contest("ILIF", ILIFConfig(), None),
    Contest(
        "GLIF",
        GLIFConfig(),
        lambda steps, channels: spikingjelly.GatedLIFNode(
            steps, channels, surrogate_function=surrogate.Rect()
        ),
    ),
]


def contestants(contest: Contest, steps: int, channels: int) -> dict[str, Run]:
    layer = NeuronLayer(contest.config, channels, steps)

    def ours(run: Callable[..., Any]) -> Run:
        def spikes(x: Tensor) -> Tensor:
            neuron = layer.neuron()
            return run(neuron, x, neuron.initial_state(x[0].detach()))[0]  # type: ignore[no-any-return]

        return spikes

    runs: dict[str, Run] = {"fused": ours(run_steps), "plain": ours(plain_steps)}
    if contest.theirs is not None:
        node = contest.theirs(steps, channels)

        def theirs(x: Tensor) -> Tensor:
            node.reset()
            return node(x)  # type: ignore[no-any-return]

        runs["spikingjelly"] = theirs
    return runs


def seconds(
    run: Run, x: Tensor, gradient: Tensor, clock: Callable[[], float]
) -> tuple[float, float]:
    """Of one forward and one backward pass."""
    x = x.detach().requires_grad_()
    begin = clock()
    spikes = run(x)
    middle = clock()
    spikes.backward(gradient)
    return middle - begin, clock() - middle


def measure(
    contest: Contest, shape: list[int], turns: int, clock: Callable[[], float]
) -> dict[str, tuple[float, float]]:
    """Median nanoseconds for one neuron and timestep, forward and backward, of each contestant."""
    torch.manual_seed(0)
    x, gradient = torch.randn(shape) + 0.3, torch.randn(shape)
    runs = contestants(contest, shape[0], shape[2])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            taken = seconds(run, x, gradient, clock)
            if turn:
                times[name].append(taken)
    scale = 1e9 / x.numel()
    return {
        name: (
            scale * statistics.median(forward for forward, _ in each),
            scale * statistics.median(backward for _, backward in each),
        )
        for name, each in times.items()
    }


def main(
    shape: Annotated[list[str], typer.Option(help="T,N,C,... of the currents")] = SHAPES,
    threads: Annotated[list[int], typer.Option(help="torch's threads")] = [1, 2],  # noqa: B006
    turns: Annotated[int, typer.Option(min=1)] = 9,
    clock: Annotated[Literal["wall", "cpu"], typer.Option(help="what time is")] = "wall",
    only: Annotated[str, typer.Option(help="neurons whose name contains this")] = "",
) -> None:
    console = Console(width=150)
    console.print(
        __doc__, f"torch {torch.__version__}, {platform.processor() or platform.machine()}\n"
    )
    for count in threads:
        torch.set_num_threads(count)
        for text in shape:
            sizes = [int(size) for size in text.split(",")]
            table = Table(
                "neuron",
                "fused",
                "plain",
                "SpikingJelly",
                "plain / fused",
                "SpikingJelly / fused",
                title=f"{sizes}, {count} thread{'s' * (count > 1)}, median of {turns}, {clock} clock: forward + backward, ns",
            )
            for contest in CONTESTS:
                if only.lower() not in contest.name.lower():
                    continue
                figures = measure(contest, sizes, turns, CLOCKS[clock])
                whole = {name: sum(pair) for name, pair in figures.items()}
                cells = [
                    "{:.2f} + {:.2f}".format(*figures[name]) if name in figures else "-"
                    for name in ("fused", "plain", "spikingjelly")
                ]
                ratios = [
                    f"{whole[name] / whole['fused']:.1f}" if name in whole else "-"
                    for name in ("plain", "spikingjelly")
                ]
                table.add_row(contest.name, *cells, *ratios)
            console.print(table)


if __name__ == "__main__":
    typer.run(main)
