"""The REST application."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from spikeserve import __version__
from spikeserve.classify import Classifier
from spikeserve.errors import ServiceError
from spikeserve.health import Health
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.rest.classify import classify_router
from spikeserve.rest.middleware import RequestMiddleware
from spikeserve.rest.models import models_router
from spikeserve.rest.problems import DESCRIPTION, handle
from spikeserve.rest.system import add_docs, system_router
from spikeserve.settings import Settings


def create_app(
    settings: Settings,
    metrics: Metrics,
    repository: Repository,
    classifier: Classifier,
    health: Health,
) -> FastAPI:
    app = FastAPI(
        title="spikeserve",
        version=__version__,
        description="Classifies pictures with spiking neural networks. Event streams are served over gRPC.",
        docs_url=None,
        redoc_url=None,
        responses=DESCRIPTION,
    )
    app.add_middleware(RequestMiddleware, metrics=metrics)
    for kind in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
    app.include_router(classify_router(classifier, metrics, settings))
    app.include_router(models_router(repository))
    app.include_router(system_router(health, metrics))
    add_docs(app)
    return app
