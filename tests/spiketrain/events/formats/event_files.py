"""Small files in every format, for the tests beside this one."""

from __future__ import annotations

import io
import sqlite3
import struct
from pathlib import Path

import numpy as np

from spiketrain.events import Events
from spiketrain.events.formats import aedat2, dat, es, evt2, nmnist, write_npz

SHARED = Path(__file__).resolve().parents[4] / "../shared/data"


def some(
    n: int = 300, seed: int = 0, size: tuple[int, int] = (34, 34), span: int = 300_000
) -> Events:
    random = np.random.default_rng(seed)
    return Events(
        np.sort(random.integers(0, span, n)),
        random.integers(0, size[0], n).astype(np.uint16),
        random.integers(0, size[1], n).astype(np.uint16),
        random.integers(0, 2, n).astype(np.uint8),
    )


def npz(events: Events) -> bytes:
    buffer = io.BytesIO()
    write_npz(buffer, events, (34, 34))
    return buffer.getvalue()


def csv(events: Events) -> bytes:
    rows = zip(events.t, events.x, events.y, events.p, strict=True)
    return b"t,x,y,p\n" + "".join(f"{t},{x},{y},{p}\n" for t, x, y, p in rows).encode()


def aedat3_packet(
    events: Events, overflows: int = 0, kind: int = 1, source: int = 1, number: int | None = None
) -> bytes:
    n = len(events) if number is None else number
    header = struct.pack("<HHIIIIII", kind, source, 8, 4, overflows, n, n, n)
    data = (
        (events.x.astype(np.uint32) << 17)
        | (events.y.astype(np.uint32) << 2)
        | (events.p.astype(np.uint32) << 1)
        | 1
    )
    t = (events.t & 0x7FFFFFFF).astype("<u4")
    return header + np.stack([data.astype("<u4"), t], axis=1).tobytes()


AEDAT3_HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-01-01 00:00:00 (TZ+0000)\r\n#!END-HEADER\r\n"
)


def aedat3(events: Events) -> bytes:
    half = len(events) // 2
    other = struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 2, 2, 2) + bytes(16)
    return AEDAT3_HEADER + aedat3_packet(events[:half]) + other + aedat3_packet(events[half:])


def _flatbuffer(identifier: bytes, vtable: bytes, table: bytes, tail: bytes) -> bytes:
    """A buffer with its own size first; the table's fields follow its offset to the vtable."""
    body = struct.pack("<I", 8 + len(vtable)) + identifier + vtable
    body += struct.pack("<i", len(vtable)) + table + tail
    return struct.pack("<I", len(body)) + body


def aedat4(events: Events, compression: int = 0, pack=bytes, packets: int = 2) -> bytes:
    """dv's layout, written by hand. `pack` packs a packet as `compression` (0 none, 1 LZ4, 3 Zstandard) says."""
    info = (
        b'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        b'<node name="0" path="/mainloop/Recorder/outInfo/0/"><attr key="typeIdentifier" type="string">FRME</attr>'
        b'</node><node name="1" path="/mainloop/Recorder/outInfo/1/">'
        b'<attr key="typeIdentifier" type="string">EVTS</attr><node name="info" path="/mainloop/Recorder/outInfo/1/info/">'
        b'<attr key="sizeX" type="int">34</attr><attr key="sizeY" type="int">34</attr></node></node></node></dv>'
    )
    vtable = struct.pack("<HHHHH", 10, 20, 4, 8, 16) + b"\0\0"
    table = struct.pack("<iqI", compression, -1, 4) + struct.pack("<I", len(info))
    data = b"#!AER-DAT4.0\r\n" + _flatbuffer(b"IOHE", vtable, table, info)
    data += struct.pack("<ii", 0, 5) + b"frame"
    size = -(-max(len(events), 1) // packets)
    for begin in range(0, len(events), size):
        part = events[begin : begin + size]
        records = np.zeros(
            len(part), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1"), ("_", "V3")]
        )
        for name in "txyp":
            records[name] = getattr(part, name)
        vector = struct.pack("<II", 4, len(part)) + records.tobytes()
        content = pack(_flatbuffer(b"EVTS", struct.pack("<HHHH", 6, 8, 4, 0), b"", vector))
        data += struct.pack("<ii", 1, len(content)) + content
    return data


def evt21(events: Events, legacy: bool, header: bool = True) -> bytes:
    """One word an event, with a TIME_HIGH before each whose upper bits of the time are new."""
    words = []
    high = None
    for t, x, y, p in zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True):
        if t >> 6 != high:
            high = t >> 6
            words.append((8 << 28 | (high & 0xFFFFFFF), 0))
        # The event is bit x mod 32 of a group that begins at a multiple of 32.
        words.append((p << 28 | (t & 63) << 22 | (x & ~31) << 11 | y, 1 << (x & 31)))
    pairs = np.array(words, "<u4").reshape(-1, 2)
    data = (pairs if legacy else pairs[:, ::-1]).tobytes()
    order = "legacy" if legacy else "little"
    line = f";endianness={order}" if header else ""
    return f"% evt 2.1\n% format EVT21{line};height=34;width=34\n% end\n".encode() + data


