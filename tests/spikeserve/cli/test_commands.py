"""The commands that ask a server."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spikeserve import __version__
from spikeserve.app import Server
from spikeserve.cli import app
from spikeserve.cli_stream_sources import open_source
from spikeserve.client import Advance
from spiketrain.events import read_recording, write_npz
from spiketrain.events.types import Events

runner = CliRunner()


@pytest.fixture
def http(threaded_server: Server) -> list[str]:
    return ["--server", f"http://127.0.0.1:{threaded_server.http_port}"]


@pytest.fixture
def rpc(threaded_server: Server) -> list[str]:
    return ["--server", f"127.0.0.1:{threaded_server.grpc_port}"]


@pytest.fixture
def picture(tmp_path: Path, png: bytes) -> str:
    path = tmp_path / "picture.png"
    path.write_bytes(png)
    return str(path)


def test_the_version_is_printed() -> None:
    result = runner.invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"spikeserve {__version__}\n"


def test_pictures_are_classified_one_line_each(http: list[str], picture: str) -> None:
    result = runner.invoke(app, ["classify", picture, picture, *http])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert re.search(
        r"picture\.png: [a-j] \d+\.\d% \(.*\)  pictures 2, 4 of 4 timesteps, \d+\.\d ms", lines[0]
    )


def test_pictures_are_classified_as_json(http: list[str], picture: str) -> None:
    result = runner.invoke(
        app, ["classify", "--json", "--top-k", "2", "--model-version", "1", picture, *http]
    )
    answer = json.loads(result.stdout)
    assert answer["image"] == picture
    assert answer["version"] == "1"
    assert len(answer["predictions"]) == 2


def test_one_bad_picture_does_not_keep_the_others_from_being_answered(
    http: list[str], picture: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello")
    result = runner.invoke(app, ["classify", str(text), str(tmp_path / "none"), picture, *http])
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    assert "not a picture" in result.stderr
    assert "No such file" in result.stderr


def test_models_are_listed(http: list[str]) -> None:
    result = runner.invoke(app, ["models", *http])
    assert result.exit_code == 0
    assert re.search(r"pictures \(default\) +2 +ready +image 1x28x28 +10 +4", result.stdout)
    lines = runner.invoke(app, ["models", "--json", *http]).stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["moves", "pictures", "pictures"]


@pytest.mark.parametrize(
    "arguments", [["classify", "{picture}"], ["models"], ["stream", "demo:1", "--speed", "max"]]
)
def test_a_server_that_is_not_there_is_a_clear_error(arguments: list[str], picture: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    at = f"127.0.0.1:{port}" if arguments[0] == "stream" else f"http://127.0.0.1:{port}"
    given = [each.format(picture=picture) for each in arguments]
    result = runner.invoke(app, [*given, "--server", at])
    assert result.exit_code == 1
    assert f"no spikeserve server answers at {at}" in result.stderr
    assert result.stdout == ""


def test_the_emulated_camera_is_streamed(rpc: list[str]) -> None:
    result = runner.invoke(app, ["stream", "demo:3", "--speed", "max", *rpc])
    assert result.exit_code == 0
    title, *lines = result.stdout.splitlines()
    assert title.split("\t") == [
        "time s", "class", "confidence", "events", "events/s", "lag ms", "dropped", "latency ms",
    ]  # fmt: skip
    assert len(lines) > 40
    assert all(
        re.fullmatch(r"\d+\.\d{3}\t[a-j]\t\d+\.\d%\t\d+\t[\d.]+[kM]?\t\d+\.\d\t\d+\t\d+\.\d", line)
        for line in lines
    )


def test_an_endless_stream_ends_after_the_windows_that_were_asked_for(rpc: list[str]) -> None:
    result = runner.invoke(
        app, ["stream", "demo:", "--speed", "max", "--windows", "25", "--json", *rpc]
    )
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(25))
    assert lines[0]["predictions"][0]["label"] in "abcdefghij"


def test_a_recording_is_streamed_faster_than_it_was(rpc: list[str], tmp_path: Path) -> None:
    path = tmp_path / "recording.npz"
    x = np.zeros(100, np.uint16)
    write_npz(path, Events(np.arange(100) * 1000, x, x, x.astype(np.uint8)))
    result = runner.invoke(app, ["stream", str(path), "--speed", "50", "--model", "moves", *rpc])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 11


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["/no/such/file"], 1, "No such file"),
        (["demo:x"], 1, "digits"),
        ([__file__], 1, "known format"),
        (["demo:1", "--speed", "0"], 2, "above 0"),
        (["demo:1", "--speed", "nan"], 2, "above 0"),
        (["demo:1", "--server", "http://127.0.0.1:8000"], 2, "HOST:PORT"),
        (["demo:1", "--model", "pictures"], 1, "takes pictures"),
        (["demo:1", "--model", "nope"], 1, "'nope'"),
    ],
)
def test_what_cannot_be_streamed_is_a_clear_error(
    rpc: list[str], arguments: list[str], status: int, said: str
) -> None:
    result = runner.invoke(app, ["stream", *rpc, *arguments])
    assert result.exit_code == status
    assert said in result.stderr


def test_the_demo_shows_the_digits_that_were_asked_for_and_lets_time_pass() -> None:
    packets = list(open_source("demo:31").packets)
    times = [packet.time_us for packet in packets if isinstance(packet, Advance)]
    assert times == sorted(times)
    assert times[-1] > 2 * 310_000
    assert sum(len(packet) for packet in packets if not isinstance(packet, Advance)) > 1000


def test_a_terminal_gets_a_live_table(rpc: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    result = runner.invoke(app, ["stream", "demo:3", "--speed", "max", "--windows", "5", *rpc])
    assert result.exit_code == 0
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout).splitlines()[-6:]
    assert "confidence" in last[0]
    assert [line.split()[0] for line in last[1:]] == ["0.010", "0.020", "0.030", "0.040", "0.050"]


def test_a_recording_from_standard_input_with_every_flag(rpc: list[str], tmp_path: Path) -> None:
    events = Events(
        np.arange(100) * 1000,
        np.full(100, 60, np.uint16),
        np.full(100, 10, np.uint16),
        np.zeros(100, np.uint8),
    )
    rows = zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), strict=True)
    text = "t,x,y,p\n" + "".join(f"{t},{x},{y},0\n" for t, x, y in rows)
    record = tmp_path / "seen.npz"
    flags = ["--sensor", "70x68", "--filter", "region:width=68,height=68,crop", "--filter"]
    flags += ["down-sample:2", "--window", "20ms", "--force", "--decision", "vote:windows=2"]
    flags += ["--lateness-us", "100", "--reconnect", "0", "--model-version", "1"]
    result = runner.invoke(
        app, ["stream", "-", "--speed", "1", "--record", str(record), *flags, *rpc], input=text
    )
    assert result.exit_code == 0, result.stderr
    title, *lines = result.stdout.splitlines()
    assert "decision" in title.split("\t")
    assert [line.split("\t")[0] for line in lines] == ["0.020", "0.040", "0.060", "0.080", "0.100"]
    assert "5 windows, 100 events; 100 events in" in result.stderr
    assert read_recording(record).equals(events)


def test_a_refusal_says_how_a_sensor_is_stated_that_the_recording_does_not(rpc: list[str]) -> None:
    text = "t,x,y,p\n1,60,10,0\n2,61,10,1\n"
    command = ["stream", "-", "--speed", "max", "--filter", "down-sample:2", *rpc]
    refused = runner.invoke(app, command, input=text)
    assert refused.exit_code == 1
    assert "--sensor WIDTHxHEIGHT states it" in refused.stderr
    stated = runner.invoke(app, [*command, "--sensor", "34x34"], input=text)
    assert stated.exit_code == 1
    assert "states it" not in stated.stderr
    assert runner.invoke(app, [*command, "--sensor", "68x68"], input=text).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["demo:1", "--filter", "blur"], 2, "background-activity"),
        (["demo:1", "--window", "soon"], 2, "10ms"),
        (["demo:1", "--window", "20ms"], 1, "force"),
        (["demo:1", "--decision", "oracle"], 2, "leaky"),
        (["demo:1", "--sensor", "small"], 2, "640x480"),
        (["demo:1", "--sensor", "640x480"], 1, "640 x 480"),
        (["demo:1", "--record", "/no/such/folder/x.npz"], 1, "No such file"),
        (["demo:1", "--record", "x.mp4"], 1, ".npz"),
        (["udp://127.0.0.1:99999"], 1, "udp://HOST:PORT"),
        (["udp://127.0.0.1:0?layout=morse"], 1, "event-stream"),
        (["udp://127.0.0.1:0?colour=red"], 1, "udp://HOST:PORT"),
    ],
)
def test_flags_that_cannot_be(rpc: list[str], arguments: list[str], status: int, said: str) -> None:
    result = runner.invoke(app, ["stream", *rpc, *arguments, "--speed", "max"])
    assert result.exit_code == status
    assert said in result.stderr
    assert not Path("x.mp4").exists()
