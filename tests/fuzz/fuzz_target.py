"""What is fuzzed: a running server, and how it is seen that nothing went wrong.

Wrong is a status that is the server's fault (5xx except 503; UNKNOWN, INTERNAL, DATA_LOSS), a connection that breaks
without an answer, a decoder that raises what it does not promise, a good request that is not answered as before, a line
in the log that must not be there, and memory that grows without bound.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from PIL import Image

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spiketrain.events import wire
from spiketrain.events.types import Events

OUR_FAULT = ("UNKNOWN", "INTERNAL", "DATA_LOSS")
MOST_GROWTH = 256 << 20
"""Bytes that a family may leave behind in memory: buffers and pools are filled by the first inputs of their kind."""

_MOST_FINDINGS = 20


@dataclass
class Tally:
    """Of one family of inputs: how many there were, what was answered, and what was wrong. `keep` is a folder for inputs
    that were answered wrongly."""

    family: str
    keep: Path | None = None
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    _began: float = 0.0

    def begin(self) -> None:
        """Before each input."""
        self.inputs += 1
        self._began = time.perf_counter()

    def end(self, outcome: str) -> None:
        self.slowest_seconds = max(self.slowest_seconds, time.perf_counter() - self._began)
        self.outcomes[outcome] += 1

    def answered(self, code: str, sent: object) -> None:
        """A status of HTTP or gRPC."""
        self.end(code)
        if code in OUR_FAULT or (
            code.isdigit() and int(code) >= 500 and code not in ("503", "504")
        ):
            self.wrong(code, sent)

    def wrong(self, what: str, sent: object) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            content = sent if isinstance(sent, bytes) else repr(sent).encode()
            name = hashlib.sha256(content).hexdigest()[:12]
            self.findings.append(f"{what} [{name}]: {content[:200]!r}")
            if self.keep is not None:
                self.keep.mkdir(parents=True, exist_ok=True)
                (self.keep / f"{self.family.replace(' ', '-')}-{name}").write_bytes(content)


@dataclass
class Target:
    """A server with a model for pictures, one for events, and `spare`, which may be unloaded. Anybody may manage models.

    `folder` is where its models are.
    """

    http_url: str
    grpc_target: str
    folder: Path
    pictures: str
    events: str
    spare: str

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.http_url, timeout=60)
        self.channel = grpc.insecure_channel(self.grpc_target)
        self.openapi: dict[str, Any] = self.http.get("/openapi.json").json()
        self._good = self._answers()

    def close(self) -> None:
        self.channel.close()
        self.http.close()

    def check(self, tally: Tally) -> None:
        """That the server answers what it answered before anything bad was sent."""
        try:
            answers = self._answers()
        except (httpx.HTTPError, grpc.RpcError, KeyError, ValueError) as error:
            tally.wrong(f"a good request was not answered: {error}", b"")
            return
        if answers != self._good:
            tally.wrong(f"a good request was answered {answers}, not {self._good}", b"")

    def _answers(self) -> list[object]:
        reply = self.http.post("/classify", params={"model": self.pictures}, content=picture())
        said = reply.json()
        windows = [
            [(each.index, round(each.probability, 6)) for each in answer.window.predictions]
            for answer in SpikeServeStub(self.channel).StreamEvents(
                iter(stream_of(self.events)), timeout=60
            )
            if answer.WhichOneof("kind") == "window"
        ]
        return [said["predictions"], said["timesteps"], windows]


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (28, 28)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def events(count: int = 500, span_us: int = 100_000) -> Events:
    source = np.random.default_rng(0)
    return Events(
        np.sort(source.integers(0, span_us, count)),
        source.integers(0, 34, count).astype(np.uint16),
        source.integers(0, 34, count).astype(np.uint16),
        source.integers(0, 2, count).astype(np.uint8),
    )


def stream_of(model: str, payload: bytes | None = None, encoding: int = 0) -> list[pb.EventMessage]:
    """The messages of a whole stream with one packet."""
    good, base_us = wire.encode(wire.Encoding.COLUMNS_V1, events())
    packet = pb.EventPacket(
        payload=good if payload is None else payload,
        base_us=base_us,
        encoding=encoding,  # type: ignore[arg-type]
    )
    return [
        pb.EventMessage(open=pb.OpenStream(model=model, start_us=0)),
        pb.EventMessage(events=packet),
        pb.EventMessage(end=pb.EndOfStream()),
    ]
