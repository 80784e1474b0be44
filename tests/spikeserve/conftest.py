"""Small checkpoints with random weights, and real servers for them, on ports that the system chooses."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spikeserve.app import Server
from spikeserve.settings import Settings, load_settings
from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.exit import ExitLevel, ExitTable
from spiketrain.manifest import DurationWindow, EventInput, ImageInput, Input, Manifest, NetworkSpec
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig

CLASSES = tuple("abcdefghij")
WINDOW_US = 10_000

ServerFactory = Callable[..., AbstractAsyncContextManager[Server]]


def settings_for(models: Path) -> dict[str, Any]:
    return {
        "models": models,
        "http_port": 0,
        "grpc_port": 0,
        "slots": 4,
        "torch_threads": 1,
        # To the last bit the same on every machine, and nothing is measured first.
        "executor": "reference",
        "drain_seconds": 0.5,
    }


def write_model(path: Path, name: str, spec: Input, timesteps: int = 4, seed: int = 0) -> None:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"channels": [4, 8], "input_shape": list(spec.shape)}
    network = build_network("small-conv", arguments, CLIFConfig(), timesteps)
    with torch.no_grad():
        for stage in network.stages:
            stage.bn.weight.fill_(5.0)  # so that all layers fire, and the input decides the answer
    manifest = Manifest(
        name=name,
        network=NetworkSpec(name="small-conv", arguments=arguments),
        neuron=CLIFConfig(),
        timesteps=timesteps,
        input=spec,
        classes=CLASSES,
    )
    save_checkpoint(path, manifest, network.state_dict())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image model in two versions, `pictures`, and one for events, `moves`."""
    folder = tmp_path_factory.mktemp("models")
    image = ImageInput(shape=(1, 28, 28), mean=(0.5,), std=(0.5,))
    write_model(folder / "pictures" / "1.safetensors", "pictures", image)
    write_model(folder / "pictures" / "2.safetensors", "pictures", image, seed=1)
    events = EventInput(
        sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=WINDOW_US)
    )
    write_model(folder / "moves.safetensors", "moves", events)
    return folder


@pytest.fixture
def make_settings(model_folder: Path) -> Callable[..., Settings]:
    def make(**changes: Any) -> Settings:
        return load_settings(**settings_for(model_folder) | changes)

    return make


@pytest.fixture
def running(make_settings: Callable[..., Settings]) -> ServerFactory:
    """A started server, as a context; keyword arguments are settings."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Server]:
        server = Server(make_settings(**changes))
        try:
            await server.start()
            yield server
        finally:
            await server.stop()

    return run


@pytest.fixture(scope="module")
def threaded_server(model_folder: Path) -> Iterator[Server]:
    """One for all tests of a module, on an event loop in a thread, since plain clients block."""
    with in_a_thread(load_settings(**settings_for(model_folder))) as server:
        yield server


@pytest.fixture(scope="module")
def server_with_exits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With thresholds that every picture reaches: for a risk of 0.005 after three timesteps, of 0.02 after two.

    `normal` is the highest priority.
    """
    path = tmp_path_factory.mktemp("exits") / "pictures.safetensors"
    write_model(path, "pictures", ImageInput(shape=(1, 28, 28), mean=(0.5,), std=(0.5,)))
    loaded = load_checkpoint(path)
    thresholds = {0.005: (None, None, 0.01), 0.02: (None, 0.01, 0.01)}
    table = ExitTable(
        model=loaded.manifest.digest,
        temperatures=(1.0, 1.0, 1.0),
        levels=tuple(
            ExitLevel(risk=risk, thresholds=each, disagreement=0, upper_bound=0, mean_timesteps=1)
            for risk, each in thresholds.items()
        ),
        confidence=0.95,
        dataset="d",
        split="validation",
        fitted=1,
        verified=1,
        seed=0,
    )
    save_checkpoint(path, loaded.manifest.model_copy(update={"exit": table}), loaded.tensors)
    with in_a_thread(load_settings(**settings_for(path), highest_priority="normal")) as server:
        yield server


@contextmanager
def in_a_thread(settings: Settings) -> Iterator[Server]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> Server:
        server = Server(settings)
        await server.start()
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
