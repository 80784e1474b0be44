"""POST /classify/trace"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.rest.body import read_body, while_connected
from spikeserve.settings import Settings
from spikeserve.traces import MAX_NEURONS, MAX_TIMESTEPS, Trace, Tracer, TraceRequest

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "the picture file itself",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class TraceOptions(BaseModel):
    """Whose trace, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None, description="name of the model; the server's default where it is left out"
    )
    version: str | None = Field(
        None, description="version of the model; the newest where it is left out"
    )
    timesteps: int | None = Field(
        None,
        ge=1,
        description=f"how many timesteps to run, {MAX_TIMESTEPS} at most; the model's own number unless given",
    )
    neurons: int = Field(
        MAX_NEURONS,
        ge=1,
        le=MAX_NEURONS,
        description="neurons of each layer in the raster, at most",
    )


class RateProfileReply(BaseModel):
    mean: float
    p1: float
    p50: float
    p99: float


class LayerTraceReply(BaseModel):
    name: str
    neurons: int
    rates: list[float] = Field(description="by timestep, spikes per neuron")
    raster: list[int] = Field(description="which neurons are shown: evenly spread over the layer")
    fired: list[list[int]] = Field(
        description="by timestep, the positions in `raster` of the neurons that spiked"
    )
    trained: RateProfileReply | None = Field(
        None, description="the layer's firing rate over held-out data, where the checkpoint says it"
    )


class TraceReply(BaseModel):
    model: str
    version: str
    classes: list[str]
    probabilities: list[list[float]] = Field(description="of all classes, after each timestep")
    layers: list[LayerTraceReply]
    synaptic_operations: list[int] = Field(description="by timestep")


def trace_router(tracer: Tracer, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["classify"])

    @router.post("/classify/trace", response_model=TraceReply, openapi_extra=_BODY)
    async def trace(request: Request, options: Annotated[TraceOptions, Query()]) -> Response:
        """What one picture does inside a model, timestep by timestep: probabilities, firing rates, spikes.

        It is made apart from the engine, one at a time, and is for looking at; POST /classify is for answers.
        """
        _check_type(request)
        image = await read_body(request, settings.max_body_bytes)
        if not image:
            raise ServiceError(
                ErrorKind.MALFORMED,
                "there is no picture in the request: send the bytes of an image file",
            )
        asked = TraceRequest(
            image=image,
            model=options.model,
            version=options.version,
            timesteps=options.timesteps,
            neurons=options.neurons,
        )
        result = await while_connected(request, tracer.trace(asked))
        request.state.model, request.state.version = result.model, result.version
        return Response(_reply(result).model_dump_json(), media_type="application/json")

    return router


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given in ("multipart/form-data", "application/json"):
        raise ServiceError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"Content-Type {given!r}: send the picture file itself, as image/png or application/octet-stream",
        )


def _reply(result: Trace) -> TraceReply:
    return TraceReply(
        model=result.model,
        version=result.version,
        classes=list(result.classes),
        probabilities=result.probabilities.tolist(),
        layers=[
            LayerTraceReply(
                name=layer.name,
                neurons=layer.neurons,
                rates=list(layer.rates),
                raster=list(layer.raster),
                fired=[list(step) for step in layer.fired],
                trained=None
                if layer.trained is None
                else RateProfileReply(**layer.trained.model_dump()),
            )
            for layer in result.layers
        ],
        synaptic_operations=list(result.synaptic_operations),
    )
