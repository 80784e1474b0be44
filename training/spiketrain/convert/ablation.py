"""What each part of a calibration adds: the same conversion with one part more at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.calibrate import PARTS, Calibration, calibrate
from spiketrain.convert.judge import Judgement, judge


def ablation(
    checkpoint: Checkpoint,
    inputs: Sequence[Tensor],
    evaluation: Iterable[tuple[Tensor, Tensor]],
    calibration: Calibration,
    progress: Callable[[str], None] = lambda doing: None,
) -> tuple[tuple[str, Judgement], ...]:
    """Conversions with none of the calibration's parts, its first, its first two and so on, each judged.

    Labels say what was added; arguments as for `calibrate` and `judge`.
    """
    chosen = [part for part in PARTS if part in calibration.parts]
    labels, children = [], []
    for count in range(len(chosen) + 1):
        labels.append("no calibration" if count == 0 else f"+ {chosen[count - 1]}")
        progress(labels[-1])
        how = replace(calibration, parts=tuple(chosen[:count]))
        children.append(calibrate(checkpoint, inputs, how).network())
    judged = judge(checkpoint.network(), children, evaluation)
    return tuple(zip(labels, judged, strict=True))
