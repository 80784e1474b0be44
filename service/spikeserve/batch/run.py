"""A whole run: what is left to do, who does it, and what became of it. A run that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikeserve.batch.pieces import BatchError, Piece, find_pieces
from spikeserve.batch.runners import Outcome, on_processes, on_ray
from spikeserve.batch.worker import Done, Job, chosen
from spikeserve.classify import ExitName
from spikeserve.metrics import Metrics
from spikeserve.repository import LoadedModel, Repository
from spikeserve.settings import Settings, load_settings

# Readers of a folder of Parquet files pass over names with an underscore.
RUN_FILE = "_run.json"


@dataclass(frozen=True)
class Batch:
    """`ray` is the address of a cluster, or "local" for one on this machine; unless given, local processes work.

    `models`, `slots`, `executor` and `precision` are the server's settings of these names. `piece` files are done
    together: what an interruption may cost.
    """

    input: Path
    output: Path
    models: tuple[Path, ...] | None = None
    model: str | None = None
    version: str | None = None
    workers: int | None = None
    ray: str | None = None
    exit: ExitName | None = None
    risk: float | None = None
    timesteps: int | None = None
    slots: int = 64
    executor: str = "auto"
    precision: str = "auto"
    piece: int = 256
    column: str | None = None
    key_column: str | None = None


@dataclass
class Summary:
    """`before` pieces were there already. `faults` has what could not be done, by piece: the same command tries again."""

    pieces: int
    before: int = 0
    done: int = 0
    items: int = 0
    failed: int = 0
    seconds: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)


def run_batch(batch: Batch, progress: Callable[[Summary], None] = lambda _: None) -> Summary:
    """`progress` is called after each piece. Raises BatchError, SettingsError, OSError."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise BatchError(
            "answers are Parquet files, which need pyarrow: spikeserve[batch]"
        ) from None
    _check(batch)
    workers = batch.workers or len(os.sched_getaffinity(0))
    settings = load_settings(
        models=batch.models,
        slots=batch.slots,
        max_queue=max(2 * batch.slots, 256),
        executor=batch.executor,
        precision=batch.precision,
        exit=batch.exit if batch.exit is not None else "off",
        torch_threads=1,
        probe_share=0.0,
    )
    with _Loaded(settings, batch) as model:
        pieces = find_pieces(
            batch.input,
            model.kind,
            size=batch.piece,
            column=batch.column,
            key_column=batch.key_column,
        )
        # Only what this model needs is loaded by those who work.
        given = settings.model_copy(update={"models": (model.path,)}).model_dump(mode="json")
        job = Job(
            given,
            model.name,
            model.version,
            str(batch.output.resolve()),
            batch.exit,
            batch.risk,
            batch.timesteps,
        )
        _open(batch, model, pieces)
    left = [piece for piece in pieces if not _is_done(batch.output / piece.file_name)]
    summary = Summary(len(pieces), len(pieces) - len(left))
    began = time.monotonic()
    progress(summary)
    for piece, outcome in _outcomes(batch, job, left, workers):
        if isinstance(outcome, Done):
            summary.done += 1
            summary.items += outcome.items
            summary.failed += outcome.failed
        else:
            summary.faults[", ".join(piece.paths[:1])] = outcome
        summary.seconds = time.monotonic() - began
        progress(summary)
    return summary


def _outcomes(batch: Batch, job: Job, left: list[Piece], workers: int) -> Iterable[Outcome]:
    if not left:
        return ()
    if batch.ray is None:
        return on_processes(job, left, workers)
    return on_ray(job, left, workers, None if batch.ray == "local" else batch.ray)


def _check(batch: Batch) -> None:
    if batch.workers is not None and batch.workers < 1:
        raise BatchError(f"workers is {batch.workers}: give 1 or more")
    if batch.exit is not None and batch.risk is not None:
        raise BatchError("exit and risk were both given: give one of them")
    there, into = batch.input.resolve(), batch.output.resolve()
    if into == there or there in into.parents:
        raise BatchError(f"{batch.output} is inside of the input: the answers would be input, too")


class _Loaded:
    """The model, loaded here once: what is wrong with it is said before anybody else is started."""

    def __init__(self, settings: Settings, batch: Batch) -> None:
        self._repository = Repository(settings, Metrics())
        self._batch = batch

    def __enter__(self) -> LoadedModel:
        self._repository.load_all()
        model = chosen(self._repository, self._batch.model, self._batch.version)
        try:
            _check_model(self._batch, model)
        except BatchError:
            self._repository.close()
            raise
        return model

    def __exit__(self, *_: object) -> None:
        self._repository.close()


def _check_model(batch: Batch, model: LoadedModel) -> None:
    if model.kind != "image" and (batch.exit, batch.risk, batch.timesteps) != (None, None, None):
        raise BatchError(
            f"{model.name} takes recordings: exit, risk and timesteps are for pictures"
        )
    if (batch.exit not in (None, "off") or batch.risk is not None) and model.manifest.exit is None:
        raise BatchError(
            f"{model.name} has no exits: find them with spiketrain calibrate-exit, or leave exit and risk out"
        )


def _open(batch: Batch, model: LoadedModel, pieces: list[Piece]) -> None:
    """The folder of answers: a new one, or that of the same run. Raises BatchError for another run's."""
    names = hashlib.sha256("\0".join(piece.file_name for piece in pieces).encode()).hexdigest()
    record: dict[str, Any] = {
        "input": str(batch.input.resolve()),
        "pieces": len(pieces),
        "input_digest": names,
        "model": model.name,
        "version": model.version,
        "model_digest": model.manifest.digest,
        "exit": batch.exit,
        "risk": batch.risk,
        "timesteps": batch.timesteps,
        "executor": batch.executor,
        "precision": batch.precision,
    }
    batch.output.mkdir(parents=True, exist_ok=True)
    path = batch.output / RUN_FILE
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise BatchError(f"{path} cannot be read: {error}") from error
        if different := [key for key in record if before.get(key) != record[key]]:
            said = "; ".join(f"{key} was {before.get(key)}, is {record[key]}" for key in different)
            raise BatchError(f"{batch.output} has the answers of another run: {said}")
    elif any(batch.output.iterdir()):
        raise BatchError(f"{batch.output} is not empty, and no run of this kind: name a new folder")
    else:
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        scratch.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(scratch, path)
    for scratch in batch.output.glob(".part-*"):
        # Of a process that was killed; one that still works makes a new one.
        scratch.unlink(missing_ok=True)


def _is_done(path: Path) -> bool:
    """Whether the file is there and whole: a machine that lost its power may have left a part of it."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        read_metadata(path)
    except FileNotFoundError:
        return False
    except ArrowException:
        path.unlink()
        return False
    return True
