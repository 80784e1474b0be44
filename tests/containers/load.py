"""The package's clients, which classify one picture after the other over HTTP and gRPC, and what became of their requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from spikeserve.client import RETRY_OPTIONS, Client
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub

SECONDS = 120


@dataclass
class Load:
    answered: int = 0
    lost: list[str] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def more(self, requests: int) -> None:
        """Returns when so many more have been answered."""
        with self._changed:
            wanted = self.answered + requests
            assert self._changed.wait_for(lambda: self.answered >= wanted, SECONDS), self.lost[:3]

    def count(self, error: str | None) -> None:
        with self._changed:
            if error is None:
                self.answered += 1
            else:
                self.lost.append(error)
            self._changed.notify_all()


@contextmanager
def load(http: str, target: str, picture: bytes, clients: int = 2) -> Iterator[Load]:
    """So many clients over each protocol, until the end of the context."""
    made = Load()
    end = threading.Event()

    def over_http() -> None:
        client.classify(picture)

    def repeat(ask: Callable[[], object]) -> None:
        while not end.is_set():
            try:
                ask()
                made.count(None)
            except Exception as error:
                made.count(f"{ask.__name__}: {error!r}")
                time.sleep(0.05)

    with Client(http, SECONDS) as client, grpc.insecure_channel(target, RETRY_OPTIONS) as channel:
        stub = SpikeServeStub(channel)

        def over_grpc() -> None:
            stub.Classify(pb.ClassifyRequest(image=picture), timeout=SECONDS)

        threads = [
            threading.Thread(target=repeat, args=(ask,))
            for ask in (over_http, over_grpc)
            for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield made
        finally:
            end.set()
            for thread in threads:
                thread.join()
