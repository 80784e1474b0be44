"""Filters, decision rules and encodings of spikeserve.v1 from and to what a checkpoint states them as.

Both sides have the same fields by the same names, so they are taken over by name; what is not set has the default.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from pydantic import TypeAdapter, ValidationError

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spiketrain.events import wire
from spiketrain.manifest import CountWindow, DurationWindow
from spiketrain.stream_rules import MAX_FILTERS, DecisionRule, FilterRule, LeakyEvidence

ENCODINGS: dict[pb.Encoding.ValueType, wire.Encoding] = {
    pb.ENCODING_COLUMNS_V1: wire.Encoding.COLUMNS_V1,
    pb.ENCODING_EVT2: wire.Encoding.EVT2,
    pb.ENCODING_EVT3: wire.Encoding.EVT3,
    pb.ENCODING_AEDAT3_WORDS: wire.Encoding.AEDAT3_WORDS,
}
"""The layouts of packets that are read and sent."""

_FILTERS: TypeAdapter[tuple[FilterRule, ...]] = TypeAdapter(tuple[FilterRule, ...])


def filter_rules(messages: Iterable[pb.Filter]) -> tuple[FilterRule, ...]:
    """Raises ValueError that names the filter and what is wrong with it."""
    given = []
    for number, message in enumerate(messages):
        kind = message.WhichOneof("kind")
        if kind is None:
            raise ValueError(
                f"filters: {number}: empty, or of a kind that this server does not know"
            )
        given.append({"kind": kind.replace("_", "-"), **_fields(getattr(message, kind))})
    if len(given) > MAX_FILTERS:
        raise ValueError(f"filters: {len(given)} were asked for, at most {MAX_FILTERS} are")
    try:
        return _FILTERS.validate_python(given)
    except ValidationError as error:
        raise ValueError(_said("filters", error)) from None


def filter_messages(rules: Iterable[FilterRule]) -> list[pb.Filter]:
    messages = []
    for rule in rules:
        message = pb.Filter()
        chosen = getattr(message, rule.kind.replace("-", "_"))
        chosen.SetInParent()
        for name, value in rule.model_dump(exclude={"kind"}).items():
            setattr(chosen, name, value)
        messages.append(message)
    return messages


def decision_rule(message: pb.DecisionRule) -> DecisionRule:
    """Raises ValueError that names the field and what is wrong with it."""
    given = _fields(message)
    for kind in ("leaky", "vote"):
        if (evidence := given.pop(kind, None)) is not None:
            given["evidence"] = {"kind": kind, **_fields(evidence)}
    try:
        return DecisionRule.model_validate(given)
    except ValidationError as error:
        raise ValueError(_said("decision", error)) from None


def decision_message(rule: DecisionRule) -> pb.DecisionRule:
    message = pb.DecisionRule(
        margin=rule.margin, release=rule.lowest_lead, min_events=rule.min_events
    )
    if isinstance(rule.evidence, LeakyEvidence):
        message.leaky.time_constant_us = rule.evidence.time_constant_us
    else:
        message.vote.windows = rule.evidence.windows
    return message


def window_rule(window_us: int, window_events: int) -> DurationWindow | CountWindow | None:
    """What a client asks for; None for the checkpoint's own. Raises ValueError for events without a time."""
    if not window_us:
        if window_events:
            raise ValueError("window_us: windows of a number of events need their longest time too")
        return None
    if window_events:
        return CountWindow(events=window_events, max_microseconds=window_us)
    return DurationWindow(microseconds=window_us)


def _fields(message: Message) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _said(what: str, error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, (what, *first['loc'])))}: {first['msg']}"
