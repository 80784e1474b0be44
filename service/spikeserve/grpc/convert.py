"""Messages of spikeserve.v1 from and to what the server works with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from spikeserve.classify import Classification, ClassifyRequest, ExitName, Prediction
from spikeserve.engine import Priority
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.grpc import rules
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.repository import ModelInfo
from spikeserve.settings import SlowPolicy
from spikeserve.streams import Refusal, Session, StreamOptions, WindowAnswer
from spiketrain.events import wire
from spiketrain.manifest import CountWindow, DurationWindow

EXITS: dict[int, ExitName | None] = {
    pb.EXIT_UNSPECIFIED: None,
    pb.EXIT_OFF: "off",
    pb.EXIT_BALANCED: "balanced",
    pb.EXIT_FAST: "fast",
}

PRIORITIES: dict[int, Priority | None] = {
    pb.PRIORITY_UNSPECIFIED: None,
    pb.PRIORITY_HIGH: Priority.HIGH,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_LOW: Priority.LOW,
}

SLOW_CLIENTS: dict[int, SlowPolicy | None] = {
    pb.SLOW_CLIENT_UNSPECIFIED: None,
    pb.SLOW_CLIENT_WAIT: "wait",
    pb.SLOW_CLIENT_DROP_OLDEST: "drop-oldest",
    pb.SLOW_CLIENT_REFUSE: "refuse",
    pb.SLOW_CLIENT_CLOSE: "close",
}

T = TypeVar("T")

# A client without a deadline gets none; gRPC reports centuries for some of them.
FOREVER = 10 * 365 * 24 * 3600.0


def classify_request(message: pb.ClassifyRequest, remaining: float | None) -> ClassifyRequest:
    """`remaining` is what is left of the call's deadline, in seconds."""
    if not message.image:
        raise ServiceError(
            ErrorKind.MALFORMED, "image: empty; put the bytes of an image file there"
        )
    return ClassifyRequest(
        image=message.image,
        model=message.model or None,
        version=message.version or None,
        top_k=message.top_k if message.HasField("top_k") else None,
        timesteps=message.timesteps if message.HasField("timesteps") else None,
        rates=message.rates if message.HasField("rates") else True,
        exit=_named(EXITS, "exit", message.exit),
        risk=message.risk if message.HasField("risk") else None,
        priority=_named(PRIORITIES, "priority", message.priority),
        deadline=None if remaining is None or remaining > FOREVER else time.monotonic() + remaining,
    )


def classify_response(result: Classification) -> pb.ClassifyResponse:
    return pb.ClassifyResponse(
        model=result.model,
        version=result.version,
        predictions=_predictions(result.predictions),
        timesteps_used=result.timesteps_used,
        timesteps_of=result.timesteps_of,
        exit_risk=result.exit_risk,
        firing_rates=_rates(result.firing_rates),
        synaptic_operations=result.synaptic_operations,
        energy_joules=result.energy_joules,
        timing=pb.Timing(
            **{f"{stage}_seconds": value for stage, value in result.timing_seconds.items()}
        ),
    )


def stream_options(message: pb.OpenStream) -> StreamOptions:
    """Raises ServiceError MALFORMED for a filter, a decision rule or windows that cannot be."""
    try:
        filters = rules.filter_rules(message.filters)
        decision = rules.decision_rule(message.decision) if message.HasField("decision") else None
        window = rules.window_rule(message.window_us, message.window_events)
    except ValueError as error:
        raise ServiceError(ErrorKind.MALFORMED, f"open: {error}") from None
    sensor = (message.sensor_width, message.sensor_height)
    return StreamOptions(
        model=message.model or None,
        version=message.version or None,
        sensor=None if sensor == (0, 0) else sensor,
        start_us=message.start_us if message.HasField("start_us") else None,
        lateness_us=message.lateness_us,
        rates=message.rates if message.HasField("rates") else True,
        filters=filters,
        window=window,
        force=message.force,
        decision=decision,
        top_k=message.top_k if message.HasField("top_k") else None,
        slow=_named(SLOW_CLIENTS, "slow", message.slow),
    )


