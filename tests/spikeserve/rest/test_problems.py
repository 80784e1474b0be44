"""Every error is application/problem+json, made in one place."""

from __future__ import annotations

import logging

import httpx
import pytest

from spikeserve.app import Server
from spikeserve.errors import ErrorKind, ServiceError


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_each_kind_of_error_has_its_reply(
    server: Server,
    http: httpx.AsyncClient,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    kind: ErrorKind,
) -> None:
    async def refuse(request: object) -> None:
        raise ServiceError(kind, "no \u2713", retry_after=1.2, incident="abc")

    monkeypatch.setattr(server.classifier, "classify", refuse)
    reply = await http.post("/classify", content=png, headers={"X-Request-Id": "mine-1"})
    assert reply.status_code == kind.http_status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["retry-after"] == "2"
    assert reply.headers["x-request-id"] == "mine-1"
    assert reply.json() == {
        "type": f"urn:spikeserve:error:{kind.slug}",
        "title": kind.title,
        "status": kind.http_status,
        "detail": "no \u2713",
        "request_id": "mine-1",
        "incident": "abc",
    }


async def test_an_unknown_route_and_a_wrong_method_are_problems_too(
    http: httpx.AsyncClient,
) -> None:
    unknown = await http.get("/nope")
    assert (unknown.status_code, unknown.json()["title"]) == (404, "Unknown route")
    wrong = await http.get("/classify")
    assert (wrong.status_code, wrong.json()["title"]) == (405, "Method not allowed")
    assert wrong.headers["allow"] == "POST"
    for reply in (unknown, wrong):
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["x-request-id"] == reply.json()["request_id"]


async def test_what_must_not_happen_is_in_the_log_under_the_id_that_the_client_gets(
    server: Server,
    http: httpx.AsyncClient,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(server.classifier, "classify", fail)
    with caplog.at_level(logging.ERROR):
        reply = await http.post("/classify", content=png)
    assert reply.status_code == 500
    incident = reply.json()["incident"]
    assert incident in reply.json()["detail"]
    assert "secret" not in reply.text
    assert any(incident in record.getMessage() and record.exc_info for record in caplog.records)


async def test_a_request_id_that_could_forge_a_log_is_replaced(http: httpx.AsyncClient) -> None:
    reply = await http.get("/health/live", headers={"X-Request-Id": "a b"})
    assert reply.headers["x-request-id"] not in ("", "a b")
    again = await http.get("/health/live", headers={"X-Request-Id": "x" * 200})
    assert len(again.headers["x-request-id"]) == 32