EVT3_HEADER = b"% evt 3.0\n% format EVT3;height=34;width=34\n% geometry 34x34\n% end\n"


def evt3_words(events: Events) -> np.ndarray:
    words: list[int] = []
    high = low = row = None
    for t, x, y, p in zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True):
        if t >> 12 != high:
            high, low = t >> 12, None
            words.append(0x8000 | (high & 0xFFF))
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(0x6000 | low)
        if y != row:
            row = y
            words.append(y)
        words.append(0x2000 | p << 11 | x)
    return np.array(words, "<u2")


def evt3(events: Events) -> bytes:
    return EVT3_HEADER + evt3_words(events).tobytes()


def message(
    encoding: bytes,
    payload: bytes,
    time_base: int = 0,
    seq: int = 0,
    big: bool = False,
    size=(34, 34),
) -> bytes:
    """event_camera_msgs/EventPacket as little-endian CDR."""
    body = struct.pack("<iI", 1, 2)

    def octets(data: bytes) -> None:
        nonlocal body
        body += bytes(-len(body) % 4) + struct.pack("<I", len(data)) + data

    octets(b"camera\0")
    body += bytes(-len(body) % 4) + struct.pack("<II", size[1], size[0])
    body += bytes(-len(body) % 8) + struct.pack("<QQ", seq, time_base)
    octets(encoding + b"\0")
    body += bytes([big])
    octets(payload)
    return b"\0\1\0\0" + body


def bag(messages: list[bytes], topic: str = "/events", path: Path | None = None) -> bytes:
    """A ROS 2 bag in SQLite; written to `path` too if it is given."""
    base = sqlite3.connect(":memory:")
    base.execute(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT, "
        "offered_qos_profiles TEXT)"
    )
    base.execute(
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)"
    )
    base.execute("INSERT INTO topics VALUES(1, '/other', 'std_msgs/msg/String', 'cdr', '')")
    base.execute(
        "INSERT INTO topics VALUES(2, ?, 'event_camera_msgs/msg/EventPacket', 'cdr', '')", (topic,)
    )
    base.execute("INSERT INTO messages VALUES(NULL, 1, 0, ?)", (b"not events",))
    base.executemany("INSERT INTO messages VALUES(NULL, 2, ?, ?)", list(enumerate(messages, 1)))
    base.commit()
    data = base.serialize()
    base.close()
    if path is not None:
        path.write_bytes(data)
    return data


def ros2(events: Events) -> bytes:
    payload = evt3_words(events).tobytes()
    cut = len(payload) // 4 * 2
    return bag([message(b"evt3", payload[:cut]), message(b"evt3", payload[cut:], seq=1)])


FILES = {
    "npz": npz,
    "csv": csv,
    "n-mnist": nmnist.write,
    "aedat2": lambda events: aedat2.encode(events, (128, 128)),
    "aedat3": aedat3,
    "aedat4": aedat4,
    "evt2": lambda events: evt2.encode(events, (34, 34)),
    "evt21": lambda events: evt21(events, legacy=True),
    "evt3": evt3,
    "dat": lambda events: dat.encode(events, (34, 34)),
    "es": lambda events: es.encode(events, (34, 34)),
    "ros2": ros2,
}
"""From events to a file's content, for each format that is read."""
