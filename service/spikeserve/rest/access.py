"""The gate in front of every route, and from where browsers may come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from spikeserve.access import Gate
from spikeserve.access.gate import credentials_from
from spikeserve.access.keys import Scope
from spikeserve.access.scopes import of_route
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.settings import Settings

CHALLENGE = 'Bearer realm="spikeserve", Basic realm="spikeserve", charset="UTF-8"'
"""What a refusal for want of a key says; browsers ask for the key as a password because of Basic."""


def gated(gate: Gate, settings: Settings) -> Callable[[HTTPConnection], AsyncGenerator[None]]:
    """A dependency of all routes: the request is let in once its route is known, for as long as it is answered."""

    async def admitted(connection: HTTPConnection) -> AsyncGenerator[None]:
        if connection.scope["type"] != "http":  # the WebSocket's route does it when it can say why
            yield
            return
        template = getattr(connection.scope.get("route"), "path", "")
        scopes = of_page(template) or of_route(template)
        admin_port = on_admin_port(connection)
        if scopes == ("admin",):
            connection.state.audit = True
            _check_origin(connection, settings)
        with gate.admit(scopes, credentials(connection), admin_port=admin_port) as caller:
            connection.state.caller = caller.key
            yield

    return admitted


def of_page(template: str) -> tuple[Scope, ...]:
    """Browsers ask for a key when they get the page; its parts need no more than that."""
    return ("classify", "stream", "metrics", "admin") if template in ("/", "/web/{name}") else ()


def credentials(connection: HTTPConnection) -> str | None:
    headers = connection.headers
    return credentials_from(headers.get("authorization"), headers.get("x-api-key"))


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
