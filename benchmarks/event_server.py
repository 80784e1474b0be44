"""A server of its own for benchmarks/events.py: how many events it takes, and how soon it answers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from spiketrain.events import Events
from spiketrain.events.wire import Encoding, encode
from spiketrain.manifest import DurationWindow, EventInput

LARGE_MESSAGE = 1 << 18
Row = dict[str, Any]


def events_on(width: int, height: int, count: int, rate: float) -> Events:
    random = np.random.default_rng(0)
    return Events(
        np.sort(random.integers(0, int(count / rate * 1e6), count)),
        random.integers(0, width, count).astype(np.uint16),
        random.integers(0, height, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )


def write_model(folder: Path) -> None:
    import torch

    from spiketrain.checkpoint import save_checkpoint
    from spiketrain.manifest import Manifest, NetworkSpec
    from spiketrain.networks import build_network
    from spiketrain.neurons import LIFConfig

    torch.manual_seed(0)
    spec = EventInput(
        sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=10_000)
    )
    arguments = {"channels": [4, 8], "input_shape": list(spec.shape), "classes": 10}
    network = build_network("small-conv", arguments, LIFConfig(), 4)
    manifest = Manifest(
        name="bench",
        network=NetworkSpec(name="small-conv", arguments=arguments),
        neuron=LIFConfig(),
        timesteps=4,
        input=spec,
        classes=tuple("0123456789"),
    )
    save_checkpoint(folder / "bench.safetensors", manifest, network.state_dict())


class ServerProcess:
    """`spikeserve serve` on ports that are free, ended with the context."""

    def __init__(self, models: Path) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as http,
            socket.create_server(("127.0.0.1", 0)) as rpc,
        ):
            self.http_port, self.port = http.getsockname()[1], rpc.getsockname()[1]
        environment = {
            **os.environ,
            "SPIKESERVE_HTTP_PORT": str(self.http_port),
            "SPIKESERVE_GRPC_PORT": str(self.port),
            "SPIKESERVE_LOG_LEVEL": "error",
        }
        command = [sys.executable, "-m", "spikeserve", "serve", "--models", str(models)]
        self._process = subprocess.Popen(command, env=environment)

    def __enter__(self) -> ServerProcess:
        from spikeserve.client import Client, ClientError

        with Client(f"http://127.0.0.1:{self.http_port}") as client:
            for _ in range(600):
                try:
                    if client.ready():
                        return self
                except ClientError:
                    pass
                if self._process.poll() is not None:
                    raise SystemExit("the server did not start")
                time.sleep(0.1)
        raise SystemExit("the server was not ready within a minute")

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def seconds(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(server: ServerProcess, count: int) -> Row:
    """Messages made beforehand, so that it is the server and the transport that are measured."""
    from spikeserve.grpc.v1 import spikeserve_pb2 as pb

    events = events_on(34, 34, count, 10e6)
    messages = []
    for sequence, at in enumerate(range(0, count, LARGE_MESSAGE), 1):
        payload, base_us = encode(Encoding.COLUMNS_V1, events[at : at + LARGE_MESSAGE])
        packet = pb.EventPacket(sequence=sequence, base_us=base_us, payload=payload)
        messages.append(pb.EventMessage(events=packet))
    messages.append(pb.EventMessage(end=pb.EndOfStream()))

    async def run() -> float:
        import grpc

        from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub

        opening = pb.EventMessage(open=pb.OpenStream(start_us=0, rates=False))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = SpikeServeStub(channel)
            begin = time.perf_counter()
            answers = [a async for a in stub.StreamEvents(iter([opening, *messages]))]
            took = time.perf_counter() - begin
        if answers[-1].ended.events != count:
            raise SystemExit(f"{answers[-1].ended.events} of {count} events were counted")
        return took

    asyncio.run(run())
    best, cpu = float("inf"), float("inf")
    for _ in range(3):
        before = server.seconds()
        best = min(best, asyncio.run(run()))
        cpu = min(cpu, server.seconds() - before)
    return {
        "message_events": LARGE_MESSAGE,
        "mev_per_s_wall": count / best / 1e6,
        "mev_per_s_server_processor": count / max(cpu, 1e-9) / 1e6,
    }


def latency(server: ServerProcess, rate: float, seconds: float) -> Row:
    from spikeserve.cli_stream import Lag
    from spikeserve.client import AsyncStreamClient, cut, paced

    events = events_on(34, 34, int(rate * seconds), rate)
    packet_us = 1000 if rate >= 1e6 else 10_000

    async def run() -> tuple[list[float], list[float]]:
        lag = Lag()

        async def sent() -> Any:
            packets: Any = paced(cut(events, packet_us), 1.0)
            async for packet in packets:
                lag.sent(packet)
                yield packet

        lags, inside = [], []
        async with AsyncStreamClient(f"127.0.0.1:{server.port}") as client:
            async for window in client.stream(sent(), rates=False):
                lags.append(lag.until(window.end_us))
                inside.append(window.latency_seconds)
        # The first ones warm up, the last one is closed by the end of the stream.
        return lags[5:-1], inside[5:-1]

    wall, own, theirs = time.perf_counter(), time.process_time(), server.seconds()
    lags, inside = asyncio.run(run())
    wall = time.perf_counter() - wall
    return {
        "events_per_second": rate,
        "windows": len(lags),
        **{f"p{q}_ms": float(np.percentile(lags, q) * 1e3) for q in (50, 99)},
        "client_load": (time.process_time() - own) / wall,
        "server_load": (server.seconds() - theirs) / wall,
        **{f"server_p{q}_ms": float(np.percentile(inside, q) * 1e3) for q in (50, 99)},
    }
