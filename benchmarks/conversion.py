"""What conversion to LIF loses: the literature's best column against ours, for every checkpoint given.

Each model is converted as the literature does (soft reset by the threshold; hard reset to one value of six, in both
readings of its rest) and in our three calibrated families, on training samples without labels, and judged on the whole
test split; so is the parent with its weights in eight bits. The literature's column is the one that is best on that same test split, as its tables are made; nothing
of ours is chosen there.

    python benchmarks/conversion.py runs/*/best.safetensors --data data --json benchmarks/results/conversion.json
    python benchmarks/conversion.py --table benchmarks/results/conversion.json
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from spiketrain.checkpoint import load_checkpoint
from spiketrain.convert import (
    FAMILIES,
    Calibration,
    Family,
    FineTuning,
    calibrate,
    convert_to_lif,
    fine_tune,
    judge,
)
from spiketrain.convert.samples import Samples
from spiketrain.convert.source import training_data
from spiketrain.convert.sweep import LITERATURE
from spiketrain.quantise_command import quantised

output = Console()


def compare(
    path: Path,
    data: Path | None,
    samples: int,
    families: Sequence[Family],
    epochs: int,
    known: dict[str, Any] | None,
) -> dict[str, Any]:
    """One model: its literature rows and ours, as JSON takes them.

    The literature's conversions have nothing that is chosen or drawn: `known` are the figures of an earlier run of the
    same model, which are not measured again.
    """
    parent = load_checkpoint(path)
    manifest = parent.manifest
    chosen = Samples(training_data(manifest, data), samples, "test", None, 128)
    inputs = list(chosen.calibration_inputs())
    theirs = {
        f"{v.label}, rest {v.rest}" if v.reset == "hard" else v.label: v
        for v in (() if known else LITERATURE)
    }
    children = [
        convert_to_lif(parent, reset=v.reset, value=v.value, rest=v.rest).network()  # type: ignore[arg-type]
        for v in theirs.values()
    ]
    seconds = []
    tunings = []
    for family in families:
        start = time.process_time()
        child = calibrate(parent, inputs, Calibration(family))
        if epochs:
            tuned = fine_tune(parent, child, chosen.unlabelled(manifest), FineTuning(epochs))
            tunings.append({"divergence": [tuned.before, tuned.after], "kept": tuned.kept})
            child = tuned.checkpoint
        children.append(child.network())
        seconds.append(time.process_time() - start)
    children.append(quantised(parent, chosen.data, samples, None).network())
    judged = judge(parent.network(), children, chosen.held_out())
    literature = known or {
        label: row.summary() for label, row in zip(theirs, judged[: len(theirs)], strict=True)
    }
    best = max(literature, key=lambda label: float(literature[label]["accuracy"]))
    ours = zip(families, judged[len(theirs) : -1], seconds, strict=True)
    return {
        "model": manifest.name,
        "digest": manifest.digest,
        "data": chosen.data.name,
        "neuron": manifest.neuron.kind,
        "seed": None if manifest.training is None else manifest.training.seed,
        "calibrated_on": chosen.calibrated_on,
        "judged_on": chosen.judged_on,
        "fine_tuning_epochs": epochs,
        "fine_tuning": dict(zip(families, tunings, strict=False)),
        "parent_accuracy": judged[0].parent_accuracy,
        "literature_best": best,
        "literature": literature,
        "ours": {
            family: {**row.summary(), "calibration_cpu_seconds": spent}
            for family, row, spent in ours
        },
        "int8": judged[-1].summary(),
    }


def table(models: list[dict[str, Any]]) -> str:
    """Markdown: a row a model, then the means by neuron."""
    headings = ["model", "seed", "parent", "literature's best", *FAMILIES, "int8 weights"]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for model in models:
        best = model["literature"][model["literature_best"]]
        cells = [
            model["model"],
            str(model["seed"]),
            f"{100 * model['parent_accuracy']:.2f}",
            f"{_change(best)}, {model['literature_best']}",
            *(_change(model["ours"].get(family)) for family in FAMILIES),
            _change(model["int8"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for neuron in sorted({model["neuron"] for model in models}):
        of = [model for model in models if model["neuron"] == neuron]
        columns = [
            [m["literature"][m["literature_best"]] for m in of],
            *([m["ours"][f] for m in of if f in m["ours"]] for f in FAMILIES),
            [m["int8"] for m in of],
        ]
        means = [_mean(rows) for rows in columns]
        lines.append(f"| **mean of {len(of)}, {neuron}** | | | " + " | ".join(means) + " |")
    return "\n".join(lines)


def _change(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    low, high = row["interval_95_points"]
    return (
        f"{row['change_points']:+.2f} ({low:+.2f} to {high:+.2f}); "
        f"{100 * row['differing']:.2f} / {100 * row['total_mismatch']:.1f}"
    )


def _mean(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    change, differing, mismatch = (
        statistics.mean(row[key] for row in rows)
        for key in ("change_points", "differing", "total_mismatch")
    )
    return f"**{change:+.2f}**; {100 * differing:.2f} / {100 * mismatch:.1f}"


def main(
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="Models to convert.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    calibration: Annotated[
        int, typer.Option(min=1, help="Training samples to calibrate on.")
    ] = 512,
    families: Annotated[
        list[str] | None, typer.Option("--family", help="Ours; all unless given.")
    ] = None,
    epochs: Annotated[
        int, typer.Option("--fine-tune", min=0, help="Epochs of distillation from the parent.")
    ] = 0,
    reuse: Annotated[
        Path | None, typer.Option(help="Take the literature's figures from such a file.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures here.")
    ] = None,
    from_json: Annotated[
        Path | None, typer.Option("--table", help="Print the table of such a file instead.")
    ] = None,
) -> None:
    torch.set_num_threads(1)
    if from_json is not None:
        print(table(json.loads(from_json.read_text())["models"]))  # noqa: T201
        return
    models: list[dict[str, Any]] = []
    earlier = json.loads(reuse.read_text())["models"] if reuse is not None else []
    known = {model["digest"]: model["literature"] for model in earlier}
    if unknown := set(families or ()) - set(FAMILIES):
        raise typer.BadParameter(f"no family {', '.join(unknown)}: there are {', '.join(FAMILIES)}")
    wanted = [family for family in FAMILIES if not families or family in families]
    for path in checkpoints or []:
        output.print(f"{path}", markup=False)
        digest = load_checkpoint(path).manifest.digest
        models.append(compare(path, data, calibration, wanted, epochs, known.get(digest)))
        output.print(table(models[-1:]), markup=False, soft_wrap=True)
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps({"models": models}, indent=1) + "\n")
    print(table(models))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
