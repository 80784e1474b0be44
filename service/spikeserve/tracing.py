"""W3C trace context of requests, and spans of their stages for OpenTelemetry where it is installed and asked for.

Without OpenTelemetry the ids are made and passed on all the same, so that logs here and elsewhere can be joined.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spikeserve import __version__
from spikeserve.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1


class TracingError(ValueError):
    """Traces that cannot be sent. The message says what is missing."""


@dataclass(frozen=True)
class TraceContext:
    """Of one request: `span` is ours, `parent` the caller's, None where it sent none. Ids are in hexadecimal digits."""

    trace: str
    span: str
    parent: str | None = None
    flags: int = _SAMPLED

    @property
    def header(self) -> str:
        return f"00-{self.trace}-{self.span}-{self.flags:02x}"


def trace_context(given: str | None) -> TraceContext:
    """Within the trace of this `traceparent`; in a new one where there is none, or it is not what the W3C wants."""
    found = _HEADER.fullmatch(given.strip()) if given else None
    if (
        found is None
        or found[1] == "ff"
        or (found[1] == "00" and found[5])
        or not int(found[2], 16)
        or not int(found[3], 16)
    ):
        made = secrets.token_hex(24)
        return TraceContext(made[:32], made[32:])
    return TraceContext(found[2], secrets.token_hex(8), found[3], int(found[4], 16) & _SAMPLED)


current_trace: ContextVar[TraceContext | None] = ContextVar("current_trace", default=None)
"""Of the request that is being answered."""


class Spans:
    """Sends spans to the collector that the settings, or OpenTelemetry's own environment, name; or does nothing.

    Raises TracingError where they are asked for and OpenTelemetry is not installed.
    """

    def __init__(self, settings: Settings, exporter: Any = None) -> None:
        self._provider = _provider(settings, exporter) if settings.otel or exporter else None
        self._tracer = (
            None if self._provider is None else self._provider.get_tracer("spikeserve", __version__)
        )

    @contextlib.contextmanager
    def request(self, name: str, context: TraceContext) -> Generator[TraceContext]:
        """Around one request. What is yielded is to be told to the client and to the log: the span's own ids."""
        if self._tracer is None:
            token = current_trace.set(context)
            try:
                yield context
            finally:
                current_trace.reset(token)
            return
        from opentelemetry import trace

        with self._tracer.start_as_current_span(
            name, context=_parent(context), kind=trace.SpanKind.SERVER
        ) as span:
            ids = span.get_span_context()
            own = TraceContext(
                f"{ids.trace_id:032x}", f"{ids.span_id:016x}", context.parent, int(ids.trace_flags)
            )
            token = current_trace.set(own)
            try:
                yield own
            finally:
                current_trace.reset(token)

    def stages(self, seconds: dict[str, float], model: str, version: str) -> None:
        """The stages of the picture that was just answered, one after the other up to now, as spans of the request."""
        if self._tracer is None:
            return
        end = time.time_ns()
        began = end - round(sum(seconds.values()) * 1e9)
        attributes = {"spikeserve.model": model, "spikeserve.version": version}
        for stage, took in seconds.items():
            span = self._tracer.start_span(stage, start_time=began, attributes=attributes)
            began += round(took * 1e9)
            span.end(end_time=began)

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def describe(self, name: str, **attributes: str | int | float | None) -> None:
        """What is known of the request under way by its end; `name` is a template of ours."""
        if self._tracer is None:
            return
        from opentelemetry import trace

        span = trace.get_current_span()
        span.update_name(name)
        for attribute, value in attributes.items():
            if value is not None:
                span.set_attribute(f"spikeserve.{attribute}", value)

    def close(self) -> None:
        """Send what is left. Blocks, for some seconds at most."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider(settings: Settings, exporter: Any) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError:
        raise TracingError(
            "otel: OpenTelemetry is not installed: pip install 'spikeserve[otel]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "spikeserve"}))
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _parent(context: TraceContext) -> Any:
    """None where the caller sent no trace, so that ours begins one."""
    from opentelemetry import trace

    if context.parent is None:
        return None
    return trace.set_span_in_context(
        trace.NonRecordingSpan(
            trace.SpanContext(
                trace_id=int(context.trace, 16),
                span_id=int(context.parent, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(context.flags),
            )
        )
    )
