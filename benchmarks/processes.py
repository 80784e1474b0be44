"""Starting, measuring and stopping one server with all the processes that it makes of itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import psutil
from systems import System, surroundings

_STOP_SECONDS = 15.0


class NotMeasuredError(RuntimeError):
    """A system that cannot be measured. The message says why."""


class Usage(NamedTuple):
    """Processor seconds since the start and bytes in memory, over all processes; shared pages count in each."""

    cpu_seconds: float
    memory: int


class Running:
    """A server in a session of its own, so that nothing of it is left behind."""

    def __init__(self, command: list[str], variables: dict[str, str], log: IO[bytes]) -> None:
        self.log = Path(log.name)
        self.popen = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
        self.root = psutil.Process(self.popen.pid)
        self.cpu_seconds: dict[int, float] = {}

    def processes(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield self.root
            yield from self.root.children(recursive=True)

    def usage(self) -> Usage:
        memory = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                # Kept by process, so that one that ends does not make the sum smaller.
                self.cpu_seconds[process.pid] = times.user + times.system
                memory += process.memory_info().rss
        return Usage(sum(self.cpu_seconds.values()), memory)

    def check(self) -> None:
        """Raises NotMeasuredError where the server has ended."""
        if (status := self.popen.poll()) is not None:
            raise NotMeasuredError(f"it ended with status {status}: {last_words(self.log)}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever is left of the session and of the processes it made."""
        left = list(self.processes())
        self.popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(_STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        psutil.wait_procs(left, 5)


def last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:]


def stop_when_told() -> None:
    """SIGTERM ends the benchmark as an exception does, so that no server is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))


@contextlib.contextmanager
def running(system: System, folder: Path, port: int, logs: Path) -> Generator[Running]:
    """Raises NotMeasuredError where it cannot be started."""
    if not system.python().exists():
        raise NotMeasuredError(f"its environment {system.environment} is not installed")
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{system.name}.log").open("wb") as log:
        server = Running(system.command(folder, port), surroundings(system.environment), log)
        try:
            yield server
        finally:
            server.stop()


class MemoryPeak:
    """The most memory that was seen, once a second."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.peak = 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while True:
            with contextlib.suppress(psutil.Error):
                memory = sum(each.memory_info().rss for each in self.server.processes())
                self.peak = max(self.peak, memory)
            if self.done.wait(1.0):
                return


def free_ports(count: int = 4) -> int:
    """The first of so many neighbouring ports on which nobody listens."""
    for port in range(18000, 30000, count):
        with contextlib.ExitStack() as stack:
            try:
                for each in range(port, port + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", each)))
            except OSError:
                continue
            return port
    raise NotMeasuredError("no free ports")


def machine_seconds() -> float:
    """Processor seconds since the start of the machine, of all that runs on it and of whatever it is kept from."""
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts the time of guests in `user` and `nice` too.
    twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - waiting - twice)


def idle_cores(server: Running, seconds: float) -> float:
    """Share of a core that the server takes while nobody asks anything."""
    before, began = server.usage().cpu_seconds, time.perf_counter()
    time.sleep(seconds)
    return (server.usage().cpu_seconds - before) / (time.perf_counter() - began)
