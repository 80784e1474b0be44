"""What `spiketrain calibrate-exit` does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.convert.source import training_data
from spiketrain.data import DataSet, SplitName
from spiketrain.exit import (
    EXIT_READOUTS,
    ExitLevel,
    ExitTable,
    exit_scores,
    leaving_timesteps,
    running_means,
)
from spiketrain.exit_fit import CONFIDENCE, RISKS, fit_exits
from spiketrain.inspect import exit_table
from spiketrain.training_commands import DataFolder, Threads

output = Console(emoji=False)

_SPLIT: SplitName = "validation"


@dataclass(frozen=True)
class ExitMeasurement:
    """What a level does on some samples; `accuracy_of_all` is that after all timesteps."""

    risk: float
    samples: int
    disagreement: float
    mean_timesteps: float
    accuracy: float
    accuracy_of_all: float


def calibrate_exit(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint; the exits are put into it.")],
    risk: Annotated[
        list[float] | None,
        typer.Option(
            help="A bound on the share of answers that differ from those after all timesteps; as often as needed. "
            f"Unless given {', '.join(map(str, RISKS))}. The server's balanced is 0.005, its fast 0.02."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="With which each bound holds.")] = CONFIDENCE,
    seed: Annotated[
        int, typer.Option(help="Of the cut into samples to fit and samples to verify.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    data: DataFolder = None,
    threads: Threads = None,
    test: Annotated[
        bool,
        typer.Option(
            "--test", help="Measure the exits on the test split; nothing is chosen by it."
        ),
    ] = False,
    target: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the checkpoint there, not over the given one."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Find when pictures may leave before the last timestep, on validation data, and put it into the checkpoint.

    The answers after all timesteps stay as they are, and so does the checkpoint's digest.
    """
    if threads:
        torch.set_num_threads(threads)
    loaded = load_checkpoint(checkpoint)
    _check(loaded)
    dataset = training_data(loaded.manifest, data)
    table = _table(loaded, dataset, tuple(risk or RISKS), confidence, seed, batch_size)
    manifest = loaded.manifest.model_copy(update={"exit": table})
    save_checkpoint(target or checkpoint, manifest, loaded.tensors)
    output.print(exit_table(table))
    figures: dict[str, object] = {"exit": table.model_dump(mode="json")}
    if test:
        logits, labels = _logits(loaded, dataset, "test", batch_size)
        measured = [measure_exit(table, level, logits, labels) for level in table.levels]
        output.print(_measured(measured))
        figures["test"] = [asdict(each) for each in measured]
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def measure_exit(
    table: ExitTable, level: ExitLevel, logits: np.ndarray, labels: np.ndarray
) -> ExitMeasurement:
    """Of logits [T, N, classes] and labels [N]."""
    means = running_means(logits)
    answers = means.argmax(2)
    left = leaving_timesteps(exit_scores(means, table.temperatures), level.thresholds)
    early = answers[left - 1, np.arange(len(labels))]
    return ExitMeasurement(
        risk=level.risk,
        samples=len(labels),
        disagreement=float((early != answers[-1]).mean()),
        mean_timesteps=float(left.mean()),
        accuracy=float((early == labels).mean()),
        accuracy_of_all=float((answers[-1] == labels).mean()),
    )


def _check(loaded: Checkpoint) -> None:
    manifest = loaded.manifest
    if manifest.input.kind != "image":
        raise ValueError(
            f"{manifest.name}: takes events; exits are for pictures, whose input stays the same until the last timestep"
        )
    if manifest.readout not in EXIT_READOUTS:
        raise ValueError(
            f"{manifest.name}: readout is {manifest.readout}, and exits are defined for the mean of the logits only "
            f"({', '.join(EXIT_READOUTS)})"
        )


def _table(
    loaded: Checkpoint,
    dataset: DataSet,
    risks: tuple[float, ...],
    confidence: float,
    seed: int,
    batch_size: int,
) -> ExitTable:
    logits, _ = _logits(loaded, dataset, _SPLIT, batch_size)
    fit = fit_exits(logits, risks, confidence, seed)
    return ExitTable(
        model=loaded.manifest.digest,
        temperatures=fit.temperatures,
        levels=fit.levels,
        confidence=confidence,
        dataset=dataset.name,
        split=_SPLIT,
        fitted=fit.fitted,
        verified=fit.verified,
        seed=seed,
    )


@torch.no_grad()
def _logits(
    loaded: Checkpoint, dataset: DataSet, split: SplitName, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, N, classes] and labels [N]."""
    network = loaded.network()
    parts, labels = [], []
    for x, y in dataset.batches(split, batch_size):
        parts.append(network(x).logits)
        labels.append(y)
    return torch.cat(parts, 1).numpy(), torch.cat(labels).numpy()


def _measured(measured: list[ExitMeasurement]) -> Table:
    shown = Table(
        "risk",
        "timesteps",
        "disagreement",
        "accuracy",
        "after all timesteps",
        title=f"exit, test: {measured[0].samples} samples",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for each in measured:
        shown.add_row(
            f"{each.risk:g}",
            f"{each.mean_timesteps:.3f}",
            f"{100 * each.disagreement:.3f} %",
            f"{100 * each.accuracy:.2f} %",
            f"{100 * each.accuracy_of_all:.2f} %",
        )
    return shown
