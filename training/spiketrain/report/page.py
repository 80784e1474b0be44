"""The page: one HTML file with everything in it, no scripts, nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from spiketrain.manifest import Manifest
from spiketrain.report.charts import number
from spiketrain.report.curves import Curve
from spiketrain.report.energy import operations_and_energy
from spiketrain.report.html import section, table
from spiketrain.report.measure import Measured
from spiketrain.report.samples import rasters
from spiketrain.report.sections import (
    accuracy_by_timestep,
    confusion,
    firing_rates,
    training_curves,
)


@dataclass(frozen=True)
class Report:
    """`judged_on` says in words which samples were run, `curves_missing` why there are no curves."""

    manifest: Manifest
    parameters: int
    judged_on: str
    measured: Measured
    curves: Mapping[str, Curve]
    curves_missing: str
    made_with: str

    def html(self) -> str:
        style = (resources.files("spiketrain.report") / "style.css").read_text()
        measured, classes = self.measured, self.manifest.classes
        sections = (
            self._summary(),
            training_curves(self.curves, self.curves_missing),
            accuracy_by_timestep(measured.accuracy_by_timestep),
            confusion(measured, classes),
            firing_rates(measured),
            rasters(measured.rasters, classes),
            operations_and_energy(measured),
            self._provenance(),
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.manifest.name)}</title>\n<style>{style}</style></head>\n<body><main>\n"
            + "\n".join(sections)
            + "\n</main></body></html>\n"
        )

    def _summary(self) -> str:
        measured, manifest = self.measured, self.manifest
        accuracy = measured.accuracy_by_timestep[-1]
        low, high = wilson(accuracy, measured.samples)
        figures = (
            ("accuracy", f"{100 * accuracy:.2f} %", f"95 %: {100 * low:.2f} to {100 * high:.2f}"),
            ("spikes", f"{measured.spikes:,.0f}", f"a sample, {measured.work.neurons:,} neurons"),
            ("synaptic operations", number_of(measured.work.operations), "a sample"),
            ("timesteps", str(measured.work.timesteps), f"{manifest.neuron.kind} neurons"),
            ("parameters", f"{self.parameters:,}", manifest.network.name),
        )
        cards = "".join(
            f"<div><dt>{name}</dt><dd>{escape(value)}</dd><dd class='note'>{escape(more)}</dd></div>"
            for name, value, more in figures
        )
        judged = f"Measured on {self.judged_on}.{_selection(manifest)}"
        return f"<header><h1>{escape(manifest.name)}</h1><p>{escape(judged)}</p><dl>{cards}</dl></header>"

    def _provenance(self) -> str:
        manifest = self.manifest
        said: dict[str, Any] = {"digest": manifest.digest, "page made with": self.made_with}
        if manifest.training is not None:
            training = manifest.training
            said |= {"recipe": training.recipe, "source": training.settings.get("source")}
            said |= {"seed": training.seed, "epoch": training.epochs, "commit": training.commit}
            said |= training.versions
            said |= _flat("training", training.settings.get("training"))
            said |= {f"data: {file}": digest for file, digest in training.data.items()}
        if manifest.conversion is not None:
            said |= {"made by": manifest.conversion.method, "from": manifest.conversion.parent_name}
        said |= _flat("network", manifest.network.arguments)
        said |= _flat("neuron", manifest.neuron.model_dump(mode="json"))
        rows = [(key, str(value)) for key, value in said.items() if value not in ("", None)]
        details = f"<details><summary>{len(rows)} settings and digests</summary>{table((), rows, 'said')}</details>"
        return section("Where it comes from", details)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `count` samples."""
    z = 1.959964
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def number_of(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{number(value / unit)} {name}"
    return number(value)


def _selection(manifest: Manifest) -> str:
    text = ""
    if selected := sorted({entry.selected_on for entry in manifest.accuracy}):
        text += f" The epoch was selected on {', '.join(selected)}."
    expected = manifest.training.settings.get("expected") if manifest.training else None
    if expected:
        text += (
            f" {expected['source']}: {100 * expected['accuracy']:.2f} %, "
            f"selected on {expected['selected_on']}."
        )
    return text


def _flat(prefix: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in (values or {}).items()}
