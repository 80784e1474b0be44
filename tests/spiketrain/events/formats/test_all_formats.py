"""What holds for every format: it is known by its content, read in pieces, and damage costs only what it damaged."""

from __future__ import annotations

import io
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spiketrain.events import EventFormatError, Events, read_recording
from spiketrain.events.formats import FORMATS, WRITERS, Recording, open_recording, write_recording

sys.path.insert(0, str(Path(__file__).parent))
from event_files import FILES, some

EVENTS = some(300)
CONTENT = {name: write(EVENTS) for name, write in FILES.items()}
ALIASES = {"aedat2-dvs128", "aedat2-davis"}


def test_every_format_is_tested_here():
    assert set(FILES) == set(FORMATS) - ALIASES


@pytest.mark.parametrize("name", FILES)
def test_told_by_its_content_and_read(name, tmp_path):
    for source in (CONTENT[name], io.BytesIO(CONTENT[name])):
        with open_recording(source) as recording:
            assert recording.format == name
            assert recording.read().equals(EVENTS)
            assert recording.events_read == len(EVENTS)
    # A misleading suffix changes nothing.
    path = tmp_path / "recording.csv"
    path.write_bytes(CONTENT[name])
    assert read_recording(path).equals(EVENTS)


@pytest.mark.parametrize("name", FILES)
def test_chunks_are_bounded_and_join_to_the_whole(name):
    with open_recording(CONTENT[name], chunk_events=7) as recording:
        chunks = list(recording)
    assert {len(chunk) for chunk in chunks[:-1]} <= set(range(1, 8))
    assert Events.concatenate(chunks).equals(EVENTS)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("csv", "npz", "ros2")])
def test_sensor_is_what_the_file_says(name):
    known = {"aedat2": (128, 128), "aedat3": (128, 128), "n-mnist": None}
    with open_recording(CONTENT[name]) as recording:
        assert recording.sensor == known.get(name, (34, 34))


@pytest.mark.parametrize("name", sorted(set(FILES) - {"npz", "csv", "n-mnist", "ros2"}))
def test_a_pipe_will_do_where_no_index_is_needed(name):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *args: object) -> int:
            raise io.UnsupportedOperation("seek")

        def read(self, n: int | None = -1) -> bytes:
            return super().read(min(n, 100) if n and n > 0 else n)

    assert read_recording(Pipe(CONTENT[name])).equals(EVENTS)


@pytest.mark.parametrize("name", FILES)
def test_no_events(name):
    content = FILES[name](Events.empty())
    if not content:
        pytest.skip(f"{name} without events is an empty file")
    try:
        assert len(read_recording(content)) == 0
    except EventFormatError:
        # Without a word of data a file of these cannot be told or opened.
        assert name == "ros2"


def collect(recording: Recording, into: list[Events]) -> None:
    for chunk in recording:
        into.append(chunk)  # noqa: PERF402, as what came before an error must be kept


@pytest.mark.parametrize("name", sorted(set(FILES) - {"npz", "ros2"}))
def test_truncated_gives_what_could_be_read_then_an_error(name):
    # The last line of a text loses its polarity, all others lose part of a record.
    content = CONTENT[name][: -2 if name == "csv" else -3]
    read: list[Events] = []
    with open_recording(content, name) as recording, pytest.raises(EventFormatError) as caught:
        collect(recording, read)
    events = Events.concatenate(read)
    # AEDAT 4 loses the last packet, in which the events are packed together.
    assert len(events) == (150 if name == "aedat4" else 299)
    assert events.equals(EVENTS[: len(events)])
    assert caught.value.events_read == len(events) == recording.events_read
    with pytest.raises(EventFormatError) as caught:
        read_recording(content, name)
    assert caught.value.events is not None
    assert caught.value.events.equals(events)
    assert f"{len(events)} events were read" in str(caught.value)


