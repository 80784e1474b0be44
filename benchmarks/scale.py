"""Capacity: a queueing simulation with measured service times, checked against two real servers behind a balancer.

Measured of one server: processor time of the event loop and of the engine, of the client and of the balancer (the system's count by
thread), with one client and with 16, and what a thread that sleeps needs to go on. One thing was chosen by comparison: the engine of the picture model holds Python's lock during
a pass. Simulated (simulation.py): the requests of the real run, sent at the times at which it sent them, with all that runs on this machine: client,
balancer and servers share its cores. Checked: throughput, median and p99 of one server, and of two behind HAProxy with
deploy/gateway/haproxy.cfg, in an open loop with Poisson arrivals at shares of what they can do, and beyond it. Two kinds of server: one with
an executor that sleeps for a known time, where the processor has nothing to do and queues are all (pictures beyond the queue are refused
and tried elsewhere), and one with the bundled picture model, where the processor is all.

    python benchmarks/scale.py delayed; python benchmarks/scale.py pictures
"""

from __future__ import annotations

import io
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import results
import simulation
import typer
from PIL import Image
from processes import NotMeasuredError, stop_when_told
from rich.console import Console
from scale_servers import Measured, Place, Subject, hop, measure, place
from simulation import Costs

from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import load_checkpoint

HERE = Path(__file__).parent
MODEL = BUNDLED_MODELS / "fashion-clif.safetensors"
PICTURE = HERE.parent / "examples" / "garment.png"
MANY = 16
SUBJECTS = {
    "delayed": Subject("delayed", MODEL, slots=8, max_queue=16, delays=(4.0, 1.0)),
    "pictures": Subject("pictures", MODEL, slots=32, max_queue=256),
}
SHARES = (0.3, 0.6, 0.85, 1.3)
# Of the work for a request that is not refused, until it is with the engine: decoding is in it, and most of HTTP.
RECEIVING = 0.6
# As in haproxy.cfg.
RETRIES = 3
Row = dict[str, Any]

console = Console(width=150, highlight=False)


def request() -> bytes:
    """A picture of 28 by 28 pixels, as the model takes it."""
    file = io.BytesIO()
    Image.open(PICTURE).convert("L").resize((28, 28)).save(file, "PNG")
    body = file.getvalue()
    head = f"POST /classify?exit=off&rates=false HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def calibrate(
    subject: Subject, where: Place, timesteps: int, seconds: float, base: Costs
) -> tuple[Costs, list[Measured]]:
    """What things take, by loads of one client and of many; of a server that refuses, by one beyond its capacity, too."""
    content = request()
    one, many = (
        measure(where, content, timesteps, seconds, clients=clients) for clients in (1, MANY)
    )
    runs = [one, many]

    def each(run: Measured, what: float) -> float:
        return what / max(len(run.latencies), 1)

    loop = each(many, many.loop)
    # A request wakes the loop twice: when it comes, and when the engine has answered.
    wake = max(0.0, (each(one, one.loop) - loop) / 2)
    turns = timesteps if subject.delays else 1
    passes = np.array([[run.passes * turns, float(len(run.latencies))] for run in runs])
    turn, answer = np.linalg.solve(passes, [run.engine for run in runs])
    costs = replace(
        base, receive=RECEIVING * loop, reply=(1 - RECEIVING) * loop, loop_wake=wake,
        client=each(many, many.client),
    )  # fmt: skip
    if subject.delays is None:
        # A pass is many short loops without Python's lock and Python in between, which has to get the lock again each
        # time: as if it held it throughout. Without that, one server would be simulated as twice as fast as it is.
        return replace(costs, turn=max(0.0, float(turn)), answer=max(0.0, float(answer))), runs
    fixed, per = (value / 1e3 for value in subject.delays)
    costs = replace(
        costs, turn=max(0.0, float(turn)), answer=max(0.0, float(answer)),
        delays=(fixed + oversleep(fixed + per), per),
    )  # fmt: skip
    over = measure(where, content, timesteps, seconds, rate=2 * capacity(subject, timesteps))
    refuse = (over.loop - loop * len(over.latencies)) / max(over.refused, 1)
    return replace(costs, refuse=max(0.0, refuse)), [*runs, over]


def oversleep(seconds: float) -> float:
    began = time.perf_counter()
    for _ in range(50):
        time.sleep(seconds)
    return (time.perf_counter() - began) / 50 - seconds


def capacity(subject: Subject, timesteps: int) -> float:
    """Pictures a second of one that sleeps, with all slots in use."""
    fixed, per = (value / 1e3 for value in subject.delays or (0.0, 0.0))
    return subject.slots / (timesteps * (fixed + per * subject.slots))


def simulated(
    subject: Subject, costs: Costs, servers: int, timesteps: int, *, cores: int,
    begin: float, end: float, times: list[float] | None = None, clients: int = 0,
) -> simulation.Outcome:  # fmt: skip
    clock = simulation.Clock()
    shared = simulation.Cores(clock, cores)
    dice = random.Random(0)
    some = [
        simulation.Server(
            clock, shared, costs, slots=subject.slots, max_queue=subject.max_queue,
            timesteps=timesteps, ahead=subject.delays is None, dice=dice,
        )
        for _ in range(servers)
    ]  # fmt: skip
    target: simulation.Target = some[0]
    if servers > 1:
        target = simulation.Balancer(shared, costs, some, RETRIES)
    if times is None:
        return simulation.closed_loop(clock, shared, target, costs, clients, begin, end)
    return simulation.open_loop(clock, shared, target, costs, times, begin, end)


