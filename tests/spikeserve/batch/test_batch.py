"""Bulk work: every item once, in order, whatever was interrupted; what cannot be answered says why."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from spikeserve.batch import Batch, BatchError, find_pieces, run_batch  # noqa: E402
from spiketrain.events import Events, write_recording  # noqa: E402

LONG = 120


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures in two folders, one file that is none, and files that are not looked at."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(10):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(i))
    (folder / "b" / "broken.png").write_bytes(b"nonsense")
    (folder / ".hidden.png").write_bytes(b"nonsense")
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def batch(model_folder: Path, pictures: Path, tmp_path: Path) -> Batch:
    return Batch(
        pictures, tmp_path / "out", models=(model_folder,), model="pictures", workers=1, piece=4,
        slots=4, executor="reference",
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    parts = sorted(folder.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def test_every_file_has_its_row_in_order(batch: Batch, pictures: Path) -> None:
    summary = run_batch(batch)
    assert (summary.pieces, summary.done, summary.items, summary.failed) == (3, 3, 11, 1)
    got = rows(batch.output)
    names = [*sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(10)), "b/broken.png"]
    assert [row["key"] for row in got] == names
    for row in got[:-1]:
        assert row["error"] is None
        assert row["timesteps"] == 4
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["probability"] == max(row["probabilities"])
        assert row["index"] == row["probabilities"].index(row["probability"])
        assert row["label"] == "abcdefghij"[row["index"]]
    assert "PNG" in got[-1]["error"]
    assert got[-1]["label"] is None
    # What readers of such folders make of it, the record of the run included.
    assert pq.read_table(batch.output).num_rows == 11


async def test_the_answers_are_those_of_the_server(batch: Batch, running: Any) -> None:
    from spikeserve.classify import ClassifyRequest

    run_batch(batch)
    async with running() as server:
        for row in rows(batch.output)[:4]:
            content = (batch.input / row["key"]).read_bytes()
            answer = await server.classifier.classify(ClassifyRequest(content, "pictures", top_k=1))
            assert answer.predictions[0].label == row["label"]
            assert answer.predictions[0].probability == pytest.approx(row["probability"], abs=1e-6)


def test_nothing_is_done_twice(batch: Batch) -> None:
    run_batch(batch)
    before = {path.name: path.stat().st_mtime_ns for path in batch.output.glob("part-*")}
    lost = sorted(before)[1]
    (batch.output / lost).write_bytes(b"PAR1 cut off")
    summary = run_batch(batch)
    assert (summary.before, summary.done) == (2, 1)
    after = {path.name: path.stat().st_mtime_ns for path in batch.output.glob("part-*")}
    assert {name for name in before if before[name] != after[name]} == {lost}
    assert len(rows(batch.output)) == 11


def test_a_killed_run_goes_on_to_the_same_answers(
    batch: Batch, model_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    run_batch(batch)
    other = tmp_path / "killed"
    command = [
        sys.executable, "-m", "spikeserve", "batch", str(pictures), str(other), "--models",
        str(model_folder), "--model", "pictures", "--workers", "1", "--piece", "4", "--slots", "4",
        "--executor", "reference",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + LONG
        while not list(other.glob("part-*")) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (other / ".part-000002-of-somebody-killed").write_bytes(b"half")
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True)
    assert "there already" in done.stderr
    assert rows(other) == rows(batch.output)
    assert not list(other.glob(".part-*"))


def test_parquet_and_tar_files(batch: Batch, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    table = pa.table(
        {
            "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(5)],
            "name": [f"n{i}" for i in range(5)],
        }
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    with tarfile.open(folder / "b.tar", "w") as archive:
        for i in range(3):
            for name, content in ((f"{i}.png", png(i)), (f"{i}.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    asked = replace(batch, input=folder)
    assert run_batch(asked).items == 8
    got = {row["key"]: row for row in rows(asked.output)}
    assert list(got) == [
        *(f"a.parquet#{i}" for i in range(5)),
        *(f"b.tar/{i}.png" for i in range(3)),
    ]
    assert got["a.parquet#1"]["probabilities"] == got["b.tar/1.png"]["probabilities"]
    named = find_pieces(folder / "a.parquet", "image", key_column="name")
    assert [key for piece in named for key, _ in piece.items()] == [f"n{i}" for i in range(5)]


def test_a_damaged_shard_is_named_and_tried_again(batch: Batch, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "0.png").write_bytes(png(0))
    (folder / "bad.tar").write_bytes(b"no archive" * 100)
    asked = replace(batch, input=folder)
    for before in (0, 1):
        summary = run_batch(asked)
        assert summary.before == before
        assert list(summary.faults) == ["bad.tar"]


def test_recordings(batch: Batch, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 30_000, 300))
    x, y, p = (rng.integers(0, n, 300) for n in (34, 34, 2))
    events = Events(
        t.astype(np.int64), x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8)
    )
    write_recording(folder / "good.npz", events, sensor=(34, 34))
    (folder / "short.npz").write_bytes((folder / "good.npz").read_bytes()[:100])
    asked = replace(batch, input=folder, model="moves")
    summary = run_batch(asked)
    assert (summary.items, summary.failed) == (2, 1)
    good, short = rows(asked.output)
    assert (good["timesteps"], good["error"]) == (3, None)
    assert short["error"]
    with pytest.raises(BatchError, match="for pictures"):
        run_batch(replace(asked, timesteps=2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"timesteps": 2}, "timesteps was None, is 2"),
        ({"model": None}, "which model"),
        ({"model": "nobody"}, "nobody"),
        ({"exit": "fast"}, "calibrate-exit"),
        ({"exit": "fast", "risk": 0.1}, "one of them"),
        ({"input": Path("/nowhere/at/all")}, "/nowhere/at/all"),
        ({"workers": 0}, "workers"),
        ({"piece": 0}, "piece"),
    ],
)
def test_what_cannot_be_done_is_said_first(batch: Batch, changes: Any, said: str) -> None:
    if "timesteps" in changes:
        run_batch(batch)
    with pytest.raises(BatchError, match=said):
        run_batch(replace(batch, **changes))


def test_folders_that_would_be_lost_are_refused(batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="inside"):
        run_batch(replace(batch, output=batch.input / "out"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("precious")
    with pytest.raises(BatchError, match="not empty"):
        run_batch(replace(batch, output=full))
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(BatchError, match="nothing to classify"):
        run_batch(replace(batch, input=empty))


def test_columns_that_do_not_fit(batch: Batch, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"], "c": [3]}), path := tmp_path / "x.parquet")
    for changes, said in (
        ({}, "a, b"),
        ({"column": "c"}, "'c'"),
        ({"column": "a", "key_column": "d"}, "'d'"),
    ):
        with pytest.raises(BatchError, match=said):
            find_pieces(path, "image", **changes)  # type: ignore[arg-type]


@pytest.mark.timeout(300)
def test_a_ray_cluster_that_loses_a_node(batch: Batch, model_folder: Path, tmp_path: Path) -> None:
    """In a network of its own: the nodes of a cluster listen on every address of the machine."""
    pytest.importorskip("ray")
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs a network namespace, which only root can make")
    run_batch(batch)
    into = tmp_path / "ray"
    script = str(Path(__file__).parent / "cluster.py")
    inside = 'ip link set lo up && exec "$0" "$@"'
    command = ["unshare", "--net", "sh", "-c", inside, sys.executable, script]
    # Ray puts its sockets under RAY_TMPDIR, whose name has to be short; its processes would be last in line.
    environment = {**os.environ, "RAY_worker_niceness": "0", "RAY_TMPDIR": "/tmp"}
    done = subprocess.run(
        [*command, str(model_folder), str(batch.input), str(into)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if "Operation not permitted" in done.stderr and not done.stdout:
        pytest.skip("no network namespace can be made here")
    assert done.returncode == 0, done.stderr[-4000:]
    # Ray writes to the same output.
    said, _ = json.JSONDecoder().raw_decode(done.stdout, done.stdout.index('{"killed"'))
    assert said["killed"]
    assert (said["done"], said["faults"]) == (11, {})
    assert rows(into) == rows(batch.output)


@pytest.mark.timeout(300)
def test_the_adapter_for_ray_serve(model_folder: Path, tmp_path: Path) -> None:
    """examples/ray_serve.py, in a network of its own: Ray listens on every address of the machine."""
    pytest.importorskip("ray.serve")
    pytest.importorskip("aiohttp_cors", reason="Ray without what ray[serve] brings")
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs a network namespace, which only root can make")
    (tmp_path / "picture.png").write_bytes(png(1))
    script = str(Path(__file__).parent / "serving.py")
    example = str(Path(__file__).parents[3] / "examples" / "ray_serve.py")
    inside = 'ip link set lo up && exec "$0" "$@"'
    command = ["unshare", "--net", "sh", "-c", inside, sys.executable, script]
    settings = {"MODELS": str(model_folder), "DEFAULT_MODEL": "pictures", "EXECUTOR": "reference"}
    done = subprocess.run(
        [*command, str(tmp_path / "picture.png"), example],
        env={
            **os.environ,
            **{f"SPIKESERVE_{name}": value for name, value in settings.items()},
            "RAY_worker_niceness": "0",
            "RAY_TMPDIR": "/tmp",
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if "Operation not permitted" in done.stderr and "replies: " not in done.stdout:
        pytest.skip("no network namespace can be made here")
    assert "replies: " in done.stdout, done.stderr[-4000:]
    said, _ = json.JSONDecoder().raw_decode(done.stdout.split("replies: ")[1])
    good, broken, again, unknown = said
    assert [good[0], broken[0], again[0], unknown[0]] == [200, 415, 200, 404]
    assert good[2]["model"] == "pictures"
    assert good[2]["predictions"] == again[2]["predictions"]
    assert broken[1] == unknown[1] == "application/problem+json"
