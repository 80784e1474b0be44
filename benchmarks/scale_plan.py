"""The capacity plan: what was measured, and what follows from it for a billion pictures a day and a million streams.

Reads results/ of scale.py, scale_streams.py, server.py, streams.py and series.py, and computes. Processors are planned at 70 % of their time,
and for a peak of three times the mean of the day. The GPU is a roofline and no measurement: bfloat16 at half of 989 TFLOP/s,
activations written and read once at 80 % of 4.8 TB/s (H200). The hash's shares are drawn: 16 points on the ring for each server, as
HAProxy has for a server of weight 1, and 256.

    python benchmarks/scale_plan.py
"""

from __future__ import annotations

import json
import random
import statistics
from typing import Any

import results
from rich.console import Console

USE = 0.7
PEAK = 3.0
WINDOWS = 50.0
A_DAY = 86400.0
PICTURES = 1e9
STREAMS = 1e6
# Of a ResNet-18 on 32 by 32 pixels, a picture and a timestep: compute and memory one after the other.
GPU_SECONDS = 2.25e-6 + 1.16e-6
TIMESTEPS = 4
# Of a process: settings that there are by themselves.
MAX_STREAMS = 1024
Row = dict[str, Any]


def load(name: str) -> Any:
    return json.loads((results.RESULTS / f"{name}.json").read_text())


def fullest(servers: int, points: int, rounds: int = 20) -> float:
    """What the server with the most of a hash ring has, over the mean; the median of some rings."""
    dice = random.Random(0)
    found = []
    for _ in range(rounds):
        ring = sorted((dice.random(), server) for server in range(servers) for _ in range(points))
        share = [0.0] * servers
        before = ring[-1][0] - 1
        for at, server in ring:
            share[server] += at - before
            before = at
        found.append(max(share) * servers)
    return statistics.median(found)


