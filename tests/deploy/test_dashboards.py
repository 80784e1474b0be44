"""Every panel of every dashboard, asked of a real Prometheus that scrapes a real server under load."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from spikeserve.app import Server
from spikeserve.client import StreamClient, cut
from spikeserve.settings import BUNDLED_MODELS, load_settings
from spiketrain.events import read_recording

MODELS = ("fashion-clif", "nmnist-clif")
START_SECONDS = 60
FILL_SECONDS = 180
# What one server under load cannot have.
NO_GPU = "gpu.json"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    settings = load_settings(
        models=tuple(BUNDLED_MODELS / f"{name}.safetensors" for name in MODELS),
        http_port=0,
        grpc_port=0,
        executor="reference",
        torch_threads=1,
        probe_share=1.0,
        drain_seconds=0.5,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        server = Server(settings)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(120)
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def prometheus(server: Server, checkout: Path, tmp_path_factory) -> Iterator[httpx.Client]:
    """With the rules and the configuration of this checkout, but for addresses and times."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("there is no Prometheus here (Debian: apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(checkout / "deploy" / "prometheus" / "rules", folder / "rules")
    text = (checkout / "deploy" / "prometheus" / "prometheus.yml").read_text()
    changes = {
        "spikeserve:8000": f"127.0.0.1:{server.http_port}",
        "scrape_interval: 5s": "scrape_interval: 500ms",
        "scrape_timeout: 4s": "scrape_timeout: 500ms",
        "evaluation_interval: 15s": "evaluation_interval: 500ms",
    }
    for here, there in changes.items():
        assert here in text
        text = text.replace(here, there)
    (folder / "prometheus.yml").write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
                _wait_until_ready(client, folder / "log")
                yield client
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_ready(client: httpx.Client, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus does not start:\n{log.read_text()[-4000:]}")


def load(server: Server, checkout: Path, pictures: int) -> None:
    """Pictures with and without exits, mistakes, and streams over gRPC."""
    garment = (checkout / "examples" / "garment.png").read_bytes()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", timeout=60) as client:
        for i in range(pictures):
            exits = ("off", "balanced")[i % 2]
            assert client.post(f"/classify?exit={exits}", content=garment).status_code == 200
        assert client.post("/classify", content=b"no picture").status_code == 415
    events = read_recording(checkout / "examples" / "digit.npz")
    with StreamClient(f"127.0.0.1:{server.grpc_port}") as streams:
        assert len(list(streams.stream(cut(events)))) > 10


def panels(checkout: Path) -> dict[tuple[str, str, str], str]:
    """Queries by dashboard, panel and legend."""
    found = {}
    for path in sorted((checkout / "deploy" / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                found[path.name, panel["title"], target["legendFormat"]] = target["expr"]
    return found


def ask(prometheus: httpx.Client, query: str) -> list[float]:
    """As Grafana fills it in when all models are chosen."""
    for name, value in (("$model", ".*"), ("$version", ".*"), ("$__rate_interval", "1m")):
        query = query.replace(name, value)
    reply = prometheus.get("/api/v1/query", params={"query": query}).json()
    assert reply["status"] == "success", (query, reply)
    return [float(each["value"][1]) for each in reply["data"]["result"]]


def test_no_panel_is_empty(server: Server, prometheus: httpx.Client, checkout: Path) -> None:
    queries = {key: query for key, query in panels(checkout).items() if key[0] != NO_GPU}
    assert len(queries) > 30
    end = time.monotonic() + FILL_SECONDS
    values: dict[tuple[str, str, str], list[float]] = {}
    while time.monotonic() < end:
        load(server, checkout, 40)
        values = {key: ask(prometheus, query) for key, query in queries.items()}
        if all(values.values()):
            break
    assert [key for key, found in values.items() if not found] == []
    # A quantile of nothing is no number; some of each panel's are.
    finite = {key: [each for each in found if math.isfinite(each)] for key, found in values.items()}
    assert [key for key, found in finite.items() if not found] == []
    busy = [key for key, found in values.items() if any(each > 0 for each in found)]
    assert len(busy) > 0.8 * len(values)
    if (into := os.environ.get("SPIKESERVE_TEST_PANELS")) is not None:
        Path(into).write_text("".join(_line(key, found) for key, found in finite.items()))


def _line(key: tuple[str, str, str], values: list[float]) -> str:
    """A row for the documentation: how many series a query has, the least and the greatest value."""
    return f"| {' | '.join(key)} | {len(values)} | {min(values):.4g} | {max(values):.4g} |\n"


def test_the_files_are_those_that_build_py_writes(checkout: Path) -> None:
    built = _module(checkout / "deploy" / "grafana" / "build.py").content()
    folder = checkout / "deploy" / "grafana" / "dashboards"
    assert {path.name: path.read_text() for path in folder.glob("*.json")} == built


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
