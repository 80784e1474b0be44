"""Classify live event streams, window by window: what the server does, free of any protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch

from spikeserve.classify import DEFAULT_TOP_K, Prediction, account, ranked
from spikeserve.engine import EngineStream, RunResult
from spikeserve.engine.readout import RunningReadout, probabilities
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.repository import LoadedModel, Repository
from spikeserve.settings import Settings
from spiketrain.events.decisions import Decider, Decision
from spiketrain.events.types import Events
from spiketrain.events.windows import Window, Windows
from spiketrain.manifest import EventInput
from spiketrain.manifest import Window as WindowRule
from spiketrain.stream_rules import MAX_FILTERS, DecisionRule, FilterRule, size_after

MAX_LATENESS_US = 10_000_000

# Windows handed to the engine before their answers are awaited, so that it need not wait for this side.
_AHEAD = 16
# Messages with more events are cut into windows in a thread, so that the event loop stays free.
_INLINE_EVENTS = 1 << 14


@dataclass(frozen=True)
class StreamOptions:
    """`sensor` is width and height, checked where it is given. Stream time starts at `start_us`, else at the first
    event; a window waits `lateness_us` for events that come out of order.

    `filters` come before the model's own, and lead from `sensor` to the one it was made for. Another `window` rule than
    the model's is refused without `force`. `decision` replaces the model's own rule, if it has one.
    """

    model: str | None = None
    version: str | None = None
    sensor: tuple[int, int] | None = None
    start_us: int | None = None
    lateness_us: int = 0
    rates: bool = True
    filters: tuple[FilterRule, ...] = ()
    window: WindowRule | None = None
    force: bool = False
    decision: DecisionRule | None = None


@dataclass(frozen=True)
class WindowAnswer:
    """The answer to the window [start_us, end_us) with so many events in it.

    `predictions` is running (engine.readout.RunningReadout), `raw` of this window only. `late`, `outside`, `skipped` and
    `filtered` count from the stream's beginning. `latency_seconds` runs from the message that closed the window to the answer.
    `decision` is None where none was asked for; no decision is one without an index.
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


