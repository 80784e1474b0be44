from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint, model_digest
from spiketrain.convert.graph_builder import About
from spiketrain.manifest import ImageInput, Manifest, NetworkSpec
from spiketrain.networks import NETWORKS, Fire, Network, NeuronFactory, build_network
from spiketrain.networks.resnet import PreActivationBlock
from spiketrain.neurons import AnyNeuronConfig

SMALL = {
    "input_shape": [1, 8, 8],
    "channels": [4, 6],
    "strides": [2, 1],
    "pools": [1, 2],
    "hidden": 8,
}
Run = list[Any]


class TinyResNet(Network):
    """The blocks of the CLIF ResNets, one with a shortcut that is an identity and one with a convolution."""

    def __init__(self, neurons: NeuronFactory) -> None:
        super().__init__((2, 8, 8), 10, neurons.timesteps)
        self.conv1 = nn.Conv2d(2, 4, 3, 1, 1, bias=False)
        self.block1 = PreActivationBlock(neurons, "block1", 4, 4, 1, 0.1)
        self.block2 = PreActivationBlock(neurons, "block2", 4, 6, 2, 0.1)
        self.bn1 = nn.BatchNorm2d(6)
        self.neuron1 = neurons("neuron1", 6)
        self.pool = nn.AvgPool2d(4)
        self.linear = nn.Linear(6, 10)

    def encode(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv1(x))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        x = self.block2.run(self.block1.run(x, fire), fire)
        return cast(Tensor, self.linear(self.pool(fire(self.neuron1, self.bn1(x))).flatten(1)))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Checkpoint]:
    """A checkpoint with weights and batch norms that make every layer fire now and then."""
    monkeypatch.setitem(NETWORKS, "tiny-resnet", TinyResNet)

    def make(
        neuron: AnyNeuronConfig,
        network: str = "small-conv",
        arguments: Mapping[str, Any] = SMALL,
        timesteps: int = 6,
        layers: Mapping[str, AnyNeuronConfig] | None = None,
    ) -> Checkpoint:
        torch.manual_seed(0)
        model = build_network(network, arguments, neuron, timesteps, layers)
        for name, parameter in model.named_parameters():
            if "bn" in name:
                parameter.data.uniform_(*((1.0, 2.0) if name.endswith("weight") else (0.1, 0.6)))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.2, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        shape = cast(tuple[int, int, int], model.input_shape)
        channels = shape[0] if shape[0] in (1, 3) else 3
        manifest = Manifest(
            name="parent",
            network=NetworkSpec(name=network, arguments=dict(arguments)),
            neuron=neuron,
            layers=dict(layers or {}),
            timesteps=timesteps,
            input=ImageInput(
                shape=(channels, *shape[1:]), mean=(0.0,) * channels, std=(1.0,) * channels
            )
            if shape[0] != 2
            else event_input(shape),
            classes=tuple(str(i) for i in range(model.classes)),
        )
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        digest = model_digest(manifest, tensors)
        return Checkpoint(manifest.model_copy(update={"digest": digest}), tensors)

    return make


def event_input(shape: Sequence[int]) -> Any:
    return {
        "kind": "events",
        "sensor": (shape[2], shape[1]),
        "shape": tuple(shape),
        "window": {"kind": "duration", "microseconds": 1000},
    }


@pytest.fixture
def about() -> Callable[[Checkpoint], About]:
    """What an importer needs to know, as of a checkpoint."""

    def of(checkpoint: Checkpoint) -> About:
        manifest = checkpoint.manifest
        return About("imported", manifest.input, manifest.classes, manifest.timesteps)

    return of


@pytest.fixture
def run_steps() -> Callable[[Network, Tensor], Run]:
    """Outputs of the timesteps x [T, N, ...]."""

    def run(network: Network, x: Tensor) -> Run:
        state, outputs = network.initial_state(x.shape[1]), []
        with torch.no_grad():
            for frame in x:
                outputs.append(network.step(frame, state))
                state = outputs[-1].state
        return outputs

    return run
