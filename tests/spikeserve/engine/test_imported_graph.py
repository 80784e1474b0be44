"""A network imported from NIR is served as any other: in slots, moved, and counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from spikeserve.app import Server
from spikeserve.client import AsyncStreamClient, cut
from spikeserve.engine import Frames, ReferenceExecutor, Sample
from spikeserve.engine.readout import probabilities
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.settings import Settings
from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.convert.graph_builder import About
from spiketrain.energy import fan_out
from spiketrain.events.types import Events
from spiketrain.manifest import DurationWindow, EventInput

nir = pytest.importorskip("nir")
nir_import = pytest.importorskip("spiketrain.convert.nir_import")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recurrent CubaLIF neurons with constants of their own, and a leaky integrator that gives its potential."""
    rng = np.random.default_rng(0)

    def values(size: int, low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, size).astype(np.float32)

    nodes = {
        "input": nir.Input(np.array([2, 4, 4])),
        "flat": nir.Flatten(np.array([2, 4, 4]), 0, -1),
        "first": nir.Affine(rng.normal(0, 1, (12, 32)).astype(np.float32), values(12, 0, 0.3)),
        "cells": nir.CubaLIF(
            tau_syn=values(12, 1e-4, 4e-4),
            tau_mem=values(12, 2e-4, 8e-4),
            r=values(12, 1, 3),
            v_leak=values(12, -0.1, 0.1),
            v_threshold=values(12, 0.5, 1),
            v_reset=values(12, -0.2, 0.1),
        ),
        "back": nir.Linear(rng.normal(0, 0.5, (12, 12)).astype(np.float32)),
        "last": nir.Linear(rng.normal(0, 1, (3, 12)).astype(np.float32)),
        "out": nir.LI(values(3, 2e-4, 4e-4), values(3, 1, 2), np.zeros(3, np.float32)),
        "output": nir.Output(np.array([3])),
    }
    row = ["input", "flat", "first", "cells", "last", "out", "output"]
    edges = [*itertools.pairwise(row), ("cells", "back"), ("back", "cells")]
    seen = EventInput(sensor=(4, 4), shape=(2, 4, 4), window=DurationWindow(microseconds=1000))
    about = About("imported", seen, ("a", "b", "c"), 5)
    checkpoint = nir_import.import_nir(nir.NIRGraph(nodes, edges, type_check=False), about)
    path = tmp_path_factory.mktemp("models") / "imported.safetensors"
    save_checkpoint(path, checkpoint.manifest, checkpoint.tensors)
    return path


def executor_of(checkpoint: Checkpoint, slots: int) -> ReferenceExecutor:
    network = checkpoint.network()
    return ReferenceExecutor(network, slots, fan_out(network), checkpoint.manifest.digest)


def test_streams_in_slots_give_what_the_network_gives(imported: Path) -> None:
    checkpoint = load_checkpoint(imported)
    executor = executor_of(checkpoint, 3)
    assert executor.layers == ("cells",)  # the integrator gives no spikes
    x = torch.randn(20, 2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    for slot in (0, 2):
        executor.admit(slot, Sample())
    network = checkpoint.network()
    state = network.initial_state(2)
    fired = 0.0
    for t, frames in enumerate(x):
        if t == 10:  # one moves to another slot
            executor.load(1, executor.save(2))
        slots = (0, 2) if t < 10 else (0, 1)
        result = executor.step(slots, Frames((0, 1), frames))
        with torch.no_grad():
            expected = network.step(frames, state)
        state = expected.state
        torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=1e-5)
        counts = expected.spikes["cells"].sum(1).tolist()
        assert result.spikes[:, 0].tolist() == counts
        # Each spike reaches the 12 neurons of its own layer and the 3 behind it.
        assert result.synaptic_operations.tolist() == [15 * count for count in counts]
        fired += sum(counts)
    assert fired > 20


def test_the_server_loads_it(imported: Path) -> None:
    repository = Repository(Settings(models=[imported]), Metrics())
    repository.load_all()
    try:
        assert [model.state for model in repository.models()] == ["ready"]
        assert repository.get("imported", kind="events").manifest.network.name == "graph"
    finally:
        repository.close()


async def test_it_is_streamed_to(
    imported: Path, running: Callable[..., AbstractAsyncContextManager[Server]]
) -> None:
    """Windows of one event each, and the answers that the network gives when it sees them as frames."""
    x, y, polarity = np.array([[0, 3, 1, 2], [1, 2, 2, 0], [0, 1, 1, 0]])
    events = Events(
        np.arange(4) * 1000, x.astype(np.uint16), y.astype(np.uint16), polarity.astype(np.uint8)
    )
    async with (
        running(models=imported) as server,
        AsyncStreamClient(f"127.0.0.1:{server.grpc_port}") as client,
    ):
        windows = [window async for window in client.stream(cut(events))]
    network = load_checkpoint(imported).network()
    state = network.initial_state(1)
    assert len(windows) == 4
    for i, window in enumerate(windows):
        frame = torch.zeros(1, 2, 4, 4)
        frame[0, polarity[i], y[i], x[i]] = 1
        with torch.no_grad():
            output = network.step(frame, state)
        state = output.state
        assert window.events == 1
        assert window.firing_rates["cells"] == pytest.approx(output.spikes["cells"].mean().item())
        raw = {each.label: each.probability for each in window.raw}
        expected = probabilities("mean", output.logits.numpy())
        assert [raw[label] for label in "abc"] == pytest.approx(expected.tolist(), abs=1e-5)
