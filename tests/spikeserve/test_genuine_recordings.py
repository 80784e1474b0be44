"""Genuine recordings of five cameras through a real server, by the command line, the client and POST /classify/events:
the same windows and the same answers as offline. And N-MNIST's test digits, sample for sample."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spikeserve.app import Server
from spikeserve.cli import app
from spikeserve.client import StreamClient, Window, cut
from spikeserve.engine.readout import RunningReadout
from spikeserve.settings import BUNDLED_MODELS, load_settings
from spiketrain.checkpoint import Checkpoint, load_checkpoint
from spiketrain.data.nmnist import load_nmnist_small
from spiketrain.evaluate import evaluate
from spiketrain.events import open_recording, recording_frames
from spiketrain.events.rule_text import parse_filter, parse_window
from spiketrain.manifest import EventInput

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
MODEL = "nmnist-clif"
WINDOW = "5ms"
# File, what is posted, sensor, and the filters that lead from there to the model's 34 x 34 pixels.
RECORDINGS = {
    "aedat4": ("aestream/davis.aedat4", None, (346, 260), "238", "7"),
    "evt2": ("faery/evt2.raw", None, (640, 480), "476", "14"),
    "es": ("faery/dvs.es", None, (320, 240), "238", "7"),
    "ros2-evt3": (
        "ros2/test_data_evt3_trigger",
        "test_data_evt3_trigger_0.db3",
        (1280, 720),
        "714",
        "21",
    ),
    # Its clock of 31 bits wraps in the midst of it.
    "ros2-libcaer": (
        "ros2/test_data_libcaer_rollover",
        "libcaer_rollover_0.db3",
        (640, 480),
        "476",
        "14",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    settings = load_settings(
        models=BUNDLED_MODELS / f"{MODEL}.safetensors",
        http_port=0,
        grpc_port=0,
        slots=8,
        # What offline code computes, to the last bits; faster executors are compared with it elsewhere.
        executor="reference",
        torch_threads=1,
        drain_seconds=0.5,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        server = Server(settings)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(120)
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(BUNDLED_MODELS / f"{MODEL}.safetensors")


def offline(checkpoint: Checkpoint, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of each window [T, classes], and the running probabilities after it."""
    with torch.no_grad():
        logits = checkpoint.network()(torch.from_numpy(frames)[:, None]).logits[:, 0].numpy()
    manifest = checkpoint.manifest
    running = RunningReadout(manifest.readout, manifest.timesteps)
    return logits, np.stack([running.add(each) for each in logits])


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_genuine_recording_end_to_end(server: Server, checkpoint: Checkpoint, name: str) -> None:
    file, posted, sensor, side, factor = RECORDINGS[name]
    path = DATA / "events" / file
    if not path.exists():
        pytest.skip(f"no {file} at {DATA}")
    filters = [f"region:width={side},height={side},crop", f"down-sample:{factor}"]
    terms = {
        "filters": [parse_filter(each) for each in filters],
        "window": parse_window(WINDOW),
        "force": True,
    }
    with open_recording(path) as recording:
        assert recording.sensor in (sensor, None)
        events = recording.read()
    spec = checkpoint.manifest.input
    assert isinstance(spec, EventInput)
    spec = spec.model_copy(
        update={"sensor": sensor, "filters": tuple(terms["filters"]), "window": terms["window"]}
    )
    logits, running = offline(checkpoint, recording_frames(events, spec))

    with StreamClient(f"127.0.0.1:{server.grpc_port}") as client:
        streamed = list(client.stream(cut(open_recording(path)), sensor=sensor, **terms))
    arguments = [word for each in filters for word in ("--filter", each)]
    result = CliRunner().invoke(
        app,
        [
            *("stream", str(path), "--server", f"127.0.0.1:{server.grpc_port}", "--speed", "max"),
            *("--sensor", f"{sensor[0]}x{sensor[1]}", "--window", WINDOW, "--force", "--json"),
            *arguments,
        ],
    )
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    content = (path / posted if posted else path).read_bytes()
    reply = httpx.post(
        f"http://127.0.0.1:{server.http_port}/classify/events",
        params={
            "filter": filters,
            "window": WINDOW,
            "force": True,
            "sensor": f"{sensor[0]}x{sensor[1]}",
        },
        content=content,
        timeout=60,
    ).json()

    assert reply["events"] == len(events)
    assert reply["damage"] is None
    assert len(streamed) == len(lines) == len(reply["windows"]) == len(logits) > 10
    for k, (window, line, posted_window) in enumerate(
        zip(streamed, lines, reply["windows"], strict=True)
    ):
        assert window.best.index == int(running[k].argmax())
        assert window.best.probability == pytest.approx(float(running[k].max()), abs=1e-4)
        where = (window.index, window.start_us, window.end_us, window.events)
        for other in (line, posted_window):
            assert where == tuple(other[key] for key in ("index", "start_us", "end_us", "events"))
            for key in ("predictions", "raw"):
                assert [each["index"] for each in other[key]] == [
                    each.index for each in getattr(window, key)
                ]
                assert [each["probability"] for each in other[key]] == pytest.approx(
                    [each.probability for each in getattr(window, key)], abs=1e-5
                )
    kept = sum(window.events for window in streamed)
    drops = streamed[-1].drops
    assert kept + drops.filtered_events + drops.outside_events == len(events)
    assert 0 < kept < len(events)


