"""Whether time series grow with traffic: python benchmarks/series.py [--requests 10000] [--streams 200]

Counts the series that a server with all bundled models gives to Prometheus: after a little of everything, and after many
requests (one in ten of them wrong in one of several ways, each with a path, a model name and a request id of its own) and
streams. The peer is what a label for each request, as a path or an id would be one, would have come to.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from pathlib import Path

import httpx
from processes import free_ports, running, stop_when_told
from results import save
from rich.console import Console
from systems import System

from spikeserve.client import AsyncStreamClient, cut
from spiketrain.events import read_recording

HERE = Path(__file__).parent
MODELS = HERE.parent / "service/spikeserve/models"
PICTURE = HERE.parent / "examples/garment.png"
RECORDING = HERE.parent / "examples/digit.npz"


class _All(System):
    """Ours, with the folder of models instead of one."""

    def command(self, folder: Path, port: int) -> list[str]:
        command = super().command(folder, port)
        command[command.index("--models") + 1] = str(MODELS)
        return command


async def series(http: httpx.AsyncClient) -> Counter[str]:
    text = (await http.get("/metrics")).text
    return Counter(line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#")


async def ask(http: httpx.AsyncClient, numbers: range) -> None:
    picture = PICTURE.read_bytes()
    for number in numbers:
        wrong = number % 10 == 9
        path = "/classify"
        if wrong:
            path = (f"/nothing/{number}", f"/classify?model=m{number}", "/classify?timesteps=0")[
                number // 10 % 3
            ]
        await http.post(path, content=picture, headers={"X-Request-Id": f"r{number}"})


async def stream(port: int, count: int) -> None:
    events = read_recording(RECORDING)
    async with AsyncStreamClient(f"127.0.0.1:{port}") as client:
        for _ in range(count):
            async for _window in client.stream(cut(events)):
                pass


async def measure(port: int, requests: int, streams: int) -> tuple[Counter[str], Counter[str]]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        for _ in range(600):
            try:
                if (await http.get("/health/ready")).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
        await ask(http, range(100))
        await stream(port + 1, 2)
        before = await series(http)
        share = requests // 8
        await asyncio.gather(
            *(ask(http, range(100 + k * share, 100 + (k + 1) * share)) for k in range(8)),
            *(stream(port + 1, streams // 8) for _ in range(8)),
        )
        return before, await series(http)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=200)
    given = parser.parse_args()
    stop_when_told()
    console = Console()
    method = (__doc__ or "").split("\n\n", 1)[1]
    console.print(method)
    system = _All("spikeserve", "ours", "spikeserve", "spikeserve")
    with tempfile.TemporaryDirectory() as folder:
        port = free_ports()
        with running(system, Path(folder), port, Path(folder)):
            before, after = asyncio.run(measure(port, given.requests, given.streams))
    first, last = before.total(), after.total()
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    console.print(f"{first} series before, {last} after {given.requests} requests; grown: {grown}")
    rows = [{"when": "before", "series": first}, {"when": "after", "series": last}]
    ratios = {
        "after_over_before": last / first,
        "over_a_label_for_each_request": last / (first + given.requests),
    }
    save("series", method, vars(given), rows, ratios, grown=grown)


if __name__ == "__main__":
    main()
