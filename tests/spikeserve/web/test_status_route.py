"""GET /status: what an operator looks at first."""

from __future__ import annotations

import math

import httpx
import pytest

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.refusals import MOST, Refusals
from spikeserve.rest.status import Bucket, quantiles


async def test_models_slots_and_latency(http: httpx.AsyncClient, png: bytes) -> None:
    for _ in range(3):
        await http.post("/classify", content=png)
    status = (await http.get("/status")).json()
    assert status["state"] == "ready"
    by_name = {(each["name"], each["version"]): each for each in status["models"]}
    used, idle = by_name["pictures", "2"], by_name["pictures", "1"]
    assert (used["state"], used["slots"], used["queue"]) == ("ready", 4, 0)
    compute = used["latency_seconds"]["compute"]
    assert compute["count"] == 3
    assert 0 < compute["p50"] <= compute["p95"] <= compute["p99"]
    assert idle["latency_seconds"] == {}
    assert status["streams"] == {"open": 0, "parked": 0, "limit": 1}
    assert status["refusals"] == []


async def test_what_was_refused_is_there_with_the_reason_latest_first(
    http: httpx.AsyncClient, png: bytes
) -> None:
    await http.post("/classify", content=b"not a picture", headers={"X-Request-Id": "first"})
    await http.post("/classify?model=nope", content=png)
    await http.get("/favicon.ico")
    refusals = (await http.get("/status")).json()["refusals"]
    assert [(each["route"], each["status"]) for each in refusals] == [
        ("/classify", 404),
        ("/classify", 415),
    ]
    assert "there is no model 'nope'" in refusals[0]["reason"]
    assert refusals[1]["request_id"] == "first"


async def test_a_model_that_failed_is_there_with_the_reason(running, tmp_path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    async with running(models=tmp_path) as server, httpx.AsyncClient() as client:
        status = (await client.get(f"http://127.0.0.1:{server.http_port}/status")).json()
    assert status["state"] == "not ready"
    assert status["models"][0]["state"] == "failed"
    assert status["models"][0]["reason"]


def test_the_ring_is_bounded_in_number_and_length() -> None:
    refusals = Refusals(clock=lambda: 12.5)
    for i in range(MOST + 10):
        refusals.add(
            "/classify", ServiceError(ErrorKind.IMPOSSIBLE, f"{i} " + "x" * 10_000), str(i)
        )
    latest = refusals.latest()
    assert len(latest) == MOST
    assert latest[0].reason.startswith(f"{MOST + 9} ")
    assert latest[0].when == 12.5
    assert len(latest[0].reason) < 400


def test_a_client_that_left_and_unknown_paths_are_no_refusals() -> None:
    refusals = Refusals()
    for kind in (ErrorKind.CANCELLED, ErrorKind.UNIMPLEMENTED, ErrorKind.METHOD_NOT_ALLOWED):
        refusals.add("/x", ServiceError(kind, "no"), "1")
    assert refusals.latest() == []


def test_quantiles_are_interpolated_as_prometheus_does() -> None:
    buckets = [Bucket(1.0, 0), Bucket(2.0, 50), Bucket(4.0, 100), Bucket(math.inf, 100)]
    assert quantiles(buckets, (0.25, 0.5, 0.75, 1.0)) == pytest.approx([1.5, 2.0, 3.0, 4.0])
    beyond = [Bucket(1.0, 0), Bucket(math.inf, 10)]
    assert quantiles(beyond, (0.5,)) == [1.0]
