"""Recordings of real cameras: their counts and durations, and every event against a second reader."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spiketrain.events import Events, read_recording
from spiketrain.events.formats import nmnist, open_recording

sys.path.insert(0, str(Path(__file__).parent))
from event_files import SHARED

FILES = {
    # name: format, sensor, events, seconds (to the last place given)
    "aestream/davis.aedat4": ("aedat4", (346, 260), 117_667, "0.13"),
    "faery/evt2.raw": ("evt2", None, 521_252, "0.096"),
    "faery/dvs.es": ("es", (320, 240), 473_225, "0.999"),
    "ros2/test_data_evt3_trigger": ("ros2", (1280, 720), 82_469, "1.25"),
    "ros2/test_data_libcaer_rollover": ("ros2", (640, 480), 334_331, "2.00"),
    "ros2/test_data_mono_cd": ("ros2", (640, 480), 100, "0.000099"),
}


def genuine(name: str) -> Path:
    path = SHARED / "events" / name
    if not path.exists():
        pytest.skip(f"the genuine recording {name} is not here (it is looked for in {SHARED})")
    if name.endswith("aedat4"):
        pytest.importorskip("lz4.frame")
    return path


@pytest.mark.parametrize("name", FILES)
def test_counts_durations_and_sensors(name):
    format_, sensor, count, seconds = FILES[name]
    with open_recording(genuine(name), chunk_events=10_000) as recording:
        assert (recording.format, recording.sensor) == (format_, sensor)
        chunks = list(recording)
    events = Events.concatenate(chunks)
    assert len(events) == count == recording.events_read
    assert max(len(chunk) for chunk in chunks) <= 10_000
    assert events.is_sorted()
    places = len(seconds.partition(".")[2])
    assert f"{(events.t[-1] - events.t[0]) / 1e6:.{places}f}" == seconds
    width, height = sensor or (640, 480)
    assert (events.x.max(), events.y.max()) <= (width - 1, height - 1)


def test_the_clock_that_wraps_does_so_once():
    events = read_recording(genuine("ros2/test_data_libcaer_rollover"))
    counter = events.t - events.t.min() + (events.t.min() - 1702306974272224)
    falls = np.flatnonzero(np.diff(counter & 0x7FFFFFFF) < 0)
    assert falls.tolist() == [165_932]
    assert int(np.diff(events.t)[165_932]) == 9


def same(events: Events, t: object, x: object, y: object, p: object) -> bool:
    other = Events(
        np.asarray(t).astype(np.int64),
        np.asarray(x).astype(np.uint16),
        np.asarray(y).astype(np.uint16),
        np.asarray(p).astype(np.uint8),
    )
    return events.equals(other)


def test_aedat4_against_aedat():
    aedat = pytest.importorskip("aedat")
    path = genuine("aestream/davis.aedat4")
    theirs = np.concatenate([part["events"] for part in aedat.Decoder(path) if "events" in part])
    assert same(read_recording(path), theirs["t"], theirs["x"], theirs["y"], theirs["on"])


def test_es_against_event_stream():
    event_stream = pytest.importorskip("event_stream")
    path = genuine("faery/dvs.es")
    theirs = np.concatenate(list(event_stream.Decoder(str(path))))
    assert same(read_recording(path), theirs["t"], theirs["x"], theirs["y"], theirs["on"])


def test_evt2_against_faery(tmp_path):
    faery = pytest.importorskip("faery")
    path = genuine("faery/evt2.raw")
    theirs = faery.events_stream_from_file(path).to_array()
    assert same(read_recording(path), theirs["t"], theirs["x"], theirs["y"], theirs["on"])


def test_evt2_word_by_word():
    """The documentation's table, one word after the other."""
    path = genuine("faery/evt2.raw")
    events = read_recording(path)
    data = path.read_bytes()
    begin = data.index(b"% evt 2.0\n") + len(b"% evt 2.0\n")
    high, at = 0, 0
    for word in np.frombuffer(data[begin:][: len(data[begin:]) // 4 * 4], "<u4").tolist():
        kind = word >> 28
        if kind == 8:
            high = (word & 0xFFFFFFF) << 6
        elif kind < 2:
            if at % 97 == 0:
                expected = (high | word >> 22 & 63, word >> 11 & 0x7FF, word & 0x7FF, kind)
                assert (events.t[at], events.x[at], events.y[at], events.p[at]) == expected
            at += 1
    assert at == len(events)


def test_evt3_in_a_bag_against_evt3():
    evt3 = pytest.importorskip("evt3")
    sqlite3 = pytest.importorskip("sqlite3")
    path = genuine("ros2/test_data_evt3_trigger")
    database = sqlite3.connect(f"{next(path.glob('*.db3')).as_uri()}?immutable=1", uri=True)
    messages = [row[0] for row in database.execute("SELECT data FROM messages ORDER BY timestamp")]
    database.close()
    decoder = evt3.Decoder(1280, 720)
    # In these messages the events begin at byte 68, behind a length that is the rest of the message.
    theirs = [decoder.feed(message[68:]) for message in messages]
    columns = [np.concatenate([getattr(part, name) for part in theirs]) for name in "txyp"]
    assert same(read_recording(path), *columns)


def test_nmnist_digits():
    archive = SHARED / "n-mnist-small" / "NMNISTsmall.tar.xz"
    if not archive.exists():
        pytest.skip(f"N-MNIST is not here (it is looked for in {SHARED})")
    with tarfile.open(archive) as files:
        for count, member in enumerate(each for each in files if each.name.endswith(".bs2")):
            if count == 20:
                break
            content = files.extractfile(member).read()
            events = read_recording(content)
            with open_recording(content) as recording:
                assert recording.format == "n-mnist"
            octets = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64)
            t = (octets[:, 2] & 127) << 16 | octets[:, 3] << 8 | octets[:, 4]
            assert same(events, t, octets[:, 0], octets[:, 1], octets[:, 2] >> 7)
            assert events.is_sorted()
            assert max(events.x.max(), events.y.max()) <= 33
            assert nmnist.write(events) == content
