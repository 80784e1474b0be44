"""`docker compose up` as the README says it, with a real engine: built, healthy, answering, scraped.

The engine is a private one under a temporary folder. The first start on a machine installs it, and the image is built
from nothing, so this takes some minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(3600)]

START_SECONDS = 1200
BUILD_SECONDS = 1500
READY_SECONDS = 300

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Stack:
    checkout: Path
    environment: dict[str, str]
    http: str
    grpc: str
    prometheus: str

    def compose(self, *arguments: str, seconds: float = 60) -> str:
        """Runs `docker compose` from the top of the checkout and returns what it printed."""
        done = subprocess.run(
            ["docker", "compose", *arguments],
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
            raise AssertionError(f"docker compose {' '.join(arguments)}:\n{done.stdout[-8000:]}")
        return done.stdout

    def inside(self, code: str) -> str:
        """Runs Python in the server's container."""
        return self.compose("exec", "-T", "spikeserve", "python", "-c", code).strip()


@pytest.fixture(scope="module")
def engine(shared: Path) -> Iterator[dict[str, str]]:
    """A Docker engine of our own; yields the environment that reaches it."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can start a Docker engine")
    script = shared / "containers" / "engine.sh"
    if not script.is_file():
        pytest.skip(f"{script} is missing: it starts the Docker engine")
    folder = Path(tempfile.mkdtemp(prefix="spikeserve-engine-"))
    run_folder: Path | None = None
    try:
        started = _run(["bash", str(script), "start", str(folder)], START_SECONDS)
        exports = dict(re.findall(r"(DOCKER_\w+)=(\S+)", started.stdout))
        if started.returncode != 0 or "DOCKER_HOST" not in exports:
            pytest.skip(f"no Docker engine can start here: {started.stderr.strip()[-500:]}")
        run_folder = Path(exports["DOCKER_HOST"].removeprefix("unix://")).parent
        yield {**os.environ, **exports}
    finally:
        stopped = _run(["bash", str(script), "stop", str(folder)], 60)
        if stopped.returncode == 0:  # else the daemon still works in there
            for path in filter(None, (folder, run_folder)):
                shutil.rmtree(path, ignore_errors=True)


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    # Files instead of pipes: the daemon that the script leaves behind would keep a pipe open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
            err.write(f"\n{command[0]} took longer than {seconds:.0f} s")
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


@pytest.fixture(scope="module")
def stack(engine: dict[str, str], checkout: Path) -> Iterator[Stack]:
    http, grpc_port, prometheus = _free_ports(3)
    stack = Stack(
        checkout,
        {
            **{k: v for k, v in engine.items() if not k.startswith(("SPIKESERVE_", "COMPOSE_"))},
            "SPIKESERVE_HTTP_PORT": str(http),
            "SPIKESERVE_GRPC_PORT": str(grpc_port),
            "PROMETHEUS_PORT": str(prometheus),
        },
        http=f"http://127.0.0.1:{http}",
        grpc=f"127.0.0.1:{grpc_port}",
        prometheus=f"http://127.0.0.1:{prometheus}",
    )
    try:
        stack.compose("up", "--detach", "--quiet-pull", seconds=BUILD_SECONDS)
        _until(lambda: _get(f"{stack.http}/health/ready"), READY_SECONDS, stack)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "10", seconds=120)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def _until(ask: Callable[[], Answer], seconds: float, stack: Stack) -> Answer:
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
    logs = stack.compose("logs", "--tail", "60")
    raise AssertionError(f"nothing after {seconds} s, last {last!r}; logs:\n{logs}")


def _query(stack: Stack, promql: str) -> list[dict[str, Any]]:
    asked = urllib.parse.urlencode({"query": promql})
    result: list[dict[str, Any]] = _get(f"{stack.prometheus}/api/v1/query?{asked}")["data"][
        "result"
    ]
    return result


def _classify(stack: Stack) -> dict[str, Any]:
    picture = (stack.checkout / "examples" / "garment.png").read_bytes()
    request = urllib.request.Request(
        f"{stack.http}/classify", data=picture, headers={"Content-Type": "image/png"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def test_a_picture_is_classified(stack: Stack) -> None:
    answer = _classify(stack)
    listed = _get(f"{stack.http}/models/{answer['model']}")
    best = answer["predictions"][0]
    assert best["label"] == "Ankle boot"
    assert listed["classes"][best["index"]] == "Ankle boot"
    assert 0.5 < best["probability"] <= 1
    assert answer["firing_rates"]
    assert all(0 <= rate <= 1 for rate in answer["firing_rates"].values())


def test_prometheus_has_stored_the_firing_rates(stack: Stack) -> None:
    answer = _classify(stack)
    selector = f'spikeserve_firing_rate{{model="{answer["model"]}"}}'
    stored = _until(lambda: _query(stack, selector), 60, stack)
    rates = {one["metric"]["layer"]: float(one["value"][1]) for one in stored}
    # The gauge is a mean over samples, and all of them were this one picture.
    assert rates == pytest.approx(answer["firing_rates"], rel=1e-3)
    assert any(rate > 0 for rate in rates.values())
    assert [one["value"][1] for one in _query(stack, 'up{job="spikeserve"}')] == ["1"]


def test_grpc_is_reachable(stack: Stack) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True
        )
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_the_container_becomes_healthy(stack: Stack) -> None:
    def health() -> bool:
        lines = stack.compose("ps", "--format", "json", "spikeserve").splitlines()
        return any(json.loads(line).get("Health") == "healthy" for line in lines if line)

    assert _until(health, 120, stack)


def test_the_server_is_confined(stack: Stack) -> None:
    assert stack.inside("import os; print(os.getuid(), os.getgid())") == "10001 10001"
    package = stack.inside("import spikeserve; print(spikeserve.__file__)")
    assert package.startswith("/opt/spikeserve/")
    write = (
        "for path in ('/opt/spikeserve/x', '/etc/x', '/x'):\n"
        "    try:\n"
        "        open(path, 'w')\n"
        "    except OSError as error:\n"
        "        print(errno.errorcode[error.errno])\n"
    )
    assert stack.inside(f"import errno\n{write}").split() == ["EROFS"] * 3
    status = stack.inside("print(open('/proc/1/status').read())")
    assert re.search(r"^CapEff:\s*0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)


def test_no_compiler_and_no_training_packages_are_in_the_image(stack: Stack) -> None:
    found = stack.inside(
        "import shutil, importlib.util as u; "
        "print([n for n in ('gcc', 'cc', 'g++', 'make') if shutil.which(n)], "
        "[n for n in ('spikingjelly', 'tensorboard', 'onnx', 'pytest') if u.find_spec(n)])"
    )
    assert found == "[] []"
