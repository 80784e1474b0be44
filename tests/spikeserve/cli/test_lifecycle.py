"""The server as a process: start, signals, and what happens to what is under way."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from typer.testing import CliRunner

from spikeserve.app import Server, StartError
from spikeserve.cli import app
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub

OPEN = pb.EventMessage(open=pb.OpenStream(start_us=0))


class Process:
    """`spikeserve serve` on ports that the system chooses; `seen` waits for a line of its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.log = ""
        self.http_port = self.grpc_port = 0

    async def seen(self, pattern: str) -> re.Match[str]:
        async with asyncio.timeout(120):
            while not (found := re.search(pattern, self.log)):
                line = await self._process.stderr.readline()
                if not line:
                    raise AssertionError(f"ended without {pattern!r}:\n{self.log}")
                self.log += line.decode()
            return found

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def status(self) -> int:
        async with asyncio.timeout(120):
            self.log += (await self._process.stderr.read()).decode()
            return await self._process.wait()


@pytest.fixture
async def process(model_folder: Path) -> AsyncIterator[Process]:
    environment = os.environ | {
        "SPIKESERVE_MODELS": str(model_folder),
        "SPIKESERVE_TORCH_THREADS": "1",
    }
    command = [
        "-m",
        "spikeserve",
        "serve",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--drain-seconds",
        "60",
    ]
    child = await asyncio.create_subprocess_exec(
        sys.executable, *command, stderr=asyncio.subprocess.PIPE, env=environment
    )
    running = Process(child)
    try:
        ports = await running.seen(r"http://127\.0\.0\.1:(\d+) and gRPC on port (\d+)")
        running.http_port, running.grpc_port = int(ports[1]), int(ports[2])
        await running.seen(r"spikeserve: ready\n")
        yield running
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_server_with_status_0(
    process: Process, number: signal.Signals
) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{process.http_port}") as http:
        assert (await http.get("/health/ready")).status_code == 200
        process.signal(number)
        assert await process.status() == 0
    assert "Traceback" not in process.log


async def test_what_is_under_way_is_finished_after_sigterm(process: Process, png: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", process.http_port)
    head = f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(png)}\r\n\r\n"
    writer.write(head.encode() + png[:10])
    await writer.drain()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        stream = SpikeServeStub(channel).StreamEvents()
        await stream.write(OPEN)
        assert (await stream.read()).opened.model == "moves"

        process.signal(signal.SIGTERM)
        await process.seen("SIGTERM received")
        await nobody_listens(process.http_port)

        await stream.write(pb.EventMessage(events=pb.EventPacket(payload=bytes(8), base_us=0)))
        await stream.write(pb.EventMessage(advance=pb.Advance(time_us=20_000)))
        assert (await stream.read()).window.events == 1
        assert (await stream.read()).window.index == 1
        await stream.done_writing()
        assert (await stream.read()).ended.windows == 2

        writer.write(png[10:])
        reply = await reader.read()
        assert reply.startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert await process.status() == 0
    assert "Traceback" not in process.log


async def nobody_listens(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.05)


async def test_a_second_signal_ends_it_at_once(process: Process) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", process.http_port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        stream = SpikeServeStub(channel).StreamEvents()
        await stream.write(OPEN)
        assert (await stream.read()).opened.model == "moves"
        process.signal(signal.SIGTERM)
        await process.seen("SIGTERM received")
        process.signal(signal.SIGTERM)
        assert await process.status() == 128 + signal.SIGTERM
    writer.close()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)
async def test_a_server_whose_parent_was_killed_ends(model_folder: Path) -> None:
    serve = [sys.executable, "-m", "spikeserve", "serve", "--http-port", "0", "--grpc-port", "0"]
    environment = os.environ | {
        "SPIKESERVE_MODELS": str(model_folder),
        "SPIKESERVE_EXECUTOR": "reference",
        "SPIKESERVE_EXIT_WITH_PARENT": "1",
    }
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", f"import subprocess; subprocess.run({serve!r})"),
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    running = Process(parent)
    await running.seen(r"spikeserve: ready\n")
    running.signal(signal.SIGKILL)
    await running.seen(r"SIGTERM received")
    # The end of the log is that of the last process that could write to it.
    assert await running.status() == -signal.SIGKILL
    assert "spikeserve: stopped" in running.log


async def test_a_server_told_to_stop_while_it_starts_stops(model_folder: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "spikeserve", "serve", "--http-port", "0", "--grpc-port", "0"),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"SPIKESERVE_MODELS": str(model_folder)},
    )
    running = Process(child)
    await running.seen(r"gRPC on port \d+ are open")
    running.signal(signal.SIGTERM)
    assert await running.status() == 0
    assert "spikeserve: stopped" in running.log
    assert "Traceback" not in running.log


@pytest.mark.parametrize("which", ["http", "grpc"])
async def test_a_port_that_is_taken_is_a_clear_error(make_settings, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(make_settings(**{f"{which}_port": port}))
        with pytest.raises(
            StartError, match=rf"port {port}: .*--{which}-port or SPIKESERVE_{which.upper()}_PORT"
        ):
            await server.start()
        await server.stop()


async def test_a_host_that_is_none_is_a_clear_error(make_settings) -> None:
    server = Server(make_settings(host="host.invalid"))
    with pytest.raises(StartError, match=r"host\.invalid"):
        await server.start()
    await server.stop()


def test_a_server_that_cannot_listen_says_so_and_ends_with_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, "-m", "spikeserve", "serve", "--http-port", port, "--grpc-port", "0"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--http-port", "70000"], "SPIKESERVE_HTTP_PORT"), (["--config", "/no/file"], "/no/file")],
)
def test_settings_that_cannot_be_are_a_clear_error(flags: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", *flags])
    assert result.exit_code == 1
    assert said in result.stderr


async def test_a_server_can_be_stopped_before_it_was_started(make_settings) -> None:
    await Server(make_settings()).stop()
