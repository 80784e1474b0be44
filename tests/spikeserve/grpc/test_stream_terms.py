"""What a client may ask of a stream: filters, decisions, other windows, a camera's own words; and packets that were lost."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import pairwise

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import AsyncStreamClient
from spikeserve.engine import EngineStream
from spikeserve.grpc import rules
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.streams import StreamOptions
from spiketrain.events import Decider, FilterChain, recording_frames
from spiketrain.events.types import Events
from spiketrain.manifest import CountWindow, DurationWindow, EventInput
from spiketrain.stream_rules import (
    BackgroundActivity,
    DecisionRule,
    DownSample,
    HotPixels,
    InvertPolarity,
    LeakyEvidence,
    Orient,
    RateLimit,
    Refractory,
    Region,
    VoteEvidence,
)

Packet = Callable[..., pb.EventMessage]

END = pb.EventMessage(end=pb.EndOfStream())
FILTERS = (
    Region(x=2, y=0, width=68, height=68, crop=True),
    HotPixels(rate_hz=150.0),
    Refractory(period_us=2000),
    BackgroundActivity(support_us=3000),
    RateLimit(events_per_second=30_000, period_us=5000),
    DownSample(factor=2),
    Orient(operation="rotate-90"),
    InvertPolarity(),
)


def opening(**fields: object) -> pb.EventMessage:
    return pb.EventMessage(open=pb.OpenStream(**{"start_us": 0} | fields))


async def converse(
    stub: SpikeServeStub, messages: Iterable[pb.EventMessage]
) -> list[pb.EventAnswer]:
    return [answer async for answer in stub.StreamEvents(iter(list(messages)))]


def windows(answers: list[pb.EventAnswer]) -> list[pb.WindowAnswer]:
    return [answer.window for answer in answers if answer.WhichOneof("kind") == "window"]


async def refusal(stub: SpikeServeStub, **fields: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await converse(stub, [opening(**fields)])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.details() or ""


def camera_events(count: int = 8000) -> Events:
    """200 ms of noise on 72 x 68 pixels, some of it beyond them."""
    random = np.random.default_rng(3)
    return Events(
        np.sort(random.integers(0, 200_000, count)),
        (74 * random.random(count) ** 2).astype(np.uint16),
        random.integers(0, 68, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The frames that reach the engine."""
    frames: list[np.ndarray] = []
    submit = EngineStream.submit

    def record(self, frame, *rest):
        frames.append(frame.numpy().copy())
        return submit(self, frame, *rest)

    monkeypatch.setattr(EngineStream, "submit", record)
    return frames


@pytest.mark.parametrize(
    "window",
    [None, CountWindow(events=150, max_microseconds=8000)],
    ids=["the-models-own", "forced"],
)
async def test_streamed_in_random_chunks_a_recording_gives_the_frames_it_gives_offline(
    server: Server, seen: list[np.ndarray], window
) -> None:
    model = server.repository.get("moves", None, "events")
    spec = EventInput.model_validate(
        model.manifest.input.model_dump()
        | {"sensor": (72, 68), "filters": FILTERS}
        | ({"window": window} if window else {})
    )
    events = camera_events()
    expected = recording_frames(events, spec, start_us=0)
    answers = []
    random = np.random.default_rng(0)
    for lateness, order in ((0, events), (3000, None)):
        if order is None:
            # Out of order, by less than the lateness.
            delays = random.integers(0, 3000, len(events))
            order = events[np.argsort(events.t + delays, kind="stable")]
            expected = recording_frames(order, spec, start_us=0)
        seen.clear()
        options = StreamOptions(
            start_us=0,
            lateness_us=lateness,
            sensor=(72, 68),
            filters=FILTERS,
            window=window,
            force=window is not None,
        )
        stream = await server.streams.open(options)
        cuts = [0, *sorted(random.integers(0, len(order), 25)), len(order)]
        answers = [each for a, b in pairwise(cuts) for each in await stream.feed(order[a:b])]
        answers += await stream.finish()
        await stream.close()
        assert np.array_equal(np.stack(seen), expected)
        assert [each.events for each in answers] == expected.sum((1, 2, 3)).tolist()
        last = answers[-1]
        assert last.late == 0
        assert last.filtered > 1000
        assert last.outside > 0
        assert sum(each.events for each in answers) + last.filtered + last.outside == len(events)


