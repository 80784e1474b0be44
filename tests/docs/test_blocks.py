"""Every command and program of the README and the tutorials, run as it stands there, on data sets of a few samples."""

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
from tiny import write_data

TOP = Path(__file__).resolve().parents[2]
PAGES = [TOP / "README.md", *sorted((TOP / "docs" / "tutorials").glob("*.md"))]
SHOWN = ("json", "text", "csv", "toml")
"""What a command prints, or a file has."""
NOT_RUN = {"README": 1, "camera": 2, "train": 1}
"""Blocks of commands that give a reason instead, by page: one more is to be a decision."""
BIN = Path(sys.executable).parent
RUN_SECONDS = 600
READY_SECONDS = 120


class Work:
    """A folder as the reader's checkout with everything installed, and a server at ports of its own."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.http, self.rpc = _free_port(), _free_port()
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("SPIKESERVE_", "SPIKETRAIN_", "MAKE"))
            },
            "SPIKESERVE_HTTP_PORT": str(self.http),
            "SPIKESERVE_GRPC_PORT": str(self.rpc),
            "SPIKESERVE_EXECUTOR": "reference",
            "SPIKESERVE_TORCH_THREADS": "1",
            "SPIKESERVE_DRAIN_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(folder),
        }
        self._server: subprocess.Popen[bytes] | None = None
        for name in ("examples", "service", "Makefile", "pyproject.toml", "constraints.txt"):
            (folder / name).symlink_to(TOP / name)
        (folder / "data").symlink_to(data)
        (folder / ".venv").mkdir()
        for part in BIN.parent.iterdir():
            if not part.name.startswith(".ready"):
                (folder / ".venv" / part.name).symlink_to(part)
        for name in ("serve", "train", "test"):
            (folder / ".venv" / f".ready-{name}").touch()

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
        # As a process of ours, since make leaves its own behind when it is stopped.
        text = text.replace("make serve", ".venv/bin/spikeserve serve")
        text = re.sub(r"(localhost|127\.0\.0\.1):8000", f"127.0.0.1:{self.http}", text)
        text = re.sub(r"(localhost|127\.0\.0\.1):8001", f"127.0.0.1:{self.rpc}", text)
        if "server" not in block.notes:
            text = re.sub(r"(spikeserve stream)\b", rf"\1 --server 127.0.0.1:{self.rpc}", text)
            asks = r"(spikeserve (?:classify|models))\b"
            text = re.sub(asks, rf"\1 --server http://127.0.0.1:{self.http}", text)
        return text

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


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def work(tmp_path: Path, data: Path) -> Iterator[Work]:
    if missing := [name for name in ("bash", "curl", "make") if shutil.which(name) is None]:
        pytest.skip(f"{missing[0]} is missing")
    with ExitStack() as stack:
        work = Work(tmp_path, data)
        stack.callback(work.stop)
        yield work


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_does_what_it_says(page: Path, work: Work) -> None:
    found = [block for block in blocks(page) if block.runs]
    assert found
    for block in found:
        work.run(block)


def not_accounted_for(page: Path) -> list[str]:
    """Blocks that are neither run, nor say why not, nor are of what is only shown."""
    try:
        found = blocks(page)
    except ValueError as error:
        return [str(error)]
    odd = [f"{block}: which language?" for block in found if block.language not in (*RUN, *SHOWN)]
    lines = page.read_text(encoding="utf-8").splitlines()
    fences = sum(line.lstrip().startswith(("```", "~~~")) for line in lines)
    if fences != 2 * len(found):
        odd.append(f"{page.name}: {fences} fences, but {len(found)} blocks")
    within = False
    for number, line in enumerate(lines, 1):
        within ^= line.lstrip().startswith("```")
        if not within and line.startswith("    ") and not lines[number - 2].strip():
            odd.append(f"{page.name}, line {number}: an indented block is not run; use a fence")
    return odd


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    assert not_accounted_for(page) == []
    reasons = [block for block in blocks(page) if block.language in RUN and not block.runs]
    assert len(reasons) == NOT_RUN.get(page.stem, 0), [str(block) for block in reasons]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<!-- not run -->\n```sh\nls\n```\n", "line 2: say why it is not run"),
        ("```\nls\n```\n", "which language?"),
        ("```bash\nls\n```\n", "which language?"),
        ("~~~sh\nls\n~~~\n", "2 fences, but 0 blocks"),
        ("So:\n\n    ls -l\n", "line 3: an indented block"),
    ],
)
def test_a_block_that_nobody_accounts_for_is_found(tmp_path: Path, text: str, what: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    (found,) = not_accounted_for(page)
    assert what in found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
