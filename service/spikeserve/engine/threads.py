"""How many threads a torch operation uses."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_processors(quota_file: Path = _QUOTA) -> int:
    """Processors that this process may use: its affinity, and the container's quota where there is one.

    Threads beyond a quota are worse than useless: all of them are stopped when it is used up.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2, or "max"
        return allowed


_wanted: int | None = None


def use_threads(count: int | None) -> None:
    """Set the number of threads of one operation, for the process; None is `usable_processors`."""
    global _wanted
    _wanted = count or usable_processors()
    take_threads()


def take_threads() -> None:
    """Let operations that this thread calls use as many threads as `use_threads` was told, if it was.

    A thread takes by itself the number that was set last, which another one may have set for a moment only.
    """
    if _wanted is not None and torch.get_num_threads() != _wanted:
        torch.set_num_threads(_wanted)


def compute_alone() -> None:
    """Let operations that this thread calls use one thread; those of other threads keep their number."""
    wanted = torch.get_num_threads()
    if wanted > 1:
        torch.set_num_threads(1)
        # The number is each thread's own, but threads to come take the one that was set last.
        last = threading.Thread(target=torch.set_num_threads, args=(wanted,))
        last.start()
        last.join()
