"""How many pictures a second the server classifies, and how fast, beside its peers: closed loops over HTTP.

Every system serves the same weights and takes the same PNG files, decoding included. Its answers are compared with those of the
network in plain torch before anything is measured, and the share that agrees is in the table: nobody is fast by
being wrong. Systems take turns: a round starts each of them alone, warms it up, loads it with 1, 8 and 32 clients that wait
for each answer (load.py, a process of its own on the same machine), and stops it; the figures are medians over the rounds,
so that what else the machine did in between meets all alike. Processor time and memory are those of all
processes of a system. `cores` is processor time over time, `others` that of processes which belong to neither side: a row
where it is much says little. The bare engine (bare_engine.py) takes its turn too.

    python benchmarks/server.py --model FILE --data FOLDER --rounds 3 --seconds 10
    python benchmarks/server.py --untrained clif        random weights, where no ResNet-18 has been trained
    python benchmarks/server.py --system spikeserve --keep      only this one; rows of others stay in the file
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
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
    machine_seconds,
    running,
    stop_when_told,
)
from ratios import ENGINE, OURS, serving_ratios
from rich.console import Console
from rich.table import Table
from rounds import Row, earlier, in_order, medians
from systems import HERE, SYSTEMS, System, chosen
from verify import agreement
from workload import Workload, prepare, untrained_resnet18

CACHE = HERE / ".cache"
PICTURES = 512
LEAST_AGREEMENT = 0.9

console = Console(width=150)


def load_command(script: str, workload: Workload, *more: Any) -> list[str]:
    given = ["--folder", workload.folder, "--pictures", len(workload.pictures.content), *more]
    return [sys.executable, str(HERE / script), *map(str, given)]


def loaded(command: list[str], server: Running | None = None) -> Row:
    """What the load generator prints, with processor time between its two marks: the server's, and all others'."""
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if client.stdout is None or client.stderr is None:
        raise RuntimeError("the client has no output")
    marks: list[tuple[float, float]] = []
    for line in client.stdout:
        if line.startswith(("begin", "end")):
            marks.append((server.usage().cpu_seconds if server else 0.0, machine_seconds()))
        else:
            row: Row = json.loads(line)
            client.wait()
            if len(marks) == 2:
                ours, all_of_it = (
                    (end - begin) / row["seconds"] for begin, end in zip(*marks, strict=True)
                )
                row["server_cores"] = ours
                row["other_cores"] = max(0.0, all_of_it - ours - row["client_cores"])
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


def show(rows: list[Row], not_measured: dict[str, str]) -> None:
    titles = (
        "system",
        "clients",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "cores",
        "client",
        "others",
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
            f"{row['other_cores']:.2f}" if "other_cores" in row else "-",
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
) -> Iterator[tuple[list[Row], dict[str, str]]]:
    """After each system all rows so far, and why systems have none."""
    commit = results.commit()
    rows: list[Row] = []
    not_measured = {
        system.name: reason
        for environment in {system.environment for system in systems} - {None}
        if environment and (reason := environments.ensure(environment))
        for system in systems
        if system.environment == environment
    }

    def so_far() -> tuple[list[Row], dict[str, str]]:
        found = [{**row, "commit": commit} for row in rows if row["system"] not in not_measured]
        return found, not_measured

    for turn in range(count):
        for system in systems:
            if system.name in not_measured:
                continue
            console.print(f"round {turn + 1} of {count}: {system.label}", style="dim")
            try:
                rows += measure(system, workload, concurrencies, seconds, idle)
            except NotMeasuredError as error:
                not_measured[system.name] = str(error)
            yield so_far()
        if any(system.name == OURS for system in systems):
            try:
                rows += measure_engine(workload, concurrencies, seconds)
            except NotMeasuredError as error:
                not_measured[ENGINE] = str(error)
            yield so_far()


def _named(rows: list[Row]) -> set[str]:
    return {row["system"] for row in rows}


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
    keep: Annotated[
        bool, typer.Option("--keep", help="keep the file's rows of other systems")
    ] = False,
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
    settings = {
        "model": workload.manifest.name,
        "digest": workload.manifest.digest,
        "neuron": workload.manifest.neuron.kind,
        "timesteps": workload.manifest.timesteps,
        "pictures": f"{pictures} of a test set" if workload.pictures.real else "noise",
        "rounds": count,
        "seconds": seconds,
    }
    names = [*(one.name for one in SYSTEMS), ENGINE]
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    left: dict[str, str] = {}
    # Written after each system, so that a run which is broken off leaves what it has.
    for measured, missing in rounds(systems, workload, count, concurrency, seconds, idle):
        every, left = measured, missing
        if keep:
            old, reasons = earlier(
                name, workload.manifest.digest, _named(measured) | missing.keys()
            )
            every, left = old + measured, reasons | missing
        every = in_order(every, names)
        rows = medians(every)
        ratios = serving_ratios(rows)
        more = {"not_measured": left, "rounds": every}
        path = results.save(name, __doc__ or "", settings, rows, ratios, **more)
    show(rows, left)
    for key, value in ratios.items():
        console.print(f"{key}: {value:.3g}", highlight=False)
    console.print(f"written: {path}")


if __name__ == "__main__":
    stop_when_told()
    typer.run(main)
