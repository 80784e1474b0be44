"""The section of single samples: what came in, what was answered when, and which neurons fired."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spiketrain.report import charts
from spiketrain.report.html import note, section, table
from spiketrain.report.measure import Raster

_MOST_STEPS = 12


def rasters(samples: Sequence[Raster], classes: Sequence[str]) -> str:
    said = note(
        "Of each layer up to 40 of the neurons that fired, spread evenly over them; each row is a neuron, time goes to the "
        "right. The confidence is the softmax of the answer so far."
    )
    parts = [_one(each, classes) for each in samples]
    return section("Spikes of single samples", said + "".join(parts))


def _one(raster: Raster, classes: Sequence[str]) -> str:
    steps = len(raster.answers)
    # The first ones and the last.
    shown = [*range(min(steps, _MOST_STEPS - 1)), *([steps - 1] if steps >= _MOST_STEPS else [])]
    rows = [
        (str(t + 1), classes[raster.answers[t][0]], f"{100 * raster.answers[t][1]:.0f} %")
        for t in shown
    ]
    wide = max(3, min(26, 400 // max(1, steps)))
    layers = "".join(
        f"<figure><figcaption>{escape(name)}<small>{spikes.shape[1]} of {raster.shown_of[name]:,} that fired</small></figcaption>"
        f"{charts.raster(spikes.tolist(), name, wide)}</figure>"
        for name, spikes in raster.spikes.items()
    )
    verdict = "right" if raster.answers[-1][0] == raster.label else "wrong"
    return (
        f'<article><div class="sample"><h3>Sample {raster.index}: {escape(classes[raster.label])}, '
        f'<span class="{verdict}">{verdict}</span></h3>{_picture(raster)}'
        f'{table(("timestep", "answer", "confidence"), rows)}</div><div class="rasters">{layers}</div></article>'
    )


def _picture(raster: Raster) -> str:
    image = Image.fromarray((255 * _colours(raster)).round().astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="picture" alt="the input" src="data:image/png;base64,{data}">'


def _colours(raster: Raster) -> NDArray[Any]:
    """[H, W, 3], between 0 and 1. Events are orange (ON) and blue (OFF) on black."""
    picture: NDArray[Any] = raster.picture.float().numpy()
    if raster.events:
        off, on = picture[0], picture[1]
        return np.stack([on + 0.2 * off, 0.5 * on + 0.5 * off, 0.2 * on + off], 2).clip(0, 1)
    return np.broadcast_to(picture, (3, *picture.shape[1:])).transpose(1, 2, 0)