class Streams:
    """All open streams. To be used on one event loop."""

    def __init__(self, repository: Repository, metrics: Metrics, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._cutters = ThreadPoolExecutor(settings.decode_threads, "windows")
        self._open: set[Stream] = set()
        self._closed = False
        metrics.watch_streams(lambda: len(self._open))

    async def open(self, options: StreamOptions) -> Stream:
        """Raises ServiceError: NOT_FOUND, IMPOSSIBLE where model and options do not fit, UNAVAILABLE at the limit."""
        model = self._repository.get(options.model, options.version, "events")
        spec = self._input(model, options)
        windows = self._windows(model, spec, options)
        if self._closed:
            raise _shutting_down()
        limit = self._settings.max_streams
        if len(self._open) >= limit:
            raise ServiceError(ErrorKind.UNAVAILABLE, f"{limit} streams are open, the limit", 5.0)
        engine = model.engine.open_stream()
        stream = Stream(
            model,
            spec,
            windows,
            engine,
            options,
            self._settings,
            self._cutters,
            self._open.discard,
        )
        self._open.add(stream)
        return stream

    async def close(self) -> None:
        """Close all streams; those who wait for them are told that the server is shutting down."""
        self._closed = True
        for stream in list(self._open):
            stream.end(_shutting_down())
        self._cutters.shutdown(wait=False, cancel_futures=True)

    def _input(self, model: LoadedModel, options: StreamOptions) -> EventInput:
        """The model's input, from the client's camera on."""
        spec = model.manifest.input
        if not isinstance(spec, EventInput):
            raise _impossible(
                f"model {model.name} takes pictures, not events: post them to /classify"
            )
        if model.bound_to_timesteps:
            raise _impossible(
                f"model {model.name} has parameters for each of its {model.manifest.timesteps} timesteps, "
                "and a stream goes on: use a model with other neurons"
            )
        sensor = options.sensor or spec.sensor
        filters = (*options.filters, *spec.filters)
        if len(filters) > MAX_FILTERS:
            raise _impossible(
                f"{len(options.filters)} filters and the {len(spec.filters)} of model {model.name} are more than "
                f"{MAX_FILTERS}"
            )
        try:
            left = size_after(options.filters, sensor)
        except ValueError as error:
            raise _impossible(str(error)) from error
        if left != spec.sensor:
            asked, made_for = (f"{width} x {height}" for width, height in (left, spec.sensor))
            after = " after the filters" if options.filters else ""
            raise _impossible(
                f"sensor is {asked}{after}: model {model.name} was made for {made_for}"
            )
        window = options.window or spec.window
        if window != spec.window and not options.force:
            raise _impossible(
                f"windows by {_rule(window)} were asked for: model {model.name} was trained with windows by "
                f"{_rule(spec.window)}, and may be wrong with others; set force to have them all the same"
            )
        changes = {"sensor": sensor, "filters": filters, "window": window}
        return spec.model_copy(update=changes)

    def _windows(self, model: LoadedModel, spec: EventInput, options: StreamOptions) -> Windows:
        if not 0 <= options.lateness_us <= MAX_LATENESS_US:
            raise _impossible(
                f"lateness_us is {options.lateness_us}: it must be from 0 to {MAX_LATENESS_US}"
            )
        try:
            return Windows(spec, options.lateness_us, options.start_us)
        except ValueError as error:
            raise _impossible(f"model {model.name}: {error}") from error


class Stream:
    """One stream. Its calls are served in their order; once one fails with anything but TOO_LARGE or IMPOSSIBLE,
    or is cancelled, the stream is closed, because windows would be missing."""

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
        self._settings = settings
        self._cutters = cutters
        self._forget = forget
        self._running = RunningReadout(model.manifest.readout, model.manifest.timesteps)
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._closed: asyncio.Future[ServiceError | None] = self._loop.create_future()
        self._finished = False
        self._received = self._accepted = self._late = self._outside = self._filtered = 0
        self._idle = self._loop.call_later(settings.stream_idle_seconds, self._expire)

    async def feed(self, events: Events) -> list[WindowAnswer]:
        """The answers to the windows that these events close.

        Raises ServiceError: TOO_LARGE for more events than allowed, or windows (this closes the stream); IMPOSSIBLE
        for times out of range.
        """
        limit = self._settings.max_message_events
        if len(events) > limit:
            raise ServiceError(
                ErrorKind.TOO_LARGE, f"{len(events)} events in one message, the limit is {limit}"
            )
        return await self._run(lambda: self._windows.stream(events), len(events))

    async def advance(self, t_us: int) -> list[WindowAnswer]:
        """No event before `t_us` will come any more. Does nothing before the first event."""
        return await self._run(lambda: iter(self._windows.advance(t_us)), 0)

    async def finish(self) -> list[WindowAnswer]:
        """The last windows, that in progress too. Nothing can be fed any more."""
        answers = await self._run(lambda: iter(self._windows.finish()), 0)
        self._finished = True
        return answers

    async def close(self) -> None:
        """Free what the stream holds. May be called again."""
        self.end(None)

    @property
    def drops(self) -> tuple[int, int, int, int]:
        """Late events, those outside of the sensor, windows skipped, and events filtered, from the stream's beginning."""
        windows = self._windows
        return windows.late, windows.outside, windows.skipped, windows.filtered

    @property
    def decision(self) -> DecisionRule | None:
        return None if self._decider is None else self._decider.rule

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

    async def _run(self, cut: Callable[[], Iterator[Window]], events: int) -> list[WindowAnswer]:
        async with self._turn:
            self._check_open()
            self._idle.cancel()
            try:
                answers = await self._answers(cut, events, time.monotonic())
            except _NothingChangedError as error:
                self._rest()
                raise _impossible(str(error)) from error
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
        self, cut: Callable[[], Iterator[Window]], events: int, began: float
    ) -> list[WindowAnswer]:
        limit = self._settings.max_message_windows
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
        top_k = min(DEFAULT_TOP_K, len(model.manifest.classes))
        rates, operations, energy = account(model, result)
        model.metrics.window()
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
            raise _impossible("the stream was finished: open a new one")

    def _rest(self) -> None:
        """Nothing to do until the next message; not for ever."""
        if not self._closed.done():
            self._idle = self._loop.call_later(self._settings.stream_idle_seconds, self._expire)

    def _expire(self) -> None:
        self.end(
            ServiceError(
                ErrorKind.DEADLINE,
                f"nothing came for {self._settings.stream_idle_seconds:g} s, so the stream was closed",
            )
        )


class _NothingChangedError(Exception):
    """A message was refused before any of it was taken in."""


def _rule(window: WindowRule) -> str:
    terms = ", ".join(f"{k} {v}" for k, v in window.model_dump(exclude={"kind"}).items())
    return f"{window.kind} ({terms})"


def _impossible(message: str) -> ServiceError:
    return ServiceError(ErrorKind.IMPOSSIBLE, message)


def _shutting_down() -> ServiceError:
    return ServiceError(ErrorKind.UNAVAILABLE, "the server is shutting down: try another one", 1.0)
