"""Events for the page to play: its demonstration, and recordings in any format, as columns (spiketrain.events.wire).

A browser need not know the formats: it sends a recording here, plays back what it gets, and streams that as any camera.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.rest.body import read_body, while_connected
from spikeserve.settings import Settings
from spikeserve.streams import Streams
from spiketrain.events import wire
from spiketrain.events.digits import render_digit
from spiketrain.events.emulator import SENSOR, saccade_recording
from spiketrain.events.formats import EventFormatError, open_recording
from spiketrain.events.types import Events

MAX_EVENTS = 2_000_000
"""Of a recording to be played: 16 MB as columns, more than a page has use for."""

_MEDIA_TYPE = "application/vnd.spikeserve.events"


def columns_router(streams: Streams, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["events"])

    @router.get("/events/demo", response_class=Response)
    async def demo(
        digit: Annotated[int, Query(ge=0, le=9)], seed: Annotated[int, Query(ge=0, le=1 << 31)] = 0
    ) -> Response:
        """A digit drawn by code, as N-MNIST's camera would have seen it: 34x34 pixels, 310 ms."""
        loop = asyncio.get_running_loop()
        events = await loop.run_in_executor(
            streams.workers, lambda: saccade_recording(render_digit(digit, seed), seed)
        )
        return _reply(events, SENSOR, "demo")

    @router.post("/events/columns", response_class=Response)
    async def columns(
        request: Request,
        format: Annotated[
            str | None, Query(description="name of the format, where the content does not tell")
        ] = None,
    ) -> Response:
        """A recording of an event camera, any format that is read, as columns of events."""
        content = await read_body(request, settings.max_body_bytes)
        if not content:
            raise ServiceError(
                ErrorKind.MALFORMED, "the body is empty: send the bytes of a recording"
            )

        async def work() -> Response:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(streams.workers, _decoded, content, format)

        return await while_connected(request, work())

    return router


def _decoded(content: bytes, format: str | None) -> Response:
    try:
        recording = open_recording(content, format)
    except EventFormatError as error:
        raise ServiceError(ErrorKind.UNSUPPORTED_MEDIA, str(error)) from None
    with recording:
        events, damage = _read(iter(recording))
        return _reply(events, recording.sensor, recording.format, damage)


def _read(pieces: Iterator[Events]) -> tuple[Events, str | None]:
    """All events that can be read, and why that is not all."""
    parts: list[Events] = []
    count = 0
    damage: str | None = None
    try:
        for piece in pieces:
            parts.append(piece)
            count += len(piece)
            if count > MAX_EVENTS:
                raise ServiceError(
                    ErrorKind.TOO_LARGE,
                    f"the recording has more than {MAX_EVENTS} events: the page does not play so long ones; "
                    "`spikeserve stream` does",
                )
    except EventFormatError as error:
        damage = str(error)
    if not count:
        raise ServiceError(ErrorKind.MALFORMED, damage or "the recording has no events")
    return Events.concatenate(parts), damage


def _reply(
    events: Events, sensor: tuple[int, int] | None, format: str, damage: str | None = None
) -> Response:
    try:
        payload, base_us = wire.encode(wire.Encoding.COLUMNS_V1, events)
    except ValueError as error:
        raise ServiceError(ErrorKind.IMPOSSIBLE, str(error)) from None
    headers = {
        "X-Events-Base-Us": str(base_us),
        "X-Events-Format": format,
        "Cache-Control": "no-store",
    }
    if sensor is not None:
        headers["X-Events-Sensor"] = "x".join(map(str, sensor))
    if damage is not None:
        # Part of it may come from the file; a header is one line of ASCII.
        line = "".join(c if c.isprintable() else " " for c in damage)
        headers["X-Events-Damage"] = line.encode("ascii", "replace").decode()
    return Response(payload, media_type=_MEDIA_TYPE, headers=headers)