async def test_filters_of_a_client_over_grpc(stub: SpikeServeStub, packet: Packet) -> None:
    events = camera_events()
    terms = opening(sensor_width=72, sensor_height=68, filters=rules.filter_messages(FILTERS))
    opened, *_, ended = answers = await converse(stub, [terms, packet(events), END])
    assert (opened.opened.sensor_width, opened.opened.sensor_height) == (72, 68)
    kept = FilterChain(FILTERS, (72, 68)).apply(events[events.x < 72])
    assert ended.ended.events == len(kept)
    drops = ended.ended.drops
    assert drops.outside_events == np.count_nonzero(events.x >= 72)
    assert drops.filtered_events + drops.outside_events + len(kept) == len(events)
    assert windows(answers)[-1].drops.filtered_events == drops.filtered_events


async def test_the_model_s_own_filters_follow(server: Server, monkeypatch, seen) -> None:
    model = server.repository.get("moves", None, "events")
    spec = model.manifest.input.model_copy(update={"filters": (InvertPolarity(),)})
    manifest = model.manifest.model_copy(update={"input": spec, "decision": DecisionRule()})
    monkeypatch.setattr(type(model), "manifest", manifest, raising=False)
    if model.manifest is not manifest:
        object.__setattr__(model, "manifest", manifest)
    events = camera_events(500)
    events = events[events.x < 34][:100]
    events = events[events.y < 34]
    stream = await server.streams.open(StreamOptions(start_us=0, filters=(Refractory(),)))
    answers = await stream.feed(events) + await stream.finish()
    await stream.close()
    both = spec.model_copy(update={"filters": (Refractory(), InvertPolarity())})
    assert np.array_equal(np.stack(seen), recording_frames(events, both, start_us=0))
    assert all(each.decision is not None for each in answers), "the model has a rule"


