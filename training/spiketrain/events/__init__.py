"""Events of event cameras: columns, windows, frames, file formats, the wire, and an emulator."""

from __future__ import annotations

from spiketrain.events.decisions import Decider, Decision
from spiketrain.events.filters import FilterChain
from spiketrain.events.formats import (
    EventFormatError,
    Recording,
    open_recording,
    read_recording,
    write_npz,
    write_recording,
)
from spiketrain.events.frames import count_frame
from spiketrain.events.types import Events
from spiketrain.events.windows import Window, Windows, recording_frames

__all__ = [
    "Decider",
    "Decision",
    "EventFormatError",
    "Events",
    "FilterChain",
    "Recording",
    "Window",
    "Windows",
    "count_frame",
    "open_recording",
    "read_recording",
    "recording_frames",
    "write_npz",
    "write_recording",
]
