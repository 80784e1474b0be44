"""Executors without a server: how many images a second, one batch after the other. agreement.py has how alike they answer.

A batch of pictures that is decoded already goes through all timesteps, again and again, and the best and the median
run are taken; processor time is that of all threads. Our executors run in every precision, through the calls that the
scheduler makes; "int8" is the same checkpoint with its weights rounded. Peers run the same weights in the forms that
peers/engines.py found fastest; those that are not installed are left out.

    python benchmarks/engine.py                                    a spiking ResNet-18 with random weights
    python benchmarks/engine.py --model FILE --data FOLDER
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
PRECISIONS = ("int8", "int16", "float32")
BATCHES = (1, 4, 8, 16, 32)
# Where each peer's packages are: an environment of environments.py, or None for this one.
PEERS = {
    "spikingjelly": None,
    "openvino-bf16": "runtimes",
    "openvino-f32": "runtimes",
    "onnxruntime": "runtimes",
}

Row = dict[str, Any]


def timed(run: Callable[[], Any], images: int, seconds: float) -> Row:
    run()
    walls: list[float] = []
    spent, end = time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end or len(walls) < 3:
        begin = time.perf_counter()
        run()
        walls.append(time.perf_counter() - begin)
    spent = time.process_time() - spent
    return {
        "images_per_second": images / min(walls),
        "median_images_per_second": images / statistics.median(walls),
        "processor_ms_per_image": 1e3 * spent / len(walls) / images,
    }


def measure_peer(name: str, folder: Path, threads: int, seconds: float) -> list[Row]:
    """In the peer's own Python; needs nothing of spikeserve."""
    import numpy as np

    spec = importlib.util.spec_from_file_location("engines", HERE / "peers" / "engines.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("peers/engines.py")
    engines: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engines)
    makers: dict[str, Callable[[], Any]] = {
        "spikingjelly": lambda: engines.SpikingJelly(folder, threads),
        "onnxruntime": lambda: engines.OnnxRuntime(folder, "folded", threads),
        "openvino-f32": lambda: engines.OpenVINO(folder, "f32", hint="THROUGHPUT", threads=threads),
        "openvino-bf16": lambda: engines.OpenVINO(folder, "bf16", threads=threads),
    }
    engine = makers[name]()
    shape = json.loads((folder / "model.json").read_text())["shape"]
    x = np.random.default_rng(0).standard_normal((max(BATCHES), *shape), np.float32)
    rows = []
    for batch in BATCHES:
        row = timed(lambda batch=batch: engine(x[:batch]), batch, seconds)  # type: ignore[misc]
        rows.append({"system": name, "threads": threads, "batch": batch, **row})
    return rows


def measure_compiled(folder: Path, threads: int, seconds: float) -> list[Row]:
    """Our network, all timesteps at once, through torch.compile."""
    import torch

    from spiketrain.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    network = load_checkpoint(folder / "model.safetensors").network().requires_grad_(False)
    compiled = torch.compile(lambda x: network(x).logits.mean(0), dynamic=False)
    rows = []
    for batch in (1, 8):  # each shape is compiled for minutes
        x = torch.randn(batch, *network.input_shape)
        with torch.inference_mode():
            row = timed(lambda x=x: compiled(x), batch, seconds)  # type: ignore[misc]
        rows.append({"system": "torch.compile", "threads": threads, "batch": batch, **row})
    return rows


def measure_ours(folder: Path, threads: int, seconds: float) -> list[Row]:
    import torch

    from spikeserve.engine import ReferenceExecutor, Sample
    from spikeserve.engine.cpu import CpuExecutor
    from spiketrain.checkpoint import load_checkpoint
    from spiketrain.energy import fan_out

    torch.set_num_threads(threads)
    network = load_checkpoint(folder / "model.safetensors").network()
    reach, steps = fan_out(network), network.timesteps
    x = torch.randn(max(BATCHES), *network.input_shape)
    makers: dict[str, Callable[[], Any]] = {
        f"cpu, {precision}": lambda precision=precision: CpuExecutor(  # type: ignore[misc]
            network, max(BATCHES), reach, "", precision
        )
        for precision in PRECISIONS
    }
    makers["reference"] = lambda: ReferenceExecutor(network, max(BATCHES), reach)
    rows = []
    for system, make in makers.items():
        executor = make()
        # The number of timesteps is known, or not, as where a picture may leave early.
        for known in (True, False) if system == "cpu, int16" else (True,):

            def run(batch: int, known: bool = known, executor: Any = executor) -> None:
                for slot in range(batch):
                    executor.admit(slot, Sample(x[slot], steps if known else None))
                for _ in range(steps):
                    executor.step(range(batch), None)

            for batch in BATCHES:
                row = timed(lambda batch=batch: run(batch), batch, seconds)  # type: ignore[misc]
                name = system if known else f"{system}, step by step"
                rows.append({"system": name, "threads": threads, "batch": batch, **row})
    return rows


