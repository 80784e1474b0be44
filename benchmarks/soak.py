"""Whether the server holds out: what it takes while idle, its latency at half load, its memory over 100,000 requests.

Idle: processor time over --idle seconds without a request, models loaded. Half load: an open loop (load.py) of half as many
requests/s as a closed loop of 32 clients got out of it before, once at even distances and once as a Poisson process; latency
counts from the time a request was due, so that a stall is seen in all requests behind it. Memory: a closed loop of 8 clients over --requests
requests, with the memory of the server noted on the way; growth is that from a tenth of the way to the end, as buffers are
filled at first. Half load and memory are measured with all timesteps and with early exit, one after the other, of the same
server.

    python benchmarks/soak.py --model FILE --requests 100000
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import results
import typer
from processes import (
    NotMeasuredError,
    Running,
    free_ports,
    idle_cores,
    running,
    stop_when_told,
)
from rich.console import Console
from server import CACHE, PICTURES, await_answers, load_command, loaded
from systems import System, chosen
from workload import Workload, prepare

from spikeserve.settings import BUNDLED_MODELS

MODEL = BUNDLED_MODELS / "fashion-clif.safetensors"
CLIENTS = 8
MOST_CLIENTS = 32
SYSTEMS = ["spikeserve", "spikeserve-balanced"]
_POINTS = 20
Row = dict[str, Any]

console = Console(width=120)


def half_load(
    system: System, server: Running, workload: Workload, port: int, seconds: float
) -> list[Row]:
    """Rows of the closed loop and of the two open ones."""

    def load(*more: Any) -> Row:
        how = ["--system", system.name, "--port", port, "--seconds", seconds, *more]
        row = loaded(load_command("load.py", workload, *how), server)
        if row["errors"]:
            raise NotMeasuredError(f"{row['errors']} requests failed: {row['error']}")
        return row

    full = load("--concurrency", MOST_CLIENTS)
    rate = full["requests_per_second"] / 2
    rows = [{"what": "full load", "system": system.name, **full}]
    for what, more in (("half load, even", []), ("half load, Poisson", ["--poisson"])):
        row = load("--rate", rate, *more)
        over = row["p99_ms"] / row["p50_ms"]
        rows.append({"what": what, "system": system.name, "p99_over_p50": over, **row})
    return rows


def endurance(
    system: System, server: Running, workload: Workload, port: int, requests: int
) -> list[Row]:
    """Memory after each of some twenty parts of the requests."""
    rows: list[Row] = []
    part = -(-requests // _POINTS)
    done = 0
    while done < requests:
        count = min(part, requests - done)
        how = ["--system", system.name, "--port", port, "--concurrency", CLIENTS]
        more = [*how, "--requests", count, "--seconds", 1e6, "--warm-up", 0]
        row = loaded(load_command("load.py", workload, *more), server)
        if row["errors"] or row["requests"] != count:
            raise NotMeasuredError(
                f"of {count} requests {row['requests']} were answered: {row['error']}"
            )
        done += count
        memory = server.usage().memory / (1 << 20)
        point = {"what": "endurance", "system": system.name, "requests_so_far": done}
        rows.append({**point, "memory_mib": memory})
        console.print(f"{system.label}, {done} requests: {memory:.1f} MiB", highlight=False)
    return rows


def growth(rows: list[Row]) -> float:
    """MiB from a tenth of the way to the end."""
    begin = next(r for r in rows if r["requests_so_far"] >= rows[-1]["requests_so_far"] / 10)
    return float(rows[-1]["memory_mib"] - begin["memory_mib"])


def main(
    model: Annotated[Path, typer.Option(help="checkpoint of an image model")] = MODEL,
    data: Annotated[Path | None, typer.Option(help="folder of the data sets")] = None,
    requests: Annotated[int, typer.Option(help="of the long run; 0 for none")] = 100_000,
    seconds: Annotated[float, typer.Option(help="of each measurement at half load")] = 20.0,
    idle: Annotated[float, typer.Option(help="seconds without a request")] = 30.0,
    system: Annotated[list[str], typer.Option(help="of systems.py, with one command")] = SYSTEMS,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "soak",
) -> None:
    asked = chosen(system)
    CACHE.mkdir(exist_ok=True)
    workload = prepare(model, CACHE, data, PICTURES)
    port = free_ports()
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    with running(asked[0], workload.folder, port, CACHE / "logs") as server:
        await_answers(asked[0], server, port, workload)
        time.sleep(2)
        ratios["idle_cores"] = idle_cores(server, idle)
        rows.append({"what": "idle", "server_cores": ratios["idle_cores"]})
        for one in asked:
            prefix = "" if one is asked[0] else f"{one.name.removeprefix('spikeserve-')}_"
            loads = half_load(one, server, workload, port, seconds)
            ratios[f"{prefix}half_load_even_p99_over_p50"] = loads[1]["p99_over_p50"]
            ratios[f"{prefix}half_load_poisson_p99_over_p50"] = loads[2]["p99_over_p50"]
            rows += loads
            if requests:
                points = endurance(one, server, workload, port, requests)
                ratios[f"{prefix}memory_growth_mib"] = growth(points)
                rows += points
    for row in rows:
        if "p50_ms" in row:
            console.print(
                f"{row['system']}, {row['what']}: {row['requests_per_second']:.1f} requests/s, "
                f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms",
                highlight=False,
            )
    for key, value in ratios.items():
        console.print(f"{key}: {value:.3g}", highlight=False)
    settings = {
        "model": workload.manifest.name,
        "system": ", ".join(system),
        "requests": requests,
        "seconds": seconds,
        "clients": CLIENTS,
    }
    console.print(f"written: {results.save(name, __doc__ or '', settings, rows, ratios)}")


if __name__ == "__main__":
    stop_when_told()
    try:
        typer.run(main)
    except (NotMeasuredError, subprocess.SubprocessError) as error:
        sys.exit(f"not measured: {error}")
