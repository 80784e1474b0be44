"""The JSON of a recording's timeline."""

from __future__ import annotations

from pydantic import BaseModel, Field

from spikeserve.classify import Prediction
from spikeserve.rest.replies import PredictionReply
from spikeserve.streams import WindowAnswer
from spikeserve.streams.recordings import RecordingAnswer


class WindowReply(BaseModel):
    index: int = Field(
        description="its number, from 0; silences too long to be stepped through are left out"
    )
    start_us: int
    end_us: int
    events: int = Field(description="events that were counted into it")
    predictions: list[PredictionReply] = Field(
        description="by the recording so far, likeliest first"
    )
    raw: list[PredictionReply] = Field(description="by this window alone, likeliest first")
    decision: str | None = Field(None, description="the class that is decided; null for none")
    firing_rates: dict[str, float] = Field(description="by layer; empty where not asked for")
    synaptic_operations: int
    energy_joules: float


class DecisionReply(BaseModel):
    label: str | None = Field(description="null: no decision")
    index: int | None
    start_us: int
    end_us: int


class DropsReply(BaseModel):
    late_events: int = Field(description="that came after their window had closed")
    outside_events: int = Field(description="outside of the sensor")
    skipped_windows: int = Field(
        description="empty ones in silences too long to be stepped through"
    )
    filtered_events: int


class EventsTimingReply(BaseModel):
    decode: float = Field(description="processor time: file to events")
    total: float


class EventsReply(BaseModel):
    model: str
    version: str
    format: str = Field(description="as which the recording was read")
    sensor: tuple[int, int] | None = Field(
        None, description="what the recording says of its camera"
    )
    events: int
    predictions: list[PredictionReply] = Field(
        description="by the whole recording, likeliest first"
    )
    decisions: list[DecisionReply] = Field(
        description="what was decided from when to when; empty where no decisions were asked for"
    )
    windows: list[WindowReply]
    drops: DropsReply
    damage: str | None = Field(
        None,
        description="why the recording could not be read to its end; the answers are to what could be",
    )
    timing_seconds: EventsTimingReply


def events_reply(result: RecordingAnswer) -> EventsReply:
    late, outside, skipped, filtered = result.drops
    last = result.answers[-1].predictions if result.answers else ()
    return EventsReply(
        model=result.model,
        version=result.version,
        format=result.format,
        sensor=result.sensor,
        events=result.events,
        predictions=_predictions(last),
        decisions=_timeline(result),
        windows=[window_reply(answer, result.classes) for answer in result.answers],
        drops=DropsReply(
            late_events=late,
            outside_events=outside,
            skipped_windows=skipped,
            filtered_events=filtered,
        ),
        damage=result.damage,
        timing_seconds=EventsTimingReply(decode=result.decode_seconds, total=result.total_seconds),
    )


def window_reply(answer: WindowAnswer, classes: tuple[str, ...]) -> WindowReply:
    decided = None if answer.decision is None else answer.decision.index
    return WindowReply(
        index=answer.index,
        start_us=answer.start_us,
        end_us=answer.end_us,
        events=answer.events,
        predictions=_predictions(answer.predictions),
        raw=_predictions(answer.raw),
        decision=None if decided is None else classes[decided],
        firing_rates=answer.firing_rates,
        synaptic_operations=answer.synaptic_operations,
        energy_joules=answer.energy_joules,
    )


def _timeline(result: RecordingAnswer) -> list[DecisionReply]:
    """Stretches of one decision each, without gaps; a skipped silence belongs to what was decided before it."""
    stretches: list[DecisionReply] = []
    for answer in result.answers:
        if answer.decision is None:
            continue
        index = answer.decision.index
        if stretches and stretches[-1].index == index:
            stretches[-1].end_us = answer.end_us
            continue
        begin = stretches[-1].end_us if stretches else answer.start_us
        label = None if index is None else result.classes[index]
        stretches.append(
            DecisionReply(label=label, index=index, start_us=begin, end_us=answer.end_us)
        )
    return stretches


def _predictions(predictions: tuple[Prediction, ...]) -> list[PredictionReply]:
    return [
        PredictionReply(label=one.label, index=one.index, probability=one.probability)
        for one in predictions
    ]
