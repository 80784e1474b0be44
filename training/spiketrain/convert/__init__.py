"""Conversion to plain LIF, and how a conversion is judged."""

from __future__ import annotations

from spiketrain.convert.ablation import ablation
from spiketrain.convert.calibrate import FAMILIES, PARTS, Calibration, Family, Part, calibrate
from spiketrain.convert.closed_form import ResetMoments, closed_form, reset_moments
from spiketrain.convert.fine_tune import FineTuned, FineTuning, fine_tune
from spiketrain.convert.judge import Judgement, judge
from spiketrain.convert.lif_form import ConversionError, lif_form
from spiketrain.convert.paired import PairedChange
from spiketrain.convert.report import ConversionReport
from spiketrain.convert.sweep import SweepReport, SweepRow, Variant, sweep
from spiketrain.convert.to_lif import Rest, convert_to_lif

__all__ = [
    "FAMILIES",
    "PARTS",
    "Calibration",
    "ConversionError",
    "ConversionReport",
    "Family",
    "FineTuned",
    "FineTuning",
    "Judgement",
    "PairedChange",
    "Part",
    "ResetMoments",
    "Rest",
    "SweepReport",
    "SweepRow",
    "Variant",
    "ablation",
    "calibrate",
    "closed_form",
    "convert_to_lif",
    "fine_tune",
    "judge",
    "lif_form",
    "reset_moments",
    "sweep",
]
