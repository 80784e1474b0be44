"""Bulk work, `spikeserve batch`: images a second by local processes and by Ray, beside a plain loop, and what is left of a run that is killed.

A folder of pictures of the test set, each as a file of its own, is classified into Parquet files, with the same model, executor and
precision each time, one thread in each process. Peer: a plain loop in one process, which reads, decodes and asks the same engine, one
picture at a time or 64 together, and keeps the answers in one table. A Ray node has one core and its own processes; clusters are in a
network of their own where that can be made. *Working* counts from the first piece of answers that is there to the last; *whole* has
the start of processes and cluster and the loading of the model in it, too. Then a run is killed (SIGKILL) after some pieces
and given the same command again, and one of two Ray nodes is killed in the middle: answers are compared row by row with those of a
run that was let alone.

    python benchmarks/batch.py --pictures 8192
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import results
import typer
from processes import NotMeasuredError, stop_when_told
from rich.console import Console
from server import CACHE
from workload import prepare

from spikeserve.batch import Batch, Summary, run_batch
from spikeserve.images import ImageLimits, decode_image
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.settings import BUNDLED_MODELS, load_settings

MODEL = BUNDLED_MODELS / "fashion-clif.safetensors"
PIECE = 128
PRECISION = "int16"
TOGETHER = 64
Row = dict[str, Any]

console = Console(width=150, highlight=False)


def batch_of(there: Path, into: Path, workers: int, ray: str | None = None) -> Batch:
    return Batch(
        there, into, models=(MODEL,), workers=workers, ray=ray, piece=PIECE, executor="cpu",
        precision=PRECISION,
    )  # fmt: skip


def plain_loop(there: Path, together: int) -> Row:
    """One process, the same engine: nothing is written, and nothing is done twice."""
    began = time.monotonic()
    settings = load_settings(
        models=(MODEL,), slots=TOGETHER, executor="cpu", precision=PRECISION, torch_threads=1,
        probe_share=0.0,
    )  # fmt: skip
    repository = Repository(settings, Metrics())
    repository.load_all()
    model = repository.get()
    limits = ImageLimits(settings.max_body_bytes, settings.max_pixels)
    paths = sorted(there.iterdir())
    answers = []
    working = time.monotonic()
    for first in range(0, len(paths), together):
        files = (path.read_bytes() for path in paths[first : first + together])
        pictures = [decode_image(file, model.manifest.input, limits) for file in files]  # type: ignore[arg-type]
        futures = [model.engine.submit(each, model.manifest.timesteps) for each in pictures]
        answers += [future.result().logits.mean(0) for future in futures]
    ended = time.monotonic()
    repository.close()
    rate = len(answers) / (ended - working)
    return {"working_a_second": rate, "whole_a_second": len(answers) / (ended - began)}


def timed(batch: Batch, count: int) -> Row:
    """Raises NotMeasuredError where something was not done."""
    began = time.time()
    summary = run_batch(batch)
    return figures(batch.output, count, began, time.time(), summary.items, summary.faults)


def figures(into: Path, count: int, began: float, ended: float, items: int, faults: Any) -> Row:
    if items != count or faults:
        raise NotMeasuredError(f"{items} of {count} pictures were done: {faults}")
    times = sorted(path.stat().st_mtime for path in into.glob("part-*.parquet"))
    working = (count - PIECE) / (times[-1] - times[0])
    return {"working_a_second": working, "whole_a_second": count / (ended - began)}


def answers(into: Path) -> list[dict[str, Any]]:
    from pyarrow.parquet import read_table

    parts = sorted(into.glob("part-*.parquet"))
    return [row for part in parts for row in read_table(part).to_pylist()]


def killed_and_resumed(there: Path, into: Path) -> Row:
    """SIGKILL of all its processes when a quarter is done; then the same again."""
    command = [
        sys.executable, "-m", "spikeserve", "batch", str(there), str(into), "--models", str(MODEL),
        "--workers", "2", "--piece", str(PIECE), "--executor", "cpu", "--precision", PRECISION,
    ]  # fmt: skip
    pieces = -(-len(list(there.iterdir())) // PIECE)
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while len(list(into.glob("part-*"))) < pieces // 4:
            if process.poll() is not None:
                raise NotMeasuredError("the run ended before it was killed")
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in into.glob("part-*")}
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    after = {path.name: path.stat().st_mtime_ns for path in into.glob("part-*")}
    again = sum(after[name] != stamp for name, stamp in before.items())
    return {"pieces": pieces, "pieces_before": len(before), "pieces_done_twice": again}


def ray_run(there: Path, into: Path, nodes: int, kill: bool) -> Row:
    """In a process of its own, and in a network of its own where there can be one: Ray listens on all addresses."""
    given = [
        sys.executable,
        __file__,
        "--ray-part",
        json.dumps([str(there), str(into), nodes, kill]),
    ]
    alone = shutil.which("unshare") is not None and os.geteuid() == 0
    inside = (
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"'] if alone else []
    )
    # Ray puts its sockets under RAY_TMPDIR, whose name has to be short; its processes would be last in line.
    environment = {**os.environ, "RAY_worker_niceness": "0", "RAY_TMPDIR": "/tmp"}
    done = subprocess.run(
        [*inside, *given], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotMeasuredError(f"Ray: {done.stderr[-500:]}")
    said, _ = json.JSONDecoder().raw_decode(done.stdout, done.stdout.index('{"began"'))
    row: Row = said
    return row


def ray_part(there: Path, into: Path, nodes: int, kill: bool) -> None:
    import ray
    from ray.cluster_utils import Cluster

    began = time.time()
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    others = [cluster.add_node(**node) for _ in range(nodes - 1)]
    ray.init(cluster.address, log_to_driver=False)
    pieces: list[int] = []

    def progress(summary: Summary) -> None:
        if kill and others and summary.done >= summary.pieces // 4:
            pieces.append(summary.done)
            cluster.remove_node(others.pop(), allow_graceful=False)

    summary = run_batch(batch_of(there, into, nodes, cluster.address), progress)
    found = {"began": began, "ended": time.time(), "items": summary.items, "faults": summary.faults}
    sys.stdout.write(json.dumps({**found, "killed_after": pieces}))
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()


def main(
    pictures: Annotated[int, typer.Option(help="how many, a multiple of 128")] = 8192,
    data: Annotated[Path | None, typer.Option(help="folder of the data sets")] = None,
    name: Annotated[str, typer.Option(help="of the file in results/")] = "batch",
    ray_part_: Annotated[str | None, typer.Option("--ray-part", hidden=True)] = None,
) -> None:
    if ray_part_ is not None:
        there_, into_, nodes, kill = json.loads(ray_part_)
        ray_part(Path(there_), Path(into_), nodes, kill)
        return
    CACHE.mkdir(exist_ok=True)
    workload = prepare(MODEL, CACHE, data, 512)
    rows: list[Row] = []

    def add(what: str, row: Row) -> None:
        rows.append({"what": what, **row})
        said = ", ".join(f"{k} {v:.5g}" for k, v in row.items() if isinstance(v, int | float))
        console.print(f"{what}: {said}")

    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        there = top / "in"
        there.mkdir()
        source = itertools.cycle(workload.pictures.content)
        for number, content in zip(range(pictures), source, strict=False):
            (there / f"{number:06d}.png").write_bytes(content)
        for together in (1, TOGETHER):
            add(f"plain loop, {together} at a time", plain_loop(there, together))
        for workers in (1, 2):
            row = timed(batch_of(there, top / f"local-{workers}", workers), pictures)
            add(f"local, {workers} process{'es' * (workers > 1)}", row)
        for nodes in (1, 2):
            into = top / f"ray-{nodes}"
            found = ray_run(there, into, nodes, False)
            row = figures(
                into, pictures, found["began"], found["ended"], found["items"], found["faults"]
            )
            add(f"Ray, {nodes} node{'s' * (nodes > 1)} of one core", row)
        whole = answers(top / "local-1")
        found = ray_run(there, top / "lost", 2, True)
        lost = {"killed_after": found["killed_after"][0], "items": found["items"]}
        add("Ray, one of two nodes killed", {**lost, "equal": answers(top / "lost") == whole})
        resumed = killed_and_resumed(there, top / "killed")
        add("local, killed and resumed", {**resumed, "equal": answers(top / "killed") == whole})
        for other in ("local-2", "ray-1", "ray-2"):
            if answers(top / other) != whole:
                raise NotMeasuredError(f"{other} has other answers")
    ratios = ratios_of(rows)
    console.print(ratios)
    settings = {
        "model": workload.manifest.name,
        "pictures": pictures,
        "piece": PIECE,
        "precision": PRECISION,
    }
    console.print(f"written: {results.save(name, __doc__ or '', settings, rows, ratios)}")


def ratios_of(rows: list[Row]) -> dict[str, float]:
    by = {row["what"]: row.get("working_a_second", 0.0) for row in rows}
    return {
        "local_1_over_loop": by["local, 1 process"] / by["plain loop, 64 at a time"],
        "local_2_over_1": by["local, 2 processes"] / by["local, 1 process"],
        "ray_1_over_local_1": by["Ray, 1 node of one core"] / by["local, 1 process"],
        "ray_2_over_1": by["Ray, 2 nodes of one core"] / by["Ray, 1 node of one core"],
        "ray_2_over_local_2": by["Ray, 2 nodes of one core"] / by["local, 2 processes"],
    }


if __name__ == "__main__":
    stop_when_told()
    try:
        typer.run(main)
    except NotMeasuredError as error:
        sys.exit(f"not measured: {error}")
