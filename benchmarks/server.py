"""How many pictures a second the server classifies, and how fast, beside its peers: closed loops over HTTP.

Every system serves the same weights and takes the same PNG files, decoding included. Its answers are compared with those of the
network in plain torch before anything is measured, and the share that agrees is in the table: nobody is fast by
being wrong. Systems take turns: a round starts each of them alone, warms it up, loads it with 1, 8 and 32 clients that wait
for each answer (load.py, a process of its own on the same machine), and stops it; the figures are medians over the rounds,
so that what else the machine did in between meets all alike. Processor time and memory are those of all
processes of a system. `cores` is processor time over time. The bare engine (bare_engine.py) takes its turn too.

    python benchmarks/server.py --model FILE --data FOLDER --rounds 3 --seconds 10
    python benchmarks/server.py --untrained clif        random weights, where no ResNet-18 has been trained
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import environments
import results
import typer
from processes import (
    MemoryPeak,
    NotMeasuredError,
    Running,
    free_ports,
    idle_cores,
    last_words,
    running,
)
from ratios import serving_ratios
from rich.console import Console
from rich.table import Table
from systems import HERE, System, chosen
from verify import agreement
from workload import Workload, prepare, untrained_resnet18

CACHE = HERE / ".cache"
ENGINE = "engine"
PICTURES = 512
LEAST_AGREEMENT = 0.9
_SPEEDS = ("requests_per_second", "p50_ms", "p90_ms", "p99_ms", "client_cores", "server_cores")

console = Console(width=150)
Row = dict[str, Any]


def load_command(script: str, workload: Workload, *more: Any) -> list[str]:
    given = ["--folder", workload.folder, "--pictures", len(workload.pictures.content), *more]
    return [sys.executable, str(HERE / script), *map(str, given)]


def loaded(command: list[str], server: Running | None = None) -> Row:
    """What the load generator prints, with the server's processor time between its two marks."""
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if client.stdout is None or client.stderr is None:
        raise RuntimeError("the client has no output")
    spent: list[float] = []
    for line in client.stdout:
        if line.startswith(("begin", "end")):
            spent.append(server.usage().cpu_seconds if server else 0.0)
        else:
            row: Row = json.loads(line)
            client.wait()
            if len(spent) == 2:
                row["server_cores"] = (spent[1] - spent[0]) / row["seconds"]
            return row
    raise NotMeasuredError(f"the client failed: {client.stderr.read().strip()[-300:]}")


def await_answers(system: System, server: Running, port: int, workload: Workload) -> float:
    """Waits until the server answers; the share of its answers that are the network's."""
    until = time.monotonic() + 180
    while True:
        server.check()
        try:
            share = agreement(system, port, workload.pictures)
        except (ConnectionError, OSError) as error:
            if time.monotonic() > until:
                said = last_words(server.log)
                raise NotMeasuredError(f"no answer within 180 s: {error}; {said}") from error
            time.sleep(0.3)
            continue
        if share < LEAST_AGREEMENT:
            raise NotMeasuredError(f"only {share:.1%} of its answers are right")
        return share


def measure(
    system: System, workload: Workload, concurrencies: Iterable[int], seconds: float, idle: float
) -> list[Row]:
    """One row for each concurrency. Raises NotMeasuredError."""
    port = free_ports()
    with running(system, workload.folder, port, CACHE / "logs") as server:
        share = await_answers(system, server, port, workload)
        rows = []
        for clients in concurrencies:
            how = ["--system", system.name, "--port", port, "--concurrency", clients]
            command = load_command("load.py", workload, *how, "--seconds", seconds)
            with MemoryPeak(server) as memory:
                row = loaded(command, server)
            server.check()
            if row["errors"]:
                raise NotMeasuredError(f"{row['errors']} requests failed: {row['error']}")
            rows.append({"concurrency": clients, **row, "memory_mib": memory.peak / (1 << 20)})
        resting = idle_cores(server, idle)
    about = {"system": system.name, "label": system.label, "runtime": system.runtime}
    return [{**about, **row, "agreement": share, "idle_cores": resting} for row in rows]


def measure_engine(workload: Workload, concurrencies: Iterable[int], seconds: float) -> list[Row]:
    rows = []
    for clients in concurrencies:
        how = ["--concurrency", clients, "--seconds", seconds]
        row = loaded(load_command("bare_engine.py", workload, *how))
        row["server_cores"] = row.pop("client_cores")
        about = {"system": ENGINE, "label": "the engine alone", "runtime": "spikeserve"}
        rows.append({**about, "concurrency": clients, **row})
    return rows