async def test_decisions_are_those_of_the_rule(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    rule = DecisionRule(evidence=VoteEvidence(windows=2), margin=0.5, release=0.3)
    quiet = Events(events.t + 200_000, events.x, events.y, events.p)
    messages = [
        opening(decision=rules.decision_message(rule)),
        packet(events),
        pb.EventMessage(advance=pb.Advance(time_us=200_000)),
        packet(quiet[:2000]),
        END,
    ]
    opened, *_ = answers = await converse(stub, messages)
    assert rules.decision_rule(opened.opened.decision) == rule
    decider = Decider(rule, 10)
    found = set()
    for answer in windows(answers):
        probabilities = np.zeros(10)
        for each in answer.raw:
            probabilities[each.index] = each.probability
        expected = decider.add(
            probabilities,
            window=answer.index,
            start_us=answer.start_us,
            end_us=answer.end_us,
            events=answer.events,
        )
        decision = answer.decision
        assert (decision.index if decision.HasField("index") else None) == expected.index
        assert decision.label == ("" if expected.index is None else "abcdefghij"[expected.index])
        assert decision.evidence == pytest.approx(expected.evidence)
        assert decision.lead == pytest.approx(expected.lead)
        assert (decision.since_us, decision.changed) == (expected.since_us, expected.changed)
        found.add(expected.index is None)
    assert found == {True, False}, "both a decision and none, which is an answer too"


async def test_without_being_asked_there_is_neither(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    for answer in windows(await converse(stub, [opening(), packet(events), END])):
        assert not answer.HasField("decision")
        assert answer.drops.filtered_events == 0


async def test_other_windows_are_refused_unless_forced(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    said = await refusal(stub, window_us=5000)
    assert "windows by duration (microseconds 5000) were asked for" in said
    assert "trained with windows by duration (microseconds 10000)" in said
    assert "set force" in said
    assert "need their longest time" in await refusal(stub, window_events=100)
    assert "by count" in await refusal(stub, window_us=10_000, window_events=100)
    # Its own rule may be named.
    same = await converse(stub, [opening(window_us=10_000), packet(events), END])
    assert len(windows(same)) == 10
    forced = await converse(stub, [opening(window_us=5000, force=True), packet(events), END])
    assert forced[0].opened.window_us == 5000
    assert [each.end_us - each.start_us for each in windows(forced)] == [5000] * 20
    counted = await converse(
        stub,
        [opening(window_us=10_000, window_events=100, force=True), packet(events), END],
    )
    assert counted[0].opened.window_events == 100
    assert max(each.events for each in windows(counted)) == 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"filters": [pb.Filter()]}, "filters: 0: empty"),
        ({"filters": [pb.Filter(invert_polarity={})] * 9}, "9 were asked for, at most 8"),
        (
            {"filters": [pb.Filter(refractory={"period_us": 0})]},
            "filters.0.refractory.period_us: Input should be greater than or equal to 1",
        ),
        ({"filters": [pb.Filter(region={"x": 1})]}, "filters.0.region.width: Field required"),
        (
            {"filters": [pb.Filter(orient={"operation": "upside-down"})]},
            "filters.0.orient.operation: Input should be 'flip-x'",
        ),
        (
            {"filters": [pb.Filter(hot_pixels={"rate_hz": float("nan")})]},
            "filters.0.hot-pixels.rate_hz",
        ),
        (
            {"filters": [pb.Filter(down_sample={"factor": 2})]},
            "sensor is 17 x 17 after the filters: model moves was made for 34 x 34",
        ),
        (
            {"filters": [pb.Filter(region={"width": 35, "height": 1})]},
            "35x1 pixels at (0, 0) are not all on the sensor",
        ),
        (
            {
                "sensor_width": 1 << 31,
                "sensor_height": 1 << 31,
                "filters": [pb.Filter(background_activity={})],
            },
            "sides are 1 to 65536",
        ),
        (
            {
                "sensor_width": 4096,
                "sensor_height": 4096,
                "filters": [pb.Filter(background_activity={})],
            },
            "too large",
        ),
        ({"decision": pb.DecisionRule(margin=2)}, "decision.margin"),
        ({"decision": pb.DecisionRule(margin=0.1, release=0.2)}, "undecided at once"),
        ({"decision": pb.DecisionRule(vote={"windows": 0})}, "decision.evidence.vote.windows"),
        ({"window_us": 1 << 63, "force": True}, "is beyond the largest"),
    ],
)
async def test_terms_that_cannot_be_are_refused(
    stub: SpikeServeStub, fields: dict[str, object], message: str
) -> None:
    assert message in await refusal(stub, **fields)


def test_rules_survive_the_way_to_the_server_and_back() -> None:
    assert rules.filter_rules(rules.filter_messages(FILTERS)) == FILTERS
    assert rules.filter_rules([pb.Filter(hot_pixels={})]) == (HotPixels(),)
    for rule in (
        DecisionRule(margin=0.5, release=0.1, min_events=0),
        DecisionRule(evidence=VoteEvidence(windows=3), margin=0.0, release=0.0),
        DecisionRule(evidence=LeakyEvidence(time_constant_us=5), release=0.2),
    ):
        assert rules.decision_rule(rules.decision_message(rule)) == rule
    assert rules.decision_rule(pb.DecisionRule()) == DecisionRule()
    assert rules.window_rule(0, 0) is None
    assert rules.window_rule(5, 0) == DurationWindow(microseconds=5)


def evt3(events: Events) -> bytes:
    words = []
    for t, x, y, p in zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True):
        t %= 1 << 24
        words += [8 << 12 | t >> 12, 6 << 12 | t & 0xFFF, y, 2 << 12 | p << 11 | x]
    return struct.pack(f"<{len(words)}H", *words)


def evt3_packet(payload: bytes, sequence: int = 0, **fields: object) -> pb.EventMessage:
    packet = pb.EventPacket(payload=payload, sequence=sequence, **fields)
    return pb.EventMessage(events=packet)


async def test_a_camera_s_words_give_the_same_answers_as_columns(
    stub: SpikeServeStub, events: Events, packet: Packet
) -> None:
    columns = windows(await converse(stub, [opening(), packet(events), END]))
    data = evt3(events)
    cuts = [0, *sorted(np.random.default_rng(0).integers(0, len(data), 30)), len(data)]
    parts = [evt3_packet(data[a:b], n + 1) for n, (a, b) in enumerate(pairwise(cuts))]
    words = windows(await converse(stub, [opening(encoding=pb.ENCODING_EVT3), *parts, END]))
    assert len(columns) == len(words) == 10
    for one, other in zip(columns, words, strict=True):
        assert one.predictions == other.predictions
        assert one.events == other.events


