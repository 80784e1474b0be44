"""The three ways to send a picture: the file itself, a form, and JSON with base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from spikeserve.classify import ExitName
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.rest.body import read_body
from spikeserve.rest.problems import describe

# Larger bodies are taken apart in a thread, so that the event loop is not held up.
_LARGE = 1 << 18


class ClassifyOptions(BaseModel):
    """How a picture is classified: in the query, or beside the picture in a form or in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None, description="name of the model; the server's default where it is left out"
    )
    version: str | None = Field(
        None, description="version of the model; the newest where it is left out"
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="how many classes to answer, the likeliest first; unless given 5, or all there are",
    )
    timesteps: int | None = Field(
        None, ge=1, description="how many timesteps to run; the model's own number unless given"
    )
    rates: bool = Field(True, description="whether to answer the firing rate of each layer")
    exit: ExitName | None = Field(
        None,
        description="early exit: off runs all timesteps; balanced and fast answer as soon as the model is sure enough, "
        "so that at most 0.5 % and 2 % of the answers differ from those after all timesteps. The server's setting "
        "unless given. Needs a model that spiketrain calibrate-exit was run for",
    )
    risk: float | None = Field(
        None,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="early exit with this bound instead: the share of answers that may differ from those after all "
        "timesteps. The largest bound that was verified and is not above it is kept; 0 runs all timesteps",
    )
    priority: Literal["high", "normal", "low"] | None = Field(
        None,
        description="who goes first among those that wait; who waits long goes before later ones of higher priority. "
        "normal unless given",
    )


class JsonUpload(ClassifyOptions):
    image: str = Field(description="the picture file, in base64")


class _InMemory(MultiPartParser):
    # The limit on the body bounds it already, and the file system may be read-only.
    spool_max_size = sys.maxsize


async def read_upload(
    request: Request, query: ClassifyOptions, limit: int
) -> tuple[bytes, ClassifyOptions]:
    """The picture file and all options, from query and body. Raises ServiceError.

    An empty body and one that cannot be taken apart are MALFORMED, another content type is UNSUPPORTED_MEDIA.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await read_body(request, limit)
    if content_type == "multipart/form-data":
        image, given = await _from_form(request, body)
    elif content_type == "application/json":
        image, given = await _from_json(body)
    elif _may_be_picture(content_type):
        image, given = body, {}
    else:
        raise ServiceError(
            ErrorKind.UNSUPPORTED_MEDIA,
            f"Content-Type {content_type!r}: send the picture file itself as image/png, image/jpeg, image/webp or "
            "application/octet-stream, or a form (multipart/form-data), or application/json",
        )
    if not image:
        raise ServiceError(
            ErrorKind.MALFORMED,
            "there is no picture in the request: send the bytes of an image file",
        )
    return image, _merge(query, given)


def _may_be_picture(content_type: str) -> bool:
    # x-www-form-urlencoded is what `curl --data-binary @picture.png` says, whatever it sends.
    known = ("", "application/octet-stream", "application/x-www-form-urlencoded")
    return content_type in known or content_type.startswith("image/")


async def _from_form(request: Request, body: bytes) -> tuple[bytes, dict[str, Any]]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemory(request.headers, chunks(), max_files=1, max_fields=16, max_part_size=4096)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ServiceError(ErrorKind.MALFORMED, f"multipart/form-data: {error.message}") from None
    image = b""
    given: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "image":
                raise ServiceError(
                    ErrorKind.MALFORMED, f"the file is in the field {name!r}: call it 'image'"
                )
            image = await value.read()
        elif name in given:
            raise ServiceError(ErrorKind.MALFORMED, f"the field {name!r} is there twice")
        else:
            given[name] = value
    if "image" in given:
        raise ServiceError(
            ErrorKind.MALFORMED,
            "the field 'image' has text: send it as a file (curl: -F image=@picture.png)",
        )
    return image, given


async def _from_json(body: bytes) -> tuple[bytes, dict[str, Any]]:
    if len(body) < _LARGE:
        return _parse_json(body)
    return await asyncio.to_thread(_parse_json, body)


def _parse_json(body: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        upload = JsonUpload.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise ServiceError(
                ErrorKind.MALFORMED, f"the body is not JSON: {error.errors()[0]['msg']}"
            ) from None
        raise ServiceError(ErrorKind.IMPOSSIBLE, describe(error)) from None
    try:
        image = base64.b64decode(upload.image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(ErrorKind.MALFORMED, f"image: not base64: {error}") from None
    return image, upload.model_dump(exclude_unset=True, exclude={"image"})


def _merge(query: ClassifyOptions, given: dict[str, Any]) -> ClassifyOptions:
    options = query.model_dump(exclude_unset=True)
    if twice := options.keys() & given.keys():
        raise ServiceError(
            ErrorKind.IMPOSSIBLE,
            f"{', '.join(sorted(twice))}: in the query and in the body; give it once",
        )
    try:
        return ClassifyOptions.model_validate(options | given) if given else query
    except ValidationError as error:
        raise ServiceError(ErrorKind.IMPOSSIBLE, describe(error)) from None
