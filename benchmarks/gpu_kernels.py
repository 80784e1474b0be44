"""How fast T timesteps of one layer of neurons are on a GPU, forward and backward, and what share of its memory's speed.

    python benchmarks/gpu_kernels.py

For each neuron and shape, bfloat16 and channels last: the fused kernels (with and without the last state written), the
plain loop over the neuron's step, the same under torch.compile, and SpikingJelly's own multi-step neuron where it has
the same one, as it is and, for CLIF, written as a FlexSN. One turn runs each once; the figure is the median of the
turns by CUDA events, after turns that do not count; compiling is not counted. Before that the spikes of all are
compared with the plain loop's, and the share that differs is in the results. `bandwidth` is the bytes that must
be moved at least (currents in, spikes out; backward: currents and gradients of spikes in, gradients of currents out)
over the time, and `share` is of what a plain copy of 1 GiB reaches on the same card in the same run.

Writes benchmarks/results/gpu-kernels.json. What SpikingJelly or torch.compile cannot run is in the results with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from gpu_machine import copy_bandwidth, described, milliseconds, require_gpu
from neurons import CONTESTS, Contest
from results import save
from rich.console import Console
from rich.table import Table
from torch import Tensor

from spiketrain.kernels import plain_steps, run_steps
from spiketrain.neurons import NeuronLayer

SHAPES = ["4,128,64,32,32", "8,128,64,32,32", "16,64,64,32,32", "4,256,256,8,8"]

Run = Callable[[Tensor], Tensor]


def contestants(
    contest: Contest, steps: int, channels: int
) -> tuple[dict[str, Run], dict[str, str]]:
    """What can be run, and why the rest cannot."""
    from spiketrain.kernels import triton as gpu

    layer = NeuronLayer(contest.config, channels, steps).cuda()
    compiled = torch.compile(
        lambda x: plain_steps(layer.neuron(), x, layer.neuron().initial_state(x[0]))[0],
        dynamic=False,
    )

    def without_last_state(x: Tensor) -> Tensor:
        result = gpu.run(layer.neuron(), x, keep=False)
        if result is None:
            raise RuntimeError("no kernel")
        return result[0]

    runs: dict[str, Run] = {
        "fused": lambda x: run_steps(layer.neuron(), x)[0],
        "fused, no last state": without_last_state,
        "plain": lambda x: plain_steps(layer.neuron(), x, layer.neuron().initial_state(x[0]))[0],
        "plain, compiled": compiled,
    }
    refused: dict[str, str] = {}
    for name, make in {
        "spikingjelly": _own(contest, steps, channels),
        "flexsn": _flexsn(contest),
    }.items():
        if make is None:
            continue
        try:
            runs[name] = make()
        except Exception as error:  # another project's code, on a card nobody has tried
            refused[name] = f"{type(error).__name__}: {error}"
    return runs, refused


def _own(contest: Contest, steps: int, channels: int) -> Callable[[], Run] | None:
    theirs = contest.theirs
    if theirs is None:
        return None

    def make() -> Run:
        node = theirs(steps, channels).cuda()

        def run(x: Tensor) -> Tensor:
            node.reset()
            return node(x)  # type: ignore[no-any-return]

        return run

    return make


def _clif_core(x: Tensor, v: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from spikingjelly.activation_based import surrogate

    h = 0.5 * v + x
    s = surrogate.rect.apply(h - 1.0, 1.0)
    m = m * torch.sigmoid(0.5 * h) + s
    return s, h - s * (1.0 + torch.sigmoid(m)), m


def _flexsn(contest: Contest) -> Callable[[], Run] | None:
    if contest.name != "CLIF":
        return None

    def make() -> Run:
        from spikingjelly.activation_based import neuron

        node = neuron.FlexSN(_clif_core, 2).cuda()

        def run(x: Tensor) -> Tensor:
            node.reset()
            return node(x)  # type: ignore[no-any-return]

        return run

    return make


def measured(
    contest: Contest, shape: tuple[int, ...], copy: float, turns: int
) -> list[dict[str, Any]]:
    steps, batch, channels, height, width = shape
    x = torch.randn(steps, batch, height, width, channels, device="cuda").add_(0.3).bfloat16()
    x = x.movedim(-1, 2).requires_grad_()
    weight = torch.randn_like(x)
    runs, reasons = contestants(contest, steps, channels)
    expected = runs["plain"](x).detach()
    differing: dict[str, float] = {}
    for name in list(runs):
        try:
            spikes = runs[name](x)
            torch.autograd.grad(spikes, x, weight.to(spikes.dtype))
            differing[name] = float((spikes.detach() != expected).float().mean())
        except Exception as error:  # what cannot run here is said in the results, not hidden
            reasons[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
            del runs[name]

    def forward(run: Run) -> Callable[[], Any]:
        def go() -> Tensor:
            with torch.no_grad():
                return run(x)

        return go

    def both(run: Run) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(run(x), x, weight)

    alone = milliseconds({name: forward(run) for name, run in runs.items()}, turns)
    whole = milliseconds({name: both(run) for name, run in runs.items()}, turns)
    one_way = 2 * x.nbytes
    rows = []
    for name in runs:
        bandwidth = (one_way + 3 * x.nbytes) / (whole[name] / 1e3)
        rows.append(
            {
                "neuron": contest.name,
                "shape": list(shape),
                "run": name,
                "forward_ms": alone[name],
                "both_ms": whole[name],
                "forward_share": one_way / (alone[name] / 1e3) / copy,
                "bandwidth": bandwidth,
                "share": bandwidth / copy,
                "differing_spikes": differing[name],
            }
        )
    rows += [
        {"neuron": contest.name, "shape": list(shape), "run": name, "refused": reason}
        for name, reason in reasons.items()
    ]
    return rows


def ratios_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster the fused kernels are, forward and backward, than each of the others."""
    ratios: dict[str, float] = {}
    ours = {
        (row["neuron"], *row["shape"]): row["both_ms"]
        for row in rows
        if row["run"] == "fused" and "both_ms" in row
    }
    for row in rows:
        key = (row["neuron"], *row["shape"])
        if "both_ms" in row and not row["run"].startswith("fused") and key in ours:
            label = f"{row['neuron']} {'x'.join(map(str, row['shape']))} / {row['run']}"
            ratios[label] = row["both_ms"] / ours[key]
    return ratios


