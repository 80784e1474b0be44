"""The gate in front of every route, and from where browsers may come."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from spikeserve.access import Gate
from spikeserve.access.gate import credentials_from
from spikeserve.access.scopes import of_route
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.settings import Settings

CHALLENGE = 'Bearer realm="spikeserve"'
"""What a refusal for want of a key says."""

BROWSER_CHALLENGE = 'Basic realm="spikeserve", charset="UTF-8"'
"""Beside it, to a browser that was led to a route itself: it then asks for the key, as a password. Chromium reads one
challenge a header, so that this one has its own."""

PROTOCOL = "spikeserve.v1"
"""The WebSocket's subprotocol. A page cannot send headers with one, so its key comes as a second one that it offers."""

_KEY_PROTOCOL = "spikeserve.key."


def gated(gate: Gate, settings: Settings) -> Callable[[HTTPConnection], AsyncGenerator[None]]:
    """A dependency of all routes: the request is let in once its route is known, for as long as it is answered."""

    async def admitted(connection: HTTPConnection) -> AsyncGenerator[None]:
        if connection.scope["type"] != "http":  # the WebSocket's route does it when it can say why
            yield
            return
        template = getattr(connection.scope.get("route"), "path", "")
        scopes = () if of_page(connection, template) else of_route(template)
        admin_port = on_admin_port(connection)
        if scopes == ("admin",):
            connection.state.audit = True
            _check_origin(connection, settings)
        with gate.admit(scopes, credentials(connection), admin_port=admin_port) as caller:
            connection.state.caller = caller.key
            yield

    return admitted


def of_page(connection: HTTPConnection, template: str) -> bool:
    """The page's files are the same everywhere, and open: it is the page that asks for a key."""
    return template == "/web/{name}" or (template == "/" and wants_page(connection))


def wants_page(connection: HTTPConnection) -> bool:
    """Whether this is a browser that was led here itself, and no program, nor a script of a page."""
    return "text/html" in connection.headers.get("accept", "")


def credentials(connection: HTTPConnection) -> str | None:
    headers = connection.headers
    given = credentials_from(headers.get("authorization"), headers.get("x-api-key"))
    if connection.scope["type"] != "websocket":
        return given
    # First, as X-Api-Key is: the rest may be meant for a proxy.
    return _key_of_protocols(connection.scope.get("subprotocols") or ()) or given


def _key_of_protocols(offered: Sequence[str]) -> str | None:
    """The key in base64url, without padding, behind a fixed word."""
    for each in offered:
        if each.startswith(_KEY_PROTOCOL):
            coded = each.removeprefix(_KEY_PROTOCOL)
            with contextlib.suppress(binascii.Error, UnicodeDecodeError):
                return base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()
    return None


def on_admin_port(connection: HTTPConnection) -> bool:
    return bool(connection.scope.get("spikeserve.admin_port"))


class AdminPort:
    """The same application, on the port for administration."""

    def __init__(self, app: Callable[..., object]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, object], receive: object, send: object) -> None:
        scope["spikeserve.admin_port"] = True
        await self._app(scope, receive, send)  # type: ignore[misc]


def _check_origin(connection: HTTPConnection, settings: Settings) -> None:
    """A page of another site must not manage models through the browser of somebody who may."""
    origin = connection.headers.get("origin")
    if origin is None or origin in settings.cors_origins:
        return
    if urlsplit(origin).netloc != connection.headers.get("host"):
        raise ServiceError(
            ErrorKind.FORBIDDEN,
            f"this is not for pages of {origin!r:.100}; SPIKESERVE_CORS_ORIGINS has those that may",
        )
