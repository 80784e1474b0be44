"""torchrun on two machines, one of which is lost and comes back. Machines are network namespaces with a wire between them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import torch

from spiketrain.parallel import join
from spiketrain.recipe import load_recipe
from spiketrain.train import Run

LONG = 120.0
PORT = 29400
ADDRESSES = ("10.211.7.1", "10.211.7.2")
SETTINGS = (
    "training.epochs=3",
    "training.timesteps=2",
    # A difference by rounding can make a spike, and a spike all the difference: few steps, small ones.
    "training.batch_size=120",
    "training.optimizer=sgd",
    "training.learning_rate=0.02",
    "network.arguments.channels=[4, 8]",
    "network.arguments.strides=[2, 2]",
    "network.arguments.dropout=0.0",
    "data.validation_per_class=4",
    "data.augment=[{kind='crop', padding=2}, {kind='flip'}]",
)
# Notes what it does. The second machine stands still in the middle of the second epoch, and the first waits for it; the first
# one in the middle of the third, while it is alone.
CHILD = """
import os, sys, time
from pathlib import Path
import torch
from spiketrain.recipe import load_recipe
from spiketrain.train import Run
torch.set_num_threads(1)
folder, data, *settings = sys.argv[1:]
run = Run(load_recipe("fashion-clif", settings), Path(folder), Path(data))
def report(progress):
    if run.group.first and progress.validation is not None:
        note(f"{progress.epoch} whole of {run.group.world}, {run.schedule.last_epoch} steps")
    here = (progress.epoch, progress.step, run.group.world, os.environ["MACHINE"])
    if here in ((2, 1, 2, "1"), (3, 1, 1, "0")):
        note(f"{progress.epoch} begun of {run.group.world}")
        time.sleep(1000)
def note(text):
    with open(Path(folder) / "notes", "a") as file:
        file.write(text + "\\n")
run.folder.mkdir(exist_ok=True)
run.train(report)
if run.group.first:
    torch.save(run.network.state_dict(), run.folder / "final.pt")
run.group.close()
"""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def machines() -> Iterator[list[str]]:
    """The names of two namespaces, each with its end of a wire called `wire`."""
    names = [f"spike-{uuid.uuid4().hex[:8]}" for _ in ADDRESSES]
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
        one, two = names
        wire = ("name", "wire", "type", "veth", "peer", "name", "wire", "netns", two)
        ip("-n", one, "link", "add", *wire)
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", name, "link", "set", device, "up")
        yield names


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs network namespaces, which only root can make, with the program ip")
    with ExitStack() as stack:
        try:
            names = stack.enter_context(machines())
        except OSError as error:
            pytest.skip(f"no network namespaces can be made here: {error}")
        yield names


class Machine:
    """One that runs torchrun, the same command on each; the first is where they meet."""

    def __init__(self, namespace: str, address: str, log: Path, child: list[str]) -> None:
        # By its name no namespace knows that the address is its own.
        host = int(address == ADDRESSES[0])
        patience = f"is_host={host},join_timeout=100,last_call_timeout=1,close_timeout=5"
        alive = "keep_alive_interval=1,keep_alive_max_attempt=3"
        command = [
            *("ip", "netns", "exec", namespace, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.2"),
            *("--rdzv-id=test", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}"),
            *(f"--rdzv-conf={patience},{alive}", f"--local-addr={address}"),
        ]
        environment = {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "wire",
            "MACHINE": str(1 - host),
            # Without it torch 2.13 does not tell one that comes back where to meet.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        self.namespace = namespace
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, *child],
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """As a loss of power does: all processes at once, none of which can say goodbye."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        for pid in pids.stdout.split():
            with suppress(ProcessLookupError):  # ended meanwhile
                os.kill(int(pid), signal.SIGKILL)
        self.process.wait()


def until(happened: Callable[[], bool], *there: Machine) -> None:
    end = time.monotonic() + LONG
    while not happened():
        for machine in there:
            assert machine.process.poll() in (None, 0), machine.log.read_text()[-3000:]
        assert time.monotonic() < end, "\n".join(each.log.read_text()[-2000:] for each in there)
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_training_goes_on_when_a_machine_is_lost_and_when_it_comes_back(
    two_machines: list[str], bars: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle of the second epoch. Each epoch counts once, and the weights are those of one process."""
    (tmp_path / "child.py").write_text(CHILD)
    folder = tmp_path / "run"
    child = [str(tmp_path / "child.py"), str(folder), str(bars), *SETTINGS]

    def start(which: int, time_: int = 0) -> Machine:
        log = tmp_path / f"{which}-{time_}.log"
        machine = Machine(two_machines[which], ADDRESSES[which], log, child)
        stack.callback(machine.kill)
        return machine

    def notes() -> list[str]:
        return (folder / "notes").read_text().splitlines() if (folder / "notes").exists() else []

    with ExitStack() as stack:
        first, second = start(0), start(1)
        until(lambda: "2 begun of 2" in notes(), first, second)
        second.kill()
        until(lambda: "3 begun of 1" in notes(), first)
        again = start(1, 1)
        until(lambda: first.process.poll() is not None, first, again)
        until(lambda: again.process.poll() is not None, again)
    assert [first.process.returncode, again.process.returncode] == [0, 0]
    assert notes() == [
        "1 whole of 2, 3 steps",
        "2 begun of 2",
        "2 whole of 1, 6 steps",
        "3 begun of 1",
        "3 whole of 2, 9 steps",
    ]
    alone = Run(load_recipe("fashion-clif", SETTINGS), tmp_path / "alone", bars)
    begin = {name: value.clone() for name, value in alone.network.state_dict().items()}
    alone.train()
    found = torch.load(folder / "final.pt", weights_only=True)
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=5e-4, rtol=2e-3, msg=name)
    assert not torch.equal(begin["readout.weight"], found["readout.weight"])


def test_a_time_to_wait_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("SPIKETRAIN_TIMEOUT_SECONDS", "soon")
    with pytest.raises(ValueError, match="SPIKETRAIN_TIMEOUT_SECONDS is 'soon'"):
        join("cpu")
