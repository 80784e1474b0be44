"""Around every request: its id, one line in the log, the count by route, and a reply whatever happens inside."""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spikeserve import logs
from spikeserve.errors import ErrorKind
from spikeserve.metrics import Metrics
from spikeserve.refusals import Refusals
from spikeserve.requests import request_id
from spikeserve.rest.problems import problem, translate
from spikeserve.rest.v2_errors import is_v2, v2_error

UNMATCHED = "unmatched"
"""The route in logs and metrics of a path that no route has: the path itself could be anything."""

_PROBES = ("/health/live", "/health/ready", "/metrics")


class RequestMiddleware:
    def __init__(self, app: ASGIApp, metrics: Metrics, refusals: Refusals) -> None:
        self._app = app
        self._metrics = metrics
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id(Headers(scope=scope).get("x-request-id"))
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = state["request_id"]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            failure = translate(error, f"{scope['method']} {scope['path']}")
            state["error"] = failure.kind.slug
            state["failure"] = failure
            if status:  # too late for a reply: the server closes the connection
                raise
            v2 = is_v2(scope["path"])
            reply = v2_error(failure) if v2 else problem(failure, state["request_id"])
            await reply(scope, receive, answer)
        finally:
            self._record(
                scope, status or ErrorKind.CANCELLED.http_status, time.perf_counter() - began
            )

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", UNMATCHED)
        model, version = state.get("model"), state.get("version")
        self._metrics.request(route, str(status), model, version)
        if (failure := state.get("failure")) is not None:
            self._refusals.add(route, failure, state["request_id"])
        if route in _PROBES and status in (200, 503):
            return
        logs.request_line(
            route=route,
            code=str(status),
            seconds=seconds,
            model=model,
            error=state.get("error"),
            request_id=state["request_id"],
        )
