"""The executor for CPUs. Needs numba."""

from __future__ import annotations

from spikeserve.engine.cpu.executor import CpuExecutor
from spikeserve.engine.cpu.products import Precision, faithful_precisions

__all__ = ["CpuExecutor", "Precision", "faithful_precisions"]
