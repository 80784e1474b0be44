"""Events, and what is asked of a sequence of them, from tensors and parameters; answers of windows as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.oip.models import DECISION, EVENTS, TIMESTEPS, WINDOWS
from spikeserve.oip.outputs import common_output
from spikeserve.oip.request import WantedOutput, flag, text, whole
from spikeserve.oip.tensors import NamedTensor, malformed
from spikeserve.repository import LoadedModel
from spikeserve.streams import StreamOptions, WindowAnswer
from spiketrain.events.rule_text import parse_decision, parse_filter, parse_size, parse_window
from spiketrain.events.types import Events

SequenceId = int | str

_AT_THE_START = ("sensor", "start_us", "lateness_us", "filter", "window", "force", "decision")
_MOST_ID = 128


@dataclass(frozen=True)
class Step:
    """One request of a sequence. `advance_us` is a time before which no event will come any more."""

    id: SequenceId
    start: bool
    end: bool
    events: Events
    advance_us: int | None
    options: StreamOptions | None  # where it starts


def step_of(
    inputs: Sequence[NamedTensor], parameters: Mapping[str, Any], model: LoadedModel | None
) -> Step:
    """`model` is the one to be opened, where the request may start a sequence. Raises ServiceError."""
    names = [each.name for each in inputs]
    if names != [EVENTS]:
        raise malformed(f"a model of events takes one input, {EVENTS!r}; got {names!r:.200}")
    start = flag(parameters, "sequence_start")
    given = [name for name in _AT_THE_START if name in parameters]
    if given and not start:
        raise malformed(f"parameter {given[0]} belongs to the first request of a sequence")
    return Step(
        id=sequence_id(parameters),
        start=start,
        end=flag(parameters, "sequence_end"),
        events=_events(inputs[0]),
        advance_us=whole(parameters, "advance_us"),
        options=_options(parameters, model) if start and model is not None else None,
    )


def sequence_id(parameters: Mapping[str, Any]) -> SequenceId:
    """Raises ServiceError: MALFORMED for what is no id, IMPOSSIBLE where there is none."""
    value = parameters.get("sequence_id", 0)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise malformed("parameter sequence_id must be a whole number or a string")
    if value in (0, ""):
        raise ServiceError(
            ErrorKind.IMPOSSIBLE,
            "a model of events must specify a non-zero or non-empty correlation ID: parameter sequence_id",
        )
    if isinstance(value, str) and len(value) > _MOST_ID:
        raise malformed(
            f"parameter sequence_id has {len(value)} characters, at most are {_MOST_ID}"
        )
    if isinstance(value, int) and not 0 < value < 1 << 64:
        raise malformed("parameter sequence_id must be from 1 to 2^64 - 1, or a string")
    return value


def event_output(
    wanted: WantedOutput, answers: Sequence[WindowAnswer], before: int, model: LoadedModel
) -> NamedTensor:
    """`before` is how many windows the sequence had when the request came."""
    if (common := common_output(wanted, answers, model)) is not None:
        return common
    if wanted.name == TIMESTEPS:
        counts = np.arange(before + 1, before + 1 + len(answers), dtype=np.int32)
        return NamedTensor(TIMESTEPS, "INT32", counts.reshape(-1, 1))
    if wanted.name == DECISION:
        decided = [-1 if (index := _decided(each)) is None else index for each in answers]
        return NamedTensor(DECISION, "INT32", np.array(decided, np.int32).reshape(-1, 1))
    rows = [(each.index, each.start_us, each.end_us, each.events) for each in answers]
    return NamedTensor(WINDOWS, "INT64", np.array(rows, np.int64).reshape(-1, 4))


def _decided(answer: WindowAnswer) -> int | None:
    return None if answer.decision is None else answer.decision.index


def _events(tensor: NamedTensor) -> Events:
    values = tensor.values
    if tensor.datatype != "INT64":
        raise malformed(f"input {EVENTS!r}: datatype {tensor.datatype}; expected INT64")
    if values.ndim == 3 and values.shape[0] != 1:
        raise malformed(
            f"input {EVENTS!r}: a batch of {values.shape[0]}: must specify batch-size 1, a request is of one sequence"
        )
    if values.ndim == 3:
        values = values[0]
    if values.ndim != 2 or values.shape[1] != 4:
        raise malformed(
            f"input {EVENTS!r}: expected shape [-1, 4], a row of t, x, y and p for each event, got {list(tensor.values.shape)}"
        )
    t, x, y, p = values.T
    return Events(
        np.ascontiguousarray(t, np.int64),
        _narrowed("x", x, np.uint16),
        _narrowed("y", y, np.uint16),
        _narrowed("p", p, np.uint8, 1),
    )


def _narrowed(
    name: str, column: NDArray[Any], kind: type[np.unsignedinteger[Any]], most: int | None = None
) -> NDArray[Any]:
    most = int(np.iinfo(kind).max) if most is None else most
    if len(column) and not (int(column.min()) >= 0 and int(column.max()) <= most):
        raise malformed(f"input {EVENTS!r}: {name} must be from 0 to {most}")
    return column.astype(kind)


def _options(parameters: Mapping[str, Any], model: LoadedModel) -> StreamOptions:
    """As the query of /classify/events has them. Raises ServiceError MALFORMED."""
    sensor, window = text(parameters, "sensor"), text(parameters, "window")
    decision, filters = text(parameters, "decision"), text(parameters, "filter")
    try:
        return StreamOptions(
            model=model.name,
            version=model.version,
            sensor=None if sensor is None else parse_size(sensor),
            start_us=whole(parameters, "start_us"),
            lateness_us=whole(parameters, "lateness_us") or 0,
            filters=tuple(map(parse_filter, filters.split(";"))) if filters else (),
            window=None if window is None else parse_window(window),
            force=flag(parameters, "force"),
            decision=None if decision is None else parse_decision(decision),
            top_k=len(model.manifest.classes),
        )
    except ValueError as error:
        raise malformed(str(error)) from None
