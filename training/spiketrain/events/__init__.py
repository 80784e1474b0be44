"""Events of event cameras: columns, windows, frames, file formats, the wire, and an emulator."""

from __future__ import annotations

from spiketrain.events.decisions import Decider, Decision
from spiketrain.events.filters import FilterChain
from spiketrain.events.formats import EventFormatError, read_recording, write_npz
from spiketrain.events.frames import count_frame
from spiketrain.events.types import Events
from spiketrain.events.windows import Window, Windows, recording_frames

__all__ = [
    "Decider",
    "Decision",
    "EventFormatError",
    "Events",
    "FilterChain",
    "Window",
    "Windows",
    "count_frame",
    "read_recording",
    "recording_frames",
    "write_npz",
]
