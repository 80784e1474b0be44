"""POST /classify/events: recordings of every kind, and what is none."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import httpx
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.client import StreamClient, cut
from spiketrain.events import write_npz, write_recording
from spiketrain.events.types import Events

PROBLEM = "application/problem+json"


@pytest.fixture
def events() -> Events:
    random = np.random.default_rng(0)
    t = np.sort(random.integers(0, 100_000, 5000))
    x, y = random.integers(0, 34, (2, 5000)).astype(np.uint16)
    return Events(t, x, y, random.integers(0, 2, 5000).astype(np.uint8))


def npz(events: Events, sensor: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    write_npz(file, events, sensor)
    return file.getvalue()


def post(server: Server, content: bytes, **query: object) -> httpx.Response:
    url = f"http://127.0.0.1:{server.http_port}/classify/events"
    return httpx.post(url, content=content, params=query, timeout=60)


def refused(reply: httpx.Response, status: int, slug: str) -> str:
    assert reply.headers["content-type"] == PROBLEM
    assert (reply.status_code, reply.json()["type"]) == (status, f"urn:spikeserve:error:{slug}")
    return str(reply.json()["detail"])


def test_the_timeline_is_that_of_the_stream(threaded_server: Server, events: Events) -> None:
    reply = post(threaded_server, npz(events), rates=True, decision="leaky:margin=0.05").json()
    with StreamClient(f"127.0.0.1:{threaded_server.grpc_port}") as client:
        windows = list(client.stream(cut(events)))
    assert (reply["model"], reply["format"], reply["events"]) == ("moves", "npz", 5000)
    assert len(reply["windows"]) == len(windows) == 10
    for given, window in zip(reply["windows"], windows, strict=True):
        assert (given["index"], given["start_us"], given["end_us"], given["events"]) == (
            window.index,
            window.start_us,
            window.end_us,
            window.events,
        )
        assert given["firing_rates"] == pytest.approx(window.firing_rates)
        for name in ("predictions", "raw"):
            assert [(each["label"], each["index"]) for each in given[name]] == [
                (each.label, each.index) for each in getattr(window, name)
            ]
    assert reply["predictions"] == reply["windows"][-1]["predictions"]
    stretches = reply["decisions"]
    assert stretches[0]["start_us"] == reply["windows"][0]["start_us"]
    assert stretches[-1]["end_us"] == reply["windows"][-1]["end_us"]
    assert all(a["end_us"] == b["start_us"] for a, b in itertools.pairwise(stretches))
    by_end = {each["end_us"]: each["decision"] for each in reply["windows"]}
    assert all(by_end[each["end_us"]] == each["label"] for each in stretches)


@pytest.mark.parametrize("suffix", [".npz", ".aedat", ".raw", ".dat", ".es", ".bin"])
def test_any_format_is_told_by_its_content(
    threaded_server: Server, events: Events, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"recording{suffix}"
    sensor = (34, 34) if suffix in (".npz", ".raw", ".dat", ".es") else None
    write_recording(path, events, sensor=sensor)
    query = {"sensor": "34x34"} if suffix == ".aedat" else {}
    reply = post(threaded_server, path.read_bytes(), **query).json()
    assert reply["events"] == 5000
    expected = post(threaded_server, npz(events)).json()
    assert reply["windows"] == expected["windows"]


def test_windows_filters_and_orientation_can_be_asked_for(
    threaded_server: Server, events: Events
) -> None:
    large = Events(events.t, events.x * np.uint16(2), events.y * np.uint16(2) + 6, events.p)
    reply = post(
        threaded_server,
        npz(large, (70, 80)),
        filter=["region:x=0,y=6,width=68,height=68,crop", "down-sample:2"],
        window="20ms",
        force=True,
        top_k=2,
    ).json()
    assert reply["sensor"] == [70, 80]
    assert [each["events"] for each in reply["windows"]] != []
    assert sum(each["events"] for each in reply["windows"]) == 5000
    assert reply["windows"][0]["end_us"] - reply["windows"][0]["start_us"] == 20_000
    assert len(reply["predictions"]) == 2
    turned = Events(events.t, np.uint16(33) - events.y, events.x, np.uint8(1) - events.p)
    plain = post(threaded_server, npz(events)).json()["windows"]
    back = post(threaded_server, npz(turned), orientation="rotate-270", invert_polarity=True)
    assert back.json()["windows"] == plain
    assert post(threaded_server, npz(turned)).json()["windows"] != plain


@pytest.mark.parametrize(
    ("query", "status", "slug", "says"),
    [
        ({"model": "nope"}, 404, "not-found", "'nope'"),
        ({"model": "pictures"}, 422, "impossible-request", "takes pictures"),
        ({"window": "20ms"}, 422, "impossible-request", "force"),
        ({"window": "soon"}, 422, "impossible-request", "10ms"),
        ({"filter": "blur"}, 422, "impossible-request", "background-activity"),
        ({"filter": "down-sample:0"}, 422, "impossible-request", "factor"),
        ({"filter": ["orient:flip-x"] * 9}, 422, "impossible-request", "filter"),
        ({"decision": "leaky:margin=2"}, 422, "impossible-request", "margin"),
        ({"sensor": "640"}, 422, "impossible-request", "640x480"),
        ({"sensor": "64x48"}, 422, "impossible-request", "made for 34 x 34"),
        ({"top_k": 11}, 422, "impossible-request", "10 classes"),
        ({"top_k": 0}, 422, "impossible-request", "top_k"),
        ({"orientation": "up"}, 422, "impossible-request", "orientation"),
        ({"colour": "red"}, 422, "impossible-request", "no such option"),
        ({"format": "mp4"}, 415, "unsupported-media", "known are"),
        ({"format": "es"}, 415, "unsupported-media", "Event Stream"),
        ({"start_us": 1 << 62}, 422, "impossible-request", "beyond"),
    ],
)
def test_terms_that_cannot_be(
    threaded_server: Server, events: Events, query, status: int, slug: str, says: str
) -> None:
    assert says in refused(post(threaded_server, npz(events), **query), status, slug)


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        (b"", 400, "malformed-request"),
        (b"hello, this is text", 415, "unsupported-media"),
        (bytes(range(256)) * 50, 415, "unsupported-media"),
        (b"\x89HDF\r\n\x1a\n", 415, "unsupported-media"),
        (b"PK\x03\x04" + bytes(100), 415, "unsupported-media"),
        (b"SQLite format 3\0" + bytes(1000), 415, "unsupported-media"),
        (b"% evt 3.0\n% format EVT3\n% end\n", 400, "malformed-request"),
        (b"t,x,y,p\n", 400, "malformed-request"),
        (b"t,x,y,p\n1,2,three,0\n", 400, "malformed-request"),
    ],
)
def test_what_is_no_recording_is_refused(
    threaded_server: Server, content: bytes, status: int, slug: str
) -> None:
    assert refused(post(threaded_server, content), status, slug)


def test_what_could_be_read_of_a_damaged_recording_is_answered(
    threaded_server: Server, events: Events, tmp_path: Path
) -> None:
    write_recording(tmp_path / "recording.raw", events, sensor=(34, 34))
    content = (tmp_path / "recording.raw").read_bytes()
    reply = post(threaded_server, content[: len(content) // 2 + 1]).json()
    assert "truncated" in reply["damage"]
    assert 2000 < reply["events"] < 3000
    assert sum(each["events"] for each in reply["windows"]) == reply["events"]


async def test_recordings_are_bounded(running, events: Events) -> None:
    async with (
        running(
            max_recording_events=4000, max_recording_windows=5, max_body_bytes=40_000
        ) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as client,
    ):
        for content, says in (
            (npz(events), "MAX_RECORDING_EVENTS"),
            (npz(events[:3999]), "MAX_RECORDING_WINDOWS"),
            (bytes(40_001), "MAX_BODY_BYTES"),
        ):
            reply = await client.post("/classify/events", content=content)
            assert says in refused(reply, 413, "too-large")
        assert server.streams._open == set()


async def test_messages_of_a_recording_are_as_small_as_the_server_wants(
    running, events: Events
) -> None:
    async with (
        running(max_message_events=100) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as client,
    ):
        reply = (await client.post("/classify/events", content=npz(events))).json()
        assert sum(each["events"] for each in reply["windows"]) == 5000


def test_other_bodies_are_told_what_to_send(threaded_server: Server, events: Events) -> None:
    url = f"http://127.0.0.1:{threaded_server.http_port}/classify/events"
    form = httpx.post(url, files={"recording": npz(events)})
    assert "--data-binary" in refused(form, 415, "unsupported-media")
    late = httpx.post(url, content=npz(events), headers={"X-Timeout-Seconds": "1e-9"})
    refused(late, 504, "deadline-exceeded")
    assert httpx.get(url).status_code == 405
