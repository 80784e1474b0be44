"""The Python clients, plain and asyncio, against a real server in a thread or a loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import (
    Advance,
    AsyncClient,
    AsyncStreamClient,
    Client,
    Packet,
    ServerError,
    StreamClient,
    UnreachableError,
    cut,
)
from spiketrain.events.types import Events


@pytest.fixture
def url(threaded_server: Server) -> str:
    return f"http://127.0.0.1:{threaded_server.http_port}"


@pytest.fixture
def target(threaded_server: Server) -> str:
    return f"127.0.0.1:{threaded_server.grpc_port}"


@pytest.fixture
def events() -> Events:
    random = np.random.default_rng(0)
    t = np.sort(random.integers(0, 100_000, 5000))
    x, y = random.integers(0, 34, (2, 5000)).astype(np.uint16)
    return Events(t, x, y, random.integers(0, 2, 5000).astype(np.uint8))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_picture_is_classified_from_bytes_and_from_a_path(
    url: str, png: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png)
    with Client(url) as client:
        answers = [client.classify(each, top_k=3, rates=False) for each in (png, path, str(path))]
    assert len({answer.predictions for answer in answers}) == 1
    answer = answers[0]
    assert (answer.model, answer.version, answer.timesteps_used, answer.timesteps_of) == (
        "pictures",
        "2",
        4,
        4,
    )
    assert len(answer.predictions) == 3
    assert answer.best == answer.predictions[0]
    assert answer.firing_rates == {}
    assert set(answer.timing_seconds) == {"decode", "queue", "compute"}


def test_models_and_health_can_be_asked_for(url: str) -> None:
    with Client(url + "/") as client:
        assert client.ready()
        models = client.models()
        assert [(each.name, each.version, each.input) for each in models] == [
            ("moves", "1", "events"),
            ("pictures", "1", "image"),
            ("pictures", "2", "image"),
        ]
        assert models[0].shape == (2, 34, 34)
        assert client.model("pictures", version="1")["manifest"]["name"] == "pictures"


async def test_the_asyncio_client_does_the_same(url: str, png: bytes) -> None:
    async with AsyncClient(url) as client:
        answers = await asyncio.gather(*(client.classify(png, timesteps=2) for _ in range(8)))
        assert len({answer.predictions for answer in answers}) == 1
        assert answers[0].timesteps_used == 2
        assert await client.ready()
        assert len(await client.models()) == 3
        assert (await client.model("moves"))["input"] == "events"
        with pytest.raises(ServerError, match="'nope'"):
            await client.model("nope")


def test_what_the_server_refuses_is_raised_with_its_words(url: str) -> None:
    with Client(url) as client, pytest.raises(ServerError) as caught:
        client.classify(b"text")
    error = caught.value
    assert (error.status, error.title, error.kind) == (
        415,
        "Unsupported content",
        "unsupported-media",
    )
    assert "not a picture" in error.detail
    assert error.request_id
    assert str(error) == f"{error.title}: {error.detail}"


def test_a_model_name_cannot_leave_its_place_in_the_path(url: str) -> None:
    with Client(url) as client, pytest.raises(ServerError) as caught:
        client.model("../health/ready")
    assert caught.value.status == 404


def test_where_nobody_answers_is_said_so(png: bytes) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(UnreachableError, match=url):
        client.classify(png)


def test_another_kind_of_server_is_noticed(png: bytes) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 20)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
            )

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with client, pytest.raises(UnreachableError, match="not as a spikeserve server does"):
            client.models()
        thread.join()


def test_a_server_that_is_silent_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, timeout=0.2) as client, pytest.raises(UnreachableError, match="in time"):
            client.models()


def test_what_is_no_url_is_refused() -> None:
    with Client("nonsense") as client, pytest.raises(UnreachableError, match="nonsense"):
        client.models()


def test_events_are_streamed(target: str, events: Events) -> None:
    with StreamClient(target) as client:
        stream = client.stream(cut(events), model="moves", sensor=(34, 34), start_us=0)
        windows = list(stream)
    assert [window.index for window in windows] == list(range(10))
    assert sum(window.events for window in windows) == len(events)
    assert windows[0].best == windows[0].predictions[0]
    assert windows[-1].sequence == 10
    assert list(windows[0].firing_rates) == ["stages.0.neuron", "stages.1.neuron"]
    assert stream.opened is not None
    assert (stream.opened.model, stream.opened.sensor, stream.opened.window_us) == (
        "moves",
        (34, 34),
        10_000,
    )
    assert stream.ended is not None
    assert (stream.ended.windows, stream.ended.events, bool(stream.ended.drops)) == (
        10,
        5000,
        False,
    )


async def test_the_asyncio_stream_takes_plain_and_asynchronous_packets(
    target: str, events: Events
) -> None:
    async def packets():
        for packet in cut(events):
            yield packet

    async with AsyncStreamClient(target) as client:
        plain = [window.predictions async for window in client.stream(cut(events), start_us=0)]
        other = [window.predictions async for window in client.stream(packets(), start_us=0)]
    assert plain == other
    assert len(plain) == 10


async def test_answers_come_while_the_stream_goes_on(target: str, events: Events) -> None:
    answered: asyncio.Queue[int] = asyncio.Queue()

    async def packets():
        for end_us in range(10_000, 110_000, 10_000):
            yield events[(events.t >= end_us - 10_000) & (events.t < end_us)]
            yield Advance(end_us)
            async with asyncio.timeout(30):
                assert await answered.get() == end_us

    async with AsyncStreamClient(target) as client:
        async for window in client.stream(packets(), start_us=0):
            answered.put_nowait(window.end_us)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"model": "nope"}, 404, "'nope'"),
        ({"model": "pictures"}, 422, "takes pictures"),
        ({"sensor": (1, 2)}, 422, "1 x 2"),
    ],
)
def test_a_stream_that_is_refused_raises_what_rest_would(
    target: str, events: Events, options: dict[str, object], status: int, said: str
) -> None:
    with StreamClient(target) as client, pytest.raises(ServerError) as caught:
        list(client.stream(cut(events), **options))
    assert caught.value.status == status
    assert said in caught.value.detail
    assert caught.value.request_id


def failing(events: Events) -> Iterator[Packet]:
    yield events
    raise KeyError("the camera was unplugged")


def test_what_the_packets_raise_is_what_the_caller_gets(target: str, events: Events) -> None:
    with StreamClient(target) as client, pytest.raises(KeyError, match="unplugged"):
        list(client.stream(failing(events)))


async def test_what_the_packets_raise_is_what_the_asyncio_caller_gets(
    target: str, events: Events
) -> None:
    async with AsyncStreamClient(target) as client:
        with pytest.raises(KeyError, match="unplugged"):
            async for _ in client.stream(failing(events)):
                pass


def test_a_stream_to_nobody_is_said_so(events: Events) -> None:
    target = f"127.0.0.1:{free_port()}"
    with StreamClient(target) as client, pytest.raises(UnreachableError, match=target):
        list(client.stream(cut(events)))


def test_a_stream_can_be_given_up(target: str, threaded_server: Server, events: Events) -> None:
    blocked = threading.Event()

    def endless() -> Iterator[Packet]:
        yield events
        blocked.wait(60)

    with StreamClient(target) as client:
        stream = client.stream(endless(), start_us=0)
        assert next(stream).index == 0
        stream.cancel()
        with pytest.raises(ServerError, match="Cancelled"):
            list(stream)
    blocked.set()

    def open_streams() -> float | None:
        return threaded_server.metrics.registry.get_sample_value("spikeserve_open_streams")

    # Longer than a stream waits for its client, so that one of another test cannot be in the way.
    for _ in range(1200):
        if open_streams() == 0:
            return
        threading.Event().wait(0.05)
    pytest.fail("the server kept the stream")
