"""What one kind of work does to another on the same server: streams beside pictures, and one model beside another.

One server, several models. Each part is measured alone and then together with the others, one after the other in one run:

* streams: windows of 20 ms in real time, of the bundled event model (stream_clients.py)
* pictures: a closed loop of 32 clients, which takes whatever it is given (load.py)
* a visitor: one client with another picture model, which asks again when it has its answer

A fair server lets streams and the visitor have what little they ask for: their latency may grow, since there are only so
many cores, but by no more than the steps of the others that are under way, and nothing is lost.

    python benchmarks/fairness.py --model FILE --streams 4
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import results
import typer
from processes import NotMeasuredError, Running, stop_when_told
from rich.console import Console
from rich.table import Table
from server import CACHE, PICTURES, load_command, loaded
from streams import MODEL as EVENTS
from streams import WINDOW_US, Task, measure, started
from workload import Workload, prepare

from spikeserve.settings import BUNDLED_MODELS

MODEL = BUNDLED_MODELS / "fashion-clif.safetensors"
VISITOR = BUNDLED_MODELS / "fashion-lif.safetensors"
CLIENTS = 32
Row = dict[str, Any]

console = Console(width=150)


class Contest:
    """`port` is that of REST, the next one that of gRPC."""

    def __init__(
        self, server: Running, port: int, seconds: float, streams: int, work: dict[str, Workload]
    ) -> None:
        self.server = server
        self.port = port
        self.seconds = seconds
        self.streams = streams
        self.work = work

    def run(self, *parts: str) -> dict[str, Row]:
        """All these at once. Raises NotMeasuredError where something is refused or lost."""
        with ThreadPoolExecutor(len(parts)) as pool:
            found = {part: pool.submit(self._one, part) for part in parts}
            rows = {part: future.result() for part, future in found.items()}
        self.server.check()
        together = " + ".join(parts)
        return {part: {"part": part, "together": together, **row} for part, row in rows.items()}

    def _one(self, part: str) -> Row:
        if part == "streams":
            return self._streams()
        clients = CLIENTS if part == "pictures" else 1
        workload = self.work[part]
        query = f"?exit=off&model={workload.manifest.name}"
        how = ["--system", "spikeserve", "--query", query, "--port", self.port]
        more = ["--concurrency", clients, "--seconds", self.seconds]
        row = loaded(load_command("load.py", workload, *how, *more))
        if row["errors"]:
            raise NotMeasuredError(f"{part}: {row['errors']} requests failed: {row['error']}")
        return {
            "model": workload.manifest.name,
            "clients": clients,
            "a_second": row["requests_per_second"],
            **row,
        }

    def _streams(self) -> Row:
        task = Task("real time", self.streams, 1.0)
        target = f"127.0.0.1:{self.port + 1}"
        work = measure(self.server, target, task, self.seconds + 1, WINDOW_US)
        row, _ = asyncio.run(work)
        if row["windows_lost"]:
            raise NotMeasuredError(f"{row['windows_lost']} windows were lost")
        return {
            "model": EVENTS.stem,
            "clients": self.streams,
            "a_second": row["windows_per_second"],
            **row,
        }


def contest(measured: Contest) -> tuple[list[Row], dict[str, float]]:
    rows: list[Row] = []
    alone: dict[str, Row] = {}
    for part in ("streams", "pictures", "visitor"):
        alone |= measured.run(part)
    rows += alone.values()
    beside = measured.run("streams", "pictures")
    guests = measured.run("visitor", "pictures")
    everything = measured.run("streams", "pictures", "visitor")
    for each in (beside, guests, everything):
        rows += each.values()
    ratios = {}
    for name, both, part in (
        ("window", beside, "streams"),
        ("visitor", guests, "visitor"),
    ):
        for quantile in ("p50_ms", "p99_ms"):
            over = both[part][quantile] / alone[part][quantile]
            ratios[f"{name}_{quantile[:3]}_beside_pictures"] = over
    rate = "a_second"
    ratios["windows_beside_pictures"] = beside["streams"][rate] / alone["streams"][rate]
    ratios["pictures_beside_streams"] = beside["pictures"][rate] / alone["pictures"][rate]
    ratios["pictures_beside_visitor"] = guests["pictures"][rate] / alone["pictures"][rate]
    return rows, ratios


def show(rows: list[Row]) -> None:
    table = Table("measured", "together with", "model", "clients", "a second", "p50 ms", "p99 ms")
    for row in rows:
        others = [part for part in row["together"].split(" + ") if part != row["part"]]
        table.add_row(
            row["part"],
            ", ".join(others) or "-",
            row["model"],
            str(row["clients"]),
            f"{row['a_second']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
        )
    console.print(table)


def main(
    model: Annotated[Path, typer.Option(help="checkpoint of the picture model under load")] = MODEL,
    visitor: Annotated[Path, typer.Option(help="of the one that is asked now and then")] = VISITOR,
    streams: Annotated[int, typer.Option(min=1)] = 4,
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 8.0,
    data: Annotated[Path | None, typer.Option(help="folder of the data sets")] = None,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "fairness",
) -> None:
    CACHE.mkdir(exist_ok=True)
    work = {
        "pictures": prepare(model, CACHE, data, PICTURES),
        "visitor": prepare(visitor, CACHE, data, PICTURES),
    }
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server, port = started([model, visitor, EVENTS], log)
        try:
            rows, ratios = contest(Contest(server, port - 1, seconds, streams, work))
        finally:
            server.stop()
    show(rows)
    for key, value in ratios.items():
        console.print(f"{key}: {value:.3g}", highlight=False)
    settings = {
        "model": model.stem,
        "visitor": visitor.stem,
        "streams": streams,
        "seconds": seconds,
    }
    console.print(f"written: {results.save(name, __doc__ or '', settings, rows, ratios)}")


if __name__ == "__main__":
    stop_when_told()
    try:
        typer.run(main)
    except (NotMeasuredError, subprocess.SubprocessError) as error:
        sys.exit(f"fairness was not measured: {error}")
