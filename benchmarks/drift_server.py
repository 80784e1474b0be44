"""Does a running server notice when its input goes wrong, and how soon? Does it stay quiet when nothing is wrong?

The command `spikeserve serve` is sent test samples, pictures over HTTP and recordings over gRPC (each a stream of as many windows as the
model was trained with), and /metrics is read after each. A trial begins with a model that was loaded anew and 100 to 163
clean samples; then the input goes wrong (drift_traffic.py), and the samples are counted until `spikeserve_drift_score` of a signal is 1.
Faults with a place, such as a hot pixel, are somewhere else in each trial.

* With all samples probed (SPIKESERVE_PROBE_SHARE=1), one after the other: the samples until the alarm by firing rates, and by probes.
* As it comes, with 1 % of a processor for probes, and samples at a fixed rate: until `spikeserve_drifting` is 1, by whatever
  signal, in samples and seconds; where only probes see it, after up to 20 seconds more of clean samples, so that it begins anywhere in
  a group of probes. A trial in which this program was kept from running for seconds is made again.
* As it comes, clean samples as fast as they are answered: the alarms, which should be none.

    python benchmarks/drift_server.py MODEL.safetensors ... --data FOLDER
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from drift_traffic import EventSource, Source, source_of
from processes import free_ports, running, stop_when_told
from results import RESULTS, save
from rich.console import Console
from rich.table import Table
from systems import System

from spikeserve.client import StreamClient
from spiketrain.checkpoint import load_checkpoint

MOST = 320
MOST_SECONDS = 150.0
MOST_PAUSE = 3.0
MOST_CLEAN_SECONDS = 20.0
ONLY_PROBES = ("a hot pixel", "flipped polarity")
PARTS = ("probed", "as it comes", "clean")
PROBES = ("neurons", "channels", "pixels")
PER_SECOND = 100
_SERIES = re.compile(
    r'^spikeserve_(drifting|drift_score|probes_total)\{model="([^"]+)"(?:,signal="(\w+)")?,version="[^"]+"\} (\S+)$',
    re.M,
)
Row = dict[str, Any]
output = Console()


@dataclass(frozen=True)
class _Server(System):
    def command(self, folder: Path, port: int) -> list[str]:
        command = super().command(folder, port)
        command[command.index("--models") + 1] = str(folder)
        return command


@dataclass(frozen=True)
class Health:
    drifting: bool
    scores: dict[str, float]
    probes: int


class Client:
    """One after the other; `send` returns when the answer is here."""

    def __init__(self, port: int, model: str, source: Source) -> None:
        self.model, self.source = model, source
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._rpc = (
            StreamClient(f"127.0.0.1:{port + 1}") if isinstance(source, EventSource) else None
        )

    def send(self, fault: str | None, draws: np.random.Generator, place: float = 0.0) -> None:
        sample = int(draws.integers(len(self.source)))
        message = self.source.message(sample, fault, draws, place)
        if self._rpc is None:
            self.ask("POST", f"/classify?model={self.model}", message)
            return
        start, packets = message
        for _ in self._rpc.stream(packets, model=self.model, start_us=start):
            pass

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._http.request(method, path, body)
        reply = self._http.getresponse()
        content = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{method} {path}: {content!r:.300}")
        return content

    def health(self) -> Health:
        found: dict[str, float] = {}
        for name, model, signal, value in _SERIES.findall(self.ask("GET", "/metrics").decode()):
            if model == self.model:
                found[signal or name] = float(value)
        drifting, probes = found.pop("drifting"), found.pop("probes_total")
        return Health(bool(drifting), found, int(probes))

    def anew(self) -> None:
        """The model without a past."""
        self.ask("POST", f"/models/{self.model}/unload")
        self.ask("POST", f"/models/{self.model}/load")

    def close(self) -> None:
        self._http.close()
        if self._rpc is not None:
            self._rpc.close()


class Pace:
    """None is as fast as may be."""

    def __init__(self, per_second: float | None) -> None:
        self._step = 0.0 if per_second is None else 1 / per_second
        self._next = time.monotonic()

    def wait(self) -> None:
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = max(self._next + self._step, time.monotonic() - self._step)


def clean_first(
    client: Client, draws: np.random.Generator, pace: Pace, more: float = 0.0
) -> Health:
    """At least 100, and for up to `more` seconds more. Raises RuntimeError where that raises an alarm."""
    client.anew()
    for _ in range(100 + int(draws.integers(64))):
        client.send(None, draws)
    end = time.monotonic() + more * float(draws.random())
    while time.monotonic() < end:
        pace.wait()
        client.send(None, draws)
    before = client.health()
    if before.drifting:
        raise RuntimeError(f"{client.model} drifts before anything is wrong: {before.scores}")
    return before


def by_signals(client: Client, fault: str, seed: int) -> dict[str, int]:
    """Samples until an alarm by rates and by probes, those that came within MOST."""
    draws = np.random.default_rng(seed)
    clean_first(client, draws, Pace(None))
    place, found = float(draws.random()), dict[str, int]()
    for count in range(1, MOST + 1):
        client.send(fault, draws, place)
        scores = client.health().scores
        if scores.get("rates", 0.0) >= 1:
            found.setdefault("by_rates", count)
        if any(scores.get(each, 0.0) >= 1 for each in PROBES):
            found.setdefault("by_probes", count)
        if len(found) == 2:
            break
    return found


def until_alarm(client: Client, fault: str, seed: int, per_second: float) -> dict[str, Any] | None:
    """Samples and seconds, None for both where it took too long; None where the machine was elsewhere."""
    draws, pace = np.random.default_rng(seed), Pace(per_second)
    more = MOST_CLEAN_SECONDS if fault in ONLY_PROBES else 0.0
    before = clean_first(client, draws, pace, more)
    place, began, last = float(draws.random()), time.monotonic(), time.monotonic()
    for count in itertools.count(1):
        pace.wait()
        client.send(fault, draws, place)
        now, before_that, last = client.health(), last, time.monotonic()
        seconds = last - began
        if last - before_that > MOST_PAUSE:
            return None
        if now.drifting or seconds > MOST_SECONDS:
            found = {"samples": count, "seconds": seconds} if now.drifting else {}
            return found | {"probes_per_second": (now.probes - before.probes) / seconds}
    return None


def probed(client: Client, trials: int) -> list[Row]:
    """Every fault, with every sample probed."""
    rows = []
    for fault in client.source.faults:
        found = [by_signals(client, fault, seed) for seed in range(trials)]
        by = {name: [each.get(name) for each in found] for name in ("by_rates", "by_probes")}
        rows.append({"model": client.model, "input": fault, "trials": trials, **by})
    return rows


def as_it_comes(client: Client, trials: int, rates: tuple[float, float]) -> list[Row]:
    """Every fault, at a fixed rate, with the share of probes that is the default."""
    rate = rates[isinstance(client.source, EventSource)]
    rows = []
    for fault in client.source.faults:
        found: list[Row] = []
        while len(found) < trials:
            if (one := until_alarm(client, fault, len(found), rate)) is not None:
                found.append(one)
        row = {"model": client.model, "input": fault, "trials": trials, "per_second": rate}
        for name in ("samples", "seconds", "probes_per_second"):
            row[name] = [each.get(name) for each in found]
        rows.append(row)
    return rows


def clean(port: int, model: str, source: Source, samples: int, threads: int) -> Row:
    """Samples as fast as they are answered, from several clients; /metrics is read after each few."""
    clients = [Client(port, model, source) for _ in range(threads)]
    draws = [np.random.default_rng(1000 + k) for k in range(threads)]
    clients[0].anew()
    alarms, highest, drifting, each = 0, dict[str, float](), False, 5
    began = time.monotonic()

    def some(k: int) -> None:
        for _ in range(each):
            clients[k].send(None, draws[k])

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(0, samples, each * threads):
            list(pool.map(some, range(threads)))
            now = clients[0].health()
            alarms += now.drifting and not drifting
            drifting = now.drifting
            for name, score in now.scores.items():
                highest[name] = max(highest.get(name, 0.0), score)
    seconds = time.monotonic() - began
    for client in clients:
        client.close()
    return {
        "model": model,
        "input": "clean",
        "samples": samples,
        "seconds": seconds,
        "per_second": samples / seconds,
        "alarms": alarms,
        "alarms_per_hour": alarms / samples * PER_SECOND * 3600,
        "probes": now.probes,
        "highest_scores": highest,
    }


@contextmanager
def serving(models: Path, share: str) -> Iterator[int]:
    port = free_ports()
    os.environ |= {"SPIKESERVE_PROBE_SHARE": share, "SPIKESERVE_ADMIN": "open"}
    system = _Server("spikeserve-drift", "ours", "spikeserve", "spikeserve")
    with tempfile.TemporaryDirectory() as logs, running(system, models, port, Path(logs)) as server:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            server.check()
            ask = http.client.HTTPConnection("127.0.0.1", port)
            try:
                ask.request("GET", "/health/ready")
                if ask.getresponse().status == 200:
                    yield port
                    return
            except OSError:
                pass
            finally:
                ask.close()
            time.sleep(0.2)
        raise TimeoutError("the server does not become ready")


def show(rows: list[Row]) -> None:
    table = Table("model", "input", "what was found")
    for row in rows:
        told = {
            key: f"{median(some):.3g}" if (some := [v for v in value if v is not None]) else "none"
            for key, value in row.items()
            if isinstance(value, list)
        }
        kept = ("alarms", "samples", "per_second", "probes", "highest_scores")
        told = told or {key: str(row[key]) for key in kept}
        table.add_row(row["model"], row["input"], ", ".join(f"{k} {v}" for k, v in told.items()))
    output.print(table)


def keep(part: str, found: list[Row]) -> None:
    """In place of what the file has of this part and model; the rest of it stays."""
    show(found)
    path = RESULTS / "drift-server.json"
    rows: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in rows if (row["part"], row["model"]) != (part, found[0]["model"])]
    rows += [{"part": part} | row for row in found]
    rows.sort(key=lambda row: (PARTS.index(row["part"]), row["model"]))
    save("drift-server", __doc__ or "", {}, rows, {})


def main(
    models: Annotated[list[Path], typer.Argument(help="Checkpoints with a profile.")],
    data: Annotated[Path | None, typer.Option()] = None,
    part: Annotated[
        list[str], typer.Option(help="'probed', 'as it comes', 'clean'; rows of others are kept")
    ] = list(PARTS),  # noqa: B006 - typer reads it only
    trials: Annotated[int, typer.Option(help="of each fault, with all samples probed")] = 5,
    slow_trials: Annotated[int, typer.Option(help="of each fault, as it comes")] = 3,
    pictures: Annotated[int, typer.Option(help="clean ones")] = 100_000,
    recordings: Annotated[int, typer.Option(help="clean ones")] = 5_000,
    rates: Annotated[tuple[float, float], typer.Option(help="pictures, recordings a second")] = (
        20.0,
        5.0,
    ),
    threads: int = 4,
) -> None:
    sources = {
        (manifest := load_checkpoint(path).manifest).name: source_of(manifest, data)
        for path in models
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in models:
            shutil.copy(path, folder)
        for each in part:
            with serving(folder, "1" if each == "probed" else "0.01") as port:
                clients = [Client(port, model, source) for model, source in sources.items()]
                if each == "as it comes":
                    with ThreadPoolExecutor(len(clients)) as pool:
                        for found in pool.map(
                            lambda one: as_it_comes(one, slow_trials, rates), clients
                        ):
                            keep(each, found)
                    continue
                for client in clients:
                    count = recordings if isinstance(client.source, EventSource) else pictures
                    keep(
                        each,
                        probed(client, trials)
                        if each == "probed"
                        else [clean(port, client.model, client.source, count, threads)],
                    )


if __name__ == "__main__":
    stop_when_told()
    typer.run(main)
