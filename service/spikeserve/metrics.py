"""Prometheus metrics of the server, in a registry of its own.

Labels come from short fixed sets. A model's name becomes a label only once the repository has loaded it, so that
no client can make new time series.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from spikeserve.drift import DriftMonitor
from spikeserve.drift_metrics import DriftCollector
from spikeserve.engine import Scheduler
from spikeserve.gpu_metrics import GpuCollector

STAGES = ("decode", "queue", "compute", "encode")
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # fmt: skip
_RATES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TIMESTEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32, 64, 128)
_MODEL = ("model", "version")

RATE_SAMPLES = 100
"""The firing-rate gauge is a running mean with this many samples as its time constant."""

_MOST_ROUTES = 64


class Metrics:
    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.drift = DriftCollector()
        self.registry.register(self.drift)
        self.registry.register(GpuCollector())
        self._models: dict[tuple[str, str], ModelMetrics] = {}
        self._routes: set[str] = set()
        self.requests = self._counter(
            "requests",
            "Requests answered, by HTTP status or gRPC status.",
            (*_MODEL, "route", "code"),
        )
        self.stages = Histogram(
            "spikeserve_stage_seconds",
            "Time of one stage of a request.",
            ("stage", *_MODEL),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.loaded = self._gauge("model_loaded", "1 for each model that was loaded.", _MODEL)
        self.ready = self._gauge("model_ready", "1 where the model can answer.", _MODEL)
        self.failed = self._gauge("models_failed", "Checkpoints that could not be loaded.", ())
        self.loads = self._counter(
            "model_loads",
            "Attempts to load a version of a model, by outcome (loaded, failed).",
            ("model", "outcome"),
        )
        self.source_fetches = self._counter(
            "source_fetches",
            "Looks at an address of models, by outcome (changed, unchanged, failed).",
            ("outcome",),
        )
        self.slots = self._gauge("slots", "Slots of the model.", _MODEL)
        self.slots_in_use = self._gauge("slots_in_use", "Slots that hold a sample.", _MODEL)
        self.queue_depth = self._gauge("queue_depth", "Pictures that wait for a slot.", _MODEL)
        self.open_streams = self._gauge("open_streams", "Event streams that are open.", ())
        self.parked_streams = self._gauge(
            "parked_streams", "Event streams without a connection that may be resumed.", ()
        )
        self.snapshots = self._counter(
            "snapshots",
            "Streams kept for another server, by outcome (saved, resumed, refused, failed).",
            ("outcome",),
        )
        self.answers_dropped = self._counter(
            "stream_answers_dropped", "Answers dropped because the client did not read.", ()
        )
        self.messages_refused = self._counter(
            "stream_messages_refused", "Messages refused because the client did not read.", ()
        )
        self.streams_ended = self._counter(
            "streams_ended",
            "Streams ended by the server, by reason: slow (the client did not read), idle (nothing came).",
            ("reason",),
        )
        for reason in ("slow", "idle"):
            self.streams_ended.labels(reason)
        self.restarts = self._counter("engine_restarts", "Crashes of the engine.", _MODEL)
        self.operations = self._counter(
            "synaptic_operations", "Weights added because of spikes.", _MODEL
        )
        self.energy = self._counter(
            "estimated_energy_joules", "Energy that neuromorphic hardware would have used.", _MODEL
        )
        self.windows = self._counter("windows", "Windows of event streams computed.", _MODEL)
        self.events = self._counter(
            "events", "Events received, by what became of them.", (*_MODEL, "outcome")
        )
        self.batch = self._histogram("batch_size", "Samples in one timestep.", _MODEL, _BATCHES)
        self.timesteps = self._histogram(
            "timesteps_used",
            "Timesteps until the answer to a picture, by whether it may leave early (exit on or off).",
            (*_MODEL, "exit"),
            _TIMESTEPS,
        )
        self.rate = self._gauge(
            "firing_rate",
            "Spikes per neuron per timestep, a running mean over samples.",
            (*_MODEL, "layer"),
        )
        self.sample_rate = self._histogram(
            "firing_rate_per_sample", "Spikes per neuron per timestep.", (*_MODEL, "layer"), _RATES
        )

    def model(self, name: str, version: str) -> ModelMetrics:
        """The metrics of one model; from now on its name and version are labels."""
        key = (name, version)
        if key not in self._models:
            self._models[key] = ModelMetrics(self, name, version)
        return self._models[key]

    def request(
        self, route: str, code: str, model: str | None = None, version: str | None = None
    ) -> None:
        """`route` is a template of ours, never a path; `code` an HTTP status or the name of a gRPC status."""
        known = (model or "", version or "")
        if known not in self._models:
            known = ("", "")
        if route not in self._routes and len(self._routes) >= _MOST_ROUTES:
            route = "other"
        self._routes.add(route)
        self.requests.labels(*known, route, code).inc()

    def stage(self, stage: str, seconds: float, model: str, version: str) -> None:
        """Raises ValueError for a stage that is not in STAGES. Models that are not loaded are not counted."""
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r}: known are {', '.join(STAGES)}")
        if (model, version) in self._models:
            self._models[model, version].stages[stage].observe(seconds)

    def load_tried(self, name: str, outcome: Literal["loaded", "failed"]) -> None:
        """`name` is that of a file in the folders of models, never what a client asked for."""
        self.loads.labels(name, outcome).inc()

    def source_fetched(self, outcome: str) -> None:
        """`outcome` is one of spikeserve.sources.Outcome."""
        self.source_fetches.labels(outcome).inc()

    def watch_streams(
        self, count: Callable[[], int], parked: Callable[[], int] = lambda: 0
    ) -> None:
        """`count` and `parked` are asked at every scrape."""
        self.open_streams.set_function(count)
        self.parked_streams.set_function(parked)

    def render(self) -> bytes:
        """All metrics in the text format that `content_type` names."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"spikeserve_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"spikeserve_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(
            f"spikeserve_{name}", text, labels, buckets=buckets, registry=self.registry
        )


