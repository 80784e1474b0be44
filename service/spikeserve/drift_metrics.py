"""The drift of all models for Prometheus, asked of their monitors at every scrape."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from spikeserve.drift import DriftMonitor

_MODEL = ("model", "version")
_LAYER = (*_MODEL, "layer")
Key = tuple[str, str]


class DriftCollector(Collector):
    """Models without a profile in their checkpoint have no series here, but for `spikeserve_drift_watched`, which is 0."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._monitors: dict[Key, DriftMonitor] = {}

    def watch(self, model: str, version: str, monitor: DriftMonitor) -> None:
        with self._lock:
            self._monitors[model, version] = monitor

    def forget(self, model: str, version: str) -> None:
        with self._lock:
            self._monitors.pop((model, version), None)

    def describe(self) -> list[Metric]:
        return list(_Families())

    def collect(self) -> list[Metric]:
        families = _Families()
        with self._lock:
            monitors = dict(self._monitors)
        for key, monitor in monitors.items():
            families.add(key, monitor)
        return list(families)


class _Families:
    def __init__(self) -> None:
        self.watched = _gauge("drift_watched", "1 where the checkpoint has a profile.", _MODEL)
        self.drifting = _gauge(
            "drifting", "1 while the neurons fire otherwise than on held-out data.", _MODEL
        )
        self.score = _gauge(
            "drift_score",
            "By signal (rates, neurons, channels, pixels) how near it is to an alarm, which is 1.",
            (*_MODEL, "signal"),
        )
        self.shift = _gauge(
            "firing_rate_drift",
            "Distance of the firing rate from that on held-out data, in standard deviations between samples.",
            _LAYER,
        )
        self.layer_score = _gauge(
            "firing_rate_drift_score",
            "How near the layer's rate is to an alarm, which is 1.",
            _LAYER,
        )
        self.silent = _gauge(
            "silent_neurons_ratio", "Neurons that fired for none of a group of samples.", _LAYER
        )
        self.saturated = _gauge(
            "saturated_neurons_ratio",
            "Neurons that fired at 95 % of the timesteps of a group of samples.",
            _LAYER,
        )
        self.hot = _gauge(
            "hot_pixels", "Inputs that were on throughout a group of samples.", _MODEL
        )
        self.dark = _gauge(
            "dark_pixels", "Inputs that were off throughout a group of samples.", _MODEL
        )
        self.probes = CounterMetricFamily(
            "spikeserve_probes",
            "Samples that were run once more to look at every neuron.",
            labels=_MODEL,
        )

    def __iter__(self) -> Iterator[Metric]:
        return iter(vars(self).values())

    def add(self, key: Key, monitor: DriftMonitor) -> None:
        self.watched.add_metric(key, float(monitor.watches))
        if not monitor.watches:
            return
        report = monitor.report()
        self.drifting.add_metric(key, float(report.state == "drifting"))
        self.probes.add_metric(key, report.probes)
        for signal, score in report.scores.items():
            self.score.add_metric((*key, signal), score)
        if report.samples:
            for layer, each in report.layers.items():
                self.shift.add_metric((*key, layer), each.shift)
                self.layer_score.add_metric((*key, layer), each.score)
                if each.silent is not None and each.saturated is not None:
                    self.silent.add_metric((*key, layer), each.silent)
                    self.saturated.add_metric((*key, layer), each.saturated)
        if report.hot_pixels is not None and report.dark_pixels is not None:
            self.hot.add_metric(key, report.hot_pixels)
            self.dark.add_metric(key, report.dark_pixels)


def _gauge(name: str, text: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"spikeserve_{name}", text, labels=labels)
