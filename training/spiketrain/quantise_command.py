"""What `spiketrain quantise` does: round the weights, correct biases, judge against the parent, write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from spiketrain.convert.judge import Judgement, judge
from spiketrain.convert.source import sample_of, training_data
from spiketrain.data import DataSet
from spiketrain.manifest import Accuracy
from spiketrain.quantise import (
    QuantisationError,
    quantisation_record,
    quantised_layers,
    quantised_tensors,
)

output = Console(emoji=False)


def quantise(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to quantise.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to write; beside the parent, as NAME.safetensors."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The new model's name, PARENT-int8 unless given.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data sets, $SPIKETRAIN_DATA or ./data unless given."),
    ] = None,
    split: Annotated[
        Literal["test", "validation"], typer.Option(help="Which held-out samples to judge on.")
    ] = "test",
    samples: Annotated[
        int | None, typer.Option(min=1, help="Judge on so many of them only.")
    ] = None,
    calibration: Annotated[
        int, typer.Option(min=0, help="Training samples for the bias correction; 0 leaves it out.")
    ] = 512,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file.")
    ] = None,
) -> None:
    """Round a checkpoint's weights to 8 bits, and judge the result against it on held-out data."""
    parent = load_checkpoint(checkpoint)
    destination = out or checkpoint.with_name(
        f"{name or _int8_name(parent.manifest.name)}.safetensors"
    )
    if destination.exists() and destination.samefile(checkpoint):
        raise QuantisationError(f"{destination} is the parent itself: choose another place with -o")
    source = training_data(parent.manifest, data)
    child = quantised(parent, source, calibration, name, batch_size)
    held_out = sample_of(source.split(split), samples)
    (judgement,) = judge(parent.network(), [child.network()], source.batches(held_out, batch_size))
    child = _judged(child, judgement, source.name, split)
    manifest = save_checkpoint(destination, child.manifest, child.tensors)
    output.print(f"{destination}: {manifest.name}", markup=False, soft_wrap=True)
    output.print(_summary(judgement, source.name, split), markup=False, soft_wrap=True)
    if json_file is not None:
        report = {
            "output": str(destination),
            "quantisation": manifest.model_dump(mode="json")["quantisation"],
            "judgement": judgement.summary(),
        }
        write_atomically(json_file, (json.dumps(report, indent=2) + "\n").encode())


def quantised(
    parent: Checkpoint, data: DataSet, calibration: int, name: str | None, batch_size: int = 128
) -> Checkpoint:
    """The quantised checkpoint, biases corrected on so many samples of the training split; not judged yet."""
    if parent.manifest.quantisation is not None:
        raise QuantisationError(f"{parent.manifest.name} is quantised already")
    network = parent.network()
    chosen = sample_of(data.train, calibration)
    inputs = (x for x, _ in data.batches(chosen, batch_size))
    tensors = quantised_tensors(network, inputs if calibration else None)
    calibrated_on = f"{data.name}, train, {len(chosen)} samples" if calibration else ""
    changes = {
        "name": name or _int8_name(parent.manifest.name),
        "accuracy": (),
        "firing_rates": {},
        "quantisation": quantisation_record(
            parent.manifest, quantised_layers(network), calibrated_on
        ),
    }
    return Checkpoint(parent.manifest.model_copy(update=changes), tensors)


def _int8_name(parent: str) -> str:
    return f"{parent[:59]}-int8"


def _judged(child: Checkpoint, judgement: Judgement, dataset: str, split: str) -> Checkpoint:
    manifest = child.manifest
    if manifest.quantisation is None:
        raise QuantisationError(f"{manifest.name} is not quantised")
    record = manifest.quantisation.model_copy(
        update={
            "parent_accuracy": judgement.parent_accuracy,
            "agreement": judgement.agreement,
            "spike_mismatch": judgement.spike_mismatch,
            "judged_on": f"{dataset}, {split}, {judgement.samples} samples",
        }
    )
    accuracy = Accuracy(
        dataset=dataset,
        split=split,
        samples=judgement.samples,
        value=judgement.accuracy,
        selected_on="validation",
        by_timestep=judgement.accuracy_by_timestep,
    )
    changes = {
        "accuracy": (accuracy,),
        "firing_rates": {layer: rates.profile for layer, rates in judgement.rates.items()},
        "quantisation": record,
    }
    return child._replace(manifest=manifest.model_copy(update=changes))


def _summary(judgement: Judgement, dataset: str, split: str) -> str:
    return (
        f"accuracy {100 * judgement.accuracy:.2f} % ({judgement.change:+.2f} points against the parent's "
        f"{100 * judgement.parent_accuracy:.2f} %), agreement {100 * judgement.agreement:.2f} %, "
        f"spike mismatch {100 * judgement.total_mismatch:.2f} %, on {dataset}, {split}, "
        f"{judgement.samples} samples"
    )
