import asyncio
import threading

import numpy as np
import pytest
import torch

from spikeserve.engine.readout import RunningReadout, probabilities
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.streams import MAX_LATENESS_US, StreamOptions
from spikeserve.streams.stream import _INLINE_EVENTS
from spiketrain.checkpoint import load_checkpoint
from spiketrain.energy import encoder_macs, energy_joules
from spiketrain.events.types import Events
from spiketrain.events.windows import recording_frames
from spiketrain.manifest import CountWindow, DurationWindow, EventInput, NumberWindow
from spiketrain.neurons import GLIFConfig

LONG = 30
MOVES = EventInput(sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=1000))
COUNTED = EventInput(
    sensor=(34, 34), shape=(2, 34, 34), window=CountWindow(events=50, max_microseconds=10**6)
)


def some_events(count=400, span=10_000, seed=0, start=0):
    random = np.random.default_rng(seed)
    return Events(
        t=np.sort(random.integers(start, start + span, count)).astype(np.int64),
        x=random.integers(0, 34, count).astype(np.uint16),
        y=random.integers(0, 34, count).astype(np.uint16),
        p=random.integers(0, 2, count).astype(np.uint8),
    )


def parts(events, count):
    return [events[at] for at in np.array_split(np.arange(len(events)), count)]


async def feed_all(stream, messages):
    answers = [answer for message in messages for answer in await stream.feed(message)]
    return answers + await stream.finish()


def facts(answers):
    """Answers without what depends on time or place."""
    return [
        (
            a.index,
            a.start_us,
            a.end_us,
            a.events,
            a.predictions,
            a.raw,
            a.firing_rates,
            a.synaptic_operations,
        )
        for a in answers
    ]


async def refused(action):
    with pytest.raises(ServiceError) as error:
        await action
    return error.value


