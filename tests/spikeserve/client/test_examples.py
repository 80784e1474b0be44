"""The examples run, and do what they say."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import AsyncClient, Client, ServerError
from spiketrain.events import read_recording, write_recording
from spiketrain.events.types import Events

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


Run = Callable[..., list[str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example as its own program would, and gives the lines that it prints."""

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def rpc(threaded_server: Server) -> str:
    return f"127.0.0.1:{threaded_server.grpc_port}"


def test_stream_recording(run: Run, rpc: str) -> None:
    lines = run("stream_recording.py", str(EXAMPLES / "digit.npz"), "--server", rpc)
    events = len(read_recording(EXAMPLES / "digit.npz"))
    assert re.fullmatch(rf"{len(lines) - 1} windows, {events} events", lines[-1])
    assert all(
        re.fullmatch(r"\d\.\d{3} s  [a-j]  decided: ([a-j]|None)", line) for line in lines[:-1]
    )


def test_stream_camera(run: Run, rpc: str) -> None:
    lines = run("stream_camera.py", "--server", rpc, "--seconds", "0.3")
    assert len(lines) >= 25
    assert all(re.fullmatch(r"\d\.\d{3} s  [a-j]  \d+\.\d ms", line) for line in lines)


def test_stream_words(run: Run, rpc: str, tmp_path: Path) -> None:
    small = read_recording(EXAMPLES / "digit.npz")
    large = Events(small.t, small.x * np.uint16(2), small.y * np.uint16(2), small.p)
    write_recording(tmp_path / "digit.raw", large, sensor=(70, 68))
    filters = ["--filter", "region:width=68,height=68,crop", "--filter", "down-sample:2"]
    words = run("stream_words.py", str(tmp_path / "digit.raw"), "70x68", *filters, "--server", rpc)
    columns = run("stream_recording.py", str(EXAMPLES / "digit.npz"), "--server", rpc)
    assert [(line.split()[0], line.split()[-1]) for line in words] == [
        (line.split()[0], line.split()[2]) for line in columns[:-1]
    ]


def test_classify_recording(run: Run, threaded_server: Server) -> None:
    url = f"http://127.0.0.1:{threaded_server.http_port}"
    lines = run("classify_recording.py", str(EXAMPLES / "digit.bin"), "--url", url)
    assert re.fullmatch(r"in all: [a-j] \d+\.\d%", lines[-1])
    assert all(re.fullmatch(r"[\d.]+ to [\d.]+ s: ([a-j]|None)", line) for line in lines[:-1])


async def test_timelines_of_both_clients(threaded_server: Server) -> None:
    url = f"http://127.0.0.1:{threaded_server.http_port}"
    path = EXAMPLES / "digit.npz"
    terms = {
        "filter": ["refractory:5ms"],
        "window": "20ms",
        "force": True,
        "rates": True,
        "top_k": 3,
    }
    with Client(url) as client:
        plain = client.classify_events(path, **terms)
        with pytest.raises(ServerError, match="force"):
            client.classify_events(path, window="20ms")
    async with AsyncClient(url) as client:
        other = await client.classify_events(path.read_bytes(), **terms)
    assert plain.windows == other.windows
    assert (plain.format, plain.sensor, plain.damage) == ("npz", (34, 34), None)
    assert plain.best == plain.windows[-1].predictions[0]
    assert len(plain.predictions) == 3
    assert plain.windows[0].firing_rates
    assert plain.drops["filtered_events"] > 0
