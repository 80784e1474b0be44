"""Where compiled loops go before NumPy: with numba installed, unless SPIKETRAIN_KERNELS=plain. Both give the same events."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any


def loops() -> Any:
    """The module of compiled loops, None where there is none."""
    return None if os.environ.get("SPIKETRAIN_KERNELS") == "plain" else _loops()


@functools.cache
def _loops() -> Any:
    try:
        return importlib.import_module("spiketrain.events.loops")
    except ImportError:
        return None
