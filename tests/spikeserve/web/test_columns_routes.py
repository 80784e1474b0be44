"""Events for the page to play: recordings and the demonstration as columns."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest

import spikeserve.rest.columns as columns
from spiketrain.events import wire
from spiketrain.events.digits import render_digit
from spiketrain.events.emulator import saccade_recording
from spiketrain.events.formats import read_recording


def decoded(reply: httpx.Response) -> wire.Events:
    base_us = int(reply.headers["x-events-base-us"])
    return wire.decode(wire.Encoding.COLUMNS_V1, reply.content, base_us)


@pytest.mark.parametrize(("name", "format"), [("digit.npz", "npz"), ("digit.bin", "n-mnist")])
async def test_a_recording_comes_back_as_its_events(
    http: httpx.AsyncClient, checkout: Path, name: str, format: str
) -> None:
    file = checkout / "examples" / name
    reply = await http.post("/events/columns", content=file.read_bytes())
    assert reply.status_code == 200
    assert reply.headers["x-events-format"] == format
    expected, got = read_recording(file), decoded(reply)
    for column in ("t", "x", "y", "p"):
        np.testing.assert_array_equal(getattr(got, column), getattr(expected, column))


async def test_the_demonstration_is_a_drawn_digit(http: httpx.AsyncClient) -> None:
    reply = await http.get("/events/demo?digit=7&seed=5")
    expected = saccade_recording(render_digit(7, 5), 5)
    np.testing.assert_array_equal(decoded(reply).t, expected.t)
    assert reply.headers["x-events-sensor"] == "34x34"
    for wrong in ("digit=10", "digit=-1", "", "digit=1&seed=-1"):
        assert (await http.get(f"/events/demo?{wrong}")).status_code == 422


async def test_a_damaged_recording_comes_as_far_as_it_can_be_read(
    http: httpx.AsyncClient, checkout: Path
) -> None:
    content = (checkout / "examples" / "digit.bin").read_bytes()
    reply = await http.post("/events/columns?format=n-mnist", content=content[:-3])
    assert reply.status_code == 200
    assert len(decoded(reply)) == len(content) // 5 - 1
    assert reply.headers["x-events-damage"]


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"no recording at all, I fear", 415)])
async def test_what_is_no_recording_is_refused(
    http: httpx.AsyncClient, body: bytes, status: int
) -> None:
    reply = await http.post("/events/columns", content=body)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"


async def test_a_recording_that_is_too_long_is_refused(
    http: httpx.AsyncClient, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MAX_EVENTS", 100)
    content = (checkout / "examples" / "digit.npz").read_bytes()
    reply = await http.post("/events/columns", content=content)
    assert reply.status_code == 413
    assert "more than 100 events" in reply.json()["detail"]
