"""What the writers share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from spiketrain.events.types import Events


def header_lines(lines: Iterable[str]) -> bytes:
    """A header as Prophesee's formats have it."""
    return "".join(f"% {line}\n" for line in lines).encode("ascii")


def checked_times(events: Events, bits: int, title: str) -> None:
    """Raises ValueError for times that a counter of `bits` bits cannot hold, or would seem to wrap between."""
    if not len(events):
        return
    first, last = int(events.t.min()), int(events.t.max())
    if first < 0 or last >> bits:
        raise ValueError(
            f"{title} holds times from 0 to {(1 << bits) - 1} us, but these are {first} to {last}: "
            "subtract the first one, or write an .npz instead"
        )
    if len(events) > 1 and (gap := int(np.abs(np.diff(events.t)).max())) > 1 << (bits - 1):
        raise ValueError(
            f"a gap of {gap} us is more than half of what the {bits} bits of {title} can count, and would be "
            "read as a wrap of the clock: write an .npz instead"
        )
