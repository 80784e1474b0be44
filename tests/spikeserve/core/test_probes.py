"""What the monitor is told of pictures and of streams, and that probes keep to their share of time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeserve.engine import RunResult
from spikeserve.gpu_metrics import GpuCollector
from spikeserve.probes import StreamWatch, Watch
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import Checkpoint, load_checkpoint


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def loaded(name: str) -> Checkpoint:
    return load_checkpoint(BUNDLED_MODELS / f"{name}.safetensors")


def watch(checkpoint: Checkpoint, share: float = 0.0, clock: Clock | None = None) -> Watch:
    manifest, network = checkpoint.manifest, checkpoint.network()
    assert manifest.health is not None
    layers = tuple(manifest.health.layers)
    neurons = {name: torch.Size(shape).numel() for name, shape in network.neuron_shapes().items()}
    return Watch(manifest, network, layers, neurons, share, clock or Clock())


def result(watched: Watch, timesteps: int, rate: float, first: float) -> RunResult:
    """Of a picture or window in which all layers fire at these rates."""
    neurons = watched._neurons
    return RunResult(
        np.zeros((timesteps, 10)), neurons * timesteps * rate, neurons * first, 0.0, 0.0, 0.0
    )


def shift(watched: Watch) -> float:
    return next(iter(watched.monitor.report().layers.values())).shift


PICTURE = torch.zeros(1, 28, 28)


def test_a_picture_with_all_timesteps_counts_by_all_and_one_that_may_leave_by_the_first() -> None:
    checkpoint = loaded("fashion-clif")
    assert checkpoint.manifest.health is not None
    layer = next(iter(checkpoint.manifest.health.layers.values()))
    assert layer.first is not None
    for timesteps, may_leave, usual in (
        (4, False, layer.rate),
        (4, True, layer.first),
        (1, True, layer.first),
        (2, False, layer.first),
    ):
        watched = watch(checkpoint)
        rates = (usual.mean, 1.0) if usual is layer.rate else (1.0, usual.mean)
        watched.picture(PICTURE, result(watched, timesteps, *rates), may_leave)
        assert shift(watched) == pytest.approx(0, abs=1e-6), (timesteps, may_leave)


def test_as_many_windows_as_timesteps_are_one_sample() -> None:
    watched = watch(loaded("nmnist-clif"), share=1.0)
    stream = StreamWatch(watched)
    frame = np.zeros((2, 34, 34), np.float32)
    for i in range(25):
        stream.window(frame, result(watched, 1, 0.14, 0.14))
        _wait(watched)
        assert watched.monitor.report().samples == (i + 1) // 10
    assert watched.monitor.report().probes == 2


def test_probes_rest_so_that_they_keep_to_their_share() -> None:
    clock = Clock()
    watched = watch(loaded("fashion-clif"), share=0.01, clock=clock)
    network = watched._network

    def slow(x: Tensor) -> Tensor:
        clock.now += 2.0
        return type(network).encode(network, x)

    network.encode = slow  # type: ignore[method-assign]
    for at, taken in ((0, 1), (2, 1), (199, 1), (200, 2), (399, 2), (401, 3)):
        clock.now = 100.0 + at
        watched.picture(PICTURE, result(watched, 4, 0.2, 0.2), False)
        _wait(watched)
        assert watched.monitor.report().probes == taken, at


def test_without_a_share_nothing_is_probed() -> None:
    watched = watch(loaded("fashion-clif"), share=0.0)
    assert not watched.takes()
    assert watched.probe(PICTURE.unsqueeze(0)) is None


def test_a_probe_that_fails_is_the_last(caplog: pytest.LogCaptureFixture) -> None:
    watched = watch(loaded("fashion-clif"), share=1.0)
    future = watched.probe(torch.zeros(1, 3, 5, 5))
    assert future is not None
    future.result(60)
    assert "there will be no more" in caplog.text
    assert not watched.takes()


def _wait(watched: Watch) -> None:
    """Until the probe under way is over."""
    if watched._worker is not None:
        watched._worker.submit(int).result(60)


def test_gpu_memory_is_asked_for_only_where_a_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def samples() -> dict[str, float]:
        return {s.name: s.value for family in GpuCollector().collect() for s in family.samples}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert samples() == {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30, 100))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 50)
    assert samples() == {
        "spikeserve_gpu_memory_used_bytes": 70,
        "spikeserve_gpu_memory_allocated_bytes": 50,
        "spikeserve_gpu_memory_total_bytes": 100,
    }
