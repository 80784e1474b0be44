from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

START_SECONDS = 1200
EVERYTHING = "SPIKESERVE_TEST_CONTAINERS"
ENGINE_FOLDER = "SPIKESERVE_TEST_ENGINE"


@pytest.fixture(scope="session")
def at_length() -> None:
    """For tests that take minutes beside those that every change has to pass."""
    if os.environ.get(EVERYTHING) != "all":
        pytest.skip(f"takes minutes: make test-containers runs it ({EVERYTHING}=all)")


@pytest.fixture(scope="session")
def engine(shared: Path) -> Iterator[dict[str, str]]:
    """A Docker engine of our own; yields the environment that reaches it.

    Its folder is a temporary one, or that of SPIKESERVE_TEST_ENGINE, which is left running: base images and layers last
    from one call of pytest to the next.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can start a Docker engine")
    script = shared / "containers" / "engine.sh"
    if not script.is_file():
        pytest.skip(f"{script} is missing: it starts the Docker engine")
    kept = os.environ.get(ENGINE_FOLDER)
    folder = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="spikeserve-engine-"))
    run_folder: Path | None = None
    try:
        started = _run(["bash", str(script), "start", str(folder)], START_SECONDS)
        exports = dict(re.findall(r"(DOCKER_\w+)=(\S+)", started.stdout))
        if started.returncode != 0 or "DOCKER_HOST" not in exports:
            pytest.skip(f"no Docker engine can start here: {started.stderr.strip()[-500:]}")
        run_folder = Path(exports["DOCKER_HOST"].removeprefix("unix://")).parent
        yield {**os.environ, **exports}
    finally:
        if not kept:
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