async def until(condition):
    for _ in range(LONG * 1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


@pytest.mark.parametrize("readout", ["mean", "vote"])
@pytest.mark.parametrize("spec", [MOVES, COUNTED], ids=["duration", "count"])
async def test_the_answers_are_those_of_the_network_over_the_recording(
    write, streams_of, readout, spec
):
    checkpoint = load_checkpoint(write("moves", spec, readout=readout))
    network, events = checkpoint.network(), some_events()
    frames = torch.from_numpy(recording_frames(events, spec))
    with torch.no_grad():
        run = network(frames[:, None])
    stream = await streams_of().open(StreamOptions(sensor=(34, 34)))
    answers = await feed_all(stream, parts(events, 7))
    assert [a.index for a in answers] == list(range(len(frames)))
    assert sum(a.events for a in answers) == len(events)
    running = RunningReadout(readout, 4)
    for t, answer in enumerate(answers):
        logits = run.logits[t, 0].numpy()
        chances, raw = running.add(logits), probabilities(readout, logits[None])
        assert [p.index for p in answer.predictions] == np.argsort(-chances, kind="stable")[
            :5
        ].tolist()
        assert answer.predictions[0].probability == pytest.approx(chances.max(), abs=1e-6)
        assert answer.raw[0].probability == pytest.approx(raw.max(), abs=1e-6)
        rates = {name: spikes[t].mean().item() for name, spikes in run.spikes.items()}
        assert answer.firing_rates == pytest.approx(rates, abs=1e-6)
        energy = energy_joules(answer.synaptic_operations, encoder_macs(network))
        assert answer.energy_joules == energy
        assert answer.latency_seconds > 0
        assert (answer.model, answer.version) == ("moves", "1")
    assert max(answers[-1].firing_rates.values()) > 0


async def test_how_events_are_split_into_messages_does_not_matter(write, streams_of):
    write("moves", MOVES)
    streams = streams_of()
    events = some_events()
    whole = await feed_all(await streams.open(StreamOptions()), [events])
    pieces = await feed_all(await streams.open(StreamOptions()), parts(events, 50))
    assert facts(whole) == facts(pieces)


async def test_many_streams_at_once_do_not_touch_each_other(write, streams_of):
    write("moves", MOVES)
    streams = streams_of(slots=3)
    recordings = [some_events(seed=seed) for seed in range(8)]
    alone = [await feed_all(await streams.open(StreamOptions()), [events]) for events in recordings]
    opened = [await streams.open(StreamOptions()) for _ in recordings]
    together = await asyncio.gather(
        *(
            feed_all(stream, parts(events, 9))
            for stream, events in zip(opened, recordings, strict=True)
        )
    )
    assert [facts(a) for a in together] == [facts(a) for a in alone]


async def test_a_large_message_is_cut_in_a_thread_with_the_same_answers(write, streams_of):
    write("moves", MOVES)
    streams = streams_of()
    events = some_events(_INLINE_EVENTS + 1000, span=40_000)
    small = await feed_all(await streams.open(StreamOptions()), parts(events, 5))
    large = await feed_all(await streams.open(StreamOptions()), [events])
    assert len(large) == 40
    assert facts(small) == facts(large)
    assert [t for t in threading.enumerate() if t.name.startswith("windows")]


async def test_advancing_closes_windows_without_events(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of().open(StreamOptions(start_us=0, rates=False))
    assert await stream.feed(some_events(10, span=900)) == []
    answers = await stream.advance(3000)
    assert [(a.start_us, a.end_us, a.events) for a in answers] == [
        (0, 1000, 10),
        (1000, 2000, 0),
        (2000, 3000, 0),
    ]
    assert answers[0].firing_rates == {}


async def test_late_and_outside_events_are_counted(write, streams_of, scraped):
    spec = MOVES.model_copy(update={"window": DurationWindow(microseconds=100)})
    write("moves", spec)
    streams = streams_of()
    stream = await streams.open(StreamOptions(start_us=0))
    zeros = np.zeros(3, np.uint16)
    await stream.feed(Events(np.array([50, 150, 250]), zeros, zeros, zeros.astype(np.uint8)))
    x = np.array([0, 40, 0], np.uint16)
    answers = await stream.feed(Events(np.array([20, 260, 350]), x, zeros, zeros.astype(np.uint8)))
    assert [(a.late, a.outside, a.skipped) for a in answers] == [(1, 1, 0)]
    for outcome, expected in (("accepted", 4), ("late", 1), ("outside", 1)):
        value = scraped(streams.metrics, "spikeserve_events_total", model="moves", outcome=outcome)
        assert value == expected
    assert scraped(streams.metrics, "spikeserve_windows_total", model="moves") == 3


async def test_a_window_can_wait_for_events_out_of_order(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of().open(StreamOptions(start_us=0, lateness_us=500))
    zero = np.zeros(1, np.uint16)
    for t in (900, 1200, 950):
        assert await stream.feed(Events(np.array([t]), zero, zero, zero.astype(np.uint8))) == []
    (answer,) = await stream.advance(1500)
    assert (answer.events, answer.late) == (2, 0)


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"model": "typo"}, ErrorKind.NOT_FOUND, "'typo'"),
        ({"model": "alpha"}, ErrorKind.IMPOSSIBLE, "takes pictures, not events"),
        ({"model": "bound"}, ErrorKind.IMPOSSIBLE, "parameters for each of its 4 timesteps"),
        ({"model": "numbered"}, ErrorKind.IMPOSSIBLE, "whole recording"),
        (
            {"sensor": (34, 35)},
            ErrorKind.IMPOSSIBLE,
            "sensor is 34 x 35: model moves was made for 34 x 34",
        ),
        ({"lateness_us": -1}, ErrorKind.IMPOSSIBLE, "lateness_us is -1"),
        ({"lateness_us": MAX_LATENESS_US + 1}, ErrorKind.IMPOSSIBLE, "lateness_us"),
        ({"start_us": 1 << 62 | 1}, ErrorKind.IMPOSSIBLE, "time .* beyond"),
    ],
)
async def test_streams_that_cannot_be_opened(write, streams_of, options, kind, says, scraped):
    write("alpha")
    write("bound", MOVES, neuron=GLIFConfig())
    write("moves", MOVES)
    write("numbered", MOVES.model_copy(update={"window": NumberWindow(windows=4)}))
    streams = streams_of()
    error = await refused(streams.open(StreamOptions(**{"model": "moves"} | options)))
    assert error.kind is kind
    with pytest.raises(ServiceError, match=says):
        raise error
    assert scraped(streams.metrics, "spikeserve_open_streams") == 0


async def test_the_number_of_streams_is_limited(write, streams_of, scraped):
    write("moves", MOVES)
    streams = streams_of(max_streams=2)
    first, _ = [await streams.open(StreamOptions()) for _ in range(2)]
    error = await refused(streams.open(StreamOptions()))
    assert error.kind is ErrorKind.UNAVAILABLE
    assert error.retry_after
    assert scraped(streams.metrics, "spikeserve_open_streams") == 2
    await first.close()
    await first.close()
    assert scraped(streams.metrics, "spikeserve_open_streams") == 1
    await streams.open(StreamOptions())


async def test_closing_gives_the_slot_back_and_ends_the_stream(write, streams_of):
    write("moves", MOVES)
    streams = streams_of()
    stream = await streams.open(StreamOptions())
    await stream.feed(some_events())
    engine = stream.model.engine
    assert engine.slots_in_use == 1
    await stream.close()
    assert await stream.wait_closed() is None
    await until(lambda: engine.slots_in_use == 0)
    assert (await refused(stream.feed(some_events()))).kind is ErrorKind.IMPOSSIBLE


