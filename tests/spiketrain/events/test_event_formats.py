"""Recordings on disk: what is written is read, and what is damaged is refused with the reason."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.events import EventFormatError, Events, read_recording, write_npz
from spiketrain.events.formats import nmnist


def some(n: int = 300, seed: int = 0) -> Events:
    random = np.random.default_rng(seed)
    return Events(
        np.sort(random.integers(0, 300_000, n)),
        random.integers(0, 34, n).astype(np.uint16),
        random.integers(0, 34, n).astype(np.uint16),
        random.integers(0, 2, n).astype(np.uint8),
    )


def npz_bytes(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def columns(events: Events) -> dict[str, object]:
    return {name: getattr(events, name) for name in "txyp"}


# N-MNIST


def test_nmnist_bytes_by_hand():
    data = bytes([3, 7, 0x80, 0x01, 0x02, 33, 0, 0x7F, 0xFF, 0xFF])
    events = read_recording(data, "n-mnist")
    assert events.x.tolist() == [3, 33]
    assert events.y.tolist() == [7, 0]
    assert events.p.tolist() == [1, 0]
    assert events.t.tolist() == [0x0102, 0x7FFFFF]
    assert nmnist.write(events) == data


def test_nmnist_overflow_marker_moves_the_times_after_it():
    data = bytes([1, 1, 0, 0, 5, 0, 240, 0, 0, 0, 2, 2, 0, 0, 1])
    events = read_recording(data, "n-mnist")
    assert events.t.tolist() == [5, 8192 + 1]
    assert events.x.tolist() == [1, 2]


def test_nmnist_is_read_back_and_told_by_its_content(tmp_path):
    events = some()
    data = nmnist.write(events)
    assert read_recording(data).equals(events)
    for suffix in (".bin", ".bs2", ".dat"):
        path = tmp_path / f"digit{suffix}"
        path.write_bytes(data)
        assert read_recording(path).equals(events)


def test_nmnist_truncated_says_what_is_left_over(tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(nmnist.write(some(20))[:-2])
    with pytest.raises(EventFormatError, match=r"cut\.bin: 98 bytes are 19 .* and 3 bytes more"):
        read_recording(path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("x", 256, "x to 255"), ("y", 240, "y to 239"), ("t", -1, "times"), ("t", 1 << 23, "times")],
)
def test_nmnist_refuses_what_it_cannot_hold(column, value, message):
    changed = columns(some(3))
    changed[column] = np.full(3, value, changed[column].dtype)
    with pytest.raises(ValueError, match=message):
        nmnist.write(Events(**changed))


# NumPy archives


def test_npz_is_read_back_with_every_bit(tmp_path):
    events = some()
    path = tmp_path / "digit.npz"
    write_npz(path, events, sensor=(34, 34))
    assert read_recording(path).equals(events)
    assert read_recording(path.read_bytes()).equals(events)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["sensor"].tolist() == [34, 34]
    again = tmp_path / "again.npz"
    write_npz(again, events, sensor=(34, 34))
    assert again.read_bytes() == path.read_bytes()
    write_npz(path, Events.empty())
    assert len(read_recording(path)) == 0


@pytest.mark.parametrize("kind", [np.int64, np.float64, np.uint32, np.int16])
def test_npz_of_other_writers_is_converted(kind):
    events = some(50)[:3]
    arrays = {name: getattr(events, name).astype(kind) for name in "xyp"}
    assert read_recording(npz_bytes(t=events.t.astype(np.uint64), **arrays)).equals(events)


def test_npz_polarity_may_be_signed_or_boolean():
    events = some(10)
    signed = columns(events) | {"p": events.p.astype(np.int8) * 2 - 1}
    assert read_recording(npz_bytes(**signed)).equals(events)
    boolean = columns(events) | {"p": events.p.astype(bool)}
    assert read_recording(npz_bytes(**boolean)).equals(events)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.array([0.5, 1, 2])}, "not whole numbers"),
        ({"x": np.array([np.nan, 1, 2])}, "not whole numbers"),
        ({"x": np.array([0, 1, 70000])}, "values from 0 to 70000"),
        ({"x": np.array([-1, 1, 2])}, "values from -1"),
        ({"t": np.array([0, 1, 2**63], np.uint64)}, "column t has values"),
        ({"p": np.array([0, 1, 2])}, "column p has values from 0 to 2"),
        ({"y": np.zeros((3, 1), np.int64)}, r"shape \[3, 1\]"),
        ({"y": np.array(["a", "b", "c"])}, "not a list of integers"),
        ({"y": np.zeros(2, np.uint16)}, "2 values in y, but 3 in t"),
    ],
)
def test_npz_with_wrong_columns_is_refused(change, message):
    with pytest.raises(EventFormatError, match=message):
        read_recording(npz_bytes(**(columns(some(3)) | change)))


def test_npz_without_a_column_is_refused():
    with pytest.raises(EventFormatError, match="no array x, p"):
        read_recording(npz_bytes(t=np.zeros(3), y=np.zeros(3)))


def test_pickled_objects_are_never_loaded():
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code from a file was run",))

    arrays = columns(some(1)) | {"t": np.array([Trap()], dtype=object)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with pytest.raises(EventFormatError, match="pickled Python objects"):
        read_recording(buffer.getvalue())
    disguised = zip_with(t=pickle.dumps(Trap()))
    with pytest.raises(EventFormatError, match="column t is no NumPy array"):
        read_recording(disguised)


def zip_with(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    """A .npz of three events in which some members are replaced by raw bytes."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(npz_bytes(**columns(some(3))))) as good,
        zipfile.ZipFile(buffer, "w", method) as archive,
    ):
        for name in "txyp":
            archive.writestr(f"{name}.npy", members.get(name) or good.read(f"{name}.npy"))
    return buffer.getvalue()


