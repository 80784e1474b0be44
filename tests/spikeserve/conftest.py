"""Small checkpoints with random weights, and real servers for them, on ports that the system chooses."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from spikeserve.app import Server
from spikeserve.settings import Settings, load_settings
from spiketrain.checkpoint import save_checkpoint
from spiketrain.manifest import DurationWindow, EventInput, ImageInput, Input, Manifest, NetworkSpec
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig

CLASSES = tuple("abcdefghij")
WINDOW_US = 10_000

ServerFactory = Callable[..., AbstractAsyncContextManager[Server]]


def write_model(path: Path, name: str, spec: Input, timesteps: int = 4, seed: int = 0) -> None:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"channels": [4, 8], "input_shape": list(spec.shape)}
    network = build_network("small-conv", arguments, CLIFConfig(), timesteps)
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
        given = {
            "models": model_folder,
            "http_port": 0,
            "grpc_port": 0,
            "slots": 4,
            "torch_threads": 1,
        }
        return load_settings(**given | changes)

    return make


@pytest.fixture
def running(make_settings: Callable[..., Settings]) -> ServerFactory:
    """A started server, as a context; keyword arguments are settings."""

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Server]:
        server = Server(make_settings(**{"drain_seconds": 0.5} | changes))
        try:
            await server.start()
            yield server
        finally:
            await server.stop()

    return run


@pytest.fixture
def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
