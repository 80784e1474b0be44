"""Everything that wants a GPU, in pieces that end in under ten minutes each.

    python benchmarks/gpu.py                  all of it, one piece after the other
    python benchmarks/gpu.py tests            the kernels' and the executor's tests, on the GPU
    python benchmarks/gpu.py kernels          gpu_kernels.py    -> benchmarks/results/gpu-kernels.json
    python benchmarks/gpu.py inference        gpu_inference.py  -> benchmarks/results/gpu-inference.json
    python benchmarks/gpu.py train            --minutes of training CIFAR-10  -> runs/gpu-cifar10/

`train` runs `spiketrain train RECIPE -o runs/gpu-cifar10`, which resumes exactly where the folder's last.pt was written: it
is interrupted (SIGINT) after the minutes given, and the next call goes on. The data sets are looked for in
$SPIKETRAIN_DATA. A piece that fails does not keep the next from running; the exit status is then 1. Each piece ends by
itself after its time at the latest, and what it wrote until then stays.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from gpu_machine import require_gpu

HERE = Path(__file__).parent
TOP = HERE.parent

_MARGIN = 30.0


class Piece(StrEnum):
    TESTS = "tests"
    KERNELS = "kernels"
    INFERENCE = "inference"
    TRAIN = "train"


def command(piece: Piece, recipe: str) -> list[str]:
    python = sys.executable
    if piece is Piece.TESTS:
        tests = [
            "tests/spiketrain/kernels/test_triton_steps.py",
            "tests/spiketrain/kernels/test_triton_slots.py",
            "tests/spikeserve/engine/test_cuda_executor.py",
        ]
        return [python, "-m", "pytest", "-q", *tests]
    if piece is Piece.TRAIN:
        start = "from spiketrain.cli import main; main()"
        folder = str(TOP / "runs" / "gpu-cifar10")
        settings = ["--set", "training.device=cuda", "--set", "training.precision=bfloat16"]
        return [python, "-c", start, "train", recipe, "-o", folder, *settings]
    return [python, str(HERE / f"gpu_{piece}.py")]


def run(piece: Piece, recipe: str, minutes: float) -> bool:
    """Whether it ended well, or, for training, was interrupted when its time was over."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with subprocess.Popen(command(piece, recipe), cwd=TOP, env=environment) as process:
        try:
            status = process.wait(60 * minutes)
            over = False
        except subprocess.TimeoutExpired:
            over = True
            process.send_signal(signal.SIGINT)
            try:
                status = process.wait(_MARGIN)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
    typer.echo(
        f"-- {piece}: {time.monotonic() - began:.0f} s, {'stopped' if over else f'status {status}'}"
    )
    return status == 0 or (over and piece is Piece.TRAIN)


def main(
    pieces: Annotated[list[Piece] | None, typer.Argument(help="All unless given.")] = None,
    recipe: Annotated[str, typer.Option(help="What to train.")] = "cifar10-clif-resnet18",
    minutes: Annotated[float, typer.Option(help="For each piece.")] = 9.0,
) -> None:
    require_gpu()
    results = [run(piece, recipe, minutes) for piece in pieces or list(Piece)]
    raise typer.Exit(0 if all(results) else 1)


if __name__ == "__main__":
    typer.run(main)
