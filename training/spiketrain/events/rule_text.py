"""Filters, windows and decisions as one writes them on a command line or in a query.

    region:x=128,y=48,width=384,height=384,crop     down-sample:3     orient:rotate-90     background-activity
    10ms    duration:10000us    count:events=2000,max_microseconds=100000
    leaky:time_constant_us=200000,margin=0.4    vote:windows=5

A kind, and behind a colon its fields; one without a name is the first one of its kind, and one without a value is true.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from spiketrain.manifest import CountWindow, DurationWindow
from spiketrain.stream_rules import DecisionRule, FilterRule, LeakyEvidence, VoteEvidence

_FILTER: TypeAdapter[FilterRule] = TypeAdapter(FilterRule)
_FILTERS: dict[str, type[BaseModel]] = {
    each.model_fields["kind"].default: each for each in get_args(get_args(FilterRule)[0])
}
_EVIDENCE: dict[str, type[BaseModel]] = {"leaky": LeakyEvidence, "vote": VoteEvidence}
_TIME = re.compile(r"([0-9]+)(us|ms|s)")
_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000}


def parse_filter(text: str) -> FilterRule:
    """Raises ValueError that says what is wrong."""
    kind, fields = _parts(text)
    if kind not in _FILTERS:
        raise ValueError(f"filter {text!r}: there is no {kind!r}; there are {', '.join(_FILTERS)}")
    given = _named(text, fields, _FILTERS[kind])
    try:
        return _FILTER.validate_python({"kind": kind, **given})
    except ValidationError as error:
        raise ValueError(f"filter {text!r}: {_said(error)}") from None


def parse_window(text: str) -> DurationWindow | CountWindow:
    """Raises ValueError that says what is wrong."""
    kind, fields = _parts(text)
    if not fields and _TIME.fullmatch(kind):
        kind, fields = "duration", [kind]
    kinds: dict[str, type[DurationWindow | CountWindow]] = {
        "duration": DurationWindow,
        "count": CountWindow,
    }
    model = kinds.get(kind)
    if model is None:
        raise ValueError(
            f"window {text!r}: write a time such as 10ms, or count:events=2000,max_microseconds=100000"
        )
    try:
        return model.model_validate({"kind": kind, **_named(text, fields, model)})
    except ValidationError as error:
        raise ValueError(f"window {text!r}: {_said(error)}") from None


def parse_decision(text: str) -> DecisionRule:
    """Raises ValueError that says what is wrong."""
    kind, fields = _parts(text)
    if kind not in _EVIDENCE:
        raise ValueError(
            f"decision {text!r}: write leaky or vote, such as leaky:time_constant_us=200000,margin=0.3"
        )
    given = _named(text, fields, _EVIDENCE[kind], tuple(DecisionRule.model_fields))
    evidence = {
        name: given.pop(name) for name in list(given) if name in _EVIDENCE[kind].model_fields
    }
    try:
        return DecisionRule.model_validate({"evidence": {"kind": kind, **evidence}, **given})
    except ValidationError as error:
        raise ValueError(f"decision {text!r}: {_said(error)}") from None


def parse_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels. Raises ValueError that says what is wrong."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None or not 0 < int(match[1]) <= 65536 or not 0 < int(match[2]) <= 65536:
        raise ValueError(f"sensor {text!r}: write width and height as in 640x480")
    return int(match[1]), int(match[2])


def _parts(text: str) -> tuple[str, list[str]]:
    kind, _, fields = text.strip().partition(":")
    return kind, [field.strip() for field in fields.split(",") if field.strip()]


def _named(
    text: str, fields: list[str], model: type[BaseModel], others: tuple[str, ...] = ()
) -> dict[str, Any]:
    names = [name for name in model.model_fields if name != "kind"]
    given: dict[str, Any] = {}
    for place, field in enumerate(fields):
        name, equals, value = field.partition("=")
        if not equals:
            name, value = (name, "true") if name in names else (names[0] if names else name, name)
            if value != "true" and place:
                raise ValueError(f"{text!r}: {field!r} is no field; there are {', '.join(names)}")
        if equals and name not in (*names, *others):
            raise ValueError(
                f"{text!r}: there is no such field, {name!r}; there are {', '.join(names) or 'none'}"
            )
        if name in given:
            raise ValueError(f"{text!r}: {name} is there twice")
        time = _TIME.fullmatch(value) if name.endswith(("_us", "microseconds")) else None
        given[name] = int(time[1]) * _UNITS[time[2]] if time else value
    return given


def _said(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(each) for each in first["loc"] if isinstance(each, str))
    known = " (there is no such field)" if first["type"] == "extra_forbidden" else ""
    return f"{place}: {first['msg']}{known}" if place else first["msg"]
