"""KServe's own Python client, unchanged, in a process of its own: its messages clash with Triton's, and its pins with ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from spikeserve.app import Server

SCRIPT = Path(__file__).with_name("kserve_client.py")
PYTHON = "SPIKESERVE_TEST_KSERVE"


@pytest.fixture
def python() -> str:
    """The Python of an environment with kserve."""
    found = os.environ.get(PYTHON)
    if not found:
        pytest.skip(
            f"{PYTHON} names no Python with kserve: python -m venv k; k/bin/pip install kserve==0.21.0"
        )
    return found


def test_kserve_client(python: str, threaded_server: Server) -> None:
    ports = [str(threaded_server.http_port), str(threaded_server.grpc_port)]
    done = subprocess.run([python, SCRIPT, *ports], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "6 answers\n"
