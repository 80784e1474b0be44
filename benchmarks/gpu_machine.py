"""What the benchmarks for a GPU share: whether there is one, how time is taken, what memory can do."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import typer


def require_gpu() -> torch.device:
    """The GPU, or the end of the program with a sentence about what is missing."""
    if not torch.cuda.is_available():
        built = "is a CPU build" if torch.version.cuda is None else "finds no NVIDIA GPU"
        typer.echo(
            f"This benchmark needs an NVIDIA GPU, and torch {torch.__version__} {built}. On a machine with one: "
            "make clean setup TORCH_INDEX=https://download.pytorch.org/whl/cu130, then "
            "pip install -c constraints.txt -e '.[train,gpu,bench]'. Nothing was measured.",
            err=True,
        )
        raise typer.Exit(2)
    try:
        import triton  # noqa: F401
    except ImportError:
        typer.echo(
            "This benchmark needs Triton: pip install '.[gpu]'. Nothing was measured.", err=True
        )
        raise typer.Exit(2) from None
    return torch.device("cuda")


def described() -> dict[str, Any]:
    about = torch.cuda.get_device_properties(0)
    return {
        "name": about.name,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "multiprocessors": about.multi_processor_count,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def milliseconds(
    runs: dict[str, Callable[[], Any]], turns: int = 15, warm: int = 3
) -> dict[str, float]:
    """Median time of each on the GPU, by events, taken in turns so that its clock is the same for all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm + turns):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if turn >= warm:
                times[name].append(start.elapsed_time(end))
    return {name: statistics.median(each) for name, each in times.items()}


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of copying 1 GiB."""
    source = torch.ones(2**29, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    took = milliseconds({"copy": lambda: target.copy_(source)})["copy"]
    return 2 * source.nbytes / (took / 1e3)
