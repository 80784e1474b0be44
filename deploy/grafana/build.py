"""Writes dashboards/*.json. Grafana's own format says little in many lines; what is on the dashboards is said here.

python deploy/grafana/build.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_MODEL = 'model=~"$model",version=~"$version"'
_BY_MODEL = "by (model, version)"
_WIDTH, _HEIGHT = 24, 8


@dataclass(frozen=True)
class Panel:
    """`queries` are by legend. A heat map takes buckets (`le`), or a row for each series."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    text: str = ""
    most: float | None = None
    limits: tuple[tuple[float | None, str], ...] = field(default=())


def rate(metric: str, labels: str = _MODEL) -> str:
    return f"rate({metric}{{{labels}}}[$__rate_interval])"


REQUESTS = [
    Panel(
        "Requests per second",
        {"{{route}}": f"sum by (route) ({rate('spikeserve_requests_total', '')})"},
        "reqps",
    ),
    Panel(
        "Answers by code",
        {"{{code}}": f"sum by (code) ({rate('spikeserve_requests_total', '')})"},
        "reqps",
    ),
    Panel(
        "Share that fails",
        {"{{instance}}": "instance:spikeserve_request_errors:ratio_rate5m"},
        "percentunit",
        text="Our fault or our overload: 5xx and their gRPC counterparts, over five minutes.",
        limits=((None, "green"), (0.01, "red")),
    ),
    Panel(
        "Time to an answer, by stage (99th percentile)",
        {"{{stage}} {{model}}": f"model_stage:spikeserve_stage_seconds:p99_5m{{{_MODEL}}}"},
        "s",
    ),
    *(
        Panel(
            f"{stage.capitalize()}: how long",
            {
                "{{le}}": f'sum by (le) (rate(spikeserve_stage_seconds_bucket{{stage="{stage}",{_MODEL}}}[$__rate_interval]))'
            },
            "s",
            "heatmap",
        )
        for stage in ("queue", "compute", "decode", "encode")
    ),
]

ENGINE = [
    Panel(
        "Slots in use",
        {"{{model}}": f"model:spikeserve_slots_in_use:ratio{{{_MODEL}}}"},
        "percentunit",
        most=1,
    ),
    Panel("Pictures that wait for a slot", {"{{model}}": f"spikeserve_queue_depth{{{_MODEL}}}"}),
    Panel(
        "Samples in one timestep",
        {"{{le}}": f"sum by (le) ({rate('spikeserve_batch_size_bucket')})"},
        kind="heatmap",
    ),
    Panel(
        "Timesteps per second and mean batch",
        {
            "timesteps per second, {{model}}": f"sum {_BY_MODEL} ({rate('spikeserve_batch_size_count')})",
            "mean batch, {{model}}": f"sum {_BY_MODEL} ({rate('spikeserve_batch_size_sum')}) / (sum {_BY_MODEL} "
            f"({rate('spikeserve_batch_size_count')}) > 0)",
        },
    ),
    Panel(
        "Timesteps until the answer",
        {"{{le}}": f"sum by (le) ({rate('spikeserve_timesteps_used_bucket')})"},
        kind="heatmap",
        text="Where exits are on, easy pictures leave early.",
    ),
    Panel(
        "Mean timesteps, by exit",
        {"{{model}}, exit {{exit}}": f"model:spikeserve_timesteps_used:mean5m{{{_MODEL}}}"},
    ),
    Panel("Models ready", {"{{model}} {{version}}": f"spikeserve_model_ready{{{_MODEL}}}"}, most=1),
    Panel(
        "Crashes of the engine in the last hour",
        {"{{model}}": f"increase(spikeserve_engine_restarts_total{{{_MODEL}}}[1h])"},
    ),
    Panel(
        "Processor",
        {"{{instance}}": 'rate(process_cpu_seconds_total{job="spikeserve"}[$__rate_interval])'},
        text="Cores in use.",
    ),
    Panel("Memory", {"{{instance}}": 'process_resident_memory_bytes{job="spikeserve"}'}, "bytes"),
]

