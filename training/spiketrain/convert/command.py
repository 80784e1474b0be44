"""What `spiketrain convert` does: convert, judge on held-out data where there are any, write."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from spiketrain.convert.ablation import ablation
from spiketrain.convert.calibrate import PARTS, Calibration, Family, calibrate
from spiketrain.convert.closed_form import closed_form, reset_moments
from spiketrain.convert.fine_tune import FineTuning, fine_tune
from spiketrain.convert.judge import Judgement, judge
from spiketrain.convert.lif_form import ConversionError
from spiketrain.convert.report import ConversionReport, state_bytes
from spiketrain.convert.samples import HeldOut, Samples
from spiketrain.convert.source import training_data
from spiketrain.convert.sweep import SweepReport, sweep
from spiketrain.convert.to_lif import Rest, convert_to_lif
from spiketrain.data import DataMissingError, DataSet
from spiketrain.energy import fan_out
from spiketrain.manifest import Accuracy
from spiketrain.neurons.lif import Reset

output = Console(emoji=False)
messages = Console(stderr=True, emoji=False)


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to convert.")],
    to: Annotated[Literal["lif"], typer.Option(help="The neuron to convert to.")] = "lif",
    family: Annotated[
        Family | None,
        typer.Option(
            help="Calibrate on training samples: soft, subtracts a value of each channel; hard, a reset value of each "
            "layer; nir, what NIR's LIF can say; portable, what all readers of NIR run alike."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help=f"With --family: a part to leave out, {', '.join(PARTS)}; may be repeated."
        ),
    ] = None,
    epochs: Annotated[
        int,
        typer.Option(
            "--fine-tune",
            min=0,
            help="With --family: after calibration, so many epochs of distillation from the parent on the training split, "
            "without labels; kept if it brings the child nearer to its parent on the validation split.",
        ),
    ] = 0,
    show_parts: Annotated[
        bool, typer.Option("--ablation", help="With --family: judge what each part adds.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of the report to this .svg file.")
    ] = None,
    reset: Annotated[
        Reset,
        typer.Option(
            help="soft: a spike subtracts the value. hard: it sets the potential to the value."
        ),
    ] = "soft",
    value: Annotated[
        str | None,
        typer.Option(
            help="What a spike subtracts or leads to; auto: of each layer, in closed form from training data. "
            "Soft without a value subtracts the threshold."
        ),
    ] = None,
    rest: Annotated[
        Rest,
        typer.Option(
            help="Hard reset, or --family hard: reset, the leak leads to the value too (SpikingJelly); zero, it leads to 0."
        ),
    ] = "zero",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to write; beside the parent, as NAME.safetensors."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The new model's name, PARENT-lif unless given.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the data sets, $SPIKETRAIN_DATA or ./data unless given."),
    ] = None,
    split: Annotated[HeldOut, typer.Option(help="Which held-out samples to judge on.")] = "test",
    samples: Annotated[
        int | None, typer.Option(min=1, help="Judge on so many of them only.")
    ] = None,
    calibration: Annotated[
        int, typer.Option(min=1, help="Training samples to calibrate on.")
    ] = 512,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    sweep_all: Annotated[
        bool,
        typer.Option(
            "--sweep", help="Compare all ways to convert; writes a checkpoint only with -o."
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file.")
    ] = None,
) -> None:
    """Convert a checkpoint to plain LIF, and judge the result against it on held-out data."""
    amount = _amount(value)
    how = _calibration(family, without, epochs, show_parts, value, rest)
    parent = load_checkpoint(checkpoint)
    destination = _destination(checkpoint, parent, out, name)
    needed = sweep_all or amount == "auto" or how is not None or data is not None
    source = _source(parent, data, needed)
    chosen = None if source is None else Samples(source, calibration, split, samples, batch_size)
    report: dict[str, Any] = {}
    if sweep_all and chosen is not None:
        swept = _sweep(parent, chosen)
        output.print(swept.table())
        report = json.loads(swept.to_json())
    if not sweep_all or out is not None:
        stages: tuple[Checkpoint, ...]
        if how is None or chosen is None:
            stages = (_convert(parent, reset, amount, rest, name, chosen),)
        else:
            stages = _calibrated(parent, how, name, chosen, epochs)
        child, judgements = _judged(parent, stages, chosen)
        manifest = save_checkpoint(destination, child.manifest, child.tensors)
        output.print(f"{destination}: {manifest.name}", markup=False, soft_wrap=True)
        report |= {
            "output": str(destination),
            "conversion": manifest.model_dump(mode="json")["conversion"],
        }
        if judgements and chosen is not None:
            written = _report(parent, child, how, judgements, chosen, show_parts)
            output.print(written.text())
            report |= json.loads(written.to_json())
            if plot is not None:
                write_atomically(plot, written.svg().encode())
    if json_file is not None:
        write_atomically(json_file, (json.dumps(report, indent=2) + "\n").encode())


def _calibration(
    family: Family | None,
    without: list[str] | None,
    epochs: int,
    show_parts: bool,
    value: str | None,
    rest: Rest,
) -> Calibration | None:
    if family is None:
        if without or epochs or show_parts:
            raise ConversionError("--without, --fine-tune and --ablation are for --family")
        return None
    if value is not None:
        raise ConversionError("--family chooses the values itself: leave --value out")
    if unknown := set(without or ()) - set(PARTS):
        raise ConversionError(f"--without {min(unknown)}: {', '.join(PARTS)}")
    parts = tuple(part for part in PARTS if part not in (without or ()))
    return Calibration(family, parts, rest=rest)


def _calibrated(
    parent: Checkpoint, how: Calibration, name: str | None, chosen: Samples, epochs: int
) -> tuple[Checkpoint, ...]:
    """The calibrated child, and with `epochs` the fine-tuned one after it."""
    # What cannot be fine-tuned is refused before time is spent on it.
    unlabelled = chosen.unlabelled(parent.manifest) if epochs else None
    with messages.status("calibrating") as status:
        child = calibrate(
            parent,
            chosen.calibration_inputs(),
            how,
            calibrated_on=chosen.calibrated_on,
            name=name,
            progress=lambda doing: status.update(f"calibrating: {doing}"),
        )
    if unlabelled is None:
        return (child,)
    with _progress("fine-tuning", unlabelled.steps(FineTuning.batch_size) * epochs) as progress:
        tuned = fine_tune(
            parent, child, unlabelled, FineTuning(epochs=epochs), lambda done, _: progress(1)
        )
    output.print(
        f"fine-tuning {'kept' if tuned.kept else 'not kept'}: KL divergence from the parent {tuned.before:.5f} before, "
        f"{tuned.after:.5f} after; {unlabelled.chosen_on}",
        markup=False,
        soft_wrap=True,
    )
    return child, tuned.checkpoint


def _report(
    parent: Checkpoint,
    child: Checkpoint,
    how: Calibration | None,
    judgements: Sequence[Judgement],
    chosen: Samples,
    show_parts: bool,
) -> ConversionReport:
    record = child.manifest.conversion
    labels = ("calibrated", "+ fine-tuning") if len(judgements) > 1 else ()
    steps = tuple(zip(labels, judgements, strict=False))
    if how is not None and show_parts:
        with messages.status("calibrating") as status:
            inputs = list(chosen.calibration_inputs())
            steps = (*ablation(parent, inputs, chosen.held_out(), how, status.update), *steps[1:])
    return ConversionReport(
        parent_name=parent.manifest.name,
        child_name=child.manifest.name,
        how="" if record is None else record.method,
        calibrated_on="" if record is None else str(record.arguments.get("calibrated_on", "")),
        judged_on=chosen.judged_on,
        judgement=judgements[-1],
        state_bytes=(state_bytes(parent.network()), state_bytes(child.network())),
        steps=steps,
    )


def _amount(value: str | None) -> float | Literal["auto"] | None:
    if value is None or value == "auto":
        return "auto" if value else None
    try:
        return float(value)
    except ValueError:
        raise ConversionError(f"--value {value!r}: a number, or auto") from None


def _destination(source: Path, parent: Checkpoint, out: Path | None, name: str | None) -> Path:
    destination = out or source.with_name(f"{name or f'{parent.manifest.name}-lif'}.safetensors")
    if destination.exists() and destination.samefile(source):
        raise ConversionError(f"{destination} is the parent itself: choose another place with -o")
    if destination.is_dir():
        raise ConversionError(f"{destination} is a folder: name the file to write with -o")
    return destination


def _source(parent: Checkpoint, root: Path | None, needed: bool) -> DataSet | None:
    try:
        return training_data(parent.manifest, root)
    except (DataMissingError, ValueError) as error:
        if needed:
            raise
        messages.print(f"not judged, and accuracy left out: {error}", markup=False, soft_wrap=True)
        return None


def _sweep(parent: Checkpoint, chosen: Samples) -> SweepReport:
    with _progress("judging", chosen.judged) as progress:
        return sweep(
            parent,
            chosen.calibration_inputs(),
            chosen.held_out(),
            calibrated_on=chosen.calibrated_on,
            judged_on=chosen.judged_on,
            progress=progress,
        )


def _convert(
    parent: Checkpoint,
    reset: Reset,
    amount: float | Literal["auto"] | None,
    rest: Rest,
    name: str | None,
    chosen: Samples | None,
) -> Checkpoint:
    if amount != "auto" or chosen is None:
        value = None if amount == "auto" else amount
        return convert_to_lif(parent, reset=reset, value=value, rest=rest, name=name)
    if reset == "hard" and rest == "reset":
        raise ConversionError("--value auto is for a rest of 0: use --rest zero, or give a value")
    # Values first from a conversion that is refused where none is possible, before any data are run.
    convert_to_lif(parent, reset="soft")
    values = closed_form(reset_moments(parent.network(), chosen.calibration_inputs()), reset)
    child = convert_to_lif(parent, reset=reset, rest=rest, per_layer=values, name=name)
    return _with_record(child, arguments={"calibrated_on": chosen.calibrated_on})


def _judged(
    parent: Checkpoint, stages: Sequence[Checkpoint], chosen: Samples | None
) -> tuple[Checkpoint, Sequence[Judgement]]:
    """The last of the stages with its figures in its manifest, and the judgements of all."""
    child = stages[-1]
    if chosen is None:
        return child, ()
    with _progress("judging", chosen.judged) as progress:
        network = parent.network()
        try:
            reach = fan_out(network)
        except ValueError:  # operations per spike are not a constant: they are left out
            reach = None
        children = [stage.network() for stage in stages]
        judgements = judge(network, children, chosen.held_out(), progress, reach)
    judgement = judgements[-1]
    before = parent.manifest.accuracy
    accuracy = Accuracy(
        dataset=chosen.data.name,
        split=chosen.split,
        samples=judgement.samples,
        value=judgement.accuracy,
        selected_on=before[0].selected_on if before else "",
        by_timestep=judgement.accuracy_by_timestep,
    )
    child = _with_record(
        child,
        agreement=judgement.agreement,
        spike_mismatch=judgement.spike_mismatch,
        judged_on=chosen.judged_on,
    )
    profiles = {layer: rates.profile for layer, rates in judgement.rates.items()}
    changes = {"accuracy": (accuracy,), "firing_rates": profiles}
    return child._replace(manifest=child.manifest.model_copy(update=changes)), judgements


def _with_record(
    child: Checkpoint, arguments: dict[str, Any] | None = None, **changes: Any
) -> Checkpoint:
    record = child.manifest.conversion
    if record is None:
        raise ConversionError(f"{child.manifest.name} is not a conversion")
    changes["arguments"] = record.arguments | (arguments or {})
    manifest = child.manifest.model_copy(update={"conversion": record.model_copy(update=changes)})
    return child._replace(manifest=manifest)


@contextmanager
def _progress(doing: str, total: int) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda count: progress.advance(task, count)
