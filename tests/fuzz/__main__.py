"""Sends a server, and its decoders, what they do not expect: 100,000 inputs and more in some ten minutes.

    make fuzz
    python tests/fuzz --inputs 200000 --seed 1 --only pictures

The server is a process of its own, so that its memory can be seen and that it can crash. Each family of inputs is followed
by good requests, which must be answered as before. Inputs that were answered wrongly are kept in build/fuzz, and the
exit status is 1 then. The same seed gives the same inputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from fuzz_events import fuzz_event_files, fuzz_event_words, fuzz_events_served
from fuzz_models import fuzz_checkpoints, fuzz_models_served, fuzz_onnx
from fuzz_pictures import fuzz_pictures, fuzz_pictures_served
from fuzz_rest import fuzz_rest
from fuzz_rpc import fuzz_rpc, fuzz_wire
from fuzz_target import MOST_GROWTH, Tally, Target
from rich.console import Console

from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import load_checkpoint
from spiketrain.convert.onnx_export import export_onnx

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "benchmarks"))
from fault_parts import Instance  # noqa: E402
from results import save  # noqa: E402

KEEP = TOP / "build" / "fuzz"
PICTURES, EVENTS, SPARE = "fashion-clif", "nmnist-clif", "fashion-lif"
console = Console(width=140)
# Pillow warns of damaged EXIF; that is no finding.
warnings.simplefilter("ignore", UserWarning)


class Families:
    """By name: what makes the inputs, and its share of them."""

    def __init__(self, target: Target, onnx: Path, folder: Path) -> None:
        checkpoint = BUNDLED_MODELS / f"{EVENTS}.safetensors"
        self.all: dict[str, tuple[Callable[[int, Tally, int], None], float]] = {
            "sockets": (lambda *given: fuzz_wire(target, *given), 0.04),
            "pictures": (fuzz_pictures, 0.26),
            "pictures, served": (lambda *given: fuzz_pictures_served(target, *given), 0.05),
            "event files": (fuzz_event_files, 0.20),
            "event words": (fuzz_event_words, 0.14),
            "events, served": (lambda *given: fuzz_events_served(target, *given), 0.04),
            "checkpoints": (lambda *given: fuzz_checkpoints(checkpoint, *given), 0.05),
            "onnx files": (lambda *given: fuzz_onnx(onnx, *given, folder), 0.03),
            "models, served": (lambda *given: fuzz_models_served(target, *given), 0.005),
            "rest": (lambda *given: fuzz_rest(target, *given), 0.08),
            "grpc": (lambda *given: fuzz_rpc(target, *given), 0.12),
        }


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[Target, psutil.Process, Path]]:
    models = folder / "models"
    models.mkdir()
    for name in (PICTURES, EVENTS, SPARE):
        shutil.copy(BUNDLED_MODELS / f"{name}.safetensors", models)
    given: dict[str, Any] = {"executor": "cpu", "log_level": "error", "max_recording_windows": 500}
    given |= {"max_message_windows": 200, "stream_idle_seconds": 5, "default_model": PICTURES}
    server = Instance(models, folder / "server.log", **given)
    with asyncio.Runner() as runner:
        runner.run(server.start())
        try:
            target = Target(server.http, server.grpc, models, PICTURES, EVENTS, SPARE)
            yield target, psutil.Process(server.pid), server.log
            target.close()
        finally:
            runner.run(server.end())


def main(
    inputs: Annotated[int, typer.Option(help="in all")] = 105_000,
    seed: Annotated[int, typer.Option()] = 0,
    only: Annotated[list[str] | None, typer.Option(help="families")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx = folder / "model.onnx"
        export_onnx(load_checkpoint(BUNDLED_MODELS / f"{EVENTS}.safetensors"), onnx)
        with served(folder) as (target, process, log):
            rows = [
                _family(family, *entry, inputs, seed, target, process, log)
                for family, entry in Families(target, onnx, folder).all.items()
                if not only or family in only
            ]
    findings = sum(len(row["findings"]) for row in rows)
    total = sum(row["inputs"] for row in rows)
    console.print(f"{total} inputs, {findings} findings", highlight=False)
    if only is None:
        ratios = {"inputs": float(total), "findings": float(findings)}
        console.print(save("fuzz", __doc__ or "", {"seed": seed}, rows, ratios))
    raise typer.Exit(int(findings > 0))


def _family(
    family: str,
    fuzz: Callable[[int, Tally, int], None],
    share: float,
    inputs: int,
    seed: int,
    target: Target,
    process: psutil.Process,
    log: Path,
) -> dict[str, Any]:
    tally = Tally(family, KEEP)
    before, logged, began = process.memory_info().rss, len(log.read_text()), time.monotonic()
    try:
        fuzz(round(inputs * share), tally, seed)
    except (
        Exception
    ) as error:  # the server has ended, or something here is wrong: both are findings
        tally.wrong(f"it could not go on: {error!r}", b"")
    target.check(tally)
    grown = process.memory_info().rss - before
    if grown > MOST_GROWTH:
        tally.wrong(f"the server's memory has grown by {grown >> 20} MiB", b"")
    for line in log.read_text()[logged:].splitlines():
        # A model that cannot be loaded is logged as an error on purpose.
        if "Traceback" in line or " failed, incident " in line:
            tally.wrong(f"logged: {line}", line)
    row = {
        "family": family,
        "inputs": tally.inputs,
        "outcomes": dict(Counter(tally.outcomes).most_common()),
        "findings": tally.findings,
        "slowest_seconds": tally.slowest_seconds,
        "seconds": time.monotonic() - began,
        "server_memory_growth_mib": grown / (1 << 20),
        "server_memory_mib": process.memory_info().rss / (1 << 20),
        "own_peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    console.print(
        f"{family}: {row['inputs']} inputs in {row['seconds']:.0f} s, server {grown >> 20:+d} MiB, "
        f"{row['outcomes']}",
        highlight=False,
    )
    for finding in tally.findings:
        console.print(f"  WRONG {finding}", highlight=False, markup=False)
    return row


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
