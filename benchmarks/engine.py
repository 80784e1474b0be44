"""Executors without a server: how many images a second one batch after the other, and whether they answer alike.

Speed: a batch of pictures that is decoded already goes through all timesteps, again and again, and the best and the median
run are taken; processor time is that of all threads. Our executors run in every precision, through the calls that the
scheduler makes; "int8" is the same checkpoint with its weights rounded. Peers run the same weights in the forms that
peers/engines.py found fastest; those that are not installed are left out.

Agreement (--agreement): our executors against the reference over a checkpoint's whole test set: accuracy, the share of
samples in the same class, and by layer how far the spike counts of samples are apart.

    python benchmarks/engine.py                                    speed, of a spiking ResNet-18 with random weights
    python benchmarks/engine.py --model FILE --data FOLDER --agreement
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
        for known in (True, False) if system == "cpu, int8" else (True,):

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


def agreement(checkpoint: Path, data: Path | None, limit: int | None) -> list[Row]:
    """Rows of each precision over the test set, against the reference executor."""
    import torch

    from spikeserve.engine import Frames, ReferenceExecutor, Sample
    from spikeserve.engine.cpu import CpuExecutor
    from spiketrain.checkpoint import load_checkpoint
    from spiketrain.convert.source import sample_of, training_data
    from spiketrain.energy import fan_out

    loaded = load_checkpoint(checkpoint)
    network = loaded.network()
    source = training_data(loaded.manifest, data)
    slots, reach = 32, fan_out(network)
    executors: dict[str, Any] = {"reference": ReferenceExecutor(network, slots, reach)}
    for precision in PRECISIONS:
        executors[precision] = CpuExecutor(network, slots, reach, "", precision)
    totals: dict[str, list[Any]] = {name: [] for name in executors}
    counts: dict[str, list[Any]] = {name: [] for name in executors}
    labels = []
    for x, y in source.batches(sample_of(source.test, limit), slots):
        labels.append(y)
        constant = x.dim() == len(network.input_shape) + 1
        for name, executor in executors.items():
            batch, logits, spikes = len(y), 0, 0
            for slot in range(batch):
                executor.admit(slot, Sample(x[slot], network.timesteps) if constant else Sample())
            for t in range(network.timesteps if constant else len(x)):
                frames = None if constant else Frames(tuple(range(batch)), x[t])
                result = executor.step(range(batch), frames)
                logits, spikes = logits + result.logits, spikes + result.spikes
            totals[name].append(logits)
            counts[name].append(spikes)
    truth = torch.cat(labels)
    answers = {name: torch.cat(parts).argmax(1) for name, parts in totals.items()}
    spikes = {name: torch.cat(parts) for name, parts in counts.items()}
    rows = []
    for name in executors:
        off = (spikes[name] - spikes["reference"]).abs().sum(0) / spikes["reference"].sum(0)
        rows.append(
            {
                "model": loaded.manifest.name,
                "executor": name,
                "samples": len(truth),
                "accuracy": (answers[name] == truth).double().mean().item(),
                "agreement": (answers[name] == answers["reference"]).double().mean().item(),
                "spike_counts_off": dict(zip(executors[name].layers, off.tolist(), strict=True)),
            }
        )
    return rows


def ratios(rows: list[Row]) -> dict[str, float]:
    """Images a second of our executor in int8 over each peer's, with as many threads and pictures."""
    best = {(row["system"], row["threads"], row["batch"]): row["images_per_second"] for row in rows}
    found = {}
    for (system, threads, batch), rate in best.items():
        if not system.startswith("cpu, int8") and batch in (1, 8, 32):
            name = f"int8 over {system}, {threads} threads, batch {batch}"
            found[name] = best["cpu, int8", threads, batch] / rate
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


def report_agreement(checkpoint: Path, given: argparse.Namespace) -> None:
    import results

    rows = agreement(checkpoint, given.data, given.limit)
    lines = []
    for row in rows:
        worst = max(row["spike_counts_off"].values())
        figures = [f"{value:.4f}" for value in (row["accuracy"], row["agreement"], worst)]
        lines.append([row["executor"], str(row["samples"]), *figures])
    header = ["executor", "samples", "accuracy", "agreement", "spike counts off, worst layer"]
    print_table(header, lines)
    name = f"{given.name}-{rows[0]['model']}"
    results.save(name, __doc__ or "", {"limit": given.limit}, rows, {})


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
    parser.add_argument("--agreement", action="store_true", help="compare answers, not speed")
    parser.add_argument("--limit", type=int, help="samples to compare on, all unless given")
    parser.add_argument("--name", default="engine", help="of the file in results/")
    given = parser.parse_args()
    checkpoint = given.model
    if checkpoint is None:
        from workload import untrained_resnet18

        CACHE.mkdir(exist_ok=True)
        checkpoint = CACHE / f"resnet18-{given.neuron}-untrained.safetensors"
        if not checkpoint.exists():
            untrained_resnet18(checkpoint, given.neuron, given.data)
    (report_agreement if given.agreement else report_speed)(checkpoint, given)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