class ModelMetrics:
    """The metrics of one model. It is the observer of the model's engine."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._metrics = metrics
        self._labels = (name, version)
        self._lock = threading.Lock()
        self._means: dict[str, tuple[int, float]] = {}
        self._layers: dict[str, tuple[Gauge, Histogram]] = {}
        self._timesteps: dict[str, Histogram] = {}
        self.steps = 0
        """Timesteps of the engine, each with all that was in a slot then."""
        self.stages = {stage: metrics.stages.labels(stage, name, version) for stage in STAGES}
        self._batch = metrics.batch.labels(name, version)
        self._restarts = metrics.restarts.labels(name, version)
        self._operations = metrics.operations.labels(name, version)
        self._energy = metrics.energy.labels(name, version)

    def watch(self, engine: Scheduler, drift: DriftMonitor) -> None:
        """What the engine and the monitor know is asked at every scrape."""
        metrics, labels = self._metrics, self._labels
        metrics.drift.watch(*labels, drift)
        metrics.loaded.labels(*labels).set(1)
        metrics.ready.labels(*labels).set_function(lambda: float(engine.healthy))
        metrics.slots.labels(*labels).set_function(lambda: engine.slots)
        metrics.slots_in_use.labels(*labels).set_function(lambda: engine.slots_in_use)
        metrics.queue_depth.labels(*labels).set_function(lambda: engine.waiting)

    def forget(self) -> None:
        """The model does not answer any more: it has no present state. What was counted stays."""
        metrics = self._metrics
        metrics.drift.forget(*self._labels)
        for gauge in (
            metrics.loaded,
            metrics.ready,
            metrics.slots,
            metrics.slots_in_use,
            metrics.queue_depth,
        ):
            with contextlib.suppress(KeyError):
                gauge.remove(*self._labels)
        with self._lock:
            for layer in self._means:
                with contextlib.suppress(KeyError):
                    metrics.rate.remove(*self._labels, layer)
            self._means.clear()
            self._layers.clear()

    def stepped(self, batch: int) -> None:
        self.steps += 1
        self._batch.observe(batch)

    def restarted(self) -> None:
        self._restarts.inc()

    def sample(
        self, rates: Mapping[str, float], synaptic_operations: float, energy_joules: float
    ) -> None:
        """One picture or one window was computed."""
        self._operations.inc(synaptic_operations)
        self._energy.inc(energy_joules)
        with self._lock:
            for layer, rate in rates.items():
                count, mean = self._means.get(layer, (0, 0.0))
                count = min(count + 1, RATE_SAMPLES)
                mean += (rate - mean) / count
                self._means[layer] = (count, mean)
                if layer not in self._layers:
                    labels = (*self._labels, layer)
                    children = (
                        self._metrics.rate.labels(*labels),
                        self._metrics.sample_rate.labels(*labels),
                    )
                    self._layers[layer] = children
                gauge, histogram = self._layers[layer]
                gauge.set(mean)
                histogram.observe(rate)

    def picture(self, timesteps: int, exit: Literal["on", "off"]) -> None:
        if exit not in self._timesteps:
            self._timesteps[exit] = self._metrics.timesteps.labels(*self._labels, exit)
        self._timesteps[exit].observe(timesteps)

    def window(self) -> None:
        self._metrics.windows.labels(*self._labels).inc()

    def received(self, accepted: int, late: int, outside: int, filtered: int = 0) -> None:
        outcomes = {"accepted": accepted, "late": late, "outside": outside, "filtered": filtered}
        for outcome, count in outcomes.items():
            self._metrics.events.labels(*self._labels, outcome).inc(count)
