"""The literature's table of conversions to LIF, for any model, with ours beside it.

The literature's: soft reset by the threshold, and hard reset to one global value, in both readings of that value
(rest moves with it, or stays at 0). Ours: a soft reset by more than the threshold, values of each layer in closed form
from calibration data, and the calibrated families of `calibrate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from rich import box
from rich.table import Table
from torch import Tensor

from spiketrain.checkpoint import Checkpoint, model_digest
from spiketrain.convert.calibrate import Calibration, Family, calibrate
from spiketrain.convert.closed_form import closed_form, reset_moments
from spiketrain.convert.judge import Judgement, judge
from spiketrain.convert.to_lif import Rest, convert_to_lif
from spiketrain.networks import Network
from spiketrain.neurons.lif import Reset


@dataclass(frozen=True)
class Variant:
    """One way to convert. `value` None is the threshold, "auto" the closed form; a `family` is calibrated."""

    reset: Reset
    value: float | Literal["auto"] | None
    rest: Rest = "zero"
    family: Family | None = None

    @property
    def label(self) -> str:
        if self.family is not None:
            return f"{self.family}, calibrated"
        if self.value == "auto":
            return f"{self.reset}, closed form"
        if self.reset == "soft":
            return "soft, threshold" if self.value is None else f"soft, {self.value:g}"
        return f"hard, {self.value:g}"


LITERATURE = (
    Variant("soft", None),
    Variant("hard", 0.0),
    *(
        Variant("hard", value, rest)
        for rest in ("reset", "zero")
        for value in (-0.02, -0.04, -0.06, -0.08, -0.1)
    ),
)
OURS = (
    Variant("soft", 1.7),
    Variant("soft", 1.8),
    Variant("soft", 1.9),
    Variant("soft", "auto"),
    Variant("hard", "auto"),
    Variant("soft", None, family="soft"),
    Variant("hard", None, family="hard"),
    Variant("hard", None, family="nir"),
    Variant("hard", None, family="portable"),
)


@dataclass(frozen=True)
class SweepRow:
    """One line of the table; `values` has the reset value of each layer where the closed form chose them."""

    variant: Variant
    values: dict[str, float]
    judgement: Judgement


@dataclass(frozen=True)
class SweepReport:
    """`calibrated_on` and `judged_on` name data set, split and number of samples."""

    parent_name: str
    parent_digest: str
    neuron: str
    timesteps: int
    parent_accuracy: float
    calibrated_on: str
    judged_on: str
    rows: tuple[SweepRow, ...]

    def table(self) -> Table:
        table = Table(
            title=f"{self.parent_name} ({self.neuron}, {self.timesteps} timesteps): "
            f"accuracy {100 * self.parent_accuracy:.2f} %",
            caption=f"in %, change in points; judged on {self.judged_on}; "
            f"values from {self.calibrated_on}",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("LIF with reset", no_wrap=True)
        table.add_column("rest", no_wrap=True)
        for heading in ("accuracy", "change", "agreement", "mismatch"):
            table.add_column(heading, justify="right", no_wrap=True)
        for i, row in enumerate(self.rows):
            judged = row.judgement
            table.add_row(
                row.variant.label,
                "" if row.variant.reset == "soft" else _REST[row.variant.rest],
                f"{100 * judged.accuracy:.2f}",
                f"{judged.change:+.2f}",
                f"{100 * judged.agreement:.2f}",
                f"{100 * judged.total_mismatch:.2f}",
                end_section=i + 1 == len(LITERATURE),
            )
        return table

    def to_json(self) -> str:
        """All of it, with what follows from it (accuracy, change), as indented JSON."""
        report = asdict(self)
        for row, line in zip(report["rows"], self.rows, strict=True):
            row["variant"]["label"] = line.variant.label
            row["judgement"] = line.judgement.summary()
        return json.dumps(report, indent=2)


_REST = {"reset": "moves with it", "zero": "0"}


def sweep(
    checkpoint: Checkpoint,
    calibration: Iterable[Tensor],
    evaluation: Iterable[tuple[Tensor, Tensor]],
    *,
    calibrated_on: str,
    judged_on: str,
    variants: Iterable[Variant] = (*LITERATURE, *OURS),
    progress: Callable[[int], None] = lambda samples: None,
) -> SweepReport:
    """Convert in every way and judge each against the parent.

    `calibration` are inputs of the training split, `evaluation` inputs and labels of a split that the model was not
    trained on; each is gone through once. Raises ConversionError where the model cannot be converted.
    """
    parent = checkpoint.network()
    chosen, inputs = list(variants), list(calibration)
    moments = reset_moments(parent, inputs)
    values = [closed_form(moments, v.reset) if v.value == "auto" else {} for v in chosen]
    children = [
        _converted(checkpoint, variant, own, inputs)
        for variant, own in zip(chosen, values, strict=True)
    ]
    judged = judge(parent, children, evaluation, progress)
    manifest = checkpoint.manifest
    return SweepReport(
        parent_name=manifest.name,
        parent_digest=manifest.digest or model_digest(manifest, checkpoint.tensors),
        neuron=manifest.neuron.kind,
        timesteps=manifest.timesteps,
        parent_accuracy=judged[0].parent_accuracy,
        calibrated_on=calibrated_on,
        judged_on=judged_on,
        rows=tuple(SweepRow(*line) for line in zip(chosen, values, judged, strict=True)),
    )


def _converted(
    checkpoint: Checkpoint, variant: Variant, own: dict[str, float], inputs: list[Tensor]
) -> Network:
    if variant.family is not None:
        return calibrate(checkpoint, inputs, Calibration(variant.family)).network()
    value = None if isinstance(variant.value, str) else variant.value
    return convert_to_lif(
        checkpoint, reset=variant.reset, value=value, rest=variant.rest, per_layer=own
    ).network()