def rows_of() -> list[Row]:
    check, streams = load("scale"), load("scale-streams")
    rows: list[Row] = []

    def add(what: str, value: float, unit: str, kind: str, source: str) -> float:
        rows.append(
            {"what": what, "value": float(value), "unit": unit, "kind": kind, "from": source}
        )
        return float(value)

    def measured(what: str, value: float, unit: str, source: str) -> float:
        return add(what, value, unit, "measured", source)

    def computed(what: str, value: float, unit: str, source: str) -> float:
        return add(what, value, unit, "computed", source)

    busy = next(
        row for row in check["rows"]
        if row["subject"] == "pictures" and row["servers"] == 1 and "clients" in row["load"]
    )  # fmt: skip
    costs = check["costs_ms"]["pictures"]
    resnet = [row for row in load("server")["rows"] if row["system"] == "spikeserve"][-1]
    small = measured(
        "a picture, bundled model, REST",
        busy["processor_ms"],
        "ms of a core",
        "scale.py, 16 clients",
    )
    large = measured(
        "a picture, ResNet-18 (T = 4), REST",
        1e3 * resnet["server_cores"] / resnet["requests_per_second"], "ms of a core", "server.py, 32 clients",
    )  # fmt: skip
    loop = measured(
        "of each request in the event loop",
        costs["receive"] + costs["reply"],
        "ms of one thread",
        "scale.py",
    )
    most = measured(
        "pictures one process answers, with two cores for it and the client",
        busy["measured_a_second"], "a second", "scale.py, 16 clients",
    )  # fmt: skip
    computed("most that its event loop alone could", 1e3 / loop, "a second", "event loop")
    window_row, picture_row = streams["rows"][0], streams["rows"][-1]
    window = measured(
        "a window of 20 ms, nmnist-clif, gRPC",
        window_row["processor_ms"],
        "ms of a core",
        "scale_streams.py, 10 cameras",
    )
    ratios = streams["ratios"]
    idle = measured(
        "a stream that waits, with its connection",
        ratios["bytes_a_stream"] / 1e3,
        "kB of memory",
        "scale_streams.py",
    )
    state = measured(
        "state of a stream, as a snapshot", ratios["state_bytes"] / 1e3, "kB", "scale_streams.py"
    )
    process = measured(
        "a process with one model, before requests",
        picture_row["memory_mib"] / 1024,
        "GiB",
        "scale_streams.py",
    )
    traffic = measured(
        "a window's messages, in and out",
        window_row["bytes_in"] + window_row["bytes_out"],
        "bytes",
        "scale_streams.py",
    )
    picture_bytes = measured(
        "a picture of 28x28 and its reply",
        picture_row["bytes_in"] + picture_row["bytes_out"],
        "bytes",
        "scale_streams.py",
    )
    series = measured(
        "Prometheus series of a server with 8 models",
        load("series")["rows"][-1]["series"],
        "series",
        "series.py",
    )

    computed(
        "a GB of windows received",
        1e9 / window_row["bytes_in"] * window / 1e3,
        "core seconds",
        "window",
    )
    computed(
        "a GB of small pictures received",
        1e9 / picture_row["bytes_in"] * small / 1e3,
        "core seconds",
        "picture",
    )
    computed("streams that wait, in a GB", 1e6 / idle, "streams", "memory")
    per_core = computed(
        "pictures a core carries, bundled", USE * 1e3 / small, "a second", "70 % use"
    )
    large_core = computed(
        "pictures a core carries, ResNet-18", USE * 1e3 / large, "a second", "70 % use"
    )
    cameras = computed(
        "cameras in real time a core carries",
        USE * 1e3 / (WINDOWS * window),
        "streams",
        "70 % use, 50 windows/s",
    )
    gpu = computed(
        "pictures a GPU could compute, ResNet-18",
        1 / (GPU_SECONDS * TIMESTEPS),
        "a second",
        "roofline, never reached",
    )
    computed(
        "processes to feed one GPU pictures over REST",
        gpu / most,
        "processes",
        "what a process answers",
    )

    peak = computed(
        "a billion pictures a day, at the peak",
        PEAK * PICTURES / A_DAY,
        "a second",
        "3 times the mean",
    )
    computed("cores for it, bundled", peak / per_core, "cores", "pictures a core carries")
    computed("cores for it, ResNet-18", peak / large_core, "cores", "pictures a core carries")
    processes = computed(
        "processes for it, bundled",
        peak / (USE * most),
        "processes",
        "what a process answers, 70 % use",
    )
    computed("their memory", processes * process, "GiB", "memory of a process")
    computed("network, 28x28", peak * picture_bytes * 8 / 1e9, "Gbit/s", "bytes of a picture")

    moving = computed(
        "a million cameras, all in real time", STREAMS / cameras, "cores", "cameras a core carries"
    )
    computed(
        "a million streams, one of ten in real time", moving / 10, "cores", "cameras a core carries"
    )
    computed(
        "memory of a million streams that wait", STREAMS * idle / 1e6, "GB", "a stream that waits"
    )
    groups = computed(
        "processes, at `max_streams` 1024",
        STREAMS / MAX_STREAMS,
        "processes",
        "the setting as it is",
    )
    computed(
        "network, all in real time",
        STREAMS * WINDOWS * traffic * 8 / 1e9,
        "Gbit/s",
        "bytes of a window",
    )
    computed("snapshots of all streams", STREAMS * state / 1e6, "GB", "state")
    computed(
        "to write one process's streams in 10 s", MAX_STREAMS * state / 1e3 / 10, "MB/s", "state"
    )
    computed("series in Prometheus", groups * series, "series", "series of a server")
    for servers in (10, 100):
        for points in (16, 256):
            computed(
                f"fullest of {servers} servers, {points} points each", fullest(servers, points),
                "times the mean", "hash ring",
            )  # fmt: skip
    return rows


def main() -> None:
    rows = rows_of()
    console = Console(width=150, highlight=False)
    for row in rows:
        console.print(
            f"{row['kind']:9} {row['what']}: {row['value']:,.4g} {row['unit']} ({row['from']})"
        )
    settings = {"use": USE, "peak": PEAK}
    console.print(f"written: {results.save('plan', __doc__ or '', settings, rows, {})}")


if __name__ == "__main__":
    main()
