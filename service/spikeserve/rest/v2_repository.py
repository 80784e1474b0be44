"""The routes under /v2/repository: which models there are, and loading and unloading them."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from spikeserve.oip import control, models
from spikeserve.oip.tensors import malformed
from spikeserve.repository import Repository
from spikeserve.rest.body import read_body
from spikeserve.rest.v2_body import json_object
from spikeserve.rest.v2_errors import V2_ERRORS
from spikeserve.settings import Settings

_MODEL = "/models/{name}"
_BODY = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


def v2_repository_router(repository: Repository, settings: Settings) -> APIRouter:
    router = APIRouter(
        prefix="/v2/repository", tags=["open inference protocol"], responses=V2_ERRORS
    )

    @router.post("/index", openapi_extra=_BODY)
    async def index(request: Request) -> Response:
        body = await read_body(request, settings.max_body_bytes)
        ready = json_object(body or b"{}").get("ready", False)
        if not isinstance(ready, bool):
            raise malformed("ready must be true or false")
        return JSONResponse(models.index(repository, ready))

    @router.post(f"{_MODEL}/load", openapi_extra=_BODY)
    async def load(request: Request, name: str) -> Response:
        names = await _parameters(request, settings)
        await asyncio.to_thread(control.load, repository, name, names)
        return JSONResponse({})

    @router.post(f"{_MODEL}/unload", openapi_extra=_BODY)
    async def unload(request: Request, name: str) -> Response:
        names = await _parameters(request, settings)
        await asyncio.to_thread(control.unload, repository, name, names)
        return JSONResponse({})

    return router


async def _parameters(request: Request, settings: Settings) -> list[str]:
    """Their names. Raises ServiceError MALFORMED."""
    content = json_object(await read_body(request, settings.max_body_bytes) or b"{}")
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise malformed("parameters must be an object")
    return list(parameters)
