"""POST /classify/events"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.rest.body import read_body, while_connected
from spikeserve.rest.classify import Patience
from spikeserve.rest.event_replies import EventsReply, events_reply
from spikeserve.settings import Settings
from spikeserve.streams import StreamOptions
from spikeserve.streams.recordings import RecordingAnswer, Recordings
from spiketrain.events.rule_text import parse_decision, parse_filter, parse_size, parse_window
from spiketrain.stream_rules import MAX_FILTERS, FilterRule, InvertPolarity, Orient

# Replies with more windows are written in a thread, so that the event loop is not held up.
_LARGE = 256
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "the recording's file as it is on disk",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class EventsOptions(BaseModel):
    """How a recording is classified."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None, description="name of the model; the server's default for events where it is left out"
    )
    version: str | None = Field(
        None, description="version of the model; the newest where it is left out"
    )
    top_k: int | None = Field(
        None, ge=1, description="how many classes to answer, the likeliest first; unless given 5"
    )
    rates: bool = Field(
        False, description="whether to answer the firing rate of each layer in each window"
    )
    format: str | None = Field(
        None, description="name of the file's format, where its content does not tell"
    )
    topic: str | None = Field(
        None, description="which of several cameras: a topic of a ROS 2 bag, a stream of AEDAT 4"
    )
    sensor: str | None = Field(
        None, description="WIDTHxHEIGHT of the camera; what the recording says unless given"
    )
    start_us: int | None = Field(
        None, description="where the first window begins; at the first event unless given"
    )
    lateness_us: int = Field(
        0, ge=0, description="how long a window waits for events out of order, in microseconds"
    )
    orientation: (
        Literal["flip-x", "flip-y", "transpose", "rotate-90", "rotate-180", "rotate-270"] | None
    ) = Field(None, description="turn or mirror the camera first")
    invert_polarity: bool = Field(False, description="take ON for OFF and OFF for ON")
    filter: list[str] = Field(
        default_factory=list,
        max_length=MAX_FILTERS,
        description="what is done to the events next, in this order, such as region:x=3,y=3,width=34,height=34,crop",
    )
    window: str | None = Field(
        None, description="other windows than the model's, such as 10ms; needs force"
    )
    force: bool = Field(False, description="have other windows than the model was trained with")
    decision: str | None = Field(
        None, description="asks for decisions, such as leaky:time_constant_us=200000,margin=0.4"
    )

    def terms(self) -> StreamOptions:
        """Raises ServiceError IMPOSSIBLE for a rule that cannot be."""
        try:
            first: list[FilterRule] = []
            if self.orientation is not None:
                first.append(Orient(operation=self.orientation))
            if self.invert_polarity:
                first.append(InvertPolarity())
            return StreamOptions(
                model=self.model,
                version=self.version,
                sensor=None if self.sensor is None else parse_size(self.sensor),
                start_us=self.start_us,
                lateness_us=self.lateness_us,
                rates=self.rates,
                filters=(*first, *map(parse_filter, self.filter)),
                window=None if self.window is None else parse_window(self.window),
                force=self.force,
                decision=None if self.decision is None else parse_decision(self.decision),
                top_k=self.top_k,
            )
        except ValueError as error:
            raise ServiceError(ErrorKind.IMPOSSIBLE, str(error)) from None


def events_router(recordings: Recordings, metrics: Metrics, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["classify"])

    @router.post("/classify/events", response_model=EventsReply, openapi_extra=_BODY)
    async def classify_events(
        request: Request, options: Annotated[EventsOptions, Query()], patience: Patience = None
    ) -> Response:
        """Classifies a recording of an event camera, window by window: any format that is read, told by content.

        A ROS 2 bag is sent as its .db3 file. A damaged recording is answered as far as it could be read.
        """
        _check_type(request)
        terms = options.terms()
        content = await read_body(request, settings.max_body_bytes)
        work = recordings.classify(content, terms, format=options.format, topic=options.topic)
        try:
            async with asyncio.timeout(patience):
                result = await while_connected(request, work)
        except TimeoutError:
            raise ServiceError(
                ErrorKind.DEADLINE, "the deadline passed before the recording was classified"
            ) from None
        request.state.model, request.state.version = result.model, result.version
        metrics.stage("decode", result.decode_seconds, result.model, result.version)
        began = time.perf_counter()
        text = (
            _text(result)
            if len(result.answers) <= _LARGE
            else await asyncio.to_thread(_text, result)
        )
        metrics.stage("encode", time.perf_counter() - began, result.model, result.version)
        return Response(text, media_type="application/json")

    return router


def _text(result: RecordingAnswer) -> str:
    return events_reply(result).model_dump_json(exclude_none=False)


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given in ("multipart/form-data", "application/json"):
        raise ServiceError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"Content-Type {given!r}: send the recording's file itself (curl --data-binary @recording.raw)",
        )
