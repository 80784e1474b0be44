"""GET /models and /models/{name}"""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from spikeserve.catalog import find_model
from spikeserve.repository import Repository
from spikeserve.rest.replies import ModelDetailReply, ModelsReply, model_reply

Version = Annotated[str | None, Query(description="the newest that is ready where it is left out")]


def models_router(repository: Repository) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models", response_model=ModelsReply)
    async def models() -> ModelsReply:
        """All models, ready or not."""
        return ModelsReply(models=[model_reply(info) for info in repository.models()])

    @router.get("/models/{name}", response_model=ModelDetailReply)
    async def model(name: str, version: Version = None) -> Response:
        """One model, with all that its checkpoint says about it."""
        versions = [info for info in repository.models() if info.name == name]
        info = find_model(repository, name, version)
        detail = ModelDetailReply(
            **model_reply(info).model_dump(),
            versions=[each.version for each in versions],
            manifest=None if info.manifest is None else info.manifest.model_dump(mode="json"),
        )
        # Indented, since people read it.
        return Response(json.dumps(detail.model_dump(), indent=2), media_type="application/json")

    return router
