"""What a port's connections talk to: pictures take the shortest way, on the event loop of their connections.

Everything else, and above all what concerns event streams, is answered on the server's own loop, where pictures do not
stand in its way. `POST /classify` passes neither the framework's routing nor its dependencies: those take longer than
all else that is done for a picture. The framework has the route as well, for its description and for other ports.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from spikeserve.access import Gate
from spikeserve.access.scopes import of_route
from spikeserve.classify import Classifier
from spikeserve.loops import OnLoop
from spikeserve.metrics import Metrics
from spikeserve.refusals import Refusals
from spikeserve.rest.access import credentials, on_admin_port
from spikeserve.rest.app import cors
from spikeserve.rest.classify import ROUTE, PictureRoute
from spikeserve.rest.connections import WebSocketHost
from spikeserve.rest.middleware import RequestMiddleware
from spikeserve.settings import Settings


class Front:
    """`rest` is the whole application; `host`, where there is one, takes over WebSockets."""

    def __init__(
        self,
        rest: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        classifier: Classifier,
        refusals: Refusals,
        gate: Gate,
    ) -> None:
        self.host: WebSocketHost | None = None
        self._rest = OnLoop(rest)
        route = _Gated(PictureRoute(classifier, metrics, settings), gate)
        self._pictures: ASGIApp = RequestMiddleware(
            route, metrics, refusals, classifier.spans, settings.receive_seconds
        )
        if settings.cors_origins:
            self._pictures = CORSMiddleware(self._pictures, **cors(settings))

    def live_on(self, loop: asyncio.AbstractEventLoop, host: WebSocketHost) -> None:
        """Where everything else is answered."""
        self._rest.home, self.host = loop, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == ROUTE and scope["method"] == "POST":
            await self._pictures(scope, receive, send)
        else:
            await self._rest(scope, receive, send)


@dataclass(frozen=True)
class _Matched:
    """What the framework leaves in a scope, and logs and metrics look for."""

    path: str


class _Gated:
    """One route, behind the gate."""

    def __init__(self, route: PictureRoute, gate: Gate) -> None:
        self._route = route
        self._gate = gate
        self._matched = _Matched(ROUTE)
        self._scopes = of_route(ROUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._matched
        request = Request(scope, receive)
        admin = on_admin_port(request)
        with self._gate.admit(self._scopes, credentials(request), admin_port=admin) as caller:
            scope["state"]["caller"] = caller.key
            reply = await self._route.answer(request)
        await reply(scope, receive, send)
