"""POST /classify"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, TypeAdapter, ValidationError
from starlette.responses import Response

from spikeserve.classify import Classifier, ClassifyRequest
from spikeserve.engine import Priority
from spikeserve.metrics import Metrics
from spikeserve.rest.body import while_connected
from spikeserve.rest.query import query_parameters, query_reader
from spikeserve.rest.replies import ClassifyReply, classify_json
from spikeserve.rest.upload import ClassifyOptions, JsonUpload, read_upload
from spikeserve.settings import Settings

ROUTE = "/classify"
_HEADER = "X-Timeout-Seconds"
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string", "format": "binary"}},
        "description": "the picture as a file in the field `image`; the options may be further fields",
    }
}
# The body and the query are read by our own code, so the framework has to be told of them.
_BODY: dict[str, Any] = {
    "parameters": query_parameters(ClassifyOptions),
    "requestBody": {
        "required": True,
        "content": {
            "image/png": _PICTURE,
            "image/jpeg": _PICTURE,
            "image/webp": _PICTURE,
            "application/octet-stream": _PICTURE,
            "multipart/form-data": _FORM,
            "application/json": {"schema": JsonUpload.model_json_schema()},
        },
    },
}

Patience = Annotated[
    float | None,
    Header(
        alias=_HEADER,
        gt=0,
        allow_inf_nan=False,
        description="how long the client will wait: later, no answer is computed any more",
    ),
]


_PATIENCE: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, allow_inf_nan=False)])


class PictureRoute:
    """Reads a request, has its picture classified, and writes the answer."""

    def __init__(self, classifier: Classifier, metrics: Metrics, settings: Settings) -> None:
        self._classifier = classifier
        self._metrics = metrics
        self._settings = settings
        self._in_query = query_reader(ClassifyOptions)

    async def answer(self, request: Request) -> Response:
        """Raises ServiceError, and RequestValidationError for options that cannot be."""
        deadline = _deadline(request)
        image, options = await read_upload(
            request, self._in_query(request), self._settings.max_body_bytes
        )
        asked = ClassifyRequest(
            image=image,
            model=options.model,
            version=options.version,
            top_k=options.top_k,
            timesteps=options.timesteps,
            rates=options.rates,
            deadline=deadline,
            exit=options.exit,
            risk=options.risk,
            priority=None if options.priority is None else Priority[options.priority.upper()],
        )
        result = await while_connected(request, self._classifier.classify(asked))
        state = request.scope["state"]
        state["model"], state["version"] = result.model, result.version
        began = time.perf_counter()
        reply = Response(classify_json(result), media_type="application/json")
        took = time.perf_counter() - began
        self._metrics.stage("encode", took, result.model, result.version)
        self._classifier.spans.stages({"encode": took}, result.model, result.version)
        return reply


def classify_router(route: PictureRoute) -> APIRouter:
    router = APIRouter(tags=["classify"])

    @router.post(ROUTE, response_model=ClassifyReply, openapi_extra=_BODY)
    async def classify(request: Request, patience: Patience = None) -> Response:
        """Classifies one picture: PNG, JPEG, WebP, BMP or GIF, told apart by content."""
        return await route.answer(request)

    return router


def _deadline(request: Request) -> float | None:
    """Of time.monotonic(), from X-Timeout-Seconds."""
    given = request.headers.get(_HEADER)
    if given is None:
        return None
    try:
        return time.monotonic() + _PATIENCE.validate_python(given)
    except ValidationError as error:
        details = [{**item, "loc": ("header", _HEADER)} for item in error.errors()]
        raise RequestValidationError(details) from None
