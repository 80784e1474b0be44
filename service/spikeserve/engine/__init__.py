"""Slots and steps: samples in different timesteps share one batch. Knows no protocol."""

from __future__ import annotations

from spikeserve.engine.executor import Executor, Frames, Sample, StateError, StepResult
from spikeserve.engine.jobs import RunResult
from spikeserve.engine.reference import ReferenceExecutor
from spikeserve.engine.scheduler import EngineObserver, EngineStream, Scheduler

__all__ = [
    "EngineObserver",
    "EngineStream",
    "Executor",
    "Frames",
    "ReferenceExecutor",
    "RunResult",
    "Sample",
    "Scheduler",
    "StateError",
    "StepResult",
]