SPIKES = [
    Panel(
        "Firing rate by layer",
        {"{{layer}}": f"spikeserve_firing_rate{{{_MODEL}}}"},
        "percentunit",
        "heatmap",
        text="Spikes per neuron per timestep, a running mean over samples; a row for each layer.",
    ),
    Panel(
        "Firing rate", {"{{model}} {{layer}}": f"spikeserve_firing_rate{{{_MODEL}}}"}, "percentunit"
    ),
    Panel(
        "Firing rate of samples",
        {"{{le}}": f"sum by (le) ({rate('spikeserve_firing_rate_per_sample_bucket')})"},
        "percentunit",
        "heatmap",
        text="All layers together: choose one model.",
    ),
    Panel(
        "Drift: distance from held-out data",
        {"{{model}} {{layer}}": f"spikeserve_firing_rate_drift{{{_MODEL}}}"},
        text="In standard deviations between samples. Half of one is nothing to worry about.",
        limits=((None, "green"), (2, "orange")),
    ),
    Panel(
        "How near to an alarm",
        {"{{model}} {{signal}}": f"spikeserve_drift_score{{{_MODEL}}}"},
        text="By signal; an alarm is raised at 1.",
        limits=((None, "green"), (1, "red")),
    ),
    Panel("Drifting", {"{{model}} {{version}}": f"spikeserve_drifting{{{_MODEL}}}"}, most=1),
    Panel(
        "Silent neurons",
        {"{{model}} {{layer}}": f"spikeserve_silent_neurons_ratio{{{_MODEL}}}"},
        "percentunit",
    ),
    Panel(
        "Saturated neurons",
        {"{{model}} {{layer}}": f"spikeserve_saturated_neurons_ratio{{{_MODEL}}}"},
        "percentunit",
    ),
    Panel(
        "Inputs that are stuck",
        {
            "hot, {{model}}": f"spikeserve_hot_pixels{{{_MODEL}}}",
            "dark, {{model}}": f"spikeserve_dark_pixels{{{_MODEL}}}",
        },
    ),
    Panel("Samples probed per second", {"{{model}}": rate("spikeserve_probes_total")}),
    Panel(
        "Synaptic operations per second",
        {"{{model}}": f"sum {_BY_MODEL} ({rate('spikeserve_synaptic_operations_total')})"},
    ),
    Panel(
        "Power that neuromorphic hardware would have drawn",
        {"{{model}}": f"sum {_BY_MODEL} ({rate('spikeserve_estimated_energy_joules_total')})"},
        "watt",
    ),
]

STREAMS = [
    Panel(
        "Streams",
        {
            "open": "sum(spikeserve_open_streams)",
            "waiting to be resumed": "sum(spikeserve_parked_streams)",
        },
    ),
    Panel(
        "Windows per second", {"{{model}}": f"sum {_BY_MODEL} ({rate('spikeserve_windows_total')})"}
    ),
    Panel(
        "Events per second, by what became of them",
        {"{{outcome}}": f"sum by (outcome) ({rate('spikeserve_events_total')})"},
    ),
    Panel(
        "Share of events dropped",
        {"{{model}}": f"model:spikeserve_events_dropped:ratio_rate5m{{{_MODEL}}}"},
        "percentunit",
        text="Late, or outside the sensor.",
        limits=((None, "green"), (0.05, "red")),
    ),
]

GPU = [
    Panel(
        "Memory",
        {
            "in use, GPU {{device}}": "spikeserve_gpu_memory_used_bytes",
            "this server, GPU {{device}}": "spikeserve_gpu_memory_allocated_bytes",
            "all, GPU {{device}}": "spikeserve_gpu_memory_total_bytes",
        },
        "bytes",
    ),
    Panel(
        "Utilisation",
        {"GPU {{gpu}}": "DCGM_FI_DEV_GPU_UTIL / 100"},
        "percentunit",
        text="From NVIDIA's dcgm-exporter, where one is scraped.",
        most=1,
    ),
    Panel(
        "Power",
        {"GPU {{gpu}}": "DCGM_FI_DEV_POWER_USAGE"},
        "watt",
        text="From NVIDIA's dcgm-exporter, where one is scraped.",
    ),
]

DASHBOARDS = {
    "requests": REQUESTS,
    "engine": ENGINE,
    "spikes": SPIKES,
    "streams": STREAMS,
    "gpu": GPU,
}


def dashboard(name: str, panels: list[Panel]) -> dict[str, Any]:
    title = name.upper() if name == "gpu" else name.capitalize()
    return {
        "uid": f"spikeserve-{name}",
        "title": f"spikeserve: {title}",
        "tags": ["spikeserve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "tags": ["spikeserve"],
                "title": "spikeserve",
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "templating": {"list": _variables()},
        "panels": list(_placed(panels)),
    }


def _variables() -> list[dict[str, Any]]:
    def values(name: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "type": "query",
            "datasource": _SOURCE,
            "query": query,
            "refresh": 2,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }

    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    models = values("model", "label_values(spikeserve_model_loaded, model)")
    versions = values("version", 'label_values(spikeserve_model_loaded{model=~"$model"}, version)')
    return [source, models, versions]


def _placed(panels: list[Panel]) -> list[dict[str, Any]]:
    placed, x, y = [], 0, 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + _HEIGHT
        grid = {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}
        placed.append({"id": number, "gridPos": grid, **_drawn(panel)})
        x += panel.width
    return placed


def _drawn(panel: Panel) -> dict[str, Any]:
    buckets = panel.kind == "heatmap" and "{{le}}" in panel.queries
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0} if panel.unit != "short" else {}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    if panel.limits:
        steps = [{"value": value, "color": colour} for value, colour in panel.limits]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}}
        defaults |= {"custom": {"thresholdsStyle": {"mode": "dashed"}}}
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}}
    if panel.kind == "heatmap":
        unit = {"unit": panel.unit}
        options = {
            "calculate": False,
            "color": {"scheme": "Viridis", "mode": "scheme"},
            "yAxis": unit,
        }
    return {
        "title": panel.title,
        "description": panel.text,
        "type": panel.kind,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend,
                "format": "heatmap" if buckets else "time_series",
            }
            for i, (legend, query) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def content() -> dict[str, str]:
    """The files, by name."""
    return {
        f"{name}.json": json.dumps(dashboard(name, panels), indent=1) + "\n"
        for name, panels in DASHBOARDS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in content().items():
        (FOLDER / name).write_text(text)
