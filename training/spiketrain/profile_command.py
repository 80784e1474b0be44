"""What `spiketrain profile` does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.convert.source import training_data
from spiketrain.health import measure
from spiketrain.inspect import health_table
from spiketrain.training_commands import DataFolder, Threads

output = Console(emoji=False)


def profile(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint; the profile is put into it.")],
    split: Annotated[
        Literal["validation", "test"], typer.Option(help="Which held-out samples.")
    ] = "validation",
    samples: Annotated[
        int | None, typer.Option(min=2, help="Draw so many; all unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the groups of samples that are drawn.")] = 0,
    data: DataFolder = None,
    threads: Threads = None,
    target: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the checkpoint there, not over the given one."),
    ] = None,
) -> None:
    """Measure how the model's neurons fire on held-out data, for a server to compare its traffic with.

    The model stays the same, and so does the checkpoint's digest.
    """
    if threads:
        torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint)
    dataset = training_data(loaded.manifest, data)
    health = measure(loaded.network(), loaded.manifest, dataset, split, samples=samples, seed=seed)
    manifest = loaded.manifest.model_copy(update={"health": health})
    save_checkpoint(target or checkpoint, manifest, loaded.tensors)
    output.print(health_table(health))
