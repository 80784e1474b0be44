"""Sequences of requests: each is one event stream, known by the model's name and the client's correlation id.

A request with the start flag opens the stream, in the place of one with the same id that is still open; one with the
end flag closes it. Requests of a sequence are computed in the order in which they came. One whose client leaves is
computed all the same, so that the sequence has no hole in it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from spikeserve.access import Gate
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.oip.events import SequenceId, Step
from spikeserve.repository import LoadedModel
from spikeserve.streams import Stream, Streams, WindowAnswer

Key = tuple[str, SequenceId]

# Ids of sequences that are over, kept to tell their clients so.
_MOST_GONE = 4096


@dataclass(frozen=True)
class StepAnswer:
    """The windows that a request closed; `before` of them were answered earlier in the sequence."""

    model: LoadedModel
    before: int
    answers: list[WindowAnswer]
    waited_seconds: float
    computed_seconds: float


class Sequences:
    """All that are open. To be used on one event loop."""

    def __init__(self, streams: Streams, gate: Gate) -> None:
        self._streams = streams
        self._gate = gate
        self._live: dict[Key, _Sequence] = {}
        self._gone: OrderedDict[Key, str] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._live)

    def model(self, name: str, id: SequenceId) -> LoadedModel | None:
        """Of the sequence that is open under this id; None where there is none, or it is being opened."""
        sequence = self._live.get((name, id))
        return None if sequence is None or sequence.stream is None else sequence.stream.model

    async def run(self, name: str, version: str | None, step: Step) -> StepAnswer:
        """Raises ServiceError: IMPOSSIBLE for a sequence that is not open here, saying why, or is of another version
        than `version`; and as Streams.open and Stream.feed."""
        key = (name, step.id)
        if step.start:
            sequence = self._begin(key, version)
        else:
            found = self._live.get(key)
            if found is None:
                raise self._not_open(key)
            sequence = found
        if step.end:
            self._forget(key, sequence, "it was ended by an earlier request")
        return await asyncio.shield(self._task(self._step(key, sequence, version, step)))

    def _begin(self, key: Key, version: str | None) -> _Sequence:
        before = self._live.get(key)
        if before is not None:
            self._task(before.close())
        self._gone.pop(key, None)
        self._live[key] = sequence = _Sequence(version)
        return sequence

    async def _step(
        self, key: Key, sequence: _Sequence, version: str | None, step: Step
    ) -> StepAnswer:
        loop = asyncio.get_running_loop()
        came = loop.time()
        async with sequence.turn:
            began = loop.time()
            if step.options is not None:
                try:
                    sequence.stream = await self._streams.open(step.options)
                except BaseException as error:
                    self._forget(key, sequence, f"it could not be opened: {error}")
                    raise
                self._task(self._watch(key, sequence, sequence.stream))
            stream = sequence.stream
            if stream is None or stream.closed:
                raise self._not_open(key)
            if version not in (None, sequence.asked, stream.model.version):
                raise ServiceError(
                    ErrorKind.IMPOSSIBLE,
                    f"sequence {step.id} of model {key[0]} is of version {stream.model.version}, not {version}",
                )
            before = sequence.windows
            try:
                with self._gate.metered(sequence):
                    answers = await self._computed(stream, step)
                    sequence.count(answers)
            except BaseException as error:
                quota = isinstance(error, ServiceError) and error.kind is ErrorKind.OVER_QUOTA
                # Of a sequence that fails at once its client will think that it is not there; and of one whose answers
                # were kept back, that nothing is missing.
                if step.end or step.options is not None or quota:
                    stream.end(None)
                    self._forget(key, sequence, f"a request failed: {error}")
                raise
            if step.end:
                stream.end(None)
            return StepAnswer(stream.model, before, answers, began - came, loop.time() - began)

    async def _computed(self, stream: Stream, step: Step) -> list[WindowAnswer]:
        answers: list[WindowAnswer] = []
        if len(step.events):
            answers += await stream.feed(step.events)
        if step.advance_us is not None:
            try:
                answers += await stream.advance(step.advance_us)
            except ServiceError as error:
                if answers:  # nobody will get them, and the sequence cannot go on without
                    stream.end(error.again())
                raise
        if step.end:
            answers += await stream.finish()
        return answers

    async def _watch(self, key: Key, sequence: _Sequence, stream: Stream) -> None:
        """Until the stream is closed, by whomever."""
        reason = await stream.wait_closed()
        if reason is not None:
            self._forget(key, sequence, reason.message)

    def _forget(self, key: Key, sequence: _Sequence, reason: str) -> None:
        if self._live.get(key) is not sequence:
            return
        del self._live[key]
        self._gone[key] = reason
        while len(self._gone) > _MOST_GONE:
            self._gone.popitem(last=False)

    def _not_open(self, key: Key) -> ServiceError:
        reason = self._gone.get(key, "this server has none under this id")
        return ServiceError(
            ErrorKind.IMPOSSIBLE,
            f"inference request for sequence {key[1]} to model {key[0]!r} must specify the START flag on the first "
            f"request of the sequence: {reason}",
        )

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # The client may not be there any more to be told how it ended.
        if not task.cancelled():
            task.exception()


class _Sequence:
    """`turn` is for the requests, one after the other; `asked` the version or label that the first one named."""

    def __init__(self, asked: str | None) -> None:
        self.asked = asked
        self.turn = asyncio.Lock()
        self.stream: Stream | None = None
        self.windows = self.events = 0

    @property
    def drops(self) -> tuple[int, ...]:
        return (0, 0, 0, 0) if self.stream is None else self.stream.drops

    def count(self, answers: list[WindowAnswer]) -> None:
        self.windows += len(answers)
        self.events += sum(answer.events for answer in answers)

    async def close(self) -> None:
        """When the requests that came before are done."""
        async with self.turn:
            if self.stream is not None:
                self.stream.end(None)