async def test_a_clock_that_wraps_does_not_stop_the_stream(
    stub: SpikeServeStub, events: Events
) -> None:
    start = (1 << 24) - 50_000
    late = Events(events.t + start, events.x, events.y, events.p)
    terms = opening(encoding=pb.ENCODING_EVT3, start_us=start)
    data = evt3(late)
    answers = windows(
        await converse(stub, [terms, evt3_packet(data[:9999]), evt3_packet(data[9999:]), END])
    )
    assert len(answers) == 10
    assert answers[-1].end_us == start + 100_000
    assert answers[-1].drops.late_events == 0
    assert sum(each.events for each in answers) == len(events)
    # base_us moves all of it.
    moved = windows(
        await converse(
            stub,
            [
                opening(encoding=pb.ENCODING_EVT3, start_us=start + 7),
                evt3_packet(data, base_us=7),
                END,
            ],
        )
    )
    assert [each.events for each in moved] == [each.events for each in answers]


async def test_lost_packets_are_counted_and_repeated_ones_ignored_by_decoders_too(
    stub: SpikeServeStub, events: Events
) -> None:
    data = evt3(events)
    # Packets of 801 bytes cut words in half: a repeated one would turn all that follows into something else.
    parts = [data[a : a + 801] for a in range(0, len(data), 801)]
    messages = [evt3_packet(part, n + 1) for n, part in enumerate(parts)]
    again = [messages[0], messages[0], messages[1], messages[0], messages[1], *messages[2:]]
    terms = opening(encoding=pb.ENCODING_EVT3)
    whole = await converse(stub, [terms, *messages, END])
    repeated = await converse(stub, [terms, *again, END])
    assert repeated[-1].ended.drops.repeated_packets == 3
    assert repeated[-1].ended.events == whole[-1].ended.events == len(events)
    for one, other in zip(windows(whole), windows(repeated), strict=True):
        assert one.predictions == other.predictions
    lossy = await converse(stub, [terms, *messages[:5], *messages[8:], END])
    ended = lossy[-1].ended
    assert ended.drops.lost_packets == 3
    assert windows(lossy)[-1].drops.lost_packets == 3
    assert windows(lossy)[-1].sequence == len(messages)
    # Three packets of 100 events and a bit; nothing that was read is wrong, so nothing is late or outside.
    assert len(events) - 305 <= ended.events <= len(events) - 300
    assert ended.drops.late_events == ended.drops.outside_events == 0


async def test_too_many_events_in_few_bytes_are_refused(running, packet: Packet) -> None:
    vectors = (
        struct.pack("<4H", 8 << 12, 6 << 12, 5, 3 << 12) + struct.pack("<H", 4 << 12 | 0xFFF) * 5000
    )
    async with (
        running(max_message_events=2000) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await converse(
                SpikeServeStub(channel),
                [opening(encoding=pb.ENCODING_EVT3), evt3_packet(vectors), END],
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 2000 events" in (caught.value.details() or "")


async def test_the_client_asks_for_all_of_it(server: Server, events: Events) -> None:
    rule = DecisionRule(evidence=VoteEvidence(windows=2), margin=0.4)
    async with AsyncStreamClient(f"127.0.0.1:{server.grpc_port}") as client:
        answers = client.stream(
            [events],
            start_us=0,
            filters=[RateLimit(events_per_second=20_000)],
            window=DurationWindow(microseconds=20_000),
            force=True,
            decision=rule,
        )
        got = [window async for window in answers]
    assert [each.end_us for each in got] == [20_000, 40_000, 60_000, 80_000, 100_000]
    assert got[-1].drops.filtered_events == 5000 - sum(each.events for each in got) > 0
    decisions = [each.decision for each in got]
    assert all(each is not None for each in decisions)
    assert {each.label is None for each in decisions} == {each.index is None for each in decisions}
