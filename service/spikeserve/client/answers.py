"""What a server answers. Times in stream time are microseconds, all others seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classification:
    """`predictions` are the likeliest classes, likeliest first; `firing_rates` by layer, spikes per neuron per timestep.

    With early exit at most the share `exit_risk` of such answers differs from that after all timesteps; 0 where it was off.
    """

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    timesteps_used: int
    timesteps_of: int
    firing_rates: dict[str, float]
    synaptic_operations: int
    energy_joules: float
    timing_seconds: dict[str, float]
    exit_risk: float = 0.0

    @property
    def best(self) -> Prediction:
        return self.predictions[0]


@dataclass(frozen=True)
class ModelSummary:
    """`input` is "image" or "events", None where the model could not be read; `reason` says why it is not ready."""

    name: str
    version: str
    state: str
    reason: str | None
    default: bool
    input: str | None
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    timesteps: int | None

    @classmethod
    def from_json(cls, reply: dict[str, Any]) -> ModelSummary:
        return cls(
            name=reply["name"],
            version=reply["version"],
            state=reply["state"],
            reason=reply["reason"],
            default=reply["default"],
            input=reply["input"],
            shape=tuple(reply["shape"] or ()),
            classes=tuple(reply["classes"] or ()),
            timesteps=reply["timesteps"],
        )


@dataclass(frozen=True)
class Drops:
    """What was not counted, since the stream was opened."""

    late_events: int
    outside_events: int
    skipped_windows: int
    lost_packets: int
    repeated_packets: int
    filtered_events: int = 0
    dropped_answers: int = 0
    refused_messages: int = 0

    def __bool__(self) -> bool:
        lost = (self.lost_packets, self.dropped_answers, self.refused_messages)
        return any((self.late_events, self.outside_events, self.skipped_windows, *lost))


@dataclass(frozen=True)
class Opened:
    """`window_events` is 0 for windows of a fixed duration, else a window ends after so many events, or `window_us`.

    `resume_seconds` is how long the server keeps the stream when the connection breaks.
    """

    model: str
    version: str
    classes: tuple[str, ...]
    sensor: tuple[int, int]
    window_us: int
    window_events: int
    resume_seconds: float = 0.0


@dataclass(frozen=True)
class Decision:
    """`index` and `label` are None where there is no decision; `evidence` and `lead` then are of what comes nearest."""

    index: int | None
    label: str | None
    evidence: float
    lead: float
    since_us: int
    changed: bool


@dataclass(frozen=True)
class Window:
    """`predictions` are the likeliest classes by the stream so far, likeliest first; `raw` by this window alone.

    `decision` is None where neither the client nor the model asked for one.
    """

    index: int
    start_us: int
    end_us: int
    events: int
    predictions: tuple[Prediction, ...]
    raw: tuple[Prediction, ...]
    firing_rates: dict[str, float]
    synaptic_operations: int
    energy_joules: float
    drops: Drops
    latency_seconds: float
    sequence: int
    decision: Decision | None = None

    @property
    def best(self) -> Prediction:
        return self.predictions[0]


@dataclass(frozen=True)
class Ended:
    windows: int
    events: int
    drops: Drops
