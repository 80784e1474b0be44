"""One stream: events in, one answer for each window out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch

from spikeserve.classify import DEFAULT_TOP_K, Prediction, account, ranked
from spikeserve.engine import EngineStream, RunResult
from spikeserve.engine.readout import RunningReadout, probabilities
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.probes import StreamWatch
from spikeserve.repository import LoadedModel
from spikeserve.settings import Settings
from spikeserve.streams.terms import StreamOptions, impossible, was_silent
from spiketrain.events.decisions import Decider, Decision
from spiketrain.events.memory import Memory, Remembers, expect
from spiketrain.events.types import Events
from spiketrain.events.windows import Window, Windows
from spiketrain.manifest import EventInput
from spiketrain.stream_rules import DecisionRule

# Windows handed to the engine before their answers are awaited, so that it need not wait for this side.
_AHEAD = 16
# Messages with more events are cut into windows in a thread, so that the event loop stays free.
_INLINE_EVENTS = 1 << 14


@dataclass(frozen=True)
class WindowAnswer:
    """The answer to the window [start_us, end_us) with so many events in it.

    `predictions` is running (engine.readout.RunningReadout), `raw` of this window only. `late`, `outside`, `skipped` and
    `filtered` count from the stream's beginning. `latency_seconds` runs from the message that closed the window to the answer.
    `decision` is None where none was asked for; no decision is one without an index. The last three count a client's
    numbered packets: the highest number, those left out and those sent again (streams.session).
    """

    model: str
    version: str
    index: int
    start_us: int
    end_us: int
    events: int
    predictions: tuple[Prediction, ...]
    raw: tuple[Prediction, ...]
    firing_rates: dict[str, float]
    synaptic_operations: int
    energy_joules: float
    late: int
    outside: int
    skipped: int
    latency_seconds: float
    filtered: int = 0
    decision: Decision | None = None
    sequence: int = 0
    lost_packets: int = 0
    repeated_packets: int = 0


class Stream(Remembers):
    """One stream. Its calls are served in their order; once one fails with anything but TOO_LARGE or IMPOSSIBLE,
    or is cancelled, the stream is closed, because windows would be missing."""

    MEMORY: ClassVar[dict[str, Any]] = {
        "_windows": Windows,
        "_running": RunningReadout,
        "_finished": bool,
        "_received": int,
        "_accepted": int,
        "_late": int,
        "_outside": int,
        "_filtered": int,
    }

    def __init__(
        self,
        model: LoadedModel,
        spec: EventInput,
        windows: Windows,
        engine: EngineStream,
        options: StreamOptions,
        settings: Settings,
        cutters: ThreadPoolExecutor,
        forget: Callable[[Stream], None],
    ) -> None:
        self.model = model
        self.spec = spec
        rule = options.decision or model.manifest.decision
        self._decider = Decider(rule, len(model.manifest.classes)) if rule is not None else None
        self._windows = windows
        self._engine = engine
        self._rates = options.rates
        self._top_k = options.top_k or min(DEFAULT_TOP_K, len(model.manifest.classes))
        self._settings = settings
        self._cutters = cutters
        self._forget = forget
        self._watch = StreamWatch(model.watch)
        self._running = RunningReadout(model.manifest.readout, model.manifest.timesteps)
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._closed: asyncio.Future[ServiceError | None] = self._loop.create_future()
        self._finished = False
        self._received = self._accepted = self._late = self._outside = self._filtered = 0
        self.silent: Callable[[], bool] = lambda: False
        """Told when nothing has come for too long; the stream is closed unless it takes care of that."""
        self._idle = self._loop.call_later(settings.stream_idle_seconds, self._expire)

    async def feed(self, events: Events, most_windows: int | None = None) -> list[WindowAnswer]:
        """The answers to the windows that these events close.

        Raises ServiceError: TOO_LARGE for more events than allowed, or windows (this closes the stream; `most_windows`
        is the setting's unless given); IMPOSSIBLE for times out of range.
        """
        limit = self._settings.max_message_events
        if len(events) > limit:
            raise ServiceError(
                ErrorKind.TOO_LARGE, f"{len(events)} events in one message, the limit is {limit}"
            )
        return await self._run(lambda: self._windows.stream(events), len(events), most_windows)

    async def advance(self, t_us: int) -> list[WindowAnswer]:
        """No event before `t_us` will come any more. Does nothing before the first event."""
        return await self._run(lambda: self._windows.pass_to(t_us), 0)

    async def finish(self, most_windows: int | None = None) -> list[WindowAnswer]:
        """The last windows, that in progress too. Nothing can be fed any more. Raises ServiceError as `feed`."""
        answers = await self._run(self._windows.drain, 0, most_windows)
        self._finished = True
        return answers

    async def save(self) -> Memory:
        """All that it remembers, after what was fed before. The stream goes on. Raises ServiceError where it was closed."""
        async with self._turn:
            engine = None
            if not self._finished:
                self._check_open()
                engine = await asyncio.wrap_future(self._engine.save())
            decider = None if self._decider is None else self._decider.memory()
            return self.memory() | {"decider": decider, "engine": engine}

    def remember(self, memory: Memory) -> None:
        """In a fresh stream, what `save` gave, without the engine's part. Raises ValueError."""
        expect(memory, (*(name.lstrip("_") for name in self.MEMORY), "decider"))
        super().remember({name: value for name, value in memory.items() if name != "decider"})
        if (self._decider is None) != (memory["decider"] is None):
            raise ValueError("memory: decisions on one side only")
        if self._decider is not None:
            self._decider.remember(memory["decider"])

    async def close(self) -> None:
        """Free what the stream holds. May be called again."""
        self.end(None)

    @property
    def drops(self) -> tuple[int, int, int, int]:
        """Late events, those outside of the sensor, windows skipped, and events filtered, from the stream's beginning."""
        windows = self._windows
        return windows.late, windows.outside, windows.skipped, windows.filtered

    @property
    def next_window(self) -> int:
        return self._windows.next_index

    @property
    def decision(self) -> DecisionRule | None:
        return None if self._decider is None else self._decider.rule

    @property
    def closed(self) -> bool:
        return self._closed.done()

    @property
    def reason(self) -> ServiceError | None:
        """Why the server closed the stream, where it did."""
        reason = self._closed.result() if self._closed.done() else None
        return None if reason is None else reason.again()

    async def wait_closed(self) -> ServiceError | None:
        """Returns when the stream is closed: None where the caller closed it, else why it was."""
        return await asyncio.shield(self._closed)

    def end(self, reason: ServiceError | None) -> None:
        """Close, telling whoever waits why."""
        if not self._closed.done():
            self._closed.set_result(reason)
            self._idle.cancel()
            self._engine.close()
            self._forget(self)

    async def _run(
        self, cut: Callable[[], Iterator[Window]], events: int, most_windows: int | None = None
    ) -> list[WindowAnswer]:
        async with self._turn:
            self._check_open()
            self._idle.cancel()
            try:
                most = self._settings.max_message_windows if most_windows is None else most_windows
                answers = await self._answers(cut, events, most, time.monotonic())
            except _NothingChangedError as error:
                self._rest()
                raise impossible(str(error)) from error
            except ServiceError as error:
                self.end(error)
                raise
            except BaseException:
                self.end(
                    ServiceError(
                        ErrorKind.CANCELLED, "the stream was given up in the midst of a message"
                    )
                )
                raise
            self._rest()
            return answers

    async def _answers(
        self, cut: Callable[[], Iterator[Window]], events: int, limit: int, began: float
    ) -> list[WindowAnswer]:
        try:
            windows = cut()
            chunk = await self._next(windows, events)
        except ValueError as error:  # a time out of range
            raise _NothingChangedError(str(error)) from error
        answers: list[WindowAnswer] = []
        while chunk:
            if len(answers) + len(chunk) > limit:
                raise ServiceError(
                    ErrorKind.TOO_LARGE,
                    f"one message closes more than {limit} windows: send smaller ones; the stream was closed",
                )
            futures = [self._engine.submit(torch.from_numpy(window.frame)) for window in chunk]
            results = await asyncio.gather(*map(asyncio.wrap_future, futures))
            latency = time.monotonic() - began
            answers += [self._answer(*pair, latency) for pair in zip(chunk, results, strict=True)]
            chunk = await self._next(windows, events)
        self._count(events)
        return answers

    async def _next(self, windows: Iterator[Window], events: int) -> list[Window]:
        if events <= _INLINE_EVENTS:
            return list(islice(windows, _AHEAD))
        return await self._loop.run_in_executor(
            self._cutters, lambda: list(islice(windows, _AHEAD))
        )

    def _answer(self, window: Window, result: RunResult, latency: float) -> WindowAnswer:
        model = self.model
        top_k = self._top_k
        rates, operations, energy = account(model, result)
        model.metrics.window()
        self._watch.window(window.frame, result)
        model.metrics.stages["queue"].observe(result.queue_seconds)
        model.metrics.stages["compute"].observe(result.compute_seconds)
        raw = probabilities(model.manifest.readout, result.logits)
        return WindowAnswer(
            model=model.name,
            version=model.version,
            index=window.index,
            start_us=window.start_us,
            end_us=window.end_us,
            events=window.events,
            predictions=ranked(model, self._running.add(result.logits[0]), top_k),
            raw=ranked(model, raw, top_k),
            firing_rates=rates if self._rates else {},
            synaptic_operations=operations,
            energy_joules=energy,
            late=self._windows.late,
            outside=self._windows.outside,
            skipped=self._windows.skipped,
            latency_seconds=latency,
            filtered=self._windows.filtered,
            decision=None
            if self._decider is None
            else self._decider.add(
                raw,
                window=window.index,
                start_us=window.start_us,
                end_us=window.end_us,
                events=window.events,
            ),
        )

    def _count(self, events: int) -> None:
        """Tell the metrics. An event that waits for late ones counts as accepted until it turns out late itself."""
        windows = self._windows
        self._received += events
        dropped = windows.late + windows.outside + windows.filtered
        accepted = max(self._accepted, self._received - dropped)
        self.model.metrics.received(
            accepted - self._accepted,
            windows.late - self._late,
            windows.outside - self._outside,
            windows.filtered - self._filtered,
        )
        self._filtered = windows.filtered
        self._accepted, self._late, self._outside = accepted, windows.late, windows.outside

    def _check_open(self) -> None:
        if self._closed.done():
            reason = self._closed.result()
            raise (
                reason.again()
                if reason
                else ServiceError(ErrorKind.IMPOSSIBLE, "the stream is closed")
            )
        if self._finished:
            raise impossible("the stream was finished: open a new one")

    def wake(self) -> None:
        """Its client is there again, so that it may be silent for as long as any other."""
        self._idle.cancel()
        self._rest()

    def _rest(self) -> None:
        """Nothing to do until the next message; not for ever."""
        if not self._closed.done():
            self._idle = self._loop.call_later(self._settings.stream_idle_seconds, self._expire)

    def _expire(self) -> None:
        if not self.silent():
            self.end(was_silent(self._settings))


class _NothingChangedError(Exception):
    """A message was refused before any of it was taken in."""
