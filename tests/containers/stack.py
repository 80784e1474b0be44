"""`docker compose` with the files of this checkout, at ports of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any, TypeVar

BUILD_SECONDS = 1500
READY_SECONDS = 300

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Stack:
    checkout: Path
    environment: dict[str, str]
    # Files under docker/; none is compose.yaml at the top, as `docker compose up` takes it.
    files: tuple[str, ...]
    http: str
    grpc: str
    prometheus: str
    trust: SSLContext | None = None

    def options(self) -> list[str]:
        return [part for name in self.files for part in ("-f", f"docker/{name}")]

    def compose(self, *arguments: str, seconds: float = 120) -> str:
        """Runs `docker compose` from the top of the checkout and returns what it printed."""
        return self.run("docker", "compose", *self.options(), *arguments, seconds=seconds)

    def run(self, *command: str, seconds: float = 120) -> str:
        done = subprocess.run(
            command,
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}:\n{done.stdout[-8000:]}")
        return done.stdout

    def containers(self, service: str = "spikeserve") -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def inside(self, code: str) -> str:
        """Runs Python in the server's container."""
        return self.compose("exec", "-T", "spikeserve", "python", "-c", code).strip()

    def get(self, url: str) -> Any:
        with urllib.request.urlopen(url, timeout=10, context=self.trust) as reply:
            return json.load(reply)

    def classify(self) -> dict[str, Any]:
        picture = (self.checkout / "examples" / "garment.png").read_bytes()
        request = urllib.request.Request(
            f"{self.http}/classify", data=picture, headers={"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=60, context=self.trust) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    def query(self, promql: str) -> list[dict[str, Any]]:
        asked = urllib.parse.urlencode({"query": promql})
        found = self.get(f"{self.prometheus}/api/v1/query?{asked}")
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def until(self, ask: Callable[[], Answer], seconds: float) -> Answer:
        """Asks once a second until there is an answer that counts as true; fails with the containers' logs."""
        end = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < end:
            try:
                if answer := ask():
                    return answer
                last = answer
            except (OSError, urllib.error.URLError) as error:
                last = error
            time.sleep(1)
        logs = self.compose("logs", "--tail", "60")
        raise AssertionError(f"nothing after {seconds} s, last {last!r}; logs:\n{logs}")


@contextmanager
def running(
    engine: dict[str, str],
    checkout: Path,
    *files: str,
    trust: SSLContext | None = None,
    **more: str,
) -> Iterator[Stack]:
    """Built, up and ready; `files` are laid over each other, `more` is further environment."""
    http, grpc_port, prometheus = free_ports(3)
    # Not a server's own settings, which would be taken for Compose's.
    inherited = {
        name: value
        for name, value in engine.items()
        if not name.startswith(("SPIKESERVE_", "COMPOSE_"))
    }
    stack = Stack(
        checkout,
        {
            **inherited,
            "COMPOSE_PROJECT_NAME": f"spikeserve-test-{http}",
            "SPIKESERVE_HTTP_PORT": str(http),
            "SPIKESERVE_GRPC_PORT": str(grpc_port),
            "PROMETHEUS_PORT": str(prometheus),
            **more,
        },
        files,
        http=f"{'https' if trust else 'http'}://127.0.0.1:{http}",
        grpc=f"127.0.0.1:{grpc_port}",
        prometheus=f"http://127.0.0.1:{prometheus}",
        trust=trust,
    )
    try:
        stack.compose("up", "--detach", "--quiet-pull", seconds=BUILD_SECONDS)
        stack.until(lambda: stack.get(f"{stack.http}/health/ready"), READY_SECONDS)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "10", seconds=120)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
