"""POST /models/{name}/load and /unload, PUT /models/{name}/labels: for who runs the server."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import Labels, ModelInfo, Repository
from spikeserve.rest.body import read_body
from spikeserve.rest.problems import describe
from spikeserve.rest.replies import ModelsReply, model_reply

_MOST_BYTES = 1 << 16
_LABELS_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/LabelsReply"}}},
    }
}

OneVersion = Annotated[str | None, Query(description="all versions where it is left out")]


class LabelsReply(BaseModel):
    """Names for versions of one model."""

    model_config = ConfigDict(extra="forbid")

    labels: dict[str, str] = Field(
        {}, description="version by label; stable is what requests get that ask for no version"
    )
    canary_share: float = Field(
        0.0, ge=0, le=1, description="share of those requests that get the version labelled canary"
    )


def admin_router(repository: Repository) -> APIRouter:
    router = APIRouter(tags=["admin"], prefix="/models/{name}")

    @router.post("/load")
    async def load(name: str, version: OneVersion = None) -> ModelsReply:
        """Serves what the folders of models have of this model now. A file that cannot be served replaces nothing."""
        return _models(await asyncio.to_thread(repository.load, name, version))

    @router.post("/unload")
    async def unload(name: str, version: OneVersion = None) -> ModelsReply:
        """Stops serving a model. Requests under way are finished."""
        return _models(await asyncio.to_thread(repository.unload, name, version))

    @router.put("/labels", openapi_extra=_LABELS_BODY)
    async def labels(request: Request, name: str) -> LabelsReply:
        """Sets all labels of a model, until its settings file changes or the server ends."""
        body = await read_body(request, _MOST_BYTES)
        try:
            given = LabelsReply.model_validate_json(body)
            wanted = Labels(given.labels, given.canary_share)
        except ValidationError as error:
            raise ServiceError(ErrorKind.MALFORMED, describe(error)) from None
        except ValueError as error:
            raise ServiceError(ErrorKind.IMPOSSIBLE, str(error)) from None
        await asyncio.to_thread(repository.set_labels, name, wanted)
        return given

    return router


def _models(infos: list[ModelInfo]) -> ModelsReply:
    return ModelsReply(models=[model_reply(info) for info in infos])
