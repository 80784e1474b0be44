"""GET /status: models, queues, latency and the last refusals, for the page's server panel."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from prometheus_client import Histogram
from pydantic import BaseModel, Field
from starlette.responses import Response

from spikeserve import __version__
from spikeserve.drift import Report
from spikeserve.errors import ServiceError
from spikeserve.health import Health
from spikeserve.metrics import Metrics
from spikeserve.refusals import Refusals
from spikeserve.repository import ModelInfo, Repository
from spikeserve.settings import Settings
from spikeserve.streams import Streams

_QUANTILES = (0.5, 0.95, 0.99)


class LatencyReply(BaseModel):
    count: int
    p50: float = Field(description="seconds")
    p95: float
    p99: float


class LayerDriftReply(BaseModel):
    name: str
    shift: float = Field(
        description="distance of the firing rate from that on held-out data, in standard deviations between samples"
    )
    score: float = Field(description="1 raises an alarm")
    silent: float | None = Field(
        None, description="share of neurons that fired for no sample of the last group"
    )
    saturated: float | None = Field(
        None, description="share of neurons that fired at 95 % of the last group's timesteps"
    )


class DriftReply(BaseModel):
    """How the model's neurons fire, against its checkpoint's profile."""

    state: str = Field(description="steady, drifting, or unknown: no profile, or nothing seen yet")
    reasons: list[str] = Field(description="what drifts, where something does")
    samples: int
    probes: int = Field(description="samples of which every neuron was looked at")
    scores: dict[str, float] = Field(description="by signal; 1 raises an alarm")
    layers: list[LayerDriftReply]
    hot_pixels: int | None = Field(description="inputs that were on throughout the last group")
    dark_pixels: int | None = Field(description="inputs that were off throughout the last group")


class ModelStatusReply(BaseModel):
    name: str
    version: str
    state: str = Field(description="loading, ready, stalled or failed")
    reason: str | None = Field(None, description="why it failed")
    default: bool
    input: str | None
    slots: int = 0
    slots_in_use: int = 0
    queue: int = Field(0, description="pictures that wait for a slot")
    latency_seconds: dict[str, LatencyReply] = Field(
        {},
        description="by stage, since the server began; interpolated in the histogram's buckets, "
        "as Prometheus does",
    )
    drift: DriftReply | None = None


class StreamsStatusReply(BaseModel):
    open: int
    parked: int
    limit: int


class RefusalReply(BaseModel):
    when: float = Field(description="seconds since 1970")
    route: str
    status: int = Field(description="the HTTP status of its kind")
    title: str
    reason: str
    request_id: str


class StatusReply(BaseModel):
    name: str = "spikeserve"
    version: str
    state: str = Field(description="ready, not ready or draining")
    uptime_seconds: float
    max_queue: int = Field(description="pictures of one model that may wait")
    models: list[ModelStatusReply]
    streams: StreamsStatusReply
    refusals: list[RefusalReply] = Field(description="the latest first")


@dataclass(frozen=True)
class Bucket:
    """How many observations were at most `limit`."""

    limit: float
    count: float


def status_router(
    settings: Settings,
    metrics: Metrics,
    repository: Repository,
    streams: Streams,
    health: Health,
    refusals: Refusals,
) -> APIRouter:
    router = APIRouter(tags=["system"])
    began = time.monotonic()

    @router.get("/status", response_model=StatusReply)
    async def status() -> Response:
        """Models, queues, latency, and the last requests that were refused, with the reason."""
        buckets = _buckets(metrics.stages)
        reply = StatusReply(
            version=__version__,
            state=health.state,
            uptime_seconds=time.monotonic() - began,
            max_queue=settings.max_queue,
            models=[_model(repository, info, buckets) for info in repository.models()],
            streams=StreamsStatusReply(
                open=len(streams), parked=len(streams.parking), limit=settings.max_streams
            ),
            refusals=[
                RefusalReply(
                    when=each.when,
                    route=each.route,
                    status=each.kind.http_status,
                    title=each.kind.title,
                    reason=each.reason,
                    request_id=each.request_id,
                )
                for each in refusals.latest()
            ],
        )
        headers = {"Cache-Control": "no-store"}
        return Response(reply.model_dump_json(), media_type="application/json", headers=headers)

    return router


def _model(
    repository: Repository,
    info: ModelInfo,
    buckets: dict[tuple[str, str], dict[str, list[Bucket]]],
) -> ModelStatusReply:
    reply = ModelStatusReply(
        name=info.name,
        version=info.version,
        state=info.state,
        reason=info.reason,
        default=info.default,
        input=None if info.manifest is None else info.manifest.input.kind,
    )
    if info.state != "ready":
        return reply
    try:
        model = repository.get(info.name, info.version)
    except ServiceError:  # unloaded since it was listed
        return reply.model_copy(update={"state": "unloading"})
    engine = model.engine
    stages = buckets.get((info.name, info.version), {})
    return reply.model_copy(
        update={
            "state": "ready" if engine.healthy else "stalled",
            "slots": engine.slots,
            "slots_in_use": engine.slots_in_use,
            "queue": engine.waiting,
            "latency_seconds": {
                stage: _latency(counts) for stage, counts in stages.items() if counts[-1].count
            },
            "drift": _drift(model.watch.monitor.report()),
        }
    )


def _drift(report: Report) -> DriftReply:
    return DriftReply(
        state=report.state,
        reasons=list(report.reasons),
        samples=report.samples,
        probes=report.probes,
        scores={str(signal): score for signal, score in report.scores.items()},
        layers=[
            LayerDriftReply(
                name=name,
                shift=layer.shift,
                score=layer.score,
                silent=layer.silent,
                saturated=layer.saturated,
            )
            for name, layer in report.layers.items()
        ],
        hot_pixels=report.hot_pixels,
        dark_pixels=report.dark_pixels,
    )


def _buckets(histogram: Histogram) -> dict[tuple[str, str], dict[str, list[Bucket]]]:
    """By model and version, by stage, the cumulative counts in the order of their limits."""
    found: dict[tuple[str, str], dict[str, list[Bucket]]] = {}
    for family in histogram.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                labels = sample.labels
                stages = found.setdefault((labels["model"], labels["version"]), {})
                bucket = Bucket(float(labels["le"]), sample.value)
                stages.setdefault(labels["stage"], []).append(bucket)
    return found


def _latency(buckets: Sequence[Bucket]) -> LatencyReply:
    p50, p95, p99 = quantiles(buckets, _QUANTILES)
    return LatencyReply(count=int(buckets[-1].count), p50=p50, p95=p95, p99=p99)


def quantiles(buckets: Sequence[Bucket], wanted: Iterable[float]) -> list[float]:
    """Interpolated linearly within a bucket; beyond the last finite limit it is that limit."""
    return [_quantile(buckets, each) for each in wanted]


def _quantile(buckets: Sequence[Bucket], wanted: float) -> float:
    rank = wanted * buckets[-1].count
    before = Bucket(0.0, 0.0)
    for bucket in buckets[:-1]:
        if bucket.count >= rank and bucket.count > before.count:
            part = (rank - before.count) / (bucket.count - before.count)
            return before.limit + (bucket.limit - before.limit) * part
        before = bucket
    return before.limit
