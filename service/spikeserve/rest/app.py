"""The REST application."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from spikeserve import __version__
from spikeserve.access import Gate
from spikeserve.classify import Classifier
from spikeserve.errors import ServiceError
from spikeserve.health import Health
from spikeserve.metrics import Metrics
from spikeserve.oip.infer import Inference
from spikeserve.refusals import Refusals
from spikeserve.repository import Repository
from spikeserve.rest.access import gated
from spikeserve.rest.admin import admin_router
from spikeserve.rest.classify import PictureRoute, classify_router
from spikeserve.rest.columns import columns_router
from spikeserve.rest.events import events_router
from spikeserve.rest.middleware import RequestMiddleware
from spikeserve.rest.models import models_router
from spikeserve.rest.page import page_router
from spikeserve.rest.problems import DESCRIPTION, handle
from spikeserve.rest.status import status_router
from spikeserve.rest.system import add_docs, system_router
from spikeserve.rest.trace import trace_router
from spikeserve.rest.v2 import v2_router
from spikeserve.rest.v2_repository import v2_repository_router
from spikeserve.rest.websocket import websocket_router
from spikeserve.settings import Settings
from spikeserve.streams import Streams
from spikeserve.streams.recordings import Recordings
from spikeserve.traces import Tracer


def create_app(
    settings: Settings,
    metrics: Metrics,
    repository: Repository,
    classifier: Classifier,
    streams: Streams,
    tracer: Tracer,
    inference: Inference,
    refusals: Refusals,
    health: Health,
    gate: Gate,
) -> FastAPI:
    app = FastAPI(
        title="spikeserve",
        version=__version__,
        description="Classifies pictures with spiking neural networks. Event streams are served over gRPC, and to browsers over a WebSocket at /events.",
        docs_url=None,
        redoc_url=None,
        responses=DESCRIPTION,
        dependencies=[Depends(gated(gate, settings))],
    )
    app.add_middleware(
        RequestMiddleware,
        metrics=metrics,
        refusals=refusals,
        spans=classifier.spans,
        receive_seconds=settings.receive_seconds,
    )
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors(settings))
    for kind in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
    app.include_router(classify_router(PictureRoute(classifier, metrics, settings)))
    app.include_router(events_router(Recordings(streams, settings), metrics, settings))
    app.include_router(trace_router(tracer, settings))
    app.include_router(columns_router(streams, settings))
    app.include_router(websocket_router(streams, metrics, settings, refusals, gate))
    app.include_router(models_router(repository))
    app.include_router(admin_router(repository))
    app.include_router(system_router(health, metrics))
    app.include_router(status_router(settings, metrics, repository, streams, health, refusals))
    app.include_router(v2_router(repository, inference, health, settings))
    app.include_router(v2_repository_router(repository, settings))
    app.include_router(page_router())
    add_docs(app)
    return app


def cors(settings: Settings) -> dict[str, Any]:
    """From where browsers may come, and what they may send and see."""
    return {
        "allow_origins": list(settings.cors_origins),
        "allow_methods": ["GET", "POST", "PUT"],
        "allow_headers": [
            "Authorization",
            "Content-Type",
            "Inference-Header-Content-Length",
            "Traceparent",
            "X-Api-Key",
            "X-Request-Id",
            "X-Timeout-Seconds",
        ],
        "expose_headers": [
            "Inference-Header-Content-Length",
            "Retry-After",
            "Traceparent",
            "X-Request-Id",
        ],
    }
