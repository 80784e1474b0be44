"""Each format's bytes, written out, and what is special to it."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from spiketrain.events import EventFormatError, Events, read_recording
from spiketrain.events.formats import aedat2, dat, es, evt2, open_recording

sys.path.insert(0, str(Path(__file__).parent))
from event_files import (
    AEDAT3_HEADER,
    aedat3_packet,
    aedat4,
    bag,
    evt3_words,
    evt21,
    message,
    some,
)


def rows(events: Events) -> list[tuple[int, int, int, int]]:
    return list(zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True))


# AEDAT 2.0

DVS128 = b"#!AER-DAT2.0\r\n# AEChip: ch.unizh.ini.jaer.chip.retina.DVS128\r\n"


def test_aedat2_dvs128_bits():
    data = struct.pack(">6I", 0x7F00 | 3 << 1 | 1, 5, 1 << 8 | 127 << 1, 2**32 - 1, 0x8000, 9)
    with open_recording(DVS128 + data) as recording:
        assert recording.sensor == (128, 128)
        # The second is later by almost half a clock's range and more; that is an event from before a wrap.
        assert rows(recording.read()) == [(5, 3, 127, 1), (-1, 127, 1, 0)]


def test_aedat2_davis_by_header_and_by_name():
    data = struct.pack(">6I", 200 << 22 | 300 << 12 | 1 << 11, 5, 1 << 31, 6, 0x400, 7)
    header = b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.Davis346blue\r\n"
    for content, name in (
        (header + data, None),
        (DVS128 + data, "aedat2-davis"),
        (data, "aedat2-davis"),
    ):
        assert rows(read_recording(content, name)) == [(5, 300, 200, 1)]
    with open_recording(header + data) as recording:
        assert recording.sensor == (346, 260)
    assert read_recording(header + data, "aedat2-dvs128").x.tolist() == [0, 0]


def test_aedat2_wraps_after_71_minutes():
    t = [2**32 - 10, 3, 7, 2**31, 2**32 - 1, 0]
    data = b"".join(struct.pack(">2I", 0, value) for value in t)
    assert (
        np.diff(read_recording(DVS128 + data).t).tolist()
        == np.diff([-10, 3, 7, 2**31, 2**32 - 1, 2**32]).tolist()
    )


def test_aedat2_first_record_that_looks_like_a_comment():
    # '#' is the top byte of an address of a DAVIS.
    data = struct.pack(">2I", 0x23000000 | 9 << 12 | 1 << 11, 5)
    events = read_recording(b"#!AER-DAT2.0\r\n# AEChip: DAVIS240C\r\n" + data)
    assert rows(events) == [(5, 9, 0x23000000 >> 22, 1)]


def test_aedat2_is_written_for_a_davis_where_it_must_be():
    events = some(100, size=(240, 180))
    content = aedat2.encode(events, (240, 180))
    with open_recording(content) as recording:
        assert recording.sensor == (240, 180)
        assert recording.read().equals(events)
    assert aedat2.encode(some(9)).find(b"DVS128") > 0


# AEDAT 3.1


def test_aedat3_overflows_invalid_events_and_other_packets():
    events = some(20)
    invalid = bytearray(aedat3_packet(events[:2]))
    invalid[28] &= 0xFE
    frame = struct.pack("<HHIIIIII", 2, 1, 100, 4, 0, 1, 1, 1) + bytes(100)
    other_camera = aedat3_packet(events, source=2)
    content = (
        AEDAT3_HEADER + bytes(invalid) + frame + other_camera + aedat3_packet(events, overflows=3)
    )
    read = read_recording(content)
    assert rows(read[:1]) == rows(events[1:2])
    assert (read.t[1:] - events.t).tolist() == [3 << 31] * 20
    assert read_recording(content, stream="2").equals(events)
    with pytest.raises(EventFormatError, match=r"stream 'left' is no AEDAT 3\.1 source"):
        open_recording(content, stream="left")


def test_aedat3_number_counts_and_not_capacity():
    events = some(4)
    packet = bytearray(aedat3_packet(events))
    struct.pack_into("<I", packet, 16, 400)
    assert read_recording(AEDAT3_HEADER + bytes(packet)).equals(events)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.replace(b"Format: RAW", b"Format: SerializedTS"), "compressed"),
        (lambda b: b.replace(b"#!END-HEADER\r\n", b""), "no AEDAT 3.1 header"),
        (lambda b: b[:-28], "lacks 28 of its 240 bytes"),
        (lambda b: b + bytes(9), "after packet 1 there are 9 of a packet header's 28"),
        (lambda b: b + b"\xff" * 28, "packet 1 has type 65535"),
    ],
)
def test_aedat3_faults(change, message):
    with pytest.raises(EventFormatError, match=message):
        read_recording(change(AEDAT3_HEADER + aedat3_packet(some(30))), "aedat3")


# AEDAT 4


def test_aedat4_packed_by_lz4_and_zstandard():
    events = some(2000)
    lz4 = pytest.importorskip("lz4.frame")
    assert read_recording(aedat4(events, 1, lz4.compress)).equals(events)
    zstandard = pytest.importorskip("zstandard")
    assert read_recording(aedat4(events, 3, zstandard.ZstdCompressor().compress)).equals(events)


@pytest.mark.parametrize(("compression", "name"), [(1, "lz4"), (3, "zstandard")])
def test_aedat4_says_what_to_install(compression, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.frame", None)
    with pytest.raises(EventFormatError, match=rf'package {name} is not .*"spikeserve\[events\]"'):
        open_recording(aedat4(some(5), compression))


def test_aedat4_bombs_are_not_unpacked():
    lz4, zstandard = pytest.importorskip("lz4.frame"), pytest.importorskip("zstandard")
    for compression, pack in ((1, lz4.compress), (3, zstandard.ZstdCompressor().compress)):
        bomb = pack(bytes(100_000_000))
        with pytest.raises(EventFormatError, match="unpacks to more than the allowed"):
            read_recording(aedat4(some(5), compression, lambda _, bomb=bomb: bomb))


def test_aedat4_faults():
    good = aedat4(some(40))
    with pytest.raises(EventFormatError, match="names no stream of events"):
        open_recording(good.replace(b"EVTS</attr>", b"TRIG</attr>"))
    with pytest.raises(EventFormatError, match="no event stream '0'; there are 1"):
        open_recording(good, stream="0")
    with pytest.raises(EventFormatError, match="unknown method"):
        open_recording(aedat4(some(5), compression=9))
    with pytest.raises(EventFormatError, match=r"lacks 10 of its .* truncated") as caught:
        read_recording(good[:-10])
    assert caught.value.events_read == 20


# EVT 2.0 and 2.1


def test_evt2_words():
    words = [
        0x10000000,
        8 << 28 | 3,
        1 << 28 | 5 << 22 | 7 << 11 | 9,
        0xA << 28,
        8 << 28 | 4,
        6 << 22 | 1,
    ]
    content = b"% evt 2.0\n% end\n" + np.array(words, "<u4").tobytes()
    assert rows(read_recording(content)) == [(3 * 64 + 5, 7, 9, 1), (4 * 64 + 6, 0, 1, 0)]


def test_evt2_time_high_wraps_after_five_hours():
    words = [8 << 28 | 0xFFFFFFF, 63 << 22, 8 << 28, 0, 8 << 28 | 1, 0]
    content = b"% evt 2.0\n" + np.array(words, "<u4").tobytes()
    assert read_recording(content).t.tolist() == [2**34 - 1, 2**34, 2**34 + 64]


@pytest.mark.parametrize(
    ("lines", "sensor"),
    [
        ("% evt 2.0\n% geometry 640x480\n", (640, 480)),
        ("% format EVT2;height=240;width=320\n", (320, 240)),
        ("% evt 2.0\n% width 10\n% height 20\n", (10, 20)),
        ("% evt 2.0\n% geometry 640xmany\n", None),
        ("% evt 2.0\n% geometry 0x480\n", None),
    ],
)
def test_evt2_sensor_in_the_header(lines, sensor):
    with open_recording(lines.encode() + struct.pack("<I", 8 << 28)) as recording:
        assert (recording.format, recording.sensor) == ("evt2", sensor)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_evt21_in_both_byte_orders(legacy, header):
    events = some(500, size=(640, 480))
    content = evt21(events, legacy, header)
    with open_recording(content) as recording:
        assert recording.format == "evt21"
        assert recording.read().equals(events)


def test_evt21_vectors():
    word = 1 << 28 | 5 << 22 | 100 << 11 | 9
    content = b"% evt 2.1\n" + struct.pack("<4I", 0, 8 << 28 | 2, 0x80000011, word)
    assert rows(read_recording(content)) == [(133, x, 9, 1) for x in (100, 104, 131)]
    with pytest.raises(EventFormatError, match="endianness=middle"):
        open_recording(b"% format EVT21;endianness=middle\n" + bytes(8))


# DAT


def test_dat_of_ncars():
    header = b"% Data file containing Event2D events.\n% Version 2\n% Date 2016-04-19 13:55:30\n"
    data = struct.pack("<4I", 5, 1 << 28 | 9 << 14 | 7, 2**32 - 1, 119)
    with open_recording(header + b"\x00\x08" + data) as recording:
        assert (recording.format, recording.sensor) == ("dat", None)
        assert rows(recording.read()) == [(5, 7, 9, 1), (-1, 119, 0, 0)]


def test_dat_faults():
    content = dat.encode(some(3))
    with pytest.raises(EventFormatError, match="version 1 of DAT"):
        open_recording(content.replace(b"Version 2", b"Version 1"))
    with pytest.raises(EventFormatError, match=r"type 0x28 with 8 bytes; read are"):
        open_recording(content.replace(b"\x0c\x08", b"\x28\x08"))
    with pytest.raises(EventFormatError, match="the header says EVT2"):
        open_recording(b"% evt 2.0\n\x00\x08", "dat")


@pytest.mark.parametrize(
    ("encode", "bits"), [(aedat2.encode, 32), (dat.encode, 32), (evt2.encode, 34)]
)
def test_writers_refuse_times_that_would_not_come_back(encode, bits):
    def at(*t: int) -> Events:
        zeros = np.zeros(len(t), np.uint16)
        return Events(np.array(t), zeros, zeros, zeros.astype(np.uint8))

    edge = at(0, 1 << (bits - 1), (1 << bits) - 1)
    assert read_recording(encode(edge)).equals(edge)
    for wrong in (at(-1), at(1 << bits)):
        with pytest.raises(ValueError, match="holds times from 0 to"):
            encode(wrong)
    with pytest.raises(ValueError, match="a gap of"):
        encode(at(0, (1 << (bits - 1)) + 1))
    far = Events(np.zeros(1, np.int64), *(np.full(1, 60000, np.uint16),) * 2, np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match=r"write an \.npz"):
        encode(far)


# ES


def test_es_pauses_padding_and_bytes_that_look_like_them():
    header = b"Event Stream" + bytes([2, 0, 0, 1]) + struct.pack("<HH", 300, 300)
    data = bytes([0xFE, 5 << 1 | 1, 0xFF, 0, 0xFE, 0, 0xFF, 0xFF, 0xFE, 2 << 1, 0, 1, 0, 0])
    events = read_recording(header + data)
    assert rows(events) == [(5, 255, 254, 1), (5 + 254 + 2, 256, 0, 0)]


def test_es_long_pauses_round_trip_cut_anywhere():
    events = some(200, size=(256, 256), span=10_000_000)
    content = es.encode(events, (256, 256))
    for block in (1, 3, 1000):
        decoder = es.EsDecoder((256, 256))
        data = content[20:]
        parts = [decoder.feed(data[i : i + block]) for i in range(0, len(data), block)]
        decoder.finish()
        assert Events.concatenate(parts).equals(events)


def test_es_faults():
    content = es.encode(some(20), (34, 34))
    for kind, name in ((0, "generic"), (2, "ATIS"), (3, "colour"), (9, "unknown")):
        with pytest.raises(EventFormatError, match=f"holds {name}.*DVS events are read"):
            open_recording(content[:15] + bytes([kind]) + content[16:])
    with pytest.raises(EventFormatError, match=r"Event Stream 1\.0\.0; 2 is read"):
        open_recording(content[:12] + b"\1" + content[13:])
    outside = es.encode(some(200), (34, 34)).replace(
        struct.pack("<HH", 34, 34), struct.pack("<HH", 30, 34), 1
    )
    with pytest.raises(EventFormatError, match="is outside the sensor of 30x34") as caught:
        read_recording(outside)
    assert 0 < caught.value.events_read < 200
    with pytest.raises(ValueError, match="sort the events"):
        es.encode(some(9)[np.arange(8, -1, -1)], (34, 34))


# ROS 2


def words(events: Events) -> bytes:
    return aedat3_packet(events)[28:]


def test_ros2_libcaer_wraps_within_a_message_and_between_messages():
    t = np.array([2**31 - 2, 2**31 - 1, 0, 1, 2, 3])
    events = Events(t, *(np.arange(6, dtype=np.uint16),) * 2, np.ones(6, np.uint8))
    base = 1_700_000_000_000_000_000
    later = base + (1000 << 31)
    content = bag(
        [
            message(b"libcaer", words(events[:3]), base),
            message(b"libcaer", words(events[3:]), later, 1),
        ]
    )
    assert np.diff(read_recording(content).t).tolist() == [1] * 5
    assert int(read_recording(content).t[0]) == base // 1000 + 2**31 - 2


def test_ros2_mono_is_in_nanoseconds():
    word = 1 << 63 | 9 << 48 | 7 << 32 | 2400
    for order, big in (("<", False), (">", True)):
        content = bag([message(b"mono", struct.pack(f"{order}Q", word), 5600, big=big)])
        assert rows(read_recording(content)) == [(8, 7, 9, 1)]


def test_ros2_evt3_in_either_byte_order():
    events = some(50)
    content = bag([message(b"evt3", evt3_words(events).byteswap().tobytes(), big=True)])
    with open_recording(content) as recording:
        assert recording.sensor == (34, 34)
        assert recording.read().equals(events)


def test_ros2_folder_of_several_files(tmp_path):
    events = some(90)
    payload = evt3_words(events).tobytes()
    cut = len(payload) // 4 * 2
    bag([message(b"evt3", payload[:cut])], path=tmp_path / "bag_0.db3")
    bag([message(b"evt3", payload[cut:])], path=tmp_path / "bag_1.db3")
    metadata = tmp_path / "metadata.yaml"
    with pytest.raises(EventFormatError, match=r"has no metadata\.yaml"):
        open_recording(tmp_path)
    listing = "info:\n  storage_identifier: sqlite3\n  relative_file_paths:\n"
    metadata.write_text(f"{listing}    - bag_0.db3\n    - 'bag_1.db3'\n  duration: 1\n")
    assert read_recording(tmp_path).equals(events)
    assert len(read_recording(tmp_path / "bag_0.db3")) < len(events)
    metadata.write_text(f"{listing}    - bag_0.db3\n    - bag_2.db3\n")
    with pytest.raises(EventFormatError, match=r"bag_2\.db3, which is not there") as caught:
        read_recording(tmp_path)
    assert caught.value.events_read > 0
    for text, message_ in (
        ("storage_identifier: mcap\n", "MCAP"),
        ('compression_mode: "FILE"\n', "compressed"),
        ("nothing: here\n", "names no files"),
    ):
        metadata.write_text(text)
        with pytest.raises(EventFormatError, match=message_):
            open_recording(tmp_path)


def test_ros2_topics_and_other_databases(tmp_path):
    content = bag([message(b"trigger", b"12345678")], topic="/left")
    assert len(read_recording(content, stream="/left")) == 0
    with pytest.raises(EventFormatError, match="no topic '/right' of events; it has /left"):
        open_recording(content, stream="/right")
    with pytest.raises(EventFormatError, match="no topic of event_camera_msgs"):
        open_recording(content.replace(b"event_camera_msgs/msg/EventPacket", b"x" * 33))
    with pytest.raises(EventFormatError, match="no tables topics and messages"):
        open_recording(content.replace(b"messages", b"massages"))
    with pytest.raises(EventFormatError, match="encoded as 'libcaer_cmp'; read are evt3"):
        read_recording(bag([message(b"libcaer_cmp", b"12")]))
    good = message(b"mono", bytes(8))
    with pytest.raises(EventFormatError, match=r"message 3: .* no whole 8-byte words") as caught:
        read_recording(bag([good, message(b"mono", b"12")]))
    assert caught.value.events_read == 1
    with pytest.raises(
        EventFormatError, match=r"message 3: it has 20 bytes, and in them a field that says 7"
    ) as caught:
        read_recording(bag([good, good[:20]]))
    assert caught.value.events_read == 1


def test_a_bag_is_not_written_to(tmp_path):
    path = tmp_path / "bag_0.db3"
    bag([message(b"mono", bytes(8))], path=path)
    path.chmod(0o444)
    before = path.read_bytes()
    assert len(read_recording(path)) == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# N-MNIST


def test_nmnist_wraps_after_eight_seconds_cut_anywhere(tmp_path):
    from spiketrain.events.formats.nmnist import NmnistDecoder

    data = b"".join(
        bytes([1, y]) + struct.pack(">I", t)[1:]
        for t, y in ((0x7FFFF0, 2), (5, 2), (6, 240), (7, 2), (0x7FFFFF, 2), (0, 3))
    )
    expected = [0x7FFFF0, 2**23 + 5, 2**23 + 7 + 8192, 2**24 - 1 + 8192, 2**24 + 8192]
    for block in (1, 7, 100):
        decoder = NmnistDecoder()
        parts = [decoder.feed(data[i : i + block]) for i in range(0, len(data), block)]
        assert Events.concatenate(parts).t.tolist() == expected


# CSV


def test_csv_says_which_line_is_wrong_and_keeps_those_before():
    lines = [f"{t},1,2,0" for t in range(1000)]
    for bad, message_ in (("7,1,2", r"line 702\)"), ("7,1,70000,0", "column y has values")):
        text = "\n".join(["t,x,y,p", *lines[:700], bad, *lines[700:]]).encode()
        with pytest.raises(EventFormatError, match=message_) as caught:
            read_recording(text)
        assert caught.value.events.t.tolist() == list(range(700))
    with pytest.raises(EventFormatError, match="has more than 4096 bytes"):
        read_recording(b"t,x,y,p\n" + b"1" * 300_000)