@pytest.mark.parametrize("name", sorted(set(FORMATS)))
def test_an_empty_file_and_garbage_named_as_each_format(name, tmp_path):
    path = tmp_path / "empty.raw"
    path.write_bytes(b"")
    with pytest.raises(EventFormatError, match=r"empty\.raw: the recording is empty"):
        open_recording(path, name)
    garbage = np.random.default_rng(1).integers(0, 256, 1001, np.uint8).tobytes()
    with pytest.raises(EventFormatError):
        read_recording(garbage, name)


def check(data: bytes, name: str | None) -> None:
    """It is read or refused, within bounds of memory."""
    tracemalloc.start()
    try:
        read: Events | None = read_recording(data, name, max_events=100_000)
    except EventFormatError as error:
        read = error.events
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert read is not None
    assert len(read) <= 100_000
    assert peak < 32 << 20


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", FILES)
def test_mutated_bytes_are_read_or_refused_but_never_crash(name, data):
    content = bytearray(CONTENT[name])
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, min(len(content) - 1, 1 << data.draw(st.integers(4, 15)))))
        match data.draw(st.sampled_from(["set", "cut", "insert", "delete", "repeat"])):
            case "set":
                content[where] = data.draw(st.integers(0, 255))
            case "cut":
                del content[max(where, 1) :]
            case "insert":
                content[where:where] = data.draw(st.binary(min_size=1, max_size=9))
            case "delete":
                del content[where : where + data.draw(st.integers(1, 9))]
            case "repeat":
                content[where:where] = content[where : where + 40]
        if not content:
            break
    check(bytes(content), data.draw(st.sampled_from([None, name])))


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=300), name=st.sampled_from([None, *FORMATS]))
@example(data=b"% evt 3.0\n", name=None)
@example(data=b"#!AER-DAT4.0\r\n\xff\xff\xff\xff", name=None)
def test_garbage_is_read_or_refused_but_never_crashes(data, name):
    check(data, name)


@pytest.mark.parametrize("suffix", WRITERS)
def test_written_by_suffix_and_read_back(suffix, tmp_path):
    path = tmp_path / f"recording{suffix}"
    write_recording(path, EVENTS, sensor=(34, 34))
    with open_recording(path) as recording:
        assert recording.format == WRITERS[suffix]
        assert recording.read().equals(EVENTS)


def test_writers_refuse_what_they_do_not_know(tmp_path):
    with pytest.raises(ValueError, match=r"'\.h5' is not written; written are aedat2"):
        write_recording(tmp_path / "recording.h5", EVENTS)
    with pytest.raises(ValueError, match="'evt3' is not written"):
        write_recording(tmp_path / "recording.raw", EVENTS, "evt3")
    with pytest.raises(ValueError, match="states the sensor's size"):
        write_recording(tmp_path / "recording.es", EVENTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89HDF\r\n\x1a\n", "this is HDF5; convert"),
        (b"\x89MCAP0\r\n", "MCAP; convert"),
        (b"#ROSBAG V2.0\n", "ROS 1 bag"),
        (b"\x1f\x8b\x08\x00", "packed by gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_well_known_files_that_are_not_read_are_named(content, message):
    with pytest.raises(EventFormatError, match=message):
        open_recording(content)


def test_more_events_than_allowed_come_with_the_error():
    with pytest.raises(EventFormatError, match="more than the allowed 100 events") as caught:
        read_recording(CONTENT["evt2"], max_events=100)
    assert caught.value.events.equals(EVENTS[:100])
    with pytest.raises(ValueError, match="chunk_events 0"):
        open_recording(CONTENT["evt2"], chunk_events=0)


def test_a_file_object_that_was_handed_in_stays_open():
    file = io.BytesIO(CONTENT["dat"])
    with open_recording(file) as recording:
        next(iter(recording))
    assert not file.closed


@pytest.mark.parametrize("name", ["npz", "aedat2", "aedat3", "evt2", "dat", "es"])
def test_memory_does_not_grow_with_the_file(name, tmp_path):
    events = some(1_000_000, span=100_000_000)
    path = tmp_path / "large"
    path.write_bytes(FILES[name](events))
    tracemalloc.start()
    with open_recording(path) as recording:
        read = sum(len(chunk) for chunk in recording)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == len(events)
    # All columns take 13 MB.
    assert peak < 8 << 20
