"""A recording's timeline, as POST /classify/events answers it. Times in stream time are microseconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from spikeserve.client.answers import Prediction


class RecordingTerms(TypedDict, total=False):
    """What is left out is the server's, or the model's, default; rules are written as in spiketrain.events.rule_text.

    `format` and `topic` are for a recording that does not say itself what is to be read; `sensor` is WIDTHxHEIGHT;
    `orientation` and `invert_polarity` come before `filter`. Another `window` than the model's needs `force`.
    """

    model: str | None
    version: str | None
    top_k: int | None
    rates: bool
    format: str | None
    topic: str | None
    sensor: str | None
    start_us: int | None
    lateness_us: int
    orientation: str | None
    invert_polarity: bool
    filter: Iterable[str]
    window: str | None
    force: bool
    decision: str | None


@dataclass(frozen=True)
class TimelineWindow:
    """`decision` is None for no decision, and where none was asked for."""

    index: int
    start_us: int
    end_us: int
    events: int
    predictions: tuple[Prediction, ...]
    raw: tuple[Prediction, ...]
    decision: str | None
    firing_rates: dict[str, float]
    synaptic_operations: int
    energy_joules: float


@dataclass(frozen=True)
class Stretch:
    """One decision from when to when; `label` is None for no decision."""

    label: str | None
    index: int | None
    start_us: int
    end_us: int


@dataclass(frozen=True)
class Timeline:
    """`predictions` are by the whole recording; `damage` says why it could not be read to its end; `drops` by name."""

    model: str
    version: str
    format: str
    sensor: tuple[int, int] | None
    events: int
    predictions: tuple[Prediction, ...]
    decisions: tuple[Stretch, ...]
    windows: tuple[TimelineWindow, ...]
    drops: dict[str, int]
    damage: str | None
    timing_seconds: dict[str, float]

    @property
    def best(self) -> Prediction:
        return self.predictions[0]

    @classmethod
    def from_json(cls, reply: dict[str, Any]) -> Timeline:
        sensor = reply["sensor"]
        return cls(
            model=reply["model"],
            version=reply["version"],
            format=reply["format"],
            sensor=None if sensor is None else (sensor[0], sensor[1]),
            events=reply["events"],
            predictions=_predictions(reply["predictions"]),
            decisions=tuple(Stretch(**each) for each in reply["decisions"]),
            windows=tuple(_window(each) for each in reply["windows"]),
            drops=reply["drops"],
            damage=reply["damage"],
            timing_seconds=reply["timing_seconds"],
        )


def recording_query(terms: RecordingTerms) -> dict[str, str | list[str]]:
    query: dict[str, str | list[str]] = {}
    for name, value in terms.items():
        if value is None:
            continue
        if isinstance(value, bool):
            query[name] = str(value).lower()
        elif name == "filter" and not isinstance(value, str) and isinstance(value, Iterable):
            query[name] = [str(each) for each in value]
        else:
            query[name] = str(value)
    return query


def _window(reply: dict[str, Any]) -> TimelineWindow:
    given = {**reply, "predictions": _predictions(reply["predictions"])}
    return TimelineWindow(**{**given, "raw": _predictions(reply["raw"])})


def _predictions(replies: Iterable[dict[str, Any]]) -> tuple[Prediction, ...]:
    return tuple(Prediction(**each) for each in replies)
