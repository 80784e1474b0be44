"""The page at /: files of this package, and nothing from elsewhere.

Browsers ask again for each file and are told 304 while its digest has not changed, so that a new release is seen at
once. Who asks for / without wanting a page, as curl does, is told in JSON what there is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from spikeserve import __version__
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.rest.access import wants_page

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"
_ROUTES = (
    "/classify",
    "/classify/events",
    "/classify/trace",
    "/models",
    "/status",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/docs",
)

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            "media-src 'self' blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def page_router() -> APIRouter:
    """Reads the files once; together they are small."""
    router = APIRouter()
    found = _files()

    @router.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        if wants_page(request):
            return _reply(found[_INDEX], request)
        content = {"name": "spikeserve", "version": __version__, "routes": list(_ROUTES)}
        return JSONResponse(content, headers={"Vary": "Accept"})

    @router.get("/web/{name}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        if name not in found:
            raise ServiceError(ErrorKind.UNIMPLEMENTED, "the page has no such file")
        return _reply(found[name], request)

    return router


def _files() -> dict[str, _File]:
    found = {}
    for entry in files("spikeserve").joinpath("web").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in _TYPES:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = _File(content, _TYPES[suffix], etag)
    return found


def _reply(file: _File, request: Request) -> Response:
    headers = HEADERS | {"ETag": file.etag, "Vary": "Accept"}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
