"""What `spiketrain report` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

import spiketrain
from spiketrain.checkpoint import CheckpointError, load_checkpoint, write_atomically
from spiketrain.convert.source import sample_of, training_data
from spiketrain.report.curves import Curve, read_curves
from spiketrain.report.measure import measure
from spiketrain.report.page import Report

output = Console(emoji=False)


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The page; report.html beside the checkpoint unless given."
        ),
    ] = None,
    split: Annotated[
        Literal["validation", "test"], typer.Option(help="Which held-out samples.")
    ] = "test",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Run so many samples, drawn at random; all unless given."),
    ] = None,
    sample: Annotated[
        list[int] | None,
        typer.Option(
            help="Show the spikes of this sample, as often as needed; else of the first that is right and the first that is wrong."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data sets, $SPIKETRAIN_DATA or ./data unless given."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 100,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with; all cores unless given.")
    ] = None,
) -> None:
    """Write one HTML page on a run: curves, confusion, firing rates, spikes, operations and energy."""
    if threads:
        torch.set_num_threads(threads)
    checkpoint = run / "best.safetensors" if run.is_dir() else run
    if not checkpoint.exists():
        raise CheckpointError(
            f"{checkpoint}: is not there: name the folder of a run, or a checkpoint"
        )
    path = out or checkpoint.with_name("report.html")
    loaded = load_checkpoint(checkpoint)
    manifest, network = loaded.manifest, loaded.network()
    dataset = training_data(manifest, data)
    chosen = sample_of(dataset.split(split), limit)
    dataset = replace(dataset, classes=manifest.classes)
    measured = measure(
        network,
        dataset,
        chosen,
        manifest.timesteps if manifest.input.kind == "image" else None,
        sample or (),
        batch_size,
    )
    curves, missing = _curves(checkpoint.parent)
    page = Report(
        manifest=manifest,
        parameters=sum(p.numel() for p in network.parameters()),
        judged_on=f"{measured.samples:,} samples of {dataset.name}, {split}",
        measured=measured,
        curves=curves,
        curves_missing=missing,
        made_with=f"spiketrain {spiketrain.__version__}, torch {torch.__version__}",
    )
    write_atomically(path, page.html().encode())
    output.print(
        f"{path}: {measured.accuracy_by_timestep[-1]:.2%} of {measured.samples} samples, "
        f"{measured.spikes:,.0f} spikes and {measured.work.operations:,.0f} synaptic operations a sample",
        markup=False,
        soft_wrap=True,
    )


def _curves(folder: Path) -> tuple[dict[str, Curve], str]:
    try:
        curves = read_curves(folder)
    except ModuleNotFoundError:
        return {}, "Reading the training logs needs TensorBoard: pip install 'spikeserve[train]'."
    return curves, "" if curves else "No training logs lie beside this checkpoint."