def main(
    shape: Annotated[list[str], typer.Option(help="T,N,C,H,W; as often as needed.")] = SHAPES,
    turns: Annotated[int, typer.Option(min=1)] = 15,
    only: Annotated[str, typer.Option(help="The name of one neuron.")] = "",
) -> None:
    require_gpu()
    copy = copy_bandwidth()
    rows: list[dict[str, Any]] = []
    for contest in CONTESTS:
        for text in shape if not only or only == contest.name else []:
            torch.compiler.reset()
            rows += measured(contest, tuple(map(int, text.split(","))), copy, turns)
    ratios = ratios_of(rows)
    table = Table("neuron", "shape", "run", "forward ms", "both ms", "of a copy", "differing")
    for row in rows:
        size = "x".join(map(str, row["shape"]))
        if "refused" in row:
            table.add_row(row["neuron"], size, row["run"], row["refused"][:60])
            continue
        table.add_row(
            row["neuron"],
            size,
            row["run"],
            f"{row['forward_ms']:.3f}",
            f"{row['both_ms']:.3f}",
            f"{row['share']:.0%}",
            f"{row['differing_spikes']:.1e}",
        )
    console = Console()
    console.print(table)
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.2f} times as long as fused")
    console.print(f"copy: {copy / 1e9:.0f} GB/s")
    path = save(
        "gpu-kernels",
        __doc__ or "",
        {"shapes": shape, "turns": turns, "dtype": "bfloat16", "layout": "channels last"},
        rows,
        ratios,
        gpu=described(),
        copy_bandwidth=copy,
    )
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
