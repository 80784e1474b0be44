"""What becomes of the answers of a client that does not read, by policy. Writing is a gate here that the test opens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.settings import SettingsError, load_settings
from spikeserve.streams import Outlet, Refusal, SlowClientError, StreamOptions, WindowAnswer
from spikeserve.streams.terms import slow_policy
from spiketrain.events import wire

NOBODY = WindowAnswer("m", "1", 0, 0, 1, 0, (), (), {}, 0, 0.0, 0, 0, 0, 0.0)


def answers(*indices: int) -> list[WindowAnswer]:
    return [replace(NOBODY, index=index) for index in indices]


class Client:
    """Takes what is written once its gate is open."""

    def __init__(self, policy: str, **settings: Any) -> None:
        self.gate = asyncio.Event()
        self.seen: list[Any] = []
        self.metrics = Metrics()
        terms = (StreamOptions(slow=policy), wire.Encoding.COLUMNS_V1)  # type: ignore[arg-type]
        self.session: Any = SimpleNamespace(terms=terms, dropped_answers=0, refused_messages=0)
        given = {"max_waiting_answers": 4, "slow_seconds": 0} | settings
        self.outlet = Outlet(self.session, load_settings(**given), self.metrics, self._write)

    async def _write(self, item: WindowAnswer | Refusal) -> None:
        await self.gate.wait()
        self.seen.append(item.index if isinstance(item, WindowAnswer) else item)

    def count(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"spikeserve_{name}_total", labels)


async def sent(client: Client, *indices: int) -> None:
    """As a message that closes these windows."""
    assert await client.outlet.admits()
    await client.outlet.send(answers(*indices))
    await asyncio.sleep(0)  # the writer takes the first, and waits with it


async def test_the_oldest_answers_are_dropped_and_counted() -> None:
    client = Client("drop-oldest")
    for index in range(20):
        await sent(client, index)
    client.gate.set()
    await client.outlet.flush()
    # One is with the transport; four waited when the last but one came, of which one made room.
    assert client.seen == [0, 16, 17, 18, 19]
    assert client.session.dropped_answers == 15 == client.count("stream_answers_dropped")
    client.outlet.close()


async def test_messages_are_refused_until_the_client_reads() -> None:
    client = Client("refuse")
    await sent(client, 0)
    await sent(client, 1, 2, 3, 4)
    assert [await client.outlet.admits(number) for number in (3, 4, 5)] == [False] * 3
    client.gate.set()
    await client.outlet.flush()
    *windows, refusal = client.seen
    assert windows == [0, 1, 2, 3, 4]
    assert (refusal.messages, refusal.first_sequence, refusal.last_sequence) == (3, 3, 5)
    assert refusal.error.kind is ErrorKind.OVER_QUOTA
    assert "SPIKESERVE_MAX_WAITING_ANSWERS" in refusal.error.message
    assert client.session.refused_messages == 3 == client.count("stream_messages_refused")
    await sent(client, 5)
    await client.outlet.flush()
    assert client.seen[-1] == 5
    client.outlet.close()


async def test_refusals_do_not_pile_up() -> None:
    client = Client("refuse")
    await sent(client, 0)
    await sent(client, 1, 2, 3, 4)
    for number in range(1000):
        assert not await client.outlet.admits(number)
    assert len(client.outlet._waiting) == 5
    client.outlet.close()


async def test_the_connection_is_ended() -> None:
    client = Client("close")
    await sent(client, 0)
    await sent(client, 1, 2, 3, 4)
    with pytest.raises(SlowClientError, match="does not read") as caught:
        await client.outlet.admits()
    assert caught.value.kind is ErrorKind.OVER_QUOTA
    assert client.count("streams_ended", reason="slow") == 1
    client.outlet.close()


async def test_nothing_more_is_taken_before_the_answers_are_written() -> None:
    client = Client("wait")
    sending = asyncio.create_task(client.outlet.send(answers(*range(10))))
    await asyncio.sleep(0)
    assert not sending.done()
    client.gate.set()
    await sending
    assert client.seen == list(range(10))
    client.outlet.close()


@pytest.mark.parametrize("policy", ["drop-oldest", "refuse", "close"])
async def test_a_client_that_reads_is_not_slow_however_many_windows_a_message_closes(
    policy: str,
) -> None:
    client = Client(policy, slow_seconds=60)
    client.gate.set()
    for begin in (0, 1000, 2000):
        await sent(client, *range(begin, begin + 1000))
    await client.outlet.flush()
    assert client.seen == list(range(3000))
    client.outlet.close()


async def test_what_writing_raises_is_told() -> None:
    client = Client("drop-oldest")

    async def broken(item: object) -> None:
        raise ConnectionResetError("gone")

    client.outlet._write = broken
    await client.outlet.send(answers(0))
    assert isinstance(await client.outlet.failed, ConnectionResetError)
    client.outlet.close()


def test_a_stream_may_choose_what_the_server_allows() -> None:
    settings = load_settings(slow_clients="close", slow_clients_allowed="refuse wait")
    assert slow_policy(StreamOptions(), settings) == "close"
    assert slow_policy(StreamOptions(slow="close"), settings) == "close"
    assert slow_policy(StreamOptions(slow="refuse"), settings) == "refuse"
    with pytest.raises(ServiceError, match="allows close, refuse, wait") as caught:
        slow_policy(StreamOptions(slow="drop-oldest"), settings)
    assert caught.value.kind is ErrorKind.IMPOSSIBLE
    with pytest.raises(SettingsError, match="slow_clients"):
        load_settings(slow_clients="shout")
