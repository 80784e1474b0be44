"""Charts as inline SVG. Colours are classes of the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 30
_SERIES = 6  # colours that the style sheet has

Points = Sequence[tuple[float, float]]
Label = Callable[[float], str]


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def lines(
    series: Mapping[str, Points],
    across: str,
    label: Label = number,
    width: int = 420,
    height: int = 220,
    from_zero: bool = False,
) -> str:
    """Line charts over whole numbers `across`, such as epochs, with a legend where there are several."""
    points = [point for each in series.values() for point in each]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = (min(ys), max(ys)) if points else (0.0, 1.0)
    ticks = _ticks(0.0 if from_zero else low, high)
    first, last = (min(xs), max(xs)) if points else (0.0, 1.0)
    span = (last - first) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        share = (y - ticks[0]) / (ticks[-1] - ticks[0])
        across_ = (x - first) / span if last > first else 0.5
        return (
            _LEFT + across_ * (width - _LEFT - _RIGHT),
            height - _BOTTOM - share * (height - _TOP - _BOTTOM),
        )

    parts = [_open(width, height, f"{', '.join(series)} by {across}")]
    for tick in ticks:
        _, y = at(first, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, label(tick), "end"))
    parts += [
        _text(at(tick, ticks[0])[0], height - _BOTTOM + 16, str(tick), "middle")
        for tick in _whole_ticks(first, last)
    ]
    parts.append(_text((_LEFT + width - _RIGHT) / 2, height - 2, across, "middle"))
    for i, (name, each) in enumerate(series.items()):
        places = [at(x, y) for x, y in each]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line s{i % _SERIES}" points="{path}"/>')
        for (x, y), (px, py) in zip(each, places, strict=True):
            tip = escape(f"{name}, {across} {x:g}: {label(y)}")
            parts.append(
                f'<circle class="dot s{i % _SERIES}" cx="{px:.1f}" cy="{py:.1f}" r="2.5"><title>{tip}</title></circle>'
            )
    parts.append("</svg>")
    return _legend(list(series)) + "".join(parts) if len(series) > 1 else "".join(parts)


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    label: Label,
    tip: Callable[[int, int], str],
    cell: tuple[int, int] = (44, 22),
    widest: int = 190,
    axes: tuple[str, str] = ("", ""),
    top: float | None = None,
) -> str:
    """A table of cells whose colour says their value, from 0 to `top` or the largest; with numbers where they fit."""
    wide, high = cell
    left = min(widest, 14 + 7 * max(map(len, rows), default=0))
    most = top or max((max(row) for row in values if len(row)), default=0.0) or 1.0
    above = 34 if axes[1] else 20
    width, height = left + wide * len(columns) + 8, above + high * len(rows) + 6
    parts = [_open(width, height, f"{axes[0]} by {axes[1]}")]
    if axes[1]:
        parts.append(_text(left + wide * len(columns) / 2, 12, axes[1], "middle"))
    every = max(1, math.ceil(22 / wide))
    for j, name in enumerate(columns):
        if j % every == 0:
            parts.append(_text(left + wide * (j + 0.5), above - 5, _short(name, wide), "middle"))
    each = max(1, math.ceil(11 / high))
    for i, name in enumerate(rows):
        y = above + high * i
        if i % each == 0:
            parts.append(_text(left - 6, y + high / 2 + 4, _cut(name, left), "end"))
        for j, value in enumerate(values[i]):
            share = max(0.0, min(value / most, 1.0)) ** 0.6
            where = f'x="{left + wide * j}" y="{y}" width="{wide - 1}" height="{high - 1}"'
            parts.append(
                f'<rect class="heat" {where} style="fill-opacity:{share:.3f}"><title>{escape(tip(i, j))}</title></rect>'
            )
            if wide >= 30 and (shown := label(value)):
                strong = " strong" if share > 0.55 else ""
                parts.append(
                    f'<text class="in{strong}" x="{left + wide * (j + 0.5) - 0.5:.1f}" y="{y + high / 2 + 4:.1f}" '
                    f'text-anchor="middle">{escape(shown)}</text>'
                )
    return "".join(parts) + "</svg>"


def raster(spikes: Sequence[Sequence[bool]], name: str, step: int = 26, row: int = 4) -> str:
    """Neurons downwards, timesteps across: a mark for each spike."""
    rows = len(spikes[0]) if spikes else 0
    width, height = step * len(spikes) + 2, row * rows + 2
    parts = [
        _open(width, height, f"spikes of {name}"),
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    for t in range(1, len(spikes)):
        x = step * t + 1
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height}"/>')
    marks = [
        f"M{step * t + 4} {row * i + row / 2 + 1:g}h{step - 6}"
        for t, column in enumerate(spikes)
        for i, spike in enumerate(column)
        if spike
    ]
    return "".join([*parts, f'<path class="spikes" d="{"".join(marks)}"/>', "</svg>"])


def _open(width: float, height: float, about: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(about)}">'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(names: list[str]) -> str:
    entries = "".join(
        f'<span><i class="key s{i % _SERIES}"></i>{escape(name)}</span>'
        for i, name in enumerate(names)
    )
    return f'<p class="legend">{entries}</p>'


def _cut(name: str, left: int) -> str:
    longest = max(4, (left - 10) // 7)
    return name if len(name) <= longest else "…" + name[-(longest - 1) :]


def _short(name: str, width: int) -> str:
    longest = max(3, (width - 2) // 7)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from below `low` to above `high`."""
    if not math.isfinite(low) or not math.isfinite(high):
        return [0.0, 1.0]
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    rough = (high - low) / 4
    scale = 10 ** math.floor(math.log10(rough))
    step = next(s * scale for s in (1, 2, 2.5, 5, 10) if s * scale >= rough)
    start = math.floor(low / step + 1e-9)
    end = math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, end + 1)]


def _whole_ticks(first: float, last: float) -> list[int]:
    count = int(last - first)
    step = max(1, math.ceil(count / 8))
    return list(range(int(first), int(last) + 1, step))
