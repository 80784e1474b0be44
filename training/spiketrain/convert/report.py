"""What a conversion costs and what is sure about it, as text, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import torch
from rich import box
from rich.console import Group
from rich.table import Table
from torch import Tensor

from spiketrain.convert.judge import Judgement
from spiketrain.networks import Network


@dataclass(frozen=True)
class ConversionReport:
    """One child, and where it was asked for, the `steps` of its calibration: what was in, and how that child did.

    `state_bytes` is what one sample's state takes, in the parent and in the child.
    """

    parent_name: str
    child_name: str
    how: str
    calibrated_on: str
    judged_on: str
    judgement: Judgement
    state_bytes: tuple[int, int]
    steps: tuple[tuple[str, Judgement], ...] = ()

    def text(self) -> Group:
        judged = self.judgement
        parts: list[Any] = [self._summary(), self._layers()]
        if self.steps:
            parts.append(self._ladder())
        if judged.operations is None:
            parts.append("synaptic operations cannot be counted for this network")
        return Group(*parts)

    def to_json(self) -> str:
        content = {
            "parent": self.parent_name,
            "child": self.child_name,
            "how": self.how,
            "calibrated_on": self.calibrated_on,
            "judged_on": self.judged_on,
            "state_bytes": {"parent": self.state_bytes[0], "child": self.state_bytes[1]},
            "judgement": self.judgement.summary(),
            "steps": [{"parts": label, **judged.summary()} for label, judged in self.steps],
        }
        return json.dumps(content, indent=2)

    def svg(self) -> str:
        """Mismatch and firing rates by layer, and accuracy by step of the calibration, as bars."""
        judged = self.judgement
        panels = [
            ("spike mismatch, %", [(n, 100 * v) for n, v in judged.spike_mismatch.items()]),
            ("drift of the firing rate, %", [(n, 100 * v) for n, v in judged.rate_drift.items()]),
        ]
        if self.steps:
            panels.append(
                ("change of accuracy by step, points", [(n, j.change) for n, j in self.steps])
            )
        return _svg(f"{self.child_name} ({self.how}) against {self.parent_name}", panels)

    def _summary(self) -> Table:
        judged = self.judgement
        low, high = judged.paired.interval()
        table = Table(
            title=f"{self.child_name}: {self.how}",
            caption=f"judged on {self.judged_on}; calibrated on {self.calibrated_on or 'nothing'}; interval: exact binomial "
            "on the samples that only one of the two has right",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for heading in ("", self.parent_name, self.child_name):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        table.add_row(
            "accuracy, %", f"{100 * judged.parent_accuracy:.2f}", f"{100 * judged.accuracy:.2f}"
        )
        table.add_row("change, points", "", f"{judged.change:+.2f}")
        table.add_row("95 % interval", "", f"{low:+.2f} to {high:+.2f}")
        table.add_row("only one right", str(judged.paired.lost), str(judged.paired.gained))
        table.add_row("McNemar's p", "", f"{judged.paired.p_value:.3g}")
        table.add_row("agreement, %", "", f"{100 * judged.agreement:.2f}")
        table.add_row("spike mismatch, % of spikes", "", f"{100 * judged.total_mismatch:.2f}")
        table.add_row("% of neurons and timesteps", "", f"{100 * judged.differing:.2f}")
        if judged.operations is not None:
            table.add_row("synaptic operations", *(f"{n:,.0f}" for n in judged.operations))
        table.add_row("state, bytes", *(f"{n:,}" for n in self.state_bytes))
        return table

    def _layers(self) -> Table:
        judged = self.judgement
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("layer", no_wrap=True)
        for heading in ("mismatch, %", "rate before, %", "rate, %", "drift, %"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, drift in judged.rate_drift.items():
            table.add_row(
                name,
                f"{100 * judged.spike_mismatch[name]:.2f}",
                f"{100 * judged.parent_rates[name]:.2f}",
                f"{100 * judged.rates[name].mean:.2f}",
                f"{100 * drift:+.2f}",
            )
        return table

    def _ladder(self) -> Table:
        table = Table(title="what each part adds", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("with", no_wrap=True)
        for heading in ("accuracy", "change", "agreement", "mismatch"):
            table.add_column(heading, justify="right", no_wrap=True)
        for label, judged in self.steps:
            table.add_row(
                label,
                f"{100 * judged.accuracy:.2f}",
                f"{judged.change:+.2f}",
                f"{100 * judged.agreement:.2f}",
                f"{100 * judged.total_mismatch:.2f}",
            )
        return table


def state_bytes(network: Network) -> int:
    """What the state of one sample takes: everything that its neurons keep from one timestep to the next."""
    with torch.no_grad():
        state = network.initial_state(1)
    return sum(t.numel() * t.element_size() for t in _tensors(tuple(state.values())))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from _tensors(part)


_ROW, _LEFT, _WIDTH = 18, 210, 640


def _svg(title: str, panels: list[tuple[str, list[tuple[str, float]]]]) -> str:
    lines: list[str] = [_label(8, 20, title, "bold")]
    y = 44
    for heading, rows in panels:
        lines.append(_label(8, y, heading, "bold"))
        most = max((abs(value) for _, value in rows), default=0.0) or 1.0
        signed = any(value < 0 for _, value in rows)
        origin = (_LEFT + _WIDTH - 70) / 2 if signed else float(_LEFT)
        scale = (_WIDTH - 70 - origin) / most
        for name, value in rows:
            y += _ROW
            x, width = min(origin, origin + value * scale), abs(value) * scale
            lines.append(_label(8, y, name))
            lines.append(
                f'<rect x="{x:.1f}" y="{y - 10}" width="{width:.1f}" height="12" fill="#4a7ab5"/>'
            )
            lines.append(_label(_WIDTH - 60, y, f"{value:.2f}"))
        y += 2 * _ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" font-family="sans-serif" font-size="12">'
    background = f'<rect width="{_WIDTH}" height="{y}" fill="white"/>'
    return "\n".join([head, background, *lines, "</svg>\n"])


def _label(x: int, y: int, text: str, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" font-weight="{weight}">{escape(text)}</text>'
