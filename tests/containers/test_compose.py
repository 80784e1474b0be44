"""`docker compose up` as the README says it, with a real engine: built, healthy, answering, scraped.

The engine is a private one under a temporary folder. The first start on a machine installs it, and the image is built
from nothing, so this takes some minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stack import Stack, running

from spikeserve.client import StreamClient, cut
from spiketrain.events import read_recording

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def stack(engine: dict[str, str], checkout: Path) -> Iterator[Stack]:
    with running(engine, checkout) as stack:
        yield stack


def test_a_picture_is_classified(stack: Stack) -> None:
    answer = stack.classify()
    listed = stack.get(f"{stack.http}/models/{answer['model']}")
    best = answer["predictions"][0]
    assert best["label"] == "Ankle boot"
    assert listed["classes"][best["index"]] == "Ankle boot"
    assert 0.5 < best["probability"] <= 1
    assert answer["firing_rates"]
    assert all(0 <= rate <= 1 for rate in answer["firing_rates"].values())


def test_prometheus_has_stored_the_firing_rates(stack: Stack) -> None:
    answer = stack.classify()
    selector = f'spikeserve_firing_rate{{model="{answer["model"]}"}}'
    stored = stack.until(lambda: stack.query(selector), 60)
    rates = {one["metric"]["layer"]: float(one["value"][1]) for one in stored}
    # The gauge is a mean over samples, and all of them were this one picture.
    assert rates == pytest.approx(answer["firing_rates"], rel=1e-3)
    assert any(rate > 0 for rate in rates.values())
    assert [one["value"][1] for one in stack.query('up{job="spikeserve"}')] == ["1"]


def test_grpc_is_reachable(stack: Stack) -> None:
    with grpc.insecure_channel(stack.grpc) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True
        )
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_recording_is_streamed(stack: Stack, checkout: Path) -> None:
    events = read_recording(checkout / "examples" / "digit.npz")
    with StreamClient(stack.grpc) as client:
        windows = list(client.stream(cut(events)))
    assert len(windows) > 10
    assert windows[-1].best is not None


def test_the_container_becomes_healthy(stack: Stack) -> None:
    def health() -> bool:
        lines = stack.compose("ps", "--format", "json", "spikeserve").splitlines()
        return any(json.loads(line).get("Health") == "healthy" for line in lines if line)

    assert stack.until(health, 120)


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
        "[n for n in ('spikingjelly', 'tensorboard', 'pytest') if u.find_spec(n)])"
    )
    assert found == "[] []"


def test_what_an_operator_may_set_needs_no_further_package(stack: Stack) -> None:
    """Models in object storage, streams kept in Redis, traces, exported models, packed recordings."""
    names = ("s3fs", "gcsfs", "aiohttp", "redis", "opentelemetry.sdk", "onnxruntime", "lz4")
    found = stack.inside(
        f"import importlib.util as u; print([n for n in {names} if u.find_spec(n) is None])"
    )
    assert found == "[]"


def test_the_loops_were_compiled_when_the_image_was_built(stack: Stack) -> None:
    """Else every start takes as long as the compiler does."""
    count = "len(list(pathlib.Path({!r}).rglob('*.nbc')))"
    built, now = stack.inside(
        f"import pathlib; print({count.format('/opt/spikeserve/lib/compiled')}, {count.format('/tmp/numba')})"
    ).split()
    assert int(built) > 0
    assert built == now


def test_labels_say_what_the_image_is(stack: Stack) -> None:
    (found,) = json.loads(stack.run("docker", "image", "inspect", "spikeserve"))
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in found["Config"]["Labels"].items()
    }
    assert {"title", "description", "licenses", "version", "revision"} <= labels.keys()
    assert labels["version"] == stack.inside(
        "from importlib.metadata import version; print(version('spikeserve'))"
    )
    assert found["Config"]["User"] == "10001:10001"