def medians(rows: list[Row]) -> list[Row]:
    """One row for each system and concurrency. Memory is the most that was seen in any round."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["concurrency"]), []).append(row)
    found = []
    for group in groups.values():
        first = group[0]
        kept = ("system", "label", "runtime", "concurrency", "agreement")
        row = {key: first[key] for key in kept if key in first}
        for key in _SPEEDS:
            if all(key in each for each in group):
                row[key] = statistics.median(each[key] for each in group)
        rates = [each["requests_per_second"] for each in group]
        row["slowest_round"], row["fastest_round"] = min(rates), max(rates)
        if "memory_mib" in first:
            row["memory_mib"] = max(each["memory_mib"] for each in group)
            row["idle_cores"] = statistics.median(each["idle_cores"] for each in group)
        found.append(row)
    return found


def show(rows: list[Row], not_measured: dict[str, str]) -> None:
    titles = (
        "system",
        "clients",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "cores",
        "client",
        "MiB",
        "idle",
        "right",
    )
    table = Table(*titles)
    for row in rows:
        table.add_row(
            row["label"],
            str(row["concurrency"]),
            f"{row['requests_per_second']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['server_cores']:.2f}" if "server_cores" in row else "-",
            f"{row['client_cores']:.2f}" if "client_cores" in row else "-",
            f"{row['memory_mib']:.0f}" if "memory_mib" in row else "-",
            f"{row['idle_cores']:.2%}" if "idle_cores" in row else "-",
            f"{row['agreement']:.1%}" if "agreement" in row else "-",
        )
    console.print(table)
    for name, reason in not_measured.items():
        console.print(f"not measured: {name}: {reason}", markup=False)


def rounds(
    systems: list[System],
    workload: Workload,
    count: int,
    concurrencies: list[int],
    seconds: float,
    idle: float,
) -> tuple[list[Row], dict[str, str]]:
    """All rows of all rounds, and why a system has none."""
    rows: list[Row] = []
    not_measured = {
        system.name: reason
        for environment in {system.environment for system in systems} - {None}
        if environment and (reason := environments.ensure(environment))
        for system in systems
        if system.environment == environment
    }
    for turn in range(count):
        for system in systems:
            if system.name in not_measured:
                continue
            console.print(f"round {turn + 1} of {count}: {system.label}", style="dim")
            try:
                rows += measure(system, workload, concurrencies, seconds, idle)
            except NotMeasuredError as error:
                not_measured[system.name] = str(error)
        if any(system.ours for system in systems):
            try:
                rows += measure_engine(workload, concurrencies, seconds)
            except NotMeasuredError as error:
                not_measured[ENGINE] = str(error)
    return [row for row in rows if row["system"] not in not_measured], not_measured


def main(
    model: Annotated[Path | None, typer.Option(help="checkpoint of an image model")] = None,
    untrained: Annotated[str | None, typer.Option(help="clif or lif: random weights")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of the data sets")] = None,
    system: Annotated[list[str] | None, typer.Option(help="only these systems")] = None,
    concurrency: Annotated[list[int], typer.Option()] = [1, 8, 32],  # noqa: B006
    count: Annotated[int, typer.Option("--rounds", min=1)] = 3,
    seconds: Annotated[float, typer.Option(help="of each measurement")] = 10.0,
    idle: Annotated[float, typer.Option(help="seconds without a request")] = 5.0,
    pictures: Annotated[int, typer.Option(min=1)] = PICTURES,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "server",
) -> None:
    systems = chosen(system or [])
    CACHE.mkdir(exist_ok=True)
    if model is None:
        neuron = untrained or "clif"
        model = CACHE / f"resnet18-{neuron}-untrained.safetensors"
        if not model.exists():
            untrained_resnet18(model, neuron, data)
    workload = prepare(model, CACHE, data, pictures)
    if not workload.pictures.real:
        console.print("pictures are noise, on which early exit says nothing")
    every, not_measured = rounds(systems, workload, count, concurrency, seconds, idle)
    rows = medians(every)
    show(rows, not_measured)
    settings = {
        "model": workload.manifest.name,
        "digest": workload.manifest.digest,
        "neuron": workload.manifest.neuron.kind,
        "timesteps": workload.manifest.timesteps,
        "pictures": f"{pictures} of a test set" if workload.pictures.real else "noise",
        "rounds": count,
        "seconds": seconds,
    }
    ratios = serving_ratios(rows)
    for key, value in ratios.items():
        console.print(f"{key}: {value:.3g}", highlight=False)
    more = {"not_measured": not_measured, "rounds": every}
    path = results.save(name, __doc__ or "", settings, rows, ratios, **more)
    console.print(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)
