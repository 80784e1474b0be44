"""Draws the files in this folder, which belong to nobody's data set.

    garment.png   an ankle boot, light on black as Fashion-MNIST has its pictures, 112x112 grey
    digit.npz     a rendered 3 seen by the emulated DVS through N-MNIST's saccades
    digit.bin     the same events in N-MNIST's own format

Usage: python examples/make_examples.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from spiketrain.events import Events, write_npz
from spiketrain.events.digits import render_digit
from spiketrain.events.emulator import SENSOR, saccade_recording
from spiketrain.events.formats import nmnist

DIGIT = 3
SEED = 1

# In units of one of Fashion-MNIST's pixels, of which a picture has 28x28. The toe points to the left.
SIDE = 28
PIXELS = 112
SHAFT_AND_FOOT = [
    (14.5, 4.0), (19.0, 3.4), (24.6, 3.6), (25.0, 9.0), (25.4, 14.0), (26.2, 19.0), (26.2, 22.2),
    (2.2, 22.2), (2.0, 20.0), (3.2, 17.8), (6.5, 16.4), (10.0, 14.8), (12.6, 12.0), (13.8, 8.0),
]  # fmt: skip
SOLE = [(1.8, 21.8), (26.4, 21.8), (26.4, 24.6), (20.4, 24.6), (19.6, 23.6), (2.4, 23.8)]
CUFF = [(14.4, 4.0), (19.0, 3.4), (24.6, 3.6), (24.7, 5.6), (14.2, 6.0)]
TOE_CAP = [(2.0, 22.0), (2.0, 20.0), (3.2, 17.8), (6.5, 16.4), (8.0, 18.6), (8.4, 22.0)]
GUSSET = [(17.0, 6.0), (21.0, 6.0), (20.0, 12.6), (18.2, 12.6)]


def draw_garment() -> Image.Image:
    """An ankle boot from the side, grey levels [112, 112]."""
    over = 8
    size = PIXELS * over
    picture = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(picture)
    for outline, shade in (
        (SHAFT_AND_FOOT, 188),
        (CUFF, 225),
        (TOE_CAP, 205),
        (GUSSET, 120),
        (SOLE, 235),
    ):
        scale = size / SIDE
        draw.polygon([(x * scale, y * scale) for x, y in outline], fill=shade)
    picture = picture.filter(ImageFilter.GaussianBlur(size / SIDE * 0.35))
    return picture.resize((PIXELS, PIXELS), Image.Resampling.BOX)


def record_digit() -> Events:
    return saccade_recording(render_digit(DIGIT, SEED), SEED)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw_garment().save(folder / "garment.png", optimize=True)
    events = record_digit()
    write_npz(folder / "digit.npz", events, SENSOR)
    (folder / "digit.bin").write_bytes(nmnist.write(events))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
