"""Requests that are sent once more: after a broken connection, a gateway's 502 and a refusal for now; never for ever."""

from __future__ import annotations

import grpc
import httpx
import pytest

from spikeserve.app import Server
from spikeserve.client import RETRY_OPTIONS, AsyncClient, Client, ServerError, UnreachableError
from spikeserve.client import retries as client_retries
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub

MODELS = httpx.Response(200, json={"models": []})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_retries, "_FIRST_PAUSE", 0.001)


def answering(*outcomes: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[int]]:
    left, asked = list(outcomes), []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(1)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        # A response can be sent once.
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)

    return httpx.MockTransport(answer), asked


FAILURES = (
    httpx.ReadError("reset"),
    httpx.RemoteProtocolError("closed"),
    httpx.Response(502, text="<html>"),
    httpx.Response(503, json={"title": "Not available now"}, headers={"retry-after": "0"}),
)


@pytest.mark.parametrize("failure", FAILURES, ids=["reset", "closed", "502", "503"])
async def test_a_request_is_sent_again(failure: httpx.Response | Exception) -> None:
    transport, asked = answering(failure, failure, MODELS)
    with Client() as client:
        client._http = httpx.Client(transport=transport)
        assert client.models() == []
    assert len(asked) == 3
    transport, asked = answering(failure, MODELS)
    async with AsyncClient() as other:
        other._http = httpx.AsyncClient(transport=transport)
        assert await other.models() == []
    assert len(asked) == 2


def test_but_not_for_ever() -> None:
    transport, asked = answering(*[httpx.ReadError("reset")] * 5)
    with Client(retries=1) as client:
        client._http = httpx.Client(transport=transport)
        with pytest.raises(UnreachableError):
            client.models()
    assert len(asked) == 2


@pytest.mark.parametrize("status", [400, 404, 429, 500, 504])
def test_what_would_fail_again_is_not_repeated(status: int) -> None:
    transport, asked = answering(httpx.Response(status, json={"title": "no"}))
    with Client() as client:
        client._http = httpx.Client(transport=transport)
        with pytest.raises(ServerError):
            client.models()
    assert len(asked) == 1


def test_nobody_waits_longer_than_the_timeout() -> None:
    later = httpx.Response(503, json={"title": "no"}, headers={"retry-after": "60"})
    transport, asked = answering(later)
    with Client(timeout=5) as client:
        client._http = httpx.Client(transport=transport)
        with pytest.raises(ServerError):
            client.models()
    assert len(asked) == 1


async def test_grpc_repeats_what_the_server_refuses_for_now(
    running, monkeypatch: pytest.MonkeyPatch, png: bytes
) -> None:
    server: Server
    async with running() as server:
        classify, failing = server.classifier.classify, [0.01, 0.01]

        async def at_the_third(request):
            if failing:
                raise ServiceError(ErrorKind.UNAVAILABLE, "not now", failing.pop())
            return await classify(request)

        monkeypatch.setattr(server.classifier, "classify", at_the_third)
        target = f"127.0.0.1:{server.grpc_port}"
        async with grpc.aio.insecure_channel(target, RETRY_OPTIONS) as channel:
            reply = await SpikeServeStub(channel).Classify(pb.ClassifyRequest(image=png))
        assert reply.model == "pictures"
        assert not failing
