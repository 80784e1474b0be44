"""What is for operators and browsers: health, metrics, the page that describes the routes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from spikeserve.health import Health
from spikeserve.metrics import Metrics
from spikeserve.rest.replies import HealthReply

_ASSETS = "/docs/assets"


def system_router(health: Health, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["system"])

    @router.get("/health/live")
    async def live() -> HealthReply:
        """200 as long as the process answers at all."""
        return HealthReply(status="live")

    @router.get("/health/ready", responses={503: {"model": HealthReply}})
    async def ready() -> Response:
        """200 where requests are welcome: the models are warm, and the server is not about to stop."""
        reply = HealthReply(status=health.state, progress=health.progress)
        return JSONResponse(reply.model_dump(exclude_none=True), 200 if health.ready else 503)

    @router.get("/metrics", include_in_schema=False)
    async def scrape() -> Response:
        return Response(metrics.render(), headers={"Content-Type": metrics.content_type})

    return router


def add_docs(app: FastAPI) -> None:
    """/docs from files of this installation: the framework's own page fetches its scripts from the internet."""
    app.mount(_ASSETS, StaticFiles(directory=_swagger_files()), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="spikeserve",
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},
        )


def _swagger_files() -> Path:
    # Found without importing it: only its files are of use here.
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("fastapi_offline, which has the files of /docs, is not installed")
    return Path(spec.origin).parent / "static"
