"""Digits drawn by code in the manner of MNIST: round pen strokes, 20 pixels tall at most, centred by mass in 28x28.

Each digit is a few strokes through control points in a unit box (x right, y down), joined by Catmull-Rom splines.
The seed varies points, slant, proportions, rotation and pen, as hands do.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

SIDE = 28
BOX = 20.0

# Points x,y in percent of the box; a point given twice is a corner; strokes are separated by a bar. Where a digit
# is commonly written in several ways, all are here.
_WAYS: dict[int, tuple[str, ...]] = {
    0: ("54,0 24,8 3,42 8,81 40,100 72,86 92,50 82,15 50,0",),
    1: ("55,0 50,50 45,100",),
    2: ("8,25 25,4 55,0 78,18 70,45 40,75 5,97 5,97 45,95 92,97",),
    3: ("12,10 45,0 72,15 62,38 32,48 32,48 68,55 78,78 50,98 8,92",),
    4: (
        "20,0 8,35 10,52 40,56 82,48 | 78,0 72,50 66,100",
        "62,0 35,30 5,60 5,60 45,62 92,60 | 62,25 60,60 58,100",
    ),
    5: ("82,2 55,3 25,4 25,4 20,22 16,42 16,42 45,38 74,52 74,80 45,99 6,92",),
    6: ("66,0 36,20 13,52 12,83 38,100 68,88 70,64 44,54 14,70",),
    7: ("5,8 45,6 85,4 85,4 62,38 45,70 36,100",),
    8: ("66,10 40,0 16,16 30,40 58,58 68,82 42,100 14,86 24,60 52,42 74,22 62,6 44,0",),
    9: ("74,18 50,0 20,10 10,34 32,48 62,38 75,16 75,16 70,55 60,100",),
}


def render_digit(digit: int, seed: int = 0) -> NDArray[np.float64]:
    """Ink [28, 28] from 0 to 1. The same digit and seed give the same picture. Raises ValueError for no digit."""
    if digit not in _WAYS:
        raise ValueError(f"{digit!r} is no digit; they are 0 to 9")
    random = np.random.default_rng([digit, seed])
    ways = _WAYS[digit]
    strokes = [_points(stroke) for stroke in ways[random.integers(len(ways))].split("|")]
    hand = _hand(random, narrow=digit == 1)
    lines = [_spline(_wobble(stroke, random) @ hand.T) for stroke in strokes]
    radius = random.uniform(1.1, 1.6)
    corners = np.concatenate(lines)
    low, high = corners.min(0), corners.max(0)
    scale = (BOX - 2 * radius) / float((high - low).max())
    lines = [(line - (low + high) / 2) * scale + SIDE / 2 for line in lines]
    # First at the centre of its box, then moved so that the centre of its ink is there.
    ink = _draw(lines, radius)
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    centre = np.array([(ink * x).sum(), (ink * y).sum()]) / ink.sum()
    return _draw([line + SIDE / 2 - centre for line in lines], radius)


def _points(stroke: str) -> Points:
    return (
        np.array([[float(value) for value in point.split(",")] for point in stroke.split()]) / 100
    )


def _hand(random: np.random.Generator, narrow: bool) -> Points:
    """How somebody writes, as a linear map of the unit box: proportions, slant, rotation."""
    slant = random.uniform(-0.05, 0.35)
    angle = np.deg2rad(random.uniform(-6, 6))
    width = 0.5 if narrow else random.uniform(0.75, 0.95)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    hand: Points = turn @ np.array([[width, -slant], [0.0, 1.0]])
    return hand


def _wobble(stroke: Points, random: np.random.Generator) -> Points:
    moved = stroke + random.normal(0, 0.018, stroke.shape)
    # The two points of a corner must stay together.
    for i in np.flatnonzero((stroke[1:] == stroke[:-1]).all(1)):
        moved[i + 1] = moved[i]
    return moved


def _spline(points: Points, steps: int = 6) -> Points:
    """Catmull-Rom through the points; a doubled point ends one curve and begins the next."""
    cuts = [0, *(np.flatnonzero((points[1:] == points[:-1]).all(1)) + 1), len(points)]
    curves = [points[begin:end] for begin, end in pairwise(cuts)]
    u = np.linspace(0, 1, steps, endpoint=False)[:, None]
    line = []
    for curve in curves:
        padded = np.concatenate([2 * curve[:1] - curve[1:2], curve, 2 * curve[-1:] - curve[-2:-1]])
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
            line.append(
                0.5
                * (
                    2 * b
                    + (c - a) * u
                    + (2 * a - 5 * b + 4 * c - d) * u**2
                    + (3 * b - a - 3 * c + d) * u**3
                )
            )
        line.append(curve[-1:])
    return np.concatenate(line)


def _draw(lines: list[Points], radius: float) -> NDArray[np.float64]:
    """A round pen along poly-lines: full ink within its radius, over one pixel fading to none."""
    centres = np.arange(SIDE) + 0.5
    x, y = centres[None, :, None], centres[:, None, None]
    nearest = np.full((SIDE, SIDE), np.inf)
    for line in lines:
        (from_x, from_y), (along_x, along_y) = line[:-1].T, np.diff(line, axis=0).T
        length = np.maximum(along_x**2 + along_y**2, 1e-12)
        part = np.clip(((x - from_x) * along_x + (y - from_y) * along_y) / length, 0, 1)
        squared = (x - from_x - part * along_x) ** 2 + (y - from_y - part * along_y) ** 2
        nearest = np.minimum(nearest, squared.min(2))
    ink: NDArray[np.float64] = np.clip((radius + 0.6 - np.sqrt(nearest)) / 1.2, 0, 1)
    return ink