def row_of(
    subject: Subject, servers: int, load: str, real: Measured, model: simulation.Outcome
) -> Row:
    row: Row = {"subject": subject.name, "servers": servers, "load": load}
    found = np.array(real.latencies) * 1e3, np.array(model.latencies) * 1e3
    for which, latencies, refused in zip(
        ("measured", "simulated"), found, (real.refused, model.refused), strict=True
    ):
        p50, p99 = np.percentile(latencies, [50, 99])
        row[f"{which}_a_second"] = len(latencies) / real.seconds
        row[f"{which}_refused_a_second"] = refused / real.seconds
        row |= {f"{which}_p50_ms": float(p50), f"{which}_p99_ms": float(p99)}
    answered = len(real.latencies) + real.refused
    row["offered_a_second"] = sum(real.begin <= at < real.end for at in real.sent) / real.seconds
    row["other_cores"] = real.others / real.seconds
    row["processor_ms"] = 1e3 * (real.loop + real.engine) / max(answered, 1)
    said = ", ".join(f"{k.partition('_')[2]} {v:.4g}" for k, v in row.items() if "measured" in k)
    model_said = ", ".join(f"{v:.4g}" for k, v in row.items() if "simulated" in k)
    console.print(
        f"{subject.name}, {servers}, {load}: {said}; simulated {model_said}; others {row['other_cores']:.2f}"
    )
    return row


def check(subject: Subject, seconds: float, base: Costs) -> tuple[Costs, list[Row]]:
    """One server and two: all loads, measured and simulated."""
    timesteps = load_checkpoint(subject.model).manifest.timesteps
    cores = results.machine()["cores"]
    content = request()
    rows: list[Row] = []
    runs: list[tuple[int, str, Measured, int]] = []
    costs = base
    with tempfile.TemporaryDirectory() as folder:
        for servers in (1, 2):
            with place(subject, servers, Path(folder)) as where:
                if servers == 1:
                    costs, tried = calibrate(subject, where, timesteps, seconds / 2, base)
                    runs += [(1, "1 client", tried[0], 1), (1, f"{MANY} clients", tried[1], MANY)]
                else:
                    closed = measure(where, content, timesteps, seconds / 2, clients=MANY)
                    each = closed.balancer / len(closed.latencies)
                    costs = replace(costs, balancer=each)
                    runs.append((2, f"{MANY} clients", closed, MANY))
                most = runs[-1][2].rate
                if subject.delays:
                    most = servers * capacity(subject, timesteps)
                for share in SHARES:
                    run = measure(where, content, timesteps, seconds, rate=share * most)
                    runs.append((servers, f"{share:.0%}", run, 0))
    for servers, load, real, clients in runs:
        times = None if clients else real.sent
        model = simulated(
            subject, costs, servers, timesteps, cores=cores, begin=real.begin, end=real.end,
            times=times, clients=clients,
        )  # fmt: skip
        rows.append(row_of(subject, servers, load, real, model))
    return costs, rows


def ratios_of(rows: list[Row]) -> dict[str, float]:
    """Simulated over measured, the one that is farthest off of each kind."""
    found = {}
    for name in dict.fromkeys(row["subject"] for row in rows):
        mine = [row for row in rows if row["subject"] == name]
        for what in ("a_second", "p50_ms", "p99_ms"):
            all_of_it = [row[f"simulated_{what}"] / row[f"measured_{what}"] for row in mine]
            found[f"{name}_{what}_least"] = min(all_of_it)
            found[f"{name}_{what}_most"] = max(all_of_it)
    return found


def main(
    subject: Annotated[Literal["delayed", "pictures"], typer.Argument()],
    seconds: Annotated[float, typer.Option(help="of each load")] = 8.0,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "scale",
) -> None:
    """Rows of the other subject stay in the file."""
    path = results.RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {"rows": [], "costs_ms": {}}
    base = Costs(hop=hop())
    if subject == "pictures":
        if "delayed" not in before["costs_ms"]:
            raise NotMeasuredError("delayed comes first: what the engine takes without computing")
        known = before["costs_ms"]["delayed"]
        base = replace(base, **{key: known[key] / 1e3 for key in ("turn", "answer", "refuse")})
    costs, rows = check(SUBJECTS[subject], seconds, base)
    said = {
        key: [1e3 * each for each in value] if isinstance(value, tuple) else 1e3 * value
        for key, value in asdict(costs).items()
        if key != "spread"
    }
    console.print(said)
    kept = [row for row in before["rows"] if row["subject"] != subject]
    rows = sorted([*kept, *rows], key=lambda row: row["subject"] != "delayed")
    all_costs = {**before["costs_ms"], subject: said}
    ratios = ratios_of(rows)
    console.print(ratios)
    settings = {"seconds": seconds, "receiving": RECEIVING}
    results.save(name, __doc__ or "", settings, rows, ratios, costs_ms=all_costs)


if __name__ == "__main__":
    stop_when_told()
    try:
        typer.run(main)
    except NotMeasuredError as error:
        sys.exit(f"not measured: {error}")
