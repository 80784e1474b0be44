"""One process that works: a model in memory, pieces in, Parquet files out."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from spikeserve.batch.pieces import BatchError, Item, Piece
from spikeserve.classify import Classifier, ClassifyRequest, ExitName
from spikeserve.engine import Priority
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.repository import LoadedModel, Repository
from spikeserve.settings import Settings
from spikeserve.streams import Streams
from spikeserve.streams.recordings import Recordings
from spikeserve.streams.terms import StreamOptions

# Not the item's fault: its piece is to be done again.
_OURS = (ErrorKind.INTERNAL, ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE, ErrorKind.CANCELLED)


@dataclass(frozen=True)
class Job:
    """What is done to each item, and where the answers go. `settings` are the server's, with one file as its models."""

    settings: dict[str, Any]
    model: str
    version: str
    output: str
    exit: ExitName | None = None
    risk: float | None = None
    timesteps: int | None = None


class Done(NamedTuple):
    """Of one piece: items, those that could not be answered, and what the answers took."""

    number: int
    items: int
    failed: int
    seconds: float


@dataclass
class _Rows:
    key: list[str] = field(default_factory=list)
    label: list[str | None] = field(default_factory=list)
    index: list[int | None] = field(default_factory=list)
    probability: list[float | None] = field(default_factory=list)
    probabilities: list[list[float] | None] = field(default_factory=list)
    timesteps: list[int | None] = field(default_factory=list)
    synaptic_operations: list[int | None] = field(default_factory=list)
    energy_joules: list[float | None] = field(default_factory=list)
    error: list[str | None] = field(default_factory=list)


class _Answer(NamedTuple):
    probabilities: list[float]
    timesteps: int
    synaptic_operations: int
    energy_joules: float


def schema() -> Any:
    """Of the answers: a row for each item. `timesteps` are the windows of a recording; `error` is null, or all else is."""
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            ("label", pa.string()),
            ("index", pa.int32()),
            ("probability", pa.float32()),
            ("probabilities", pa.list_(pa.float32())),
            ("timesteps", pa.int32()),
            ("synaptic_operations", pa.int64()),
            ("energy_joules", pa.float64()),
            ("error", pa.string()),
        ]
    )


class Worker:
    """Loads the model when it is made. Raises BatchError where that fails."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loop = asyncio.new_event_loop()
        settings = Settings(**job.settings)
        metrics = Metrics()
        self._repository = Repository(settings, metrics)
        self._repository.load_all()
        # One file is one model, whose version is in the name that it had in its folder.
        self._model = chosen(self._repository, None, None)
        self._classifier = Classifier(self._repository, metrics, settings)
        self._streams = Streams(self._repository, metrics, settings)
        self._recordings = Recordings(self._streams, settings)
        # As many more as there are slots wait, so that a free slot finds one.
        self._at_once = min(2 * settings.slots, settings.max_queue)

    def do(self, piece: Piece) -> Done:
        """Writes the piece's answers, unless they are there. Raises BatchError, OSError."""
        return self._loop.run_until_complete(self._do(piece))

    def close(self) -> None:
        self._loop.run_until_complete(self._streams.close())
        self._classifier.close()
        self._repository.close()
        self._loop.close()

    async def _do(self, piece: Piece) -> Done:
        began = self._loop.time()
        rows = _Rows()
        items = piece.items()
        while chunk := await asyncio.to_thread(_some, items, self._at_once):
            answers = await asyncio.gather(*(self._answer(content) for _, content in chunk))
            for (key, _), answer in zip(chunk, answers, strict=True):
                self._add(rows, key, answer)
        await asyncio.to_thread(self._write, piece, rows)
        failed = sum(error is not None for error in rows.error)
        return Done(piece.number, len(rows.key), failed, self._loop.time() - began)

    async def _answer(self, content: bytes) -> _Answer | str:
        """The reason instead, for an item that cannot be answered."""
        try:
            if self._model.kind == "image":
                return await self._picture(content)
            return await self._recording(content)
        except ServiceError as error:
            if error.kind in _OURS:
                raise BatchError(f"the model cannot answer: {error.message}") from error
            return error.message

    async def _picture(self, content: bytes) -> _Answer:
        job, classes = self._job, len(self._model.manifest.classes)
        result = await self._classifier.classify(
            ClassifyRequest(
                content,
                self._model.name,
                self._model.version,
                classes,
                job.timesteps,
                rates=False,
                exit=job.exit,
                risk=job.risk,
                priority=Priority.NORMAL,
            )
        )
        return _Answer(
            _by_index(result.predictions, classes),
            result.timesteps_used,
            result.synaptic_operations,
            result.energy_joules,
        )

    async def _recording(self, content: bytes) -> _Answer | str:
        model, classes = self._model, len(self._model.manifest.classes)
        options = StreamOptions(model=model.name, version=model.version, top_k=classes)
        result = await self._recordings.classify(content, options)
        if result.damage is not None:
            return result.damage
        return _Answer(
            _by_index(result.answers[-1].predictions, classes),
            len(result.answers),
            sum(each.synaptic_operations for each in result.answers),
            sum(each.energy_joules for each in result.answers),
        )

    def _add(self, rows: _Rows, key: str, answer: _Answer | str) -> None:
        rows.key.append(key)
        reason = answer if isinstance(answer, str) else None
        rows.error.append(reason)
        if isinstance(answer, str):
            for column in (rows.label, rows.index, rows.probability, rows.probabilities):
                column.append(None)
            for column in (rows.timesteps, rows.synaptic_operations, rows.energy_joules):
                column.append(None)
            return
        best = max(range(len(answer.probabilities)), key=answer.probabilities.__getitem__)
        rows.label.append(self._model.manifest.classes[best])
        rows.index.append(best)
        rows.probability.append(answer.probabilities[best])
        rows.probabilities.append(answer.probabilities)
        rows.timesteps.append(answer.timesteps)
        rows.synaptic_operations.append(answer.synaptic_operations)
        rows.energy_joules.append(answer.energy_joules)

    def _write(self, piece: Piece, rows: _Rows) -> None:
        """Under another name first: a file with its own name is whole, whatever happens to who writes it."""
        import pyarrow as pa
        from pyarrow.parquet import write_table

        digest = self._model.manifest.digest
        about = {"model": self._job.model, "version": self._job.version, "digest": digest}
        table = pa.table(vars(rows), schema=schema().with_metadata(about))
        target = Path(self._job.output, piece.file_name)
        scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            write_table(table, scratch, compression="zstd")
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)


def chosen(repository: Repository, name: str | None, version: str | None) -> LoadedModel:
    """The model that was asked for, or the only one. Raises BatchError."""
    ready = [each for each in repository.models() if each.state == "ready"]
    if name is None and len({each.name for each in ready}) == 1:
        name = ready[0].name
    if name is None:
        faults = [f"{each.path}: {each.reason}" for each in repository.models() if each.reason]
        named = ", ".join(sorted({each.name for each in ready}))
        raise BatchError(f"which model? --model, one of {named}" if named else "; ".join(faults))
    try:
        kinds = {each.manifest.input.kind for each in ready if each.name == name and each.manifest}
        return repository.get(name, version, next(iter(kinds), "image"))
    except ServiceError as error:
        raise BatchError(error.message) from None


def _some(items: Iterator[Item], count: int) -> list[Item]:
    return list(islice(items, count))


def _by_index(predictions: Any, classes: int) -> list[float]:
    values = [0.0] * classes
    for each in predictions:
        values[each.index] = each.probability
    return values