def in_process(python: str, *arguments: Any) -> list[Row]:
    """Rows from a fresh process, so that threads and memory of one system are not another's."""
    command = [python, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        sys.stdout.write(f"{arguments[0]}: not measured: {reason[0]}\n")
        return []
    return list(json.loads(done.stdout.splitlines()[-1]))


def speed(folder: Path, threads: list[int], seconds: float, compile_too: bool) -> list[Row]:
    systems = ["ours", *PEERS, *(["compiled"] if compile_too else [])]
    rows: list[Row] = []
    for count in threads:
        for system in systems:
            environment = PEERS.get(system)
            python = sys.executable
            if environment is not None:
                python = str(HERE / ".environments" / environment / "bin" / "python")
            if Path(python).exists():
                rows += in_process(python, system, folder, count, seconds)
    return rows


def ratios(rows: list[Row]) -> dict[str, float]:
    """Images a second of our executor in int16 and int8 over each peer's, with as many threads and pictures."""
    best = {(row["system"], row["threads"], row["batch"]): row["images_per_second"] for row in rows}
    found = {}
    for (system, threads, batch), rate in best.items():
        for precision in ("int16", "int8"):
            ours = best.get((f"cpu, {precision}", threads, batch))
            if ours is not None and not system.startswith("cpu, int") and batch in (1, 8, 32):
                name = f"{precision} over {system}, {threads} threads, batch {batch}"
                found[name] = ours / rate
    return found


def measure(system: str, folder: str, threads: str, seconds: str) -> None:
    given = Path(folder), int(threads), float(seconds)
    if system in ("ours", "compiled"):
        rows = (measure_ours if system == "ours" else measure_compiled)(*given)
    else:
        rows = measure_peer(system, *given)
    sys.stdout.write(json.dumps(rows) + "\n")


def print_table(header: list[str], lines: list[list[str]]) -> None:
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    for line in [header, *lines]:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def report_speed(checkpoint: Path, given: argparse.Namespace) -> None:
    import results
    from workload import prepare

    folder = prepare(checkpoint, CACHE, given.data, 64).folder
    rows = speed(folder, given.threads or [1, 2], given.seconds, given.compiled)
    keys = ("images_per_second", "median_images_per_second", "processor_ms_per_image")
    lines = [
        [row["system"], str(row["threads"]), str(row["batch"]), *(f"{row[k]:.1f}" for k in keys)]
        for row in rows
    ]
    header = ["system", "threads", "batch", "images/s", "median", "processor ms/image"]
    print_table(header, lines)
    compared = ratios(rows)
    for key, value in compared.items():
        sys.stdout.write(f"{key}: {value:.2f}\n")
    settings = {"model": checkpoint.name, "seconds": given.seconds}
    results.save(given.name, __doc__ or "", settings, rows, compared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="a checkpoint; ResNet-18 without training unless given"
    )
    parser.add_argument(
        "--neuron", choices=("clif", "lif"), default="clif", help="of the ResNet-18"
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--threads", type=int, action="append", help="1 and 2 unless given")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--compiled", action="store_true", help="measure torch.compile, too")
    parser.add_argument("--name", default="engine", help="of the file in results/")
    given = parser.parse_args()
    checkpoint = given.model
    if checkpoint is None:
        from workload import untrained_resnet18

        CACHE.mkdir(exist_ok=True)
        checkpoint = CACHE / f"resnet18-{given.neuron}-untrained.safetensors"
        if not checkpoint.exists():
            untrained_resnet18(checkpoint, given.neuron, given.data)
    report_speed(checkpoint, given)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
