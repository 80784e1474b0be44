"""Slots and steps: samples in different timesteps share one batch. Knows no protocol."""

from __future__ import annotations

from spikeserve.engine.executor import Executor, Frames, Sample, StateError, StepResult
from spikeserve.engine.exit import ExitPolicy, exit_policy
from spikeserve.engine.jobs import Priority, RunResult
from spikeserve.engine.reference import ReferenceExecutor
from spikeserve.engine.scheduler import EngineStream, Scheduler
from spikeserve.engine.turn import EngineObserver

__all__ = [
    "EngineObserver",
    "EngineStream",
    "Executor",
    "ExitPolicy",
    "Frames",
    "Priority",
    "ReferenceExecutor",
    "RunResult",
    "Sample",
    "Scheduler",
    "StateError",
    "StepResult",
    "exit_policy",
]
