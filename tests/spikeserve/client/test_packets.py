from __future__ import annotations

import asyncio

import numpy as np
import pytest

from spikeserve.client import Advance, Packet, cut, paced
from spiketrain.events.types import Events


def at(*times: int) -> Events:
    zeros = np.zeros(len(times), np.uint16)
    return Events(np.array(times, np.int64), zeros, zeros, zeros.astype(np.uint8))


def told(packets: list[Packet]) -> list[object]:
    return [
        packet.time_us if isinstance(packet, Advance) else packet.t.tolist() for packet in packets
    ]


def test_a_recording_is_cut_by_time_with_the_time_reached_between() -> None:
    packets = list(cut(at(100, 105, 110, 139), packet_us=10))
    assert told(packets) == [[100, 105], 110, [110], 120, 130, [139]]


def test_a_packet_has_no_more_events_than_it_may() -> None:
    packets = list(cut(at(*range(10)), packet_us=100, max_events=4))
    assert told(packets) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_long_silence_is_not_told_in_full() -> None:
    packets = list(cut(at(0, 10**15), packet_us=10))
    assert len(packets) == 103
    assert told(packets)[-2:] == [1010, [10**15]]


def test_events_out_of_order_are_sorted() -> None:
    assert told(list(cut(at(5, 1, 3), packet_us=10))) == [[1, 3, 5]]


def test_nothing_gives_nothing() -> None:
    assert list(cut(Events.empty())) == []


@pytest.mark.parametrize(("packet_us", "max_events"), [(0, 1), (1 << 32, 1), (1, 0)])
def test_packets_that_cannot_be_are_refused(packet_us: int, max_events: int) -> None:
    with pytest.raises(ValueError, match="cannot be made"):
        list(cut(at(1), packet_us, max_events))


async def test_a_pace_is_kept_by_the_clock_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    clock = 0.0
    slept = []

    async def sleep(seconds: float) -> None:
        nonlocal clock
        slept.append(round(seconds, 9))
        clock += max(seconds, 0.0)

    monkeypatch.setattr(loop, "time", lambda: clock)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    packets = [at(1_000_000, 1_200_000), Advance(1_300_000), at(1_400_000)]
    sent = [packet async for packet in paced(packets, speed=2)]
    monkeypatch.undo()
    assert sent == packets
    assert slept == [0.1, 0.05, 0.05]


async def test_a_speed_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        await anext(paced([], 0))
