"""The executor that is right by construction: plain torch, and answers that do not depend on the batch.

Left to itself, torch gives a sample other last bits in another batch, and a spike can flip that is that close to the
threshold. Measured with torch 2.13 on x86-64:

* convolutions go to oneDNN or to torch's own code, depending on the batch. Here they always go to oneDNN, which gave
  the same bits for every batch size, for many shapes and numbers of threads; elsewhere they are run sample by sample.
* matrix products are summed in another order when there are more rows: linear layers are run row by row.
* `sigmoid` rounds differently in the last few elements of a buffer: neurons are run sample by sample.
* batch norm in evaluation, pooling and additions do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikeserve.engine.executor import Frames, Sample, StateError, StepResult
from spikeserve.engine.state import pack_state, unpack_state
from spiketrain.networks import Network, with_plain_weights
from spiketrain.neurons import Neuron, NeuronLayer

CONSTANT = "constant"

# Layers that are matrix products; convolutions are, too.
_PRODUCTS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

# The state of each layer of neurons of one sample, by the layer's name.
_SlotState = dict[str, Any]


class ReferenceExecutor:
    """`fan_out` is by layer the synaptic operations that one spike of each neuron causes, [C, H, W] or [F].

    `weights` names the weights, such as a checkpoint's digest: only states saved under the same name are loaded.
    """

    def __init__(
        self, network: Network, slots: int, fan_out: Mapping[str, Tensor], weights: str = ""
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}: it must be at least 1")
        self._network = independent_of_batch(network)
        modules, shapes = self._network.neuron_layers(), self._network.neuron_shapes()
        self._layers = tuple(name for name in shapes if modules[name].config.spiking)
        if not self._layers:
            raise ValueError("the network has no layer of neurons that spike")
        if missing := set(self._layers) - fan_out.keys():
            raise ValueError(f"fan_out lacks the layer {min(missing)!r}")
        self._fan_out = {
            name: fan_out[name].double().expand(shapes[name]).flatten() for name in self._layers
        }
        self._neurons = {modules[name]: (name, modules[name].neuron()) for name in shapes}
        self._weights = weights
        # A step never changes a state in place, so every sample can start from the same tensors.
        self._fresh = self._network.initial_state(1)
        self._states: list[_SlotState] = [{} for _ in range(slots)]
        self._constants: list[Tensor | None] = [None] * slots

    @property
    def slots(self) -> int:
        return len(self._states)

    @property
    def layers(self) -> tuple[str, ...]:
        return self._layers

    @torch.inference_mode()
    def admit(self, slot: int, sample: Sample) -> None:
        self._states[slot] = dict(self._fresh)
        self._constants[slot] = (
            None if sample.constant is None else self._network.encode(sample.constant.unsqueeze(0))
        )

    @torch.inference_mode()
    def step(self, slots: Sequence[int], frames: Frames | None) -> StepResult:
        if len(set(slots)) != len(slots):
            raise ValueError(f"slots {list(slots)}: one is named twice")
        fire = _FireEachSample(self._neurons, [self._states[slot] for slot in slots])
        logits = self._network.body(self._encoded(slots, frames), fire)
        counts = [_count(fire.spikes[name], self._fan_out[name]) for name in self._layers]
        return StepResult(
            logits=logits,
            spikes=torch.stack([spikes for spikes, _ in counts], dim=1),
            synaptic_operations=torch.stack([operations for _, operations in counts]).sum(0),
        )

    def _encoded(self, slots: Sequence[int], frames: Frames | None) -> Tensor:
        rows = [self._constants[slot] for slot in slots]
        if frames is not None:
            encoded = self._network.encode(frames.values)
            for row, value in zip(frames.rows, torch.split(encoded, 1), strict=True):
                rows[row] = value
        present = [row for row in rows if row is not None]
        if len(present) != len(rows):
            raise ValueError(
                f"slot {slots[rows.index(None)]} has neither a constant input nor a frame"
            )
        return torch.cat(present)

    def save(self, slot: int) -> bytes:
        tensors = {
            f"{layer}/{i}": tensor
            for layer, state in self._states[slot].items()
            for i, tensor in enumerate(state)
        }
        constant = self._constants[slot]
        if constant is not None:
            tensors[CONSTANT] = constant
        return pack_state(tensors, self._weights)

    def load(self, slot: int, state: bytes) -> None:
        self._states[slot], self._constants[slot] = {}, None
        tensors = unpack_state(state, self._weights)
        constant = tensors.pop(CONSTANT, None)
        loaded = {}
        for layer, fresh in self._fresh.items():
            parts = [tensors.pop(f"{layer}/{i}", None) for i in range(len(fresh))]
            for part, like in zip(parts, fresh, strict=True):
                if part is None or part.shape != like.shape or part.dtype != like.dtype:
                    raise StateError(
                        f"state: layer {layer!r} is missing, or of another shape or type"
                    )
            loaded[layer] = type(fresh)(*parts)
        if tensors:
            raise StateError(f"state: {min(tensors)!r} belongs to no layer of this model")
        self._states[slot], self._constants[slot] = loaded, constant


class _FireEachSample:
    """`Fire` for a batch in which each sample has a state of its own. Replaces the states by the new ones."""

    timesteps = 1

    def __init__(
        self, neurons: Mapping[NeuronLayer, tuple[str, Neuron]], states: Sequence[_SlotState]
    ) -> None:
        self.neurons = neurons
        self.states = states
        self.spikes: dict[str, Tensor] = {}

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor:
        name, neuron = self.neurons[layer]
        rows = []
        for row, state in zip(torch.split(current, 1), self.states, strict=True):
            spikes, state[name] = neuron.step(row, state[name])
            rows.append(spikes)
        self.spikes[name] = torch.cat(rows)
        return self.spikes[name]

    def previous(self, source: NeuronLayer, memory: NeuronLayer) -> Tensor:
        name, _ = self.neurons[memory]
        return torch.cat([state[name].last for state in self.states])


class _OneDnn(nn.Module):
    """A convolution that is oneDNN's whatever the batch."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        padding = cast(tuple[int, ...], conv.padding)
        return torch.mkldnn_convolution(
            x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups
        )


class _RowByRow(nn.Module):
    """A layer of weights, one sample at a time."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.module(row) for row in torch.split(x, 1)])


def independent_of_batch(network: Network) -> Network:
    """A copy for evaluation in which no layer's output depends on which samples are beside each other."""
    network = with_plain_weights(network).eval().requires_grad_(False)
    for name, module in list(network.named_modules()):
        if _goes_to_onednn(module):
            network.set_submodule(name, _OneDnn(cast(nn.Conv2d, module)))
        elif isinstance(module, _PRODUCTS):
            network.set_submodule(name, _RowByRow(module))
    return network


def _goes_to_onednn(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _count(spikes: Tensor, fan_out: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and synaptic operations, [n] each, of one layer's spikes [n, C, ...]; in float64, so exact."""
    flat = spikes.flatten(1).double()
    return flat.sum(1), flat @ fan_out
