"""Options in the query, as a model of theirs.

The framework can do the same, and takes longer for it than for all else that it does for a request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

M = TypeVar("M", bound=BaseModel)

# Longer queries are read anew each time, so that what is kept stays small.
_SHORT = 128
_KEPT = 256


def query_reader(kind: type[M]) -> Callable[[Request], M]:
    """A function that reads the options of a request; it raises RequestValidationError. `kind` must be frozen."""

    def read(query: str) -> M:
        try:
            return kind.model_validate(dict(parse_qsl(query, keep_blank_values=True)))
        except ValidationError as error:
            details = [{**item, "loc": ("query", *item["loc"])} for item in error.errors()]
            raise RequestValidationError(details) from None

    remembered = functools.lru_cache(_KEPT)(read)

    def options(request: Request) -> M:
        query = request.scope["query_string"].decode("latin-1")
        return (remembered if len(query) <= _SHORT else read)(query)

    return options


def query_parameters(kind: type[BaseModel]) -> list[dict[str, Any]]:
    """The options as OpenAPI describes parameters."""
    fields = kind.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", ""),
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in fields.items()
    ]