def test_a_zip_bomb_is_refused_before_it_unpacks():
    bomb = zip_with(t=bytes(50_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(EventFormatError, match="column t is no NumPy array"):
        read_recording(bomb, max_events=1000)


def test_a_header_that_promises_more_than_there_is_is_refused():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": (2**50,)}
    )
    with pytest.raises(EventFormatError, match="its header says"):
        read_recording(zip_with(t=header.getvalue() + bytes(24)))


def test_methods_that_numpy_does_not_write_are_refused():
    with pytest.raises(EventFormatError, match="packed by a method"):
        read_recording(zip_with(zipfile.ZIP_LZMA))


def test_more_events_than_allowed_are_refused(tmp_path):
    events = some(1000)
    path = tmp_path / "digit.npz"
    write_npz(path, events)
    for data in (path.read_bytes(), nmnist.write(events), csv_bytes(events)):
        assert len(read_recording(data, max_events=1000)) == 1000
        with pytest.raises(EventFormatError, match=r"999"):
            read_recording(data, max_events=999)
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(50_000))
    with pytest.raises(
        EventFormatError, match=r"large\.bin: there are more than the allowed 10 events"
    ):
        read_recording(large, max_events=10)


# Text


def csv_bytes(events: Events) -> bytes:
    rows = zip(events.p, events.t, events.x, events.y, strict=True)
    return b"p,t,x,y\n" + "".join(f"{p},{t},{x},{y}\n" for p, t, x, y in rows).encode()


def test_csv_in_any_order_of_columns(tmp_path):
    events = some(40)
    assert read_recording(csv_bytes(events)).equals(events)
    path = tmp_path / "digit.csv"
    path.write_bytes(b"\xef\xbb\xbft, x, y, p, note\r\n5, 1, 2, -1, 9\r\n")
    assert read_recording(path).t.tolist() == [5]
    assert read_recording(path).p.tolist() == [0]
    assert len(read_recording(b"t,x,y,p\n")) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"t,x,y\n1,2,3\n", "names no column p"),
        (b"t,x,y,p\n1,2,3\n", "after the header line"),
        (b"t,x,y,p\n1,2,a,0\n", "after the header line: could not convert string 'a'"),
        (b"t,x,y,p\n1.5,2,3,0\n", "after the header line"),
        (b"t,x,y,p\n1,70000,3,0\n", "column x has values"),
        (b"t,x,y,p\n99999999999999999999,1,3,0\n", "after the header line"),
        (b"t,x,y,p\n1,2,\xff,0\n", "after the header line"),
    ],
)
def test_csv_errors_say_what_is_wrong(text, message):
    with pytest.raises(EventFormatError, match=message):
        read_recording(text, "csv")


# All of them


def test_empty_and_unknown_files(tmp_path):
    path = tmp_path / "nothing.npz"
    path.write_bytes(b"")
    with pytest.raises(EventFormatError, match=r"nothing\.npz: .*0 bytes"):
        read_recording(path)
    with pytest.raises(EventFormatError, match="no recording of a known format"):
        read_recording(b"#!no recording" + bytes(100))
    with pytest.raises(EventFormatError, match="known are npz, aedat2"):
        read_recording(b"123", "jpeg")
    with pytest.raises(FileNotFoundError):
        read_recording(tmp_path / "missing.bin")


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=400), head=st.sampled_from([b"", b"PK\x03\x04", b"t,x,y,p\n"]))
def test_garbage_is_read_or_refused_but_never_crashes(data, head):
    with contextlib.suppress(EventFormatError):
        read_recording(head + data)


@settings(deadline=None, max_examples=200)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_npz_is_read_or_refused_but_never_crashes(position, value, cut):
    data = bytearray(npz_bytes(**columns(some(20))))
    where = int(position * len(data))
    if cut:
        del data[where:]
    else:
        data[where] = value
    with contextlib.suppress(EventFormatError):
        read_recording(bytes(data), "npz")
