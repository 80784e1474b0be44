"""Whether anything grows while a server runs for long: memory, file descriptors, threads, streams, time series, snapshots.

One server as a process with two image models, one of them replaced, and one for events, with API keys, snapshots and
`--watch`. Clients send pictures (REST, gRPC, the Open Inference Protocol), event streams (ended, left, resumed, over a
WebSocket), recordings and bad input of every sort, at a fixed rate that does not depend on the answers; models are
replaced, unloaded and loaded, keys are changed (soak_traffic.py). What the server holds is noted every --every seconds.
Growth is the difference between the means of the second and the last tenth of the time. At rest, before and after all
traffic, the counts of streams and slots must be 0 and the file descriptors as many as before.

    python benchmarks/soak_hour.py --minutes 60
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import httpx
import psutil
import results
import typer
from fault_parts import Instance
from rich.console import Console
from rich.table import Table
from soak_parts import Keys
from soak_traffic import EXAMPLES, Traffic

from spikeserve.settings import BUNDLED_MODELS

RESUME_SECONDS = 10
HELD = (
    "memory_mib",
    "descriptors",
    "threads",
    "open_streams",
    "parked_streams",
    "slots_in_use",
    "queue_depth",
    "models_loaded",
    "time_series",
    "snapshots",
)
Row = dict[str, Any]

console = Console(width=160)


class Watcher:
    """What the server holds, from outside: the system's counts of its process, and its own metrics."""

    def __init__(self, server: Instance, key: str, snapshots: Path) -> None:
        self._server, self._snapshots = server, snapshots
        self._headers = {"x-api-key": key}
        self._process = psutil.Process(server.pid)
        self._began = time.monotonic()

    async def look(self, what: str) -> Row:
        async with httpx.AsyncClient(headers=self._headers, timeout=60) as http:
            text = (await http.get(f"{self._server.http}/metrics")).text
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        times = self._process.cpu_times()
        return {
            "what": what,
            "minutes": (time.monotonic() - self._began) / 60,
            "cpu_seconds": times.user + times.system,
            "memory_mib": self._process.memory_info().rss / (1 << 20),
            "descriptors": self._process.num_fds(),
            "threads": self._process.num_threads(),
            "open_streams": _sum(lines, "spikeserve_open_streams"),
            "parked_streams": _sum(lines, "spikeserve_parked_streams"),
            "slots_in_use": _sum(lines, "spikeserve_slots_in_use"),
            "queue_depth": _sum(lines, "spikeserve_queue_depth"),
            "models_loaded": _sum(lines, "spikeserve_model_loaded"),
            "time_series": len(lines),
            "snapshots": sum(1 for each in self._snapshots.rglob("*") if each.is_file()),
        }


def _sum(lines: list[str], name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def _models(folder: Path) -> None:
    (folder / "fashion").mkdir(parents=True)
    shutil.copy(BUNDLED_MODELS / "fashion-clif.safetensors", folder / "fashion" / "1.safetensors")
    (folder / "digits").mkdir()
    shutil.copy(BUNDLED_MODELS / "nmnist-clif.safetensors", folder / "digits" / "1.safetensors")
    shutil.copy(BUNDLED_MODELS / "fashion-ilif.safetensors", folder)


async def soak(
    folder: Path, minutes: float, every: float, rate: float
) -> tuple[list[Row], Traffic]:
    models, snapshots = folder / "models", folder / "snapshots"
    _models(models)
    keys = Keys(folder / "keys.json")
    server = Instance(
        models,
        folder / "server.log",
        keys=folder / "keys.json",
        snapshots=snapshots,
        watch=True,
        executor="cpu",
        log_level="error",
        resume_seconds=RESUME_SECONDS,
        stream_idle_seconds=RESUME_SECONDS,
        snapshot_seconds=60,
        retire_seconds=30,
    )
    await server.start()
    try:
        watcher = Watcher(server, keys.constant, snapshots)
        rows = [await watcher.look("before")]
        async with Traffic(server, keys, models, rate) as traffic:
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end:
                await asyncio.sleep(min(every, max(0.0, end - time.monotonic())))
                rows.append(row := await watcher.look("under traffic"))
                console.print(
                    " ".join(
                        f"{name} {row[name]:.5g}" for name in ("minutes", "cpu_seconds", *HELD)
                    ),
                    dict(traffic.wrong) or "",
                    highlight=False,
                )
        await asyncio.sleep(2 * RESUME_SECONDS)
        rows.append(await watcher.look("after"))
    finally:
        status = await server.end()
    if status:
        raise RuntimeError(f"the server ended with status {status}")
    if logged := [line for line in server.log.read_text().splitlines() if line.strip()]:
        rows[-1]["logged"] = _worth_a_look(logged)
    return rows, traffic


def _worth_a_look(lines: list[str]) -> list[str]:
    """Damaged models are logged as errors; anything else of that sort should not be there, nor a traceback's lines."""
    known = (".safetensors", " INFO ", " WARNING ")
    return [line for line in lines if not any(each in line for each in known)][:50]


def growth(rows: list[Row]) -> dict[str, float]:
    under = [row for row in rows if row["what"] == "under traffic"]
    tenth = max(1, len(under) // 10)
    return {
        f"{name}_growth": fmean(row[name] for row in under[-tenth:])
        - fmean(row[name] for row in under[tenth : 2 * tenth] or under[:1])
        for name in HELD
    }


def show(rows: list[Row], traffic: Traffic) -> None:
    table = Table("at", *(name.replace("_", " ") for name in HELD), box=None)
    step = max(1, len(rows) // 12)
    for row in [rows[0], *rows[1:-1:step], rows[-1]]:
        cells = (
            f"{row[name]:.1f}" if name == "memory_mib" else f"{row[name]:.0f}" for name in HELD
        )
        table.add_row(f"{row['minutes']:.0f} min", *cells)
    console.print(table)
    for what, count in sorted(traffic.outcomes.items()):
        console.print(f"{what}: {count}", highlight=False)
    for what, count in sorted(traffic.wrong.items()):
        console.print(f"WRONG {what}: {count}", highlight=False)
    for line in rows[-1].get("logged", ()):
        console.print(f"LOGGED {line}", highlight=False)


def main(
    minutes: Annotated[float, typer.Option(help="of traffic")] = 60.0,
    every: Annotated[float, typer.Option(help="seconds from one look to the next")] = 15.0,
    rate: Annotated[float, typer.Option(help="1 takes about a sixth of a core")] = 1.0,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "soak-hour",
) -> None:
    if not EXAMPLES.is_dir():
        raise typer.BadParameter(f"{EXAMPLES} is not there: run this in a checkout")
    with tempfile.TemporaryDirectory() as folder:
        rows, traffic = asyncio.run(soak(Path(folder), minutes, every, rate))
    show(rows, traffic)
    ratios = growth(rows) | {
        "requests": float(sum(traffic.outcomes.values())),
        "wrong": float(sum(traffic.wrong.values())),
        "descriptors_after_over_before": rows[-1]["descriptors"] / rows[0]["descriptors"],
        "threads_after_over_before": rows[-1]["threads"] / rows[0]["threads"],
        "cores": (rows[-2]["cpu_seconds"] - rows[0]["cpu_seconds"]) / (60 * rows[-2]["minutes"]),
    }
    more = {"outcomes": dict(traffic.outcomes), "wrong": dict(traffic.wrong)}
    settings = {"minutes": minutes, "every": every, "rate": rate}
    console.print(results.save(name, __doc__ or "", settings, rows, ratios, **more))
    raise typer.Exit(int(ratios["wrong"] > 0))


if __name__ == "__main__":
    typer.run(main)
