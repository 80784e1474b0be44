"""A network is one pure function of one timestep; running T of them at once is the same function, folded.

A network says only how current flows: `encode` is what comes before the first neuron, `body` everything after, with a
call of `fire` wherever a layer of neurons sits. Running one timestep and running T at once differ only in what `fire`
does, so a network is written once.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spiketrain.neurons import NeuronConfig, NeuronLayer

# The state of each layer of neurons, by the layer's name.
NetworkState = dict[str, Any]

NetworkKind = TypeVar("NetworkKind", bound="Network")


class StepOutput(NamedTuple):
    logits: Tensor  # [N, classes]
    spikes: dict[str, Tensor]  # by layer, [N, C, ...]
    state: NetworkState


class RunOutput(NamedTuple):
    logits: Tensor  # [T, N, classes]
    spikes: dict[str, Tensor]  # by layer, [T, N, C, ...]
    state: NetworkState


class Fire(Protocol):
    """What `body` calls at each layer of neurons: currents in, spikes out.

    The leading axis is the batch, or T times the batch when timesteps are folded into it.
    """

    timesteps: int

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor: ...


class Network(nn.Module, abc.ABC):
    """Weights, and where the neurons sit. Holds no state of neurons.

    `input_shape` is one sample of one timestep, (channels, height, width) or (features,). `logit_readout` is how the logits
    of the timesteps become one, as a manifest says it.
    """

    # Not `readout`: networks have a layer of that name.
    logit_readout: Literal["mean", "last"] = "mean"

    def __init__(self, input_shape: tuple[int, ...], classes: int, timesteps: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.timesteps = timesteps
        self._names: dict[NeuronLayer, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def encode(self, x: Tensor) -> Tensor:
        """Input [N, ...] to what `body` takes. Has no state: for a constant input it is computed once."""
        return x

    @abc.abstractmethod
    def body(self, x: Tensor, fire: Fire) -> Tensor:
        """What `encode` gave to logits [N, classes]."""

    def neuron_layers(self) -> dict[str, NeuronLayer]:
        """Every layer of neurons by its name, in the order of definition."""
        return {name: m for name, m in self.named_modules() if isinstance(m, NeuronLayer)}

    def name_of(self, layer: NeuronLayer) -> str:
        if layer not in self._names:
            self._names = {module: name for name, module in self.neuron_layers().items()}
        return self._names[layer]

    def neuron_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each layer of neurons for one sample, in the order in which current reaches them."""
        if not self._shapes:
            fire = _Shapes(self)
            training = self.training
            self.eval()
            with torch.no_grad():
                like = next(self.parameters())
                self.body(self.encode(like.new_zeros(1, *self.input_shape)), fire)
            self.train(training)
            self._shapes = fire.shapes
        return self._shapes

    def initial_state(self, batch: int) -> NetworkState:
        """The state before the first timestep, for `batch` samples."""
        layers = self.neuron_layers()
        like = next(self.parameters())
        return {
            name: layers[name].initial_state(like.new_zeros(batch, *shape))
            for name, shape in self.neuron_shapes().items()
        }

    def advance(self, encoded: Tensor, state: NetworkState) -> StepOutput:
        """One timestep from an input that is encoded already."""
        fire = StepFire(self, state)
        logits = self.body(encoded, fire)
        return StepOutput(logits, fire.spikes, fire.state)

    def step(self, x: Tensor, state: NetworkState) -> StepOutput:
        """One timestep: input [N, ...] and the state in, logits, spikes and the new state out."""
        return self.advance(self.encode(x), state)

    def forward(self, x: Tensor, timesteps: int | None = None) -> RunOutput:
        """All timesteps at once, differentiable.

        `x` is [T, N, ...], or [N, ...] for an input that stays the same over `timesteps` (the network's own number
        of timesteps unless given).
        """
        constant = x.dim() == len(self.input_shape) + 1
        if not constant and x.dim() != len(self.input_shape) + 2:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected [N, {self.input_shape}] or [T, N, {self.input_shape}]"
            )
        if constant:
            steps, batch = timesteps or self.timesteps, x.shape[0]
        else:
            steps, batch = x.shape[:2]
            x = x.flatten(0, 1)
        fire = _AllSteps(self, steps, batch)
        logits = self.body(self.encode(x), fire)
        return RunOutput(logits.view(steps, batch, -1), fire.spikes, fire.state)


class StepFire:
    """`Fire` of one timestep: the states `before` in, those after it in `state`."""

    timesteps = 1

    def __init__(self, network: Network, state: NetworkState) -> None:
        self.network = network
        self.before = state
        self.state: NetworkState = {}
        self.spikes: dict[str, Tensor] = {}

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor:
        name = self.network.name_of(layer)
        spikes, self.state[name] = layer.step(current, self.before[name])
        if layer.config.spiking:
            self.spikes[name] = spikes
        return spikes

    def previous(self, source: NeuronLayer, memory: NeuronLayer) -> Tensor:
        last: Tensor = self.before[self.network.name_of(memory)].last
        return last


class _AllSteps:
    def __init__(self, network: Network, timesteps: int, batch: int) -> None:
        self.network = network
        self.timesteps = timesteps
        self.batch = batch
        self.state: NetworkState = {}
        self.spikes: dict[str, Tensor] = {}

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor:
        name = self.network.name_of(layer)
        if current.shape[0] == self.batch:  # not yet folded: the same current at every timestep
            current = current.expand(self.timesteps, *current.shape)
        else:
            current = _unfolded(current, self.timesteps)
        spikes: Tensor
        spikes, self.state[name] = layer(current)
        if layer.config.spiking:
            self.spikes[name] = spikes
        return spikes.flatten(0, 1)


def _unfolded(x: Tensor, timesteps: int) -> Tensor:
    """[T * N, ...] as [T, N, ...]."""
    return x.view(timesteps, -1, *x.shape[1:])


class _Shapes:
    timesteps = 1

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor:
        self.shapes[self.network.name_of(layer)] = tuple(current.shape[1:])
        return torch.zeros_like(current)

    def previous(self, source: NeuronLayer, memory: NeuronLayer) -> None:
        return None


def with_plain_weights(network: NetworkKind) -> NetworkKind:
    """A copy in which weights that are computed from others, such as normalised ones, are weights like any other."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            # torch's own way of removing it changes the class, which the original has in common with its copy.
            weight = cast(Tensor, module.weight).detach().clone()
            del module.parametrizations
            module.__class__ = type(module).__mro__[1]
            module.weight = nn.Parameter(weight)
    return network


class SharedDropout(nn.Module):
    """Dropout with one mask for all timesteps of a sample: a unit is silent for the whole run or not at all."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        if not self.training or self.p == 0:
            return x
        steps = _unfolded(x, timesteps)
        keep = torch.empty_like(steps[0]).bernoulli_(1 - self.p) / (1 - self.p)
        return (steps * keep).flatten(0, 1)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class NeuronFactory(NamedTuple):
    """Makes the layers of neurons of one network: its neuron, and layers that differ from it by name."""

    config: NeuronConfig
    timesteps: int
    layers: Mapping[str, NeuronConfig] = MappingProxyType({})

    def __call__(self, name: str, channels: int) -> NeuronLayer:
        """`name` must be the path at which the network puts the layer."""
        return NeuronLayer(self.layers.get(name, self.config), channels, self.timesteps)
