"""Models of events as sequences of requests: the same windows and answers as streams of spikeserve.v1."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import StreamClient
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.oip.infer import Inference
from spikeserve.oip.request import InferRequest
from spikeserve.oip.tensors import NamedTensor
from spiketrain.events.types import Events

pytest.importorskip("tritonclient.grpc")
import tritonclient.grpc as tgrpc
import tritonclient.http as thttp

OUTPUTS = ("probabilities", "firing_rates", "timesteps", "windows", "decision")


@pytest.fixture
async def server(running: Any) -> Any:
    async with running() as server:
        yield server


@pytest.fixture
def inference(server: Server) -> Inference:
    return server.inference


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, threaded_server: Server) -> Iterator[Any]:
    if request.param == "http":
        module, port = thttp, threaded_server.http_port
    else:
        module, port = tgrpc, threaded_server.grpc_port
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.module = module
        yield client


def step(client: Any, values: np.ndarray, id: int | str, **given: Any) -> dict[str, np.ndarray]:
    events = client.module.InferInput("events", list(values.shape), "INT64")
    events.set_data_from_numpy(values)
    answer = client.infer("moves", [events], sequence_id=id, **given)
    return {name: answer.as_numpy(name) for name in OUTPUTS}


def whole_sequence(client: Any, parts: list[np.ndarray], id: int | str) -> dict[str, np.ndarray]:
    answers = []
    for number, part in enumerate(parts):
        first, last = number == 0, number == len(parts) - 1
        answers.append(step(client, part, id, sequence_start=first, sequence_end=last))
    return {name: np.concatenate([each[name] for each in answers]) for name in OUTPUTS}


@pytest.mark.parametrize("id", [1, 2**63 - 1, "left camera"])
def test_a_sequence_is_answered_as_a_stream(
    client: Any, threaded_server: Server, events: Events, parts: list[np.ndarray], id: int | str
) -> None:
    got = whole_sequence(client, parts, id)
    with StreamClient(f"127.0.0.1:{threaded_server.grpc_port}") as streams:
        windows = list(streams.stream([events], model="moves", top_k=10))
    assert len(windows) == len(got["windows"]) >= 9
    for number, window in enumerate(windows):
        assert got["windows"][number].tolist() == [
            window.index,
            window.start_us,
            window.end_us,
            window.events,
        ]
        chances = {each.index: each.probability for each in window.predictions}
        assert got["probabilities"][number].tolist() == pytest.approx(
            [chances[index] for index in range(10)], abs=1e-6
        )
        rates = list(window.firing_rates.values())
        assert got["firing_rates"][number].tolist() == pytest.approx(rates, abs=1e-6)
    assert got["timesteps"].ravel().tolist() == list(range(1, len(windows) + 1))
    assert (got["decision"] == -1).all()


def test_sequences_side_by_side_keep_their_own_state(
    client: Any, threaded_server: Server, parts: list[np.ndarray]
) -> None:
    alone = whole_sequence(client, parts, 77)
    other = [part[::2] for part in parts]
    mixed: dict[int, list[Any]] = {1: [], 2: []}
    for number, (one, two) in enumerate(zip(parts, other, strict=True)):
        flags = {"sequence_start": number == 0, "sequence_end": number == len(parts) - 1}
        mixed[1].append(step(client, one, 1, **flags))
        mixed[2].append(step(client, two, 2, **flags))
    together = np.concatenate([each["probabilities"] for each in mixed[1]])
    assert np.array_equal(together, alone["probabilities"])
    assert not np.array_equal(
        np.concatenate([each["probabilities"] for each in mixed[2]]), alone["probabilities"]
    )


def test_a_request_that_closes_no_window_has_empty_outputs(client: Any, events: Events) -> None:
    few = np.array([[0, 1, 1, 1], [5, 2, 2, 0]], np.int64)
    got = step(client, few, 9, sequence_start=True)
    assert got["probabilities"].shape == (0, 10)
    assert got["windows"].shape == (0, 4)
    got = step(client, few[:0], 9, parameters={"advance_us": 30_000})
    assert got["windows"].tolist() == [[0, 0, 10_000, 2], [1, 10_000, 20_000, 0], [2, 20_000, 30_000, 0]]  # fmt: skip
    assert step(client, few[:0], 9, sequence_end=True)["windows"].shape == (0, 4)


def test_terms_of_a_stream_are_parameters_of_the_first_request(
    client: Any, parts: list[np.ndarray]
) -> None:
    terms = {
        "window": "20ms",
        "force": True,
        "decision": "vote:windows=1",
        "filter": "invert-polarity;refractory:1us",
        "sensor": "34x34",
        "start_us": 0,
    }
    got = step(client, parts[0], 3, sequence_start=True, parameters=terms)
    got = step(client, parts[1], 3, sequence_end=True)
    assert got["windows"][:, 2].tolist() == [40_000, 60_000]
    assert (got["decision"] >= 0).all()


# What can go wrong, and in which order.


def event_request(
    values: np.ndarray, id: int | str, start: bool = False, end: bool = False, **parameters: Any
) -> InferRequest:
    given = {"sequence_id": id, "sequence_start": start, "sequence_end": end} | parameters
    return InferRequest("moves", None, [NamedTensor("events", "INT64", values)], parameters=given)


def accepted(result: object) -> bool:
    """Refused is only what is not open."""
    if isinstance(result, ServiceError):
        assert "must specify the START flag" in result.message
        return False
    if isinstance(result, BaseException):
        raise result
    return True


async def refused(work: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await work
    return caught.value


async def test_each_reason_why_a_sequence_is_not_open_is_told(
    inference: Inference, parts: list[np.ndarray]
) -> None:
    error = await refused(inference.infer(event_request(parts[0], 5)))
    assert error.kind is ErrorKind.IMPOSSIBLE
    assert "must specify the START flag" in error.message
    assert "none under this id" in error.message
    await inference.infer(event_request(parts[0], 5, start=True, end=True))
    error = await refused(inference.infer(event_request(parts[1], 5)))
    assert "ended by an earlier request" in error.message
    error = await refused(inference.infer(event_request(parts[1], 5, sensor="1x1", start=True)))
    assert "1 x 1" in error.message
    error = await refused(inference.infer(event_request(parts[1], 5)))
    assert "could not be opened" in error.message


async def test_an_idle_sequence_expires_and_says_so(running: Any, parts: list[np.ndarray]) -> None:
    async with running(stream_idle_seconds=0.2) as server:
        await server.inference.infer(event_request(parts[0], "idle", start=True))
        for _ in range(1000):
            if not len(server.streams):
                break
            await asyncio.sleep(0.02)
        error = await refused(server.inference.infer(event_request(parts[1], "idle")))
        assert "nothing came for 0.2 s" in error.message


async def test_start_on_a_live_id_begins_anew(
    inference: Inference, parts: list[np.ndarray]
) -> None:
    first = await inference.infer(event_request(parts[0], 5, start=True))
    await inference.infer(event_request(parts[1], 5))
    again = await inference.infer(event_request(parts[0], 5, start=True))
    for one, two in zip(first.outputs, again.outputs, strict=True):
        assert np.array_equal(one.values, two.values)
    last = await inference.infer(event_request(parts[1], 5, end=True))
    assert last.outputs[2].values[0, 0] == len(first.outputs[2].values) + 1


async def test_requests_at_once_are_taken_in_the_order_in_which_they_came(
    server: Server, inference: Inference, parts: list[np.ndarray]
) -> None:
    requests = [
        event_request(part, 5, start=number == 0, end=number == len(parts) - 1)
        for number, part in enumerate(parts)
    ]
    answers = await asyncio.gather(*map(inference.infer, requests))
    windows = np.concatenate([answer.outputs[3].values for answer in answers])
    assert windows[:, 0].tolist() == list(range(len(windows)))
    assert len(server.streams) == 0
    error = await refused(inference.infer(event_request(parts[0], 5)))
    assert "ended by an earlier request" in error.message


async def test_a_client_that_leaves_makes_no_hole(
    inference: Inference, parts: list[np.ndarray]
) -> None:
    answers = [await inference.infer(event_request(parts[0], 5, start=True))]
    leaving = asyncio.create_task(inference.infer(event_request(parts[1], 5)))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    answers += [await inference.infer(event_request(part, 5)) for part in parts[2:]]
    indices = [answer.outputs[3].values[:, 0] for answer in answers]
    assert indices[1][0] > indices[0][-1] + 1  # those in between were computed for nobody
    timesteps = np.concatenate([answer.outputs[2].values.ravel() for answer in answers])
    assert np.array_equal(timesteps - 1, np.concatenate(indices))


async def test_the_deadline_of_a_request_is_kept(
    inference: Inference, parts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    await inference.infer(event_request(parts[0], 5, start=True))
    error = await refused(inference.infer(event_request(parts[1], 5, timeout=1)))
    assert error.kind is ErrorKind.DEADLINE
    answer = await inference.infer(event_request(parts[2], 5, end=True))
    assert answer.outputs[3].values[-1, 0] == 7


async def test_a_refused_request_leaves_the_sequence_as_it_was(
    inference: Inference, parts: list[np.ndarray]
) -> None:
    first = await inference.infer(event_request(parts[0], 5, start=True))
    bad = [
        event_request(parts[1][:, :3], 5),
        event_request(np.stack([parts[1][:4]] * 2), 5),
        event_request(np.array([[0, 70_000, 0, 0]]), 5),
        event_request(np.array([[0, 0, 0, 2]]), 5),
        event_request(np.array([[2**62, 0, 0, 1]]), 5),
        event_request(parts[1], 5, window="5ms"),
        event_request(parts[1], 5, sequence_end="yes"),
        event_request(parts[1], 5, advance_us="soon"),
        replace(event_request(parts[1], 5), version="9"),
    ]
    for request in bad:
        error = await refused(inference.infer(request))
        assert error.kind in (ErrorKind.MALFORMED, ErrorKind.IMPOSSIBLE)
    answer = await inference.infer(event_request(parts[1][None], 5, end=True))
    assert answer.outputs[2].values[0, 0] == len(first.outputs[2].values) + 1


async def test_answers_that_cannot_be_given_end_the_sequence(
    server: Server, inference: Inference, parts: list[np.ndarray]
) -> None:
    await inference.infer(event_request(parts[0], 5, start=True))
    error = await refused(inference.infer(event_request(parts[1], 5, advance_us=2**62)))
    assert error.kind is ErrorKind.IMPOSSIBLE
    error = await refused(inference.infer(event_request(parts[2], 5)))
    assert "START" in error.message
    assert len(server.streams) == 0


@pytest.mark.parametrize("id", [None, 0, "", -1, 2**64, 1.5, True, [1], "x" * 200])
async def test_what_is_no_correlation_id(
    inference: Inference, parts: list[np.ndarray], id: Any
) -> None:
    parameters = {"sequence_start": True} | ({} if id is None else {"sequence_id": id})
    request = replace(event_request(parts[0], 1), parameters=parameters)
    error = await refused(inference.infer(request))
    assert error.kind in (ErrorKind.MALFORMED, ErrorKind.IMPOSSIBLE)
    assert "sequence_id" in error.message


async def test_sequences_count_as_streams_and_are_limited(
    running: Any, parts: list[np.ndarray]
) -> None:
    async with running(max_streams=2) as server:
        for id in (1, 2):
            await server.inference.infer(event_request(parts[0], id, start=True))
        error = await refused(server.inference.infer(event_request(parts[0], 3, start=True)))
        assert error.kind is ErrorKind.UNAVAILABLE
        await server.inference.infer(event_request(parts[1], 1, end=True))
        await server.inference.infer(event_request(parts[0], 3, start=True))
        assert len(server.streams) == 2


async def test_events_count_for_the_quota_and_the_sequence_ends_beyond_it(
    running: Any, parts: list[np.ndarray]
) -> None:
    async with running(events_per_second=1) as server:
        # More than a second's worth at once is granted, and paid for by what comes later.
        await server.inference.infer(event_request(parts[0], 1, start=True))
        error = await refused(server.inference.infer(event_request(parts[1], 1)))
        assert error.kind is ErrorKind.OVER_QUOTA
        assert error.retry_after is not None
        error = await refused(server.inference.infer(event_request(parts[2], 1)))
        assert "takes 1 events a second" in error.message
        assert len(server.streams) == 0


async def test_a_model_that_is_replaced_goes_on_for_sequences_that_began_with_it(
    running: Any, parts: list[np.ndarray]
) -> None:
    async with running(drain_seconds=0.1) as server:
        first = await server.inference.infer(event_request(parts[0], 1, start=True))
        await asyncio.to_thread(server.repository.unload, "moves")
        with pytest.raises(ServiceError, match="no model 'moves'"):
            await server.inference.infer(event_request(parts[0], 2, start=True))
        last = await server.inference.infer(event_request(parts[1], 1, end=True))
        assert last.outputs[2].values[0, 0] == len(first.outputs[2].values) + 1
        with pytest.raises(ServiceError, match="no model 'moves'"):
            await server.inference.infer(event_request(parts[1], 1))


async def test_a_message_of_too_many_events_is_refused(
    running: Any, parts: list[np.ndarray]
) -> None:
    async with running(max_message_events=100) as server:
        await server.inference.infer(event_request(parts[0][:100], 1, start=True))
        error = await refused(server.inference.infer(event_request(parts[1], 1)))
        assert error.kind is ErrorKind.TOO_LARGE
        assert "the limit is 100" in error.message
        await server.inference.infer(event_request(parts[1][:100], 1))


async def test_random_orders_of_flags_never_leave_a_stream_behind(
    server: Server, inference: Inference, parts: list[np.ndarray]
) -> None:
    """Against the rule in plain words: open from a start to an end, whatever comes in between."""
    random = np.random.default_rng(3)
    for _ in range(6):
        live: set[int] = set()
        requests, allowed = [], []
        for id, part in zip(
            random.integers(1, 4, 40).tolist(), itertools.cycle(parts), strict=False
        ):
            start, end = random.random(2) < 0.4
            allowed.append(bool(start) or id in live)
            if start:
                live.add(id)
            if end:
                live.discard(id)
            requests.append(
                event_request(part[:20], id, start=bool(start), end=bool(end), advance_us=0)
            )
        results = await asyncio.gather(*map(inference.infer, requests), return_exceptions=True)
        assert list(map(accepted, results)) == allowed
        assert len(server.streams) == len(live)
        closing = [event_request(parts[0][:0], id, end=True) for id in live]
        await asyncio.gather(*map(inference.infer, closing))
    assert len(server.streams) == 0
