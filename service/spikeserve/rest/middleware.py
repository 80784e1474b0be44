"""Around every request: its id, one line in the log, the count by route, and a reply whatever happens inside."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spikeserve import logs
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.refusals import Refusals
from spikeserve.requests import current_request_id, request_id
from spikeserve.rest.problems import problem, translate
from spikeserve.rest.v2_errors import is_v2, v2_error
from spikeserve.tracing import Spans, trace_context

UNMATCHED = "unmatched"
"""The route in logs and metrics of a path that no route has: the path itself could be anything."""

_PROBES = ("/health/live", "/health/ready", "/metrics")


class RequestMiddleware:
    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        refusals: Refusals,
        spans: Spans,
        receive_seconds: float,
    ) -> None:
        self._spans = spans
        self._receive_seconds = receive_seconds
        self._app = app
        self._metrics = metrics
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id(headers.get("x-request-id"))
        current_request_id.set(state["request_id"])
        context = trace_context(headers.get("traceparent"))
        with self._spans.request(scope["method"], context) as state["trace"]:
            await self._answered(scope, self._in_time(state, receive), send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        state = scope["state"]
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = state["request_id"]
                headers["Traceparent"] = state["trace"].header
                if state.get("slow"):
                    # What is left of the body is not waited for, so the connection cannot be used again.
                    headers["Connection"] = "close"
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

    def _in_time(self, state: dict[str, Any], receive: Receive) -> Receive:
        """Receives the body within the time for it; afterwards it waits for the client to leave, as long as that takes."""
        end: float | None = time.monotonic() + self._receive_seconds

        async def received() -> Message:
            nonlocal end
            if end is None:
                return await receive()
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                state["slow"] = True
                raise ServiceError(
                    ErrorKind.DEADLINE,
                    f"the body did not arrive within {self._receive_seconds:g} s (SPIKESERVE_RECEIVE_SECONDS)",
                ) from None
            if message["type"] != "http.request" or not message.get("more_body", False):
                end = None
            return message

        return received

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = getattr(scope.get("route"), "path", UNMATCHED)
        model, version = state.get("model"), state.get("version")
        self._metrics.request(route, str(status), model, version)
        if (failure := state.get("failure")) is not None:
            self._refusals.add(route, failure, state["request_id"])
        if route in _PROBES and status in (200, 503):
            return
        if state.get("audit"):
            logs.audit_line(
                action=f"{scope['method']} {scope['path']}",
                code=str(status),
                key=state.get("caller"),
                peer=(scope.get("client") or (None,))[0],
                request_id=state["request_id"],
            )
        self._spans.describe(
            f"{scope['method']} {route}", code=status, model=model, version=version
        )
        trace = state["trace"]
        logs.request_line(
            route=route,
            code=str(status),
            trace_id=trace.trace if trace.parent or self._spans.on else None,
            key=state.get("caller"),
            seconds=seconds,
            model=model,
            error=state.get("error"),
            request_id=state["request_id"],
        )
