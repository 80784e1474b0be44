"""The routes under /v2: the Open Inference Protocol over HTTP, with the extensions that Triton's clients use."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from spikeserve import __version__
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.health import Health
from spikeserve.oip import models
from spikeserve.oip.infer import Inference
from spikeserve.oip.request import InferRequest
from spikeserve.repository import Repository
from spikeserve.rest.body import while_connected
from spikeserve.rest.classify import Patience
from spikeserve.rest.v2_body import ReplyForm, encode_answer, read_request
from spikeserve.rest.v2_compression import compressed, read_decompressed
from spikeserve.rest.v2_errors import V2_ERRORS
from spikeserve.settings import Settings

_MODEL = "/models/{name}"
_VERSION = "/models/{name}/versions/{version}"
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON, and after it tensors as bytes, as docs/protocol.md says",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
# Larger bodies are parsed in a thread, so that the event loop is not held up.
_INLINE_BYTES = 1 << 18


def v2_router(
    repository: Repository, inference: Inference, health: Health, settings: Settings
) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=V2_ERRORS)

    @router.get("")
    async def server() -> dict[str, Any]:
        return {
            "name": "spikeserve",
            "version": __version__,
            "extensions": list(models.EXTENSIONS),
        }

    @router.get("/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/health/ready")
    async def ready() -> dict[str, bool]:
        if not health.ready:
            raise ServiceError(ErrorKind.UNAVAILABLE, f"the server is {health.state}", 1.0)
        return {"ready": True}

    @router.get("/models/stats")
    @router.get(f"{_MODEL}/stats")
    @router.get(f"{_VERSION}/stats")
    async def statistics(name: str | None = None, version: str | None = None) -> dict[str, Any]:
        return {"model_stats": inference.statistics.describe(name, version)}

    @router.get(f"{_MODEL}/ready")
    @router.get(f"{_VERSION}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        if not models.is_ready(repository, name, version):
            raise ServiceError(ErrorKind.MALFORMED, f"model {name!r} is not ready")
        return JSONResponse({"name": name, "ready": True})

    @router.get(_MODEL)
    @router.get(_VERSION)
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return models.metadata(repository, name, version)

    @router.get(f"{_MODEL}/config")
    @router.get(f"{_VERSION}/config")
    async def config(name: str, version: str | None = None) -> dict[str, Any]:
        return models.configuration(repository, settings, name, version)

    @router.post(f"{_MODEL}/infer", openapi_extra=_BODY)
    @router.post(f"{_VERSION}/infer", openapi_extra=_BODY)
    async def infer(
        request: Request, name: str, version: str | None = None, patience: Patience = None
    ) -> Response:
        deadline = None if patience is None else time.monotonic() + patience
        body = await read_decompressed(request, settings.max_body_bytes)
        split = request.headers.get("inference-header-content-length")

        def parsed() -> tuple[InferRequest, ReplyForm]:
            return read_request(
                name,
                version,
                body,
                split,
                lambda: models.input_of(repository.get(name, version)),
            )

        asked, form = parsed() if len(body) <= _INLINE_BYTES else await asyncio.to_thread(parsed)
        asked = replace(asked, deadline=deadline)
        answer = await while_connected(request, inference.infer(asked))
        request.state.model, request.state.version = answer.model, answer.version
        return compressed(request, encode_answer(answer, form))

    return router
