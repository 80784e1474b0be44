"""Around every call of ours: its id, one line in the log, the count by method, and the status of an error."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from spikeserve import logs
from spikeserve.access import Gate
from spikeserve.access.gate import credentials_from
from spikeserve.access.scopes import of_method
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.refusals import Refusals
from spikeserve.requests import current_request_id, request_id
from spikeserve.tracing import Spans, TraceContext, trace_context

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]

_OURS = ("/spikeserve.", "/inference.")


@dataclass
class Call:
    """What the log and the counters are told about the call under way."""

    request_id: str
    trace: TraceContext
    key: str | None = None
    model: str | None = None
    version: str | None = None
    told: tuple[tuple[str, str], ...] = ()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the client is told of it; `told` is what else there is to say."""
        return ("x-request-id", self.request_id), ("traceparent", self.trace.header), *self.told

    def answered_by(self, model: str, version: str) -> None:
        self.model, self.version = model, version


class Unreadable:
    """Stands for a message that is not protobuf of its type, so that we answer it and not the transport."""


current_call: ContextVar[Call] = ContextVar("current_call")


class Boundary(grpc.aio.ServerInterceptor):
    def __init__(self, metrics: Metrics, refusals: Refusals, gate: Gate, spans: Spans) -> None:
        self._spans = spans
        self._gate = gate
        self._metrics = metrics
        self._refusals = refusals

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_OURS):
            return handler
        codec = {
            "request_deserializer": _tolerant(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        method = handler_call_details.method.lstrip("/")
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._guard(handler.stream_stream, method), **codec
            )
        return grpc.unary_unary_rpc_method_handler(
            self._guard(handler.unary_unary, method), **codec
        )

    def _guard(self, behaviour: Behaviour, method: str) -> Behaviour:
        scopes = of_method(method)

        async def traced(request: Any, context: Context) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            given = trace_context(_text(metadata.get("traceparent")))
            with self._spans.request(method, given) as trace:
                call = Call(request_id(_text(metadata.get("x-request-id"))), trace)
                return await guarded(request, context, metadata, call)

        async def guarded(
            request: Any, context: Context, metadata: dict[str, Any], call: Call
        ) -> Any:
            current_call.set(call)
            current_request_id.set(call.request_id)
            context.set_trailing_metadata(call.metadata)
            began = time.perf_counter()
            code, failure = "OK", None
            try:
                if isinstance(request, Unreadable):
                    raise unreadable()
                given = credentials_from(
                    _text(metadata.get("authorization")), _text(metadata.get("x-api-key"))
                )
                with self._gate.admit(scopes, given) as caller:
                    call.key = caller.key
                    return await behaviour(request, context)
            except asyncio.CancelledError:
                code = ErrorKind.CANCELLED.grpc_status
                raise
            except Exception as error:
                failure = (
                    error if isinstance(error, ServiceError) else logs.internal_error(error, method)
                )
                code = failure.kind.grpc_status
                await _abort(context, failure, call)
            finally:
                slug = None if failure is None else failure.kind.slug
                if failure is not None:
                    self._refusals.add(method, failure, call.request_id)
                if scopes == ("admin",):
                    logs.audit_line(
                        action=f"{method} {getattr(request, 'model_name', '')}".strip(),
                        code=code,
                        key=call.key,
                        peer=context.peer(),
                        request_id=call.request_id,
                    )
                self._record(method, code, slug, time.perf_counter() - began, call)

        return traced

    def _record(
        self, method: str, code: str, error: str | None, seconds: float, call: Call
    ) -> None:
        self._metrics.request(method, code, call.model, call.version)
        self._spans.describe(method, code=code, model=call.model, version=call.version)
        logs.request_line(
            route=method,
            trace_id=call.trace.trace if call.trace.parent or self._spans.on else None,
            code=code,
            seconds=seconds,
            model=call.model,
            error=error,
            key=call.key,
            request_id=call.request_id,
        )


async def _abort(context: Context, error: ServiceError, call: Call) -> None:
    metadata = [*call.metadata, ("error-type", error.kind.slug)]
    if error.retry_after is not None:
        metadata.append(("retry-after", str(math.ceil(error.retry_after))))
        # gRPC's own name for it, which clients with a retry policy keep to.
        metadata.append(("grpc-retry-pushback-ms", str(math.ceil(1000 * error.retry_after))))
    await context.abort(grpc.StatusCode[error.kind.grpc_status], error.message, tuple(metadata))


def unreadable() -> ServiceError:
    return ServiceError(
        ErrorKind.MALFORMED,
        "the message is not what the service's definition says (spikeserve.v1 or inference): reflection and proto/ have it",
    )


def _tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parsed(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return Unreadable()

    return parsed


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None
