"""What `spiketrain export` does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from spiketrain.checkpoint import load_checkpoint
from spiketrain.convert.flow import ExportError

output = Console(emoji=False)

_SUFFIXES = {"onnx": ".onnx", "nir": ".nir", "spikingjelly": ".py"}


def export(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to write out.")],
    to: Annotated[
        Literal["onnx", "nir", "spikingjelly"],
        typer.Option(
            help="onnx: one timestep with its state as inputs and outputs; nir: a graph for other simulators and "
            "neuromorphic hardware; spikingjelly: a Python module that needs SpikingJelly only."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write; beside the checkpoint unless given."),
    ] = None,
    form: Annotated[
        Literal["step", "scan"],
        typer.Option(help="onnx: one timestep, or a whole sequence in one Scan node."),
    ] = "step",
    opset: Annotated[int, typer.Option(help="onnx: version of the operators, 17 or more.")] = 18,
    dt: Annotated[float, typer.Option(help="nir: the length of a timestep in seconds.")] = 1e-4,
    fold_r: Annotated[
        bool,
        typer.Option(
            "--fold-r",
            help="nir: r = 1, and weights times tau, for simulators that ignore r (Norse).",
        ),
    ] = False,
) -> None:
    """Write a checkpoint for other programs."""
    model = load_checkpoint(checkpoint)
    path = out or checkpoint.with_suffix(_SUFFIXES[to])
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name the file to write with -o")
    if path.exists() and path.samefile(checkpoint):
        raise ExportError(f"{path} is the checkpoint itself: choose another place with -o")
    with needing("train" if to == "spikingjelly" else "export"):
        if to == "onnx":
            from spiketrain.convert.onnx_export import export_onnx
            from spiketrain.convert.onnx_verify import VERIFIED_STEPS

            made = export_onnx(model, path, opset=opset, form=form)
            _say(
                f"{path}: opset {made.opset}, {len(made.states)} state tensors; over {VERIFIED_STEPS} timesteps "
                f"ONNX Runtime differs from torch in {100 * made.different:.3g} % of the values"
            )
        elif to == "nir":
            from spiketrain.convert.nir_export import export_nir

            written = export_nir(model, path, dt=dt, fold_r=fold_r)
            _say(
                f"{path}: {len(written.graph.nodes)} nodes, {len(written.graph.edges)} edges, dt {dt:g} s"
            )
            if written.fires_at_threshold:
                _say(
                    "NIR's neurons fire above their threshold, these at it too: that matters only where a potential "
                    "can be exactly there, with integer weights and counts"
                )
        else:
            from spiketrain.convert.spikingjelly_export import export_spikingjelly

            weights = export_spikingjelly(model, path)
            _say(f"{path} and {weights}: {path.stem}.load() gives the network")


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Names the extra of our package that a module which is not installed belongs to."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed: pip install 'spikeserve[{extra}]'"
        ) from error


def _say(text: str) -> None:
    output.print(text, markup=False, soft_wrap=True)
