"""Answers as tensors: for each output a row for every picture or window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from spikeserve.classify import Prediction
from spikeserve.oip.models import PROBABILITIES, RATES, outputs_of
from spikeserve.oip.request import WantedOutput
from spikeserve.oip.tensors import NamedTensor, malformed
from spikeserve.repository import LoadedModel


class Row(Protocol):
    """The answer to one picture or window, with all classes, the likeliest first."""

    @property
    def predictions(self) -> Sequence[Prediction]: ...

    @property
    def firing_rates(self) -> Mapping[str, float]: ...


def checked_outputs(outputs: Sequence[WantedOutput], model: LoadedModel) -> Sequence[WantedOutput]:
    """Those asked for, or all. Raises ServiceError MALFORMED for one that the model does not have."""
    names = [spec.name for spec in outputs_of(model)]
    classes = len(model.manifest.classes)
    for each in outputs:
        if each.name not in names:
            raise malformed(
                f"unexpected output {each.name!r:.60}: model {model.name} has {', '.join(names)}"
            )
        if each.classes and each.name != PROBABILITIES:
            raise malformed(f"output {each.name!r}: classification is of {PROBABILITIES!r} only")
        if not 0 <= each.classes <= classes:
            raise malformed(
                f"output {each.name!r}: classification is {each.classes}: there are {classes} classes"
            )
    if len({each.name for each in outputs}) < len(outputs):
        raise malformed("an output is asked for twice")
    return outputs or [WantedOutput(name) for name in names]


def common_output(
    wanted: WantedOutput, rows: Sequence[Row], model: LoadedModel
) -> NamedTensor | None:
    """One of those that every model has, but for the timesteps; None for another."""
    if wanted.name == RATES:
        layers = model.engine.layers
        rates = np.empty((len(rows), len(layers)), np.float32)
        for line, row in zip(rates, rows, strict=True):
            line[:] = [row.firing_rates[layer] for layer in layers]
        return NamedTensor(RATES, "FP32", rates)
    if wanted.name != PROBABILITIES:
        return None
    if wanted.classes:
        named = np.empty((len(rows), wanted.classes), object)
        for line, row in zip(named, rows, strict=True):
            best = row.predictions[: wanted.classes]
            line[:] = [f"{p.probability:f}:{p.index}:{p.label}".encode() for p in best]
        return NamedTensor(PROBABILITIES, "BYTES", named)
    chances = np.empty((len(rows), len(model.manifest.classes)), np.float32)
    for line, row in zip(chances, rows, strict=True):
        for prediction in row.predictions:
            line[prediction.index] = prediction.probability
    return NamedTensor(PROBABILITIES, "FP32", chances)
