"""What `spiketrain train` and `spiketrain evaluate` do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.convert.source import training_data
from spiketrain.data import DataSet
from spiketrain.evaluate import Evaluation, evaluate
from spiketrain.manifest import Manifest
from spiketrain.plan import plan_of
from spiketrain.recipe import bundled_recipes, load_recipe
from spiketrain.train import Progress as Step
from spiketrain.train import Run, training_device

output = Console(emoji=False)
messages = Console(stderr=True, emoji=False)

DataFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of the data sets, $SPIKETRAIN_DATA or ./data unless given."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Threads to compute with; all cores unless given.")
]


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A bundled recipe by name, or a .toml file; without, the names."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, for example training.epochs=2; as often as needed."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the run, runs/NAME unless given."),
    ] = None,
    data: DataFolder = None,
    threads: Threads = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1 ...; the recipe's unless given: a GPU where there is one."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the plan and train nothing: shapes, parameters, memory, samples per second, estimated time.",
        ),
    ] = False,
    measure_seconds: Annotated[
        float,
        typer.Option(
            min=0, help="With --dry-run: about how long to measure the speed; 0 for not at all."
        ),
    ] = 10.0,
) -> None:
    """Train a network by a recipe. A run that was stopped goes on from its last whole epoch.

    On several GPUs or machines: torchrun --nproc-per-node 4 -m spiketrain train RECIPE.
    """
    if recipe is None:
        for name in bundled_recipes():
            output.print(name)
        return
    if threads:
        torch.set_num_threads(threads)
    chosen = [] if device is None else [f'training.device="{device}"']
    parsed = load_recipe(recipe, [*(settings or ()), *chosen])
    if dry_run:
        output.print(plan_of(parsed, data, measure_seconds).table())
        return
    run = Run(parsed, folder or Path("runs") / parsed.name, data)
    try:
        if not run.group.first:
            run.train()
            return
        with _Display() as display:
            manifest = run.train(display.report)
    finally:
        run.group.close()
    for accuracy in manifest.accuracy:
        output.print(f"{accuracy.split}: {accuracy.value:.2%} of {accuracy.samples} samples")
    output.print(f"best epoch by validation: {run.best_path}")


def evaluate_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to evaluate.")],
    split: Annotated[
        Literal["validation", "test"], typer.Option(help="Which held-out samples.")
    ] = "test",
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="Run so many, not the checkpoint's own number.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    data: DataFolder = None,
    threads: Threads = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1 ...; auto is a GPU where there is one.")
    ] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write accuracy and firing rates into the checkpoint.")
    ] = False,
) -> None:
    """Accuracy by timestep and firing rates of a checkpoint on held-out data."""
    if threads:
        torch.set_num_threads(threads)
    place = training_device(device, "--device")
    loaded = load_checkpoint(checkpoint)
    dataset = training_data(loaded.manifest, data, timesteps)
    result = evaluate(
        loaded.network().to(place),
        dataset.batches(split, batch_size, device=place),
        timesteps if loaded.manifest.input.kind == "image" else None,
    )
    _show(loaded.manifest, dataset, split, result)
    if json_file is not None:
        json_file.write_text(json.dumps(figures(dataset, split, result), indent=2) + "\n")
    if record:
        others = tuple(a for a in loaded.manifest.accuracy if a.split != split)
        manifest = loaded.manifest.model_copy(
            update={
                "accuracy": (*others, result.as_accuracy(dataset.name, split)),
                "firing_rates": result.rate_profiles(),
            }
        )
        save_checkpoint(checkpoint, manifest, loaded.tensors)


def figures(dataset: DataSet, split: str, result: Evaluation) -> dict[str, object]:
    return {
        "data": dataset.name,
        "split": split,
        "samples": result.samples,
        "accuracy": result.accuracy,
        "accuracy_by_timestep": result.accuracy_by_timestep,
        "loss": result.loss,
        "firing_rates": {name: rates.mean().item() for name, rates in result.rates.items()},
        "firing_rates_by_timestep": {
            name: rates.tolist() for name, rates in result.rates_by_timestep.items()
        },
    }


def _show(manifest: Manifest, dataset: DataSet, split: str, result: Evaluation) -> None:
    output.print(
        f"{manifest.name} on {dataset.name}, {split}: [bold]{result.accuracy:.2%}[/] "
        f"of {result.samples} samples"
    )
    steps = Table("timesteps", *map(str, range(1, len(result.accuracy_by_timestep) + 1)))
    steps.add_row("accuracy", *(f"{a:.2%}" for a in result.accuracy_by_timestep))
    output.print(steps)
    rates = Table("layer", "firing rate", "by timestep")
    for name, by_sample in result.rates.items():
        over_time = " ".join(f"{rate:.3f}" for rate in result.rates_by_timestep[name].tolist())
        rates.add_row(name, f"{by_sample.mean().item():.4f}", over_time)
    output.print(rates)


@dataclass
class _Display:
    """A bar for the epoch in progress, and a line for each that is done."""

    loss: str = ""

    def __enter__(self) -> _Display:
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            console=messages,
        )
        self.task = self.bar.add_task("", total=None, epoch="", loss="")
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, step: Step) -> None:
        if step.loss is not None:
            self.loss = f"{step.loss:.4f}"
        self.bar.update(
            self.task,
            completed=step.step,
            total=step.steps,
            epoch=f"{step.epoch}/{step.epochs}",
            loss=self.loss,
        )
        if step.validation is not None:
            rates = " ".join(f"{r.mean().item():.3f}" for r in step.validation.rates.values())
            self.bar.console.print(
                f"epoch {step.epoch}/{step.epochs}  loss {step.loss:.4f}  "
                f"validation {step.validation.accuracy:.2%} (best {step.best:.2%})  firing rates {rates}"
            )
