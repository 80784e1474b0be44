"""How fast one step of training is, against the same step written with SpikingJelly's layers.

In one process and in turns: our loop (the one of `spiketrain train`: channels last, fused neurons, the first convolution
once for all timesteps, and a look whether all numbers are finite), and SpikingJelly's as its tutorials write it (its
multi-step layers and neurons with its default backend, the picture repeated for each timestep, reset_net after the
step), as it is and with channels last; both loops also with autocast to bfloat16. All have the same network with the
same weights, the same random pictures, loss (cross entropy of every timestep) and optimiser (SGD with momentum); that
they are the same network is checked: their logits are compared first. A turn is one whole step of each; the figure is
the median over the turns, after two that do not count. Reading and augmenting data is in none. Ratios are those at the
same precision, to the faster of SpikingJelly's. The clock is the wall's, or with --clock cpu the processor time of all
threads, which says more on a machine with other work.

    python benchmarks/training.py --threads 2
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import results
import torch
import torch.nn.functional as functional
import typer
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import functional as spikingjelly
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.spikingjelly_export import to_spikingjelly
from spiketrain.manifest import ImageInput, Manifest, NetworkSpec
from spiketrain.networks import Network, build_network
from spiketrain.neurons import CLIFConfig, LIFConfig, NeuronConfig, PLIFConfig
from spiketrain.not_finite import looks_finite

Step = Callable[[], float]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Contest(NamedTuple):
    name: str
    network: str
    arguments: dict[str, object]
    neuron: NeuronConfig
    timesteps: int
    batch: int
    shape: tuple[int, int, int]


_GREY, _COLOUR = (1, 28, 28), (3, 32, 32)
_CIFAR = {"input_shape": _COLOUR, "channels": (48, 96, 128), "strides": (2, 2, 1)}
CONTESTS = [
    Contest("small-conv, 28x28, LIF", "small-conv", {}, LIFConfig(), 4, 128, _GREY),
    Contest("small-conv, 28x28, CLIF", "small-conv", {}, CLIFConfig(), 4, 128, _GREY),
    Contest("small-conv, 28x28, PLIF", "small-conv", {}, PLIFConfig(), 4, 128, _GREY),
    Contest("small-conv, 32x32, CLIF", "small-conv", _CIFAR, CLIFConfig(), 4, 128, _COLOUR),
    Contest("spiking-resnet18, LIF", "spiking-resnet18", {}, LIFConfig(), 4, 16, _COLOUR),
    Contest("spiking-resnet18, CLIF", "spiking-resnet18", {}, CLIFConfig(), 4, 16, _COLOUR),
]


def peer_of(network: Network, contest: Contest) -> nn.Module:
    manifest = Manifest(
        name="peer",
        network=NetworkSpec(name=contest.network, arguments=contest.arguments),
        neuron=contest.neuron,
        timesteps=contest.timesteps,
        input=ImageInput(
            shape=contest.shape, mean=(0.0,) * contest.shape[0], std=(1.0,) * contest.shape[0]
        ),
        classes=tuple(map(str, range(network.classes))),
    )
    return to_spikingjelly(Checkpoint(manifest, dict(network.state_dict())))


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)))


def ours(network: Network, x: Tensor, y: Tensor, precision: str) -> Step:
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(x).logits.float()
        loss = loss_of(logits, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not looks_finite(network, loss):
            raise RuntimeError("the loss is not finite")
        optimizer.step()
        return loss.item()

    return step


def theirs(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    timesteps: int,
    channels_last: bool = False,
    precision: str = "float32",
) -> Step:
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(x.unsqueeze(0).repeat(timesteps, 1, 1, 1, 1)).float()
        loss = loss_of(logits, y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        spikingjelly.reset_net(network)
        return loss.item()

    return step


def fresh(contest: Contest) -> Network:
    torch.manual_seed(0)
    return build_network(contest.network, contest.arguments, contest.neuron, contest.timesteps)


def check_same(contest: Contest, x: Tensor) -> float:
    """The share of logits that are the same but for rounding, in evaluation. A spike that rounding decides is none."""
    network = fresh(contest).eval()
    peer = peer_of(network, contest)
    with torch.no_grad():
        expected = network(x).logits
        found = peer(x.unsqueeze(0).repeat(contest.timesteps, 1, 1, 1, 1))
    spikingjelly.reset_net(peer)
    return float(torch.isclose(found, expected, atol=1e-3, rtol=1e-3).double().mean())


def measure(
    contest: Contest, turns: int, bfloat16: bool, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of a step, by contestant."""
    x = torch.rand(contest.batch, *contest.shape, generator=torch.Generator().manual_seed(1))
    y = torch.arange(contest.batch) % 10
    same = check_same(contest, x[:8])
    if same < 0.9:
        raise RuntimeError(f"{contest.name}: only {same:.0%} of the logits are the same")
    steps = {"ours": ours(fresh(contest), x, y, "float32")}

    def peer(channels_last: bool = False, precision: str = "float32") -> Step:
        network = peer_of(fresh(contest), contest)
        return theirs(network, x, y, contest.timesteps, channels_last, precision)

    steps["SpikingJelly"] = peer()
    steps["SpikingJelly, channels last"] = peer(channels_last=True)
    if bfloat16:
        steps["ours, bfloat16"] = ours(fresh(contest), x, y, "bfloat16")
        steps["SpikingJelly, bfloat16"] = peer(precision="bfloat16")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 2):
        for name, step in steps.items():
            begin = clock()
            step()
            if turn >= 2:
                times[name].append(clock() - begin)
    return {name: statistics.median(each) for name, each in times.items()}


def main(
    threads: Annotated[int, typer.Option(min=1)] = 1,
    turns: Annotated[int, typer.Option(min=1)] = 7,
    only: Annotated[str, typer.Option(help="Contests whose name has this in it.")] = "",
    bfloat16: Annotated[bool, typer.Option(help="Measure ours in bfloat16, too.")] = True,
    clock: Annotated[Literal["wall", "cpu"], typer.Option()] = "wall",
) -> None:
    torch.set_num_threads(threads)
    rows, ratios = [], {}
    table = Table("contest", "contestant", "ms a step", "samples/s", "times ours")
    for contest in CONTESTS:
        if only not in contest.name:
            continue
        seconds = measure(contest, turns, bfloat16, CLOCKS[clock])
        for name, taken in seconds.items():
            rows.append(
                {
                    "contest": contest.name,
                    "timesteps": contest.timesteps,
                    "batch": contest.batch,
                    "contestant": name,
                    "seconds": taken,
                    "samples_per_second": contest.batch / taken,
                }
            )
            ratio = taken / seconds["ours"]
            table.add_row(
                contest.name,
                name,
                f"{1e3 * taken:.1f}",
                f"{contest.batch / taken:.0f}",
                f"{ratio:.2f}",
            )
        best = min(seconds["SpikingJelly"], seconds["SpikingJelly, channels last"])
        ratios[contest.name] = best / seconds["ours"]
        if bfloat16:
            same = seconds["SpikingJelly, bfloat16"] / seconds["ours, bfloat16"]
            ratios[f"{contest.name}, bfloat16"] = same
    Console().print(table)
    path = results.save(
        "training",
        __doc__ or "",
        {"threads": threads, "turns": turns, "clock": clock},
        rows,
        ratios,
    )
    typer.echo(f"ratios to the faster of SpikingJelly's: {ratios}\n{path}")


if __name__ == "__main__":
    typer.run(main)