async def test_after_finishing_nothing_can_be_fed(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of().open(StreamOptions())
    assert await stream.finish() == []
    assert (await refused(stream.feed(some_events()))).kind is ErrorKind.IMPOSSIBLE


async def test_a_message_with_too_many_events_is_refused_and_the_stream_goes_on(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of(max_message_events=100).open(StreamOptions())
    assert (await refused(stream.feed(some_events(101)))).kind is ErrorKind.TOO_LARGE
    assert len(await feed_all(stream, [some_events(100)])) == 10


async def test_a_message_over_too_many_windows_ends_the_stream(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of(max_message_windows=5).open(StreamOptions())
    error = await refused(stream.feed(some_events()))
    assert error.kind is ErrorKind.TOO_LARGE
    assert "more than 5 windows" in error.message
    assert (await stream.wait_closed()).kind is ErrorKind.TOO_LARGE


async def test_a_time_out_of_range_is_refused_and_the_stream_goes_on(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of().open(StreamOptions())
    zero = np.zeros(1, np.uint16)
    far = Events(np.array([1 << 62 | 1]), zero, zero, zero.astype(np.uint8))
    for action in (stream.feed(far), stream.advance(-(1 << 63))):
        assert (await refused(action)).kind is ErrorKind.IMPOSSIBLE
    assert len(await feed_all(stream, [some_events()])) == 10


async def test_a_silent_stream_is_closed(write, streams_of, scraped):
    write("moves", MOVES)
    streams = streams_of(stream_idle_seconds=0.05)
    stream = await streams.open(StreamOptions())
    await stream.feed(some_events(10))
    reason = await asyncio.wait_for(stream.wait_closed(), LONG)
    assert reason.kind is ErrorKind.DEADLINE
    assert "0.05 s" in reason.message
    assert (await refused(stream.feed(some_events()))).kind is ErrorKind.DEADLINE
    assert scraped(streams.metrics, "spikeserve_open_streams") == 0


async def test_a_stream_that_waits_for_its_answers_is_not_silent(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of(stream_idle_seconds=0.05).open(StreamOptions())
    executor = stream.model.engine._pool.executor
    step, gate = executor.step, threading.Event()
    executor.step = lambda slots, frames: (gate.wait(LONG), step(slots, frames))[1]
    task = asyncio.create_task(stream.feed(some_events()))
    await asyncio.sleep(0.2)
    gate.set()
    assert len(await task) == 9


async def test_a_crash_of_the_engine_ends_its_streams_and_new_ones_work(write, streams_of):
    write("moves", MOVES)
    streams = streams_of()
    stream = await streams.open(StreamOptions())
    await stream.feed(some_events())
    executor = stream.model.engine._pool.executor

    def crash(slots, frames):
        raise RuntimeError("burnt")

    executor.step = crash
    assert (await refused(stream.feed(some_events(start=20_000)))).kind is ErrorKind.INTERNAL
    assert (await stream.wait_closed()).kind is ErrorKind.INTERNAL
    await until(lambda: streams.repository.ready)
    assert len(await feed_all(await streams.open(StreamOptions()), [some_events()])) == 10


async def test_a_message_given_up_in_the_midst_ends_the_stream(write, streams_of):
    write("moves", MOVES)
    stream = await streams_of().open(StreamOptions())
    executor = stream.model.engine._pool.executor
    step, gate = executor.step, threading.Event()
    executor.step = lambda slots, frames: (gate.wait(LONG), step(slots, frames))[1]
    task = asyncio.create_task(stream.feed(some_events()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert (await stream.wait_closed()).kind is ErrorKind.CANCELLED


async def test_messages_are_taken_in_their_order(write, streams_of, monkeypatch):
    monkeypatch.setattr(
        "spikeserve.streams.stream._INLINE_EVENTS", 0
    )  # cut in threads, all at once
    write("moves", MOVES)
    streams = streams_of()
    messages = parts(some_events(), 10)
    one_by_one = await feed_all(await streams.open(StreamOptions()), messages)
    stream = await streams.open(StreamOptions())
    answers = await asyncio.gather(*(stream.feed(message) for message in messages), stream.finish())
    assert facts([a for some in answers for a in some]) == facts(one_by_one)


async def test_closing_the_server_tells_the_streams(write, streams_of):
    write("moves", MOVES)
    streams = streams_of()
    stream = await streams.open(StreamOptions())
    await stream.feed(some_events(_INLINE_EVENTS + 1))
    await streams.close()
    assert (await stream.wait_closed()).kind is ErrorKind.UNAVAILABLE
    assert (await refused(streams.open(StreamOptions()))).kind is ErrorKind.UNAVAILABLE
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("windows")])
