from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spiketrain.checkpoint import Checkpoint, model_digest
from spiketrain.manifest import ImageInput, Manifest, NetworkSpec, TrainingRecord
from spiketrain.networks import build_network
from spiketrain.neurons import AnyNeuronConfig

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture
def make_checkpoint() -> MakeCheckpoint:
    """A checkpoint of a small network, in float64 unless asked, in which every layer fires now and then."""

    def make(
        neuron: AnyNeuronConfig, *, size: int = 8, dtype: torch.dtype = torch.float64
    ) -> Checkpoint:
        torch.manual_seed(0)
        spec = NetworkSpec(
            name="small-conv",
            arguments={
                "input_shape": [1, size, size],
                "channels": [4, 6],
                "strides": [2, 1],
                "pools": [1, 2],
                "hidden": 8,
            },
        )
        network = build_network(spec.name, spec.arguments, neuron, 6)
        for name, parameter in network.named_parameters():
            if "bn" in name:
                parameter.data.uniform_(*((2.0, 3.0) if name.endswith("weight") else (0.2, 0.8)))
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in network.state_dict().items()
        }
        manifest = Manifest(
            name="parent",
            network=spec,
            neuron=neuron,
            timesteps=6,
            input=ImageInput(shape=(1, size, size), mean=(0.286,), std=(0.353,)),
            classes=tuple("abcdefghij"),
            training=TrainingRecord(
                recipe="test",
                settings={"data": {"name": "fashion-mnist", "validation_per_class": 1}},
                seed=0,
                epochs=1,
            ),
        )
        digest = model_digest(manifest, tensors)
        return Checkpoint(manifest.model_copy(update={"digest": digest}), tensors)

    return make


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(16, 1, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(0, 10, (16,), generator=generator),
        )
        for _ in range(3)
    ]


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A folder with a Fashion-MNIST of 40 training and 20 test pictures of noise, in the original format."""
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(3)
    for prefix, count in (("train", 40), ("t10k", 20)):
        pixels = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count, dtype=torch.uint8) % 10
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(head + pixels.numpy().tobytes())
        )
        head = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(head + labels.numpy().tobytes())
        )
    return tmp_path / "data"
