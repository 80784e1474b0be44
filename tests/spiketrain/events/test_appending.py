"""Recordings written piece by piece are those that are written at once."""

from __future__ import annotations

import numpy as np
import pytest

from spiketrain.events import open_recording, read_recording
from spiketrain.events.formats.appending import SUFFIXES, RecordingWriter
from spiketrain.events.types import Events


def some_events(count: int = 3000) -> Events:
    random = np.random.default_rng(0)
    return Events(
        np.sort(random.integers(0, 5_000_000, count)),
        random.integers(0, 346, count).astype(np.uint16),
        random.integers(0, 260, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )


@pytest.mark.parametrize("sensor", [None, (346, 260)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_appended_is_read_back(tmp_path, suffix, sensor):
    path, events = tmp_path / f"recording{suffix}", some_events()
    with RecordingWriter(path, sensor) as writer:
        for begin in range(0, len(events), 700):
            writer.append(events[begin : begin + 700])
            writer.append(Events.empty())
    assert writer.events == len(events)
    assert read_recording(path).equals(events)
    if sensor is not None and suffix != ".csv":
        with open_recording(path) as recording:
            assert recording.sensor == sensor


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_an_empty_recording(tmp_path, suffix):
    path = tmp_path / f"recording{suffix}"
    RecordingWriter(path, (34, 34)).close()
    assert len(read_recording(path)) == 0


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.npz, \.csv"):
        RecordingWriter(tmp_path / "recording.mp4")
    with (
        RecordingWriter(tmp_path / "recording.raw") as writer,
        pytest.raises(ValueError, match="2047"),
    ):
        writer.append(Events(*(np.full(1, 3000, dtype) for dtype in (np.int64, np.uint16, np.uint16)),
                             np.zeros(1, np.uint8)))  # fmt: skip
