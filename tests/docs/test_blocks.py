"""Every command and program of the README and the tutorials, run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from blocks import RUN, Block, blocks

TOP = Path(__file__).resolve().parents[2]
PAGES = [TOP / "README.md", *sorted((TOP / "docs" / "tutorials").glob("*.md"))]
BIN = Path(sys.executable).parent
RUN_SECONDS = 600
READY_SECONDS = 120


class Work:
    """A folder as the reader's checkout, with a server at ports of its own."""

    def __init__(self, folder: Path, data: Path | None) -> None:
        self.folder = folder
        self.http, self.rpc = _free_port(), _free_port()
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("SPIKESERVE_")
            },
            "SPIKESERVE_HTTP_PORT": str(self.http),
            "SPIKESERVE_GRPC_PORT": str(self.rpc),
            "SPIKESERVE_EXECUTOR": "reference",
            "SPIKESERVE_TORCH_THREADS": "1",
            "SPIKESERVE_DRAIN_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(folder),
            **({"SPIKETRAIN_DATA": str(data)} if data else {}),
        }
        self._server: subprocess.Popen[bytes] | None = None
        for name in ("examples", "service"):
            (folder / name).symlink_to(TOP / name)

    def run(self, block: Block) -> None:
        if "file" in block.notes:
            (self.folder / block.notes["file"]).write_text(self.here(block))
        elif "server" in block.notes:
            self.serve(self.here(block))
        else:
            program = ["bash", "-euo", "pipefail", "-c", self.here(block)]
            if block.language == "python":
                program = [sys.executable, "-c", self.here(block)]
            done = subprocess.run(
                program,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS,
                check=False,
            )
            assert done.returncode == 0, (
                f"{block}:\n{block.text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )
            # curl is content with an error's page.
            assert '"status":4' not in done.stdout.replace(" ", ""), (
                f"{block}:\n{done.stdout[-3000:]}"
            )

    def here(self, block: Block) -> str:
        """The block's text with this server's addresses, and the programs that are tested."""
        text = block.text
        if "in the tests" in block.notes:
            before, after = block.notes["in the tests"].split(" => ")
            assert before in text, f"{block}: there is no {before}"
            text = text.replace(before, after)
        text = text.replace("make serve", ".venv/bin/spikeserve serve")
        text = re.sub(r"(localhost|127\.0\.0\.1):8000", f"127.0.0.1:{self.http}", text)
        text = re.sub(r"(localhost|127\.0\.0\.1):8001", f"127.0.0.1:{self.rpc}", text)
        if "server" not in block.notes:
            text = re.sub(r"(spikeserve stream)\b", rf"\1 --server 127.0.0.1:{self.rpc}", text)
            asks = r"(spikeserve (?:classify|models))\b"
            text = re.sub(asks, rf"\1 --server http://127.0.0.1:{self.http}", text)
        return text.replace(".venv/bin/", f"{BIN}/")

    def serve(self, command: str) -> None:
        self.stop()
        log = (self.folder / "server.log").open("wb")
        self._server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.environment,
            stdout=log,
            stderr=log,
        )
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and self._server.poll() is None:
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.http}/health/ready", timeout=5
                ):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"{command}:\n{(self.folder / 'server.log').read_text()[-3000:]}")

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(30)


@pytest.fixture
def data() -> Path | None:
    folder = TOP.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture
def work(tmp_path: Path, data: Path | None) -> Iterator[Work]:
    if shutil.which("bash") is None or shutil.which("curl") is None:
        pytest.skip("bash or curl is missing")
    with ExitStack() as stack:
        work = Work(tmp_path, data)
        stack.callback(work.stop)
        yield work


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_does_what_it_says(page: Path, work: Work, data: Path | None) -> None:
    found = [block for block in blocks(page) if block.runs]
    assert found
    for block in found:
        if (needed := block.notes.get("needs")) and not (data and (data / needed).is_dir()):
            pytest.skip(f"{block}: the data set {needed} is missing; what stands above it was run")
        work.run(block)


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in (*RUN, "json", "text", "csv", "toml"), (
                f"{block}: which language?"
            )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