def encoding(named: pb.Encoding.ValueType, default: wire.Encoding) -> wire.Encoding:
    """Raises ServiceError UNSUPPORTED_MEDIA for a layout that is not read here."""
    if named == pb.ENCODING_UNSPECIFIED:
        return default
    if named not in rules.ENCODINGS:
        known = ", ".join(pb.Encoding.Name(each) for each in rules.ENCODINGS)
        raise ServiceError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"encoding {int(named)} is not one that this server reads; it reads {known}",
        )
    return rules.ENCODINGS[named]


def stream_opened(session: Session, resumed: bool, resume_seconds: float) -> pb.StreamOpened:
    stream = session.stream
    model, spec = stream.model, stream.spec
    opened = pb.StreamOpened(
        model=model.name,
        version=model.version,
        classes=model.manifest.classes,
        encodings=list(rules.ENCODINGS),
    )
    opened.sensor_width, opened.sensor_height = spec.sensor
    if isinstance(spec.window, DurationWindow):
        opened.window_us = spec.window.microseconds
    elif isinstance(spec.window, CountWindow):
        opened.window_us = spec.window.max_microseconds
        opened.window_events = spec.window.events
    if stream.decision is not None:
        opened.decision.CopyFrom(rules.decision_message(stream.decision))
    if session.token is not None:
        opened.resume_token, opened.resume_seconds = session.token, resume_seconds
        opened.resumed, opened.last_sequence = resumed, session.last_sequence
    return opened


def stream_ended(session: Session) -> pb.StreamEnded:
    drops = _drops(*session.drops)
    drops.dropped_answers = session.dropped_answers
    drops.refused_messages = session.refused_messages
    return pb.StreamEnded(windows=session.windows, events=session.events, drops=drops)


def refused(refusal: Refusal) -> pb.Refused:
    return pb.Refused(
        messages=refusal.messages,
        first_sequence=refusal.first_sequence,
        last_sequence=refusal.last_sequence,
        error_type=refusal.error.kind.slug,
        message=refusal.error.message,
    )


def window_answer(answer: WindowAnswer, classes: Sequence[str]) -> pb.WindowAnswer:
    message = pb.WindowAnswer(
        index=answer.index,
        start_us=answer.start_us,
        end_us=answer.end_us,
        events=answer.events,
        predictions=_predictions(answer.predictions),
        raw=_predictions(answer.raw),
        firing_rates=_rates(answer.firing_rates),
        synaptic_operations=answer.synaptic_operations,
        energy_joules=answer.energy_joules,
        drops=_drops(
            answer.late,
            answer.outside,
            answer.skipped,
            answer.filtered,
            answer.lost_packets,
            answer.repeated_packets,
        ),
        latency_seconds=answer.latency_seconds,
        sequence=answer.sequence,
    )
    if answer.decision is not None:
        decided = answer.decision
        message.decision.CopyFrom(
            pb.Decision(
                index=decided.index,
                label="" if decided.index is None else classes[decided.index],
                evidence=decided.evidence,
                lead=decided.lead,
                since_us=decided.since_us,
                changed=decided.changed,
            )
        )
    return message


def model(info: ModelInfo) -> pb.Model:
    message = pb.Model(
        name=info.name, version=info.version, ready=info.state == "ready", reason=info.reason or ""
    )
    if info.state == "loading":
        message.reason = "it is being loaded"
    if info.manifest is not None:
        message.input = info.manifest.input.kind
        message.shape.extend(info.manifest.input.shape)
        message.timesteps = info.manifest.timesteps
        message.classes.extend(info.manifest.classes)
    return message


def _drops(
    late: int, outside: int, skipped: int, filtered: int, lost: int, repeated: int
) -> pb.Drops:
    return pb.Drops(
        late_events=late,
        outside_events=outside,
        skipped_windows=skipped,
        lost_packets=lost,
        repeated_packets=repeated,
        filtered_events=filtered,
    )


def _named(known: Mapping[int, T], field: str, value: int) -> T:
    if value not in known:
        raise ServiceError(
            ErrorKind.MALFORMED,
            f"{field}: {value} is none of 0 to {max(known)}, which this server knows",
        )
    return known[value]


def _predictions(predictions: Iterable[Prediction]) -> list[pb.Prediction]:
    return [
        pb.Prediction(label=one.label, index=one.index, probability=one.probability)
        for one in predictions
    ]


def _rates(rates: Mapping[str, float]) -> list[pb.LayerRate]:
    return [pb.LayerRate(layer=layer, rate=rate) for layer, rate in rates.items()]
