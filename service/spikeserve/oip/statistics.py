"""What Triton's clients ask before and after a measurement: requests of this protocol, and where their time went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spikeserve.repository import Repository

PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_CACHE = ("cache_hit", "cache_miss")  # there is none


@dataclass(frozen=True)
class Seconds:
    """Of one request. Of several pictures the longest counts, as they are computed side by side."""

    total: float
    queue: float
    compute_input: float
    compute_infer: float
    compute_output: float


@dataclass
class _Counts:
    inferences: int = 0
    last_ms: int = 0
    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    ns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))

    def add(self, phase: str, seconds: float) -> None:
        self.count[phase] += 1
        self.ns[phase] += round(seconds * 1e9)


class Statistics:
    """By name and version of models that answer. To be used on one event loop."""

    def __init__(self, repository: Repository, clock: Callable[[], float] = time.time) -> None:
        self._repository = repository
        self._clock = clock
        self._counts: dict[tuple[str, str], _Counts] = {}

    def succeeded(self, model: str, version: str, inferences: int, seconds: Seconds) -> None:
        """`inferences` is how many pictures or windows were answered."""
        counts = self._of(model, version)
        counts.inferences += inferences
        counts.last_ms = round(self._clock() * 1e3)
        counts.add("success", seconds.total)
        for phase in PHASES[2:]:
            counts.add(phase, getattr(seconds, phase))

    def failed(self, model: str, version: str, seconds: float) -> None:
        self._of(model, version).add("fail", seconds)

    def describe(self, name: str | None = None, version: str | None = None) -> list[dict[str, Any]]:
        """All models that answer, or one with all its versions, or one version. Raises ServiceError as Repository.get."""
        if name is not None:
            self._repository.get(name, version)
        ready = [
            (info.name, info.version)
            for info in self._repository.models()
            if info.state == "ready"
            and name in (None, info.name)
            and version in (None, info.version)
        ]
        return [self._described(*each) for each in ready]

    def _described(self, name: str, version: str) -> dict[str, Any]:
        counts = self._of(name, version)
        stats = {phase: {"count": counts.count[phase], "ns": counts.ns[phase]} for phase in PHASES}
        stats |= {phase: {"count": 0, "ns": 0} for phase in _CACHE}
        return {
            "name": name,
            "version": version,
            "last_inference": counts.last_ms,
            "inference_count": counts.inferences,
            "execution_count": self._repository.get(name, version).metrics.steps,
            "inference_stats": stats,
            "batch_stats": [],
        }

    def _of(self, model: str, version: str) -> _Counts:
        return self._counts.setdefault((model, version), _Counts())