def test_a_bag_whose_topic_is_named(server: Server) -> None:
    """The smallest genuine bag, of event_camera_msgs' mono encoding: 100 events within 99 microseconds."""
    bag = DATA / "events/ros2/test_data_mono_cd/test_data_mono_cd_0.db3"
    if not bag.exists():
        pytest.skip(f"no {bag.name} at {DATA}")
    with open_recording(bag) as recording:
        assert recording.sensor is not None
        width, height = recording.sensor
    side = min(width, height) // 34 * 34
    reply = httpx.post(
        f"http://127.0.0.1:{server.http_port}/classify/events",
        params={"filter": [f"region:width={side},height={side},crop", f"down-sample:{side // 34}"]},
        content=bag.read_bytes(),
    ).json()
    assert reply["events"] == 100
    assert len(reply["windows"]) == 1


def test_streamed_accuracy_is_offline_accuracy_sample_for_sample(
    server: Server, checkpoint: Checkpoint
) -> None:
    if not (DATA / "n-mnist-small").is_dir():
        pytest.skip(f"no N-MNIST at {DATA}")
    manifest = checkpoint.manifest
    spec = manifest.input
    assert isinstance(spec, EventInput)
    _, test = load_nmnist_small(DATA)
    # As many windows as the model was trained with: that is what evaluate() and the manifest's accuracy speak of.
    steps = manifest.timesteps
    frames = np.zeros((len(test), steps, *spec.shape), np.float32)
    lengths = []
    for i, (events, _) in enumerate(test):
        some = recording_frames(events, spec)[:steps]
        frames[i, : len(some)] = some
        lengths.append(len(some))
    labels = torch.tensor([label for _, label in test])
    report = evaluate(
        checkpoint.network(), [(torch.from_numpy(frames).transpose(0, 1).contiguous(), labels)]
    )
    chosen = []
    with StreamClient(f"127.0.0.1:{server.grpc_port}") as client:
        for (events, _), length in zip(test, lengths, strict=True):
            windows: list[Window] = list(client.stream(cut(events), rates=False))
            # A recording that is shorter than the sample goes on in empty windows.
            assert length == steps or len(windows) == length
            chosen.append(windows[min(steps, len(windows)) - 1].best.index)
    full = [i for i, length in enumerate(lengths) if length == steps]
    assert len(full) > 50
    assert [chosen[i] for i in full] == [int(report.predictions[i]) for i in full]
    streamed = float(np.mean([chosen[i] == test[i][1] for i in range(len(test))]))
    assert streamed == pytest.approx(report.accuracy, abs=1e-9)
    accuracy = next(each.value for each in manifest.accuracy if each.split == "test")
    assert report.accuracy == pytest.approx(accuracy, abs=1e-9)
