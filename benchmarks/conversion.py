"""What conversion to LIF loses: the literature's best column against ours, for every checkpoint given.

Each model is converted as the literature does (soft reset by the threshold; hard reset to one value of six, in both
readings of its rest) and in our three calibrated families, on training samples without labels, and judged on the whole
test split. The literature's column is the one that is best on that same test split, as its tables are made; nothing
of ours is chosen there.

    python benchmarks/conversion.py runs/*/best.safetensors --data data --json benchmarks/results/conversion.json
    python benchmarks/conversion.py --table benchmarks/results/conversion.json
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from spiketrain.checkpoint import load_checkpoint
from spiketrain.convert import FAMILIES, PARTS, Calibration, calibrate, convert_to_lif, judge
from spiketrain.convert.samples import Samples
from spiketrain.convert.source import training_data
from spiketrain.convert.sweep import LITERATURE

output = Console()


def compare(path: Path, data: Path | None, samples: int, fine_tune: bool) -> dict[str, Any]:
    """One model: its literature rows and ours, as JSON takes them."""
    parent = load_checkpoint(path)
    manifest = parent.manifest
    chosen = Samples(training_data(manifest, data), samples, "test", None, 128)
    inputs = list(chosen.calibration_inputs())
    labels = [f"{v.label}, rest {v.rest}" if v.reset == "hard" else v.label for v in LITERATURE]
    children = [
        convert_to_lif(parent, reset=v.reset, value=v.value, rest=v.rest).network()  # type: ignore[arg-type]
        for v in LITERATURE
    ]
    seconds = []
    parts = PARTS if fine_tune else PARTS[:-1]
    for family in FAMILIES:
        start = time.process_time()
        children.append(calibrate(parent, inputs, Calibration(family, parts)).network())
        seconds.append(time.process_time() - start)
    judged = judge(parent.network(), children, chosen.held_out())
    literature = dict(zip(labels, judged[: len(labels)], strict=True))
    best = max(literature, key=lambda label: literature[label].accuracy)
    ours = zip(FAMILIES, judged[len(labels) :], seconds, strict=True)
    return {
        "model": manifest.name,
        "digest": manifest.digest,
        "data": chosen.data.name,
        "neuron": manifest.neuron.kind,
        "seed": None if manifest.training is None else manifest.training.seed,
        "calibrated_on": chosen.calibrated_on,
        "judged_on": chosen.judged_on,
        "parts": list(parts),
        "parent_accuracy": judged[0].parent_accuracy,
        "literature_best": best,
        "literature": {label: row.summary() for label, row in literature.items()},
        "ours": {
            family: {**row.summary(), "calibration_cpu_seconds": spent}
            for family, row, spent in ours
        },
    }


def table(models: list[dict[str, Any]]) -> str:
    """Markdown: a row a model, then the means by neuron."""
    columns = [f"{family}, change (95 %)" for family in FAMILIES]
    lines = [
        "| model | seed | parent | literature's best | "
        + " | ".join(columns)
        + " | mismatch soft / hard / nir |",
        "|" + "---|" * (5 + len(FAMILIES)),
    ]
    for model in models:
        best = model["literature"][model["literature_best"]]
        cells = [
            f"{100 * row['accuracy']:.2f}, {row['change_points']:+.2f} "
            f"({row['interval_95_points'][0]:+.2f} to {row['interval_95_points'][1]:+.2f})"
            for row in model["ours"].values()
        ]
        mismatch = " / ".join(
            f"{100 * row['total_mismatch']:.1f}" for row in model["ours"].values()
        )
        lines.append(
            f"| {model['model']} | {model['seed']} | {100 * model['parent_accuracy']:.2f} "
            f"| {100 * best['accuracy']:.2f}, {best['change_points']:+.2f} ({model['literature_best']}) "
            f"| {' | '.join(cells)} | {mismatch} |"
        )
    for neuron in sorted({model["neuron"] for model in models}):
        of = [model for model in models if model["neuron"] == neuron]
        best = statistics.mean(m["literature"][m["literature_best"]]["change_points"] for m in of)
        ours = [statistics.mean(m["ours"][f]["change_points"] for m in of) for f in FAMILIES]
        mismatch = [statistics.mean(m["ours"][f]["total_mismatch"] for m in of) for f in FAMILIES]
        lines.append(
            f"| **mean, {neuron}** | {len(of)} models | | {best:+.2f} | "
            + " | ".join(f"{change:+.2f}" for change in ours)
            + f" | {' / '.join(f'{100 * share:.1f}' for share in mismatch)} |"
        )
    return "\n".join(lines)


def main(
    checkpoints: Annotated[list[Path] | None, typer.Argument(help="Models to convert.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    calibration: Annotated[
        int, typer.Option(min=1, help="Training samples to calibrate on.")
    ] = 1024,
    fine_tune: Annotated[bool, typer.Option(help="With distillation from the parent.")] = False,
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
    for path in checkpoints or []:
        output.print(f"{path}", markup=False)
        models.append(compare(path, data, calibration, fine_tune))
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps({"models": models}, indent=1) + "\n")
    print(table(models))  # noqa: T201


if __name__ == "__main__":
    typer.run(main)
