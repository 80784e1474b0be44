"""The terms on which a client opens a stream, and where its answers have got to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, TypedDict

from spikeserve.client.answers import Decision, Drops, Ended, Opened, Prediction, Window
from spikeserve.grpc import rules
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.settings import SlowPolicy
from spiketrain.manifest import CountWindow, DurationWindow
from spiketrain.stream_rules import DecisionRule, FilterRule

WindowRule: TypeAlias = DurationWindow | CountWindow

_SLOW: dict[SlowPolicy | None, pb.SlowClient.ValueType] = {
    None: pb.SLOW_CLIENT_UNSPECIFIED,
    "wait": pb.SLOW_CLIENT_WAIT,
    "drop-oldest": pb.SLOW_CLIENT_DROP_OLDEST,
    "refuse": pb.SLOW_CLIENT_REFUSE,
    "close": pb.SLOW_CLIENT_CLOSE,
}


class StreamTerms(TypedDict, total=False):
    """What is left out is the server's, or the model's, default.

    `sensor` is width and height, checked against the model's; `start_us` the stream time at which the first window
    begins, unless given that of the first event; `lateness_us` how long a window waits for events out of order.
    `filters` lead from the sensor to the model's; another `window` rule than the model's needs `force`; with `decision`
    the answers have one. `top_k` classes are answered; `rates` says whether with the firing rates of the layers. `slow`
    says what the server does when the answers are not read: wait, drop-oldest, refuse or close.
    """

    model: str | None
    version: str | None
    sensor: tuple[int, int] | None
    start_us: int | None
    lateness_us: int
    rates: bool
    filters: Iterable[FilterRule]
    window: WindowRule | None
    force: bool
    decision: DecisionRule | None
    top_k: int | None
    slow: SlowPolicy | None


def open_message(terms: StreamTerms, resumable: bool) -> pb.OpenStream:
    width, height = terms.get("sensor") or (0, 0)
    opening = pb.OpenStream(
        model=terms.get("model") or "",
        version=terms.get("version") or "",
        sensor_width=width,
        sensor_height=height,
        encoding=pb.ENCODING_COLUMNS_V1,
        lateness_us=terms.get("lateness_us", 0),
        rates=terms.get("rates", True),
        filters=rules.filter_messages(terms.get("filters", ())),
        force=terms.get("force", False),
        top_k=terms.get("top_k"),
        start_us=terms.get("start_us"),
        resumable=resumable,
        slow=_SLOW[terms.get("slow")],
    )
    window, decision = terms.get("window"), terms.get("decision")
    if isinstance(window, DurationWindow):
        opening.window_us = window.microseconds
    elif isinstance(window, CountWindow):
        opening.window_us, opening.window_events = window.max_microseconds, window.events
    if decision is not None:
        opening.decision.CopyFrom(rules.decision_message(decision))
    return opening


class Progress:
    """What has arrived of one stream's answers. `next_window` is the first one that has not."""

    def __init__(self, opening: pb.OpenStream) -> None:
        self._opening = opening
        self._token = ""
        self.opened: Opened | None = None
        self.ended: Ended | None = None
        self.next_window = 0
        self.sequence = 0
        self._saves = False
        self._saved = 0
        self.reconnects = 0
        self.lost_windows = 0

    @property
    def resumable(self) -> bool:
        return bool(self._token)

    @property
    def confirmed(self) -> int:
        """The last packet that need not be sent again, even if the server is killed."""
        return min(self.sequence, self._saved) if self._saves else self.sequence

    def opening(self) -> pb.EventMessage:
        """The first message of a connection."""
        message = pb.EventMessage(open=self._opening)
        if self._token:
            message.open.resume_token = self._token
            message.open.next_window = self.next_window
        return message

    def giving_up(self) -> pb.EventMessage:
        """The only message of a connection that frees the stream."""
        return pb.EventMessage(open=pb.OpenStream(resume_token=self._token, give_up=True))

    def take(self, answer: pb.EventAnswer) -> Window | None:
        """Keeps what the first and the last answer say; gives the others, each once."""
        kind = answer.WhichOneof("kind")
        self._saved = answer.saved_sequence
        if kind == "opened":
            self._saves = answer.opened.saves
            self._token = answer.opened.resume_token
            self.sequence = answer.opened.last_sequence
            if answer.opened.resumed:
                self.reconnects += 1
                self.lost_windows += max(0, answer.opened.next_window - self.next_window)
            self.opened = _opened(answer.opened)
        elif kind == "ended":
            ended = answer.ended
            self.ended = Ended(ended.windows, ended.events, _drops(ended.drops))
        elif kind == "window" and answer.window.index >= self.next_window:
            self.next_window = answer.window.index + 1
            self.sequence = answer.window.sequence
            return _window(answer.window)
        return None


def _opened(message: pb.StreamOpened) -> Opened:
    return Opened(
        model=message.model,
        version=message.version,
        classes=tuple(message.classes),
        sensor=(message.sensor_width, message.sensor_height),
        window_us=message.window_us,
        window_events=message.window_events,
        resume_seconds=message.resume_seconds,
    )


def _window(message: pb.WindowAnswer) -> Window:
    return Window(
        index=message.index,
        start_us=message.start_us,
        end_us=message.end_us,
        events=message.events,
        predictions=_predictions(message.predictions),
        raw=_predictions(message.raw),
        firing_rates={each.layer: each.rate for each in message.firing_rates},
        synaptic_operations=message.synaptic_operations,
        energy_joules=message.energy_joules,
        drops=_drops(message.drops),
        latency_seconds=message.latency_seconds,
        sequence=message.sequence,
        decision=_decision(message.decision) if message.HasField("decision") else None,
    )


def _decision(message: pb.Decision) -> Decision:
    decided = message.HasField("index")
    return Decision(
        message.index if decided else None,
        message.label if decided else None,
        message.evidence,
        message.lead,
        message.since_us,
        message.changed,
    )


def _predictions(messages: Iterable[pb.Prediction]) -> tuple[Prediction, ...]:
    return tuple(Prediction(each.label, each.index, each.probability) for each in messages)


def _drops(message: pb.Drops) -> Drops:
    return Drops(
        late_events=message.late_events,
        outside_events=message.outside_events,
        skipped_windows=message.skipped_windows,
        lost_packets=message.lost_packets,
        repeated_packets=message.repeated_packets,
        filtered_events=message.filtered_events,
        dropped_answers=message.dropped_answers,
        refused_messages=message.refused_messages,
    )
