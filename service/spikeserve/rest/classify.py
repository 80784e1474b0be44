"""POST /classify"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from spikeserve.classify import Classifier, ClassifyRequest
from spikeserve.engine import Priority
from spikeserve.metrics import Metrics
from spikeserve.rest.body import while_connected
from spikeserve.rest.query import query_parameters, query_reader
from spikeserve.rest.replies import ClassifyReply, classify_reply
from spikeserve.rest.upload import ClassifyOptions, JsonUpload, read_upload
from spikeserve.settings import Settings

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
        alias="X-Timeout-Seconds",
        gt=0,
        allow_inf_nan=False,
        description="how long the client will wait: later, no answer is computed any more",
    ),
]


def classify_router(classifier: Classifier, metrics: Metrics, settings: Settings) -> APIRouter:
    router = APIRouter(tags=["classify"])
    in_query = query_reader(ClassifyOptions)

    @router.post("/classify", response_model=ClassifyReply, openapi_extra=_BODY)
    async def classify(request: Request, patience: Patience = None) -> Response:
        """Classifies one picture: PNG, JPEG, WebP, BMP or GIF, told apart by content."""
        deadline = None if patience is None else time.monotonic() + patience
        image, options = await read_upload(request, in_query(request), settings.max_body_bytes)
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
        result = await while_connected(request, classifier.classify(asked))
        request.state.model, request.state.version = result.model, result.version
        began = time.perf_counter()
        reply = Response(classify_reply(result).model_dump_json(), media_type="application/json")
        took = time.perf_counter() - began
        metrics.stage("encode", took, result.model, result.version)
        classifier.spans.stages({"encode": took}, result.model, result.version)
        return reply

    return router
