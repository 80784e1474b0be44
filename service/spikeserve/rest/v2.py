"""The routes under /v2: the Open Inference Protocol over HTTP, with Triton's binary tensors and repository index."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from spikeserve import __version__
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.health import Health
from spikeserve.oip import models
from spikeserve.oip.infer import Inference
from spikeserve.repository import Repository
from spikeserve.rest.body import read_body, while_connected
from spikeserve.rest.v2_body import encode_answer, json_object, read_request
from spikeserve.settings import Settings

_MODEL = "/models/{name}"
_VERSION = "/models/{name}/versions/{version}"


def v2_router(
    repository: Repository, inference: Inference, health: Health, settings: Settings
) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @router.get("")
    async def server() -> dict[str, Any]:
        return {
            "name": "spikeserve",
            "version": __version__,
            "extensions": list(models.EXTENSIONS),
        }

    @router.get("/health/live")
    async def live() -> Response:
        return Response()

    @router.get("/health/ready")
    async def ready() -> Response:
        if not health.ready:
            raise ServiceError(ErrorKind.UNAVAILABLE, f"the server is {health.state}", 1.0)
        return Response()

    @router.get(f"{_MODEL}/ready")
    @router.get(f"{_VERSION}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        info = models.find(repository, name, version)
        if info.state != "ready":
            raise ServiceError(ErrorKind.MALFORMED, f"model {name} is {info.state}")
        return JSONResponse({"name": name, "ready": True})

    @router.get(_MODEL)
    @router.get(_VERSION)
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return models.metadata(repository, name, version)

    @router.get(f"{_MODEL}/config")
    @router.get(f"{_VERSION}/config")
    async def config(name: str, version: str | None = None) -> dict[str, Any]:
        return models.configuration(repository, name, version, inference.most)

    @router.post("/repository/index")
    async def index(request: Request) -> Response:
        body = await read_body(request, settings.max_body_bytes)
        wanted = json_object(body or b"{}").get("ready", False)
        return JSONResponse(models.index(repository, wanted is True))

    @router.post(f"{_MODEL}/infer")
    @router.post(f"{_VERSION}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        body = await read_body(request, settings.max_body_bytes)
        split = request.headers.get("inference-header-content-length")
        asked, form = read_request(name, version, body, split)
        answer = await while_connected(request, inference.infer(asked))
        request.state.model, request.state.version = answer.model, answer.version
        return encode_answer(answer, form)

    return router
