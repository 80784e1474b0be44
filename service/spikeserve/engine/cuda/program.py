"""A network as what a GPU runs for one timestep of a batch: layers of weights by torch, neurons by the slot kernels.

Batch norms behind a layer of weights are folded into it. A sum before neurons, with or without a batch norm behind it,
is left to the neurons' kernel, which reads the summands; so no pass over memory is spent on a residual connection.
Tensors lie with channels last throughout, in the dtype asked for; only the readout is computed in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from spikeserve.engine.cuda.plain import PlainLayer
from spiketrain.convert.flow import INPUT, Flow, Op, network_flow, without
from spiketrain.convert.folding import (
    BATCH_NORMS,
    WEIGHTED,
    affine_of,
    without_batch_norms,
    without_idle,
)
from spiketrain.kernels.triton import Affine, Batch, SlotLayer, plan_of
from spiketrain.networks import Network
from spiketrain.neurons import NeuronLayer


class Layer(Protocol):
    """One layer of neurons with the states of all slots."""

    def fire(
        self,
        a: Tensor,
        b: Tensor | None,
        batch: Batch,
        dtype: torch.dtype,
        by_slot: bool = False,
        constant: bool = False,
    ) -> Tensor: ...

    def state_of(self, slot: int, age: int) -> tuple[Tensor, ...]: ...

    def set_state(self, slot: int, parts: tuple[Tensor, ...]) -> None: ...


@dataclass(frozen=True)
class Target:
    """Where a program runs, and for how many slots."""

    device: torch.device
    dtype: torch.dtype
    slots: int


class Program:
    """`encode` has no state and is run once for each input, `step` at every timestep.

    `layers` are all layers of neurons by name, `counted` the names of those that spike, in the order of the counts.
    `encoded` [slots + 1, ...] holds what `encode` gave for each slot; the last row is that of padding.
    """

    def __init__(self, network: Network, fan_out: Mapping[str, Tensor], target: Target) -> None:
        network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
        shapes, modules = network.neuron_shapes(), network.neuron_layers()
        self.target = target
        self.counted = tuple(name for name in shapes if modules[name].config.spiking)
        flow, affines = _folded(without_idle(network_flow(network)))
        self._sums = _sums_for_neurons(flow)
        self._output = flow.output
        self.layers: dict[str, Layer] = {
            name: self._layer(name, modules[name], shapes[name], fan_out, affines.get(name))
            for name in shapes
        }
        self._source, self._encoder, self._body = _parts(flow, self._sums)
        self._modules = self._placed((*self._encoder, *self._body))
        users = [op for op in self._body if self._source in self._inputs(op)]
        # Neurons alone read it: they can do so where it lies.
        self._by_slot = (
            len(users) == 1
            and isinstance(self.layers.get(users[0].name), SlotLayer)
            and self._inputs(users[0]) == (self._source,)
            and flow.output != self._source
        )
        shape = flow.shape_of(self._source)
        rows = torch.zeros(target.slots + 1, *shape[1:], shape[0])
        self.encoded = rows.to(target.device, target.dtype).movedim(-1, 1)

    def _layer(
        self,
        name: str,
        module: NeuronLayer,
        shape: tuple[int, ...],
        fan_out: Mapping[str, Tensor],
        affine: Affine | None,
    ) -> Layer:
        device, slots = self.target.device, self.target.slots
        column = self.counted.index(name) if name in self.counted else None
        reach = fan_out[name].expand(shape) if column is not None else None
        plan = plan_of(module.neuron())
        if plan is None:
            neuron = copy.deepcopy(module).to(device).neuron()
            return PlainLayer(neuron, slots, shape, reach, column, affine, device)
        placed = None if affine is None else Affine(*(value.to(device) for value in affine))
        return SlotLayer(plan, slots, shape, reach, column, placed, device)

    def _placed(self, ops: tuple[Op, ...]) -> dict[str, nn.Module]:
        placed: dict[str, nn.Module] = {}
        for op in ops:
            if op.module is None or isinstance(op.module, NeuronLayer):
                continue
            exact = op.name == self._output and isinstance(op.module, nn.Linear)
            module = copy.deepcopy(op.module).to(
                self.target.device, torch.float32 if exact else self.target.dtype
            )
            if isinstance(module, nn.Conv2d):
                module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            placed[op.name] = module
        return placed

    def _inputs(self, op: Op) -> tuple[str, ...]:
        return self._sums.get(op.name, op.inputs)

    def encode(self, inputs: Tensor) -> Tensor:
        """Inputs [rows, ...] to what `encoded` holds of them."""
        values = {INPUT: inputs.to(self.target.dtype)}
        if inputs.dim() == 4:
            values[INPUT] = values[INPUT].contiguous(memory_format=torch.channels_last)
        for op in self._encoder:
            values[op.name] = self._stateless(op, [values[name] for name in op.inputs])
        return values[self._source]

    def step(self, batch: Batch) -> Tensor:
        """`batch.steps` timesteps of these rows, from what `encoded` holds: logits [steps * rows, classes]."""
        rows, steps = len(batch.slots), batch.steps
        values: dict[str, Tensor] = {}
        if not self._by_slot:
            places = torch.where(batch.slots < 0, self.target.slots, batch.slots)
            values[self._source] = self.encoded.index_select(0, places.long())
        for op in self._body:
            layer = self.layers.get(op.name)
            by_slot = layer is not None and self._by_slot and op.inputs == (self._source,)
            inputs = [self.encoded] if by_slot else [values[name] for name in self._inputs(op)]
            if not by_slot:
                inputs = _alike(inputs, rows, steps)
            if layer is None:
                values[op.name] = self._stateless(op, inputs)
                continue
            constant = steps > 1 and len(inputs[0]) == rows and not by_slot
            other = inputs[1] if len(inputs) > 1 else None
            values[op.name] = layer.fire(
                inputs[0], other, batch, self.target.dtype, by_slot, constant
            )
        logits = values[self._output].float()
        return logits if len(logits) == rows * steps else logits.repeat(steps, 1)

    def _stateless(self, op: Op, inputs: list[Tensor]) -> Tensor:
        if op.kind == "add":
            return sum(inputs[1:], start=inputs[0])
        if op.kind == "reshape":
            return inputs[0].reshape(-1, *op.shape)
        module: Any = self._modules[op.name]
        x = inputs[0].to(module.weight.dtype) if isinstance(module, nn.Linear) else inputs[0]
        return cast(Tensor, module(x))


def _folded(flow: Flow) -> tuple[Flow, dict[str, Affine]]:
    """The flow without batch norms, and those that neurons are to apply themselves, by the neurons' name."""
    affines: dict[str, Affine] = {}
    taken: set[str] = set()
    for op in flow.ops:
        if not isinstance(op.module, BATCH_NORMS) or not flow.only_use(op.name):
            continue
        (source,) = op.inputs
        foldable = (
            source != INPUT
            and isinstance(flow.op(source).module, WEIGHTED)
            and flow.only_use(source)
        )
        user = flow.users(op.name)[0] if flow.users(op.name) else None
        if not foldable and user is not None and isinstance(user.module, NeuronLayer):
            gain, shift = affine_of(cast(nn.BatchNorm2d, op.module), op.name)
            affines[user.name] = Affine(gain.float(), shift.float())
            taken.add(op.name)
    return without_batch_norms(without(flow, lambda op: op.name in taken)), affines


def _sums_for_neurons(flow: Flow) -> dict[str, tuple[str, ...]]:
    """The summands of layers of neurons whose current is a sum of two and nobody else's, by the layers' names."""
    sums: dict[str, tuple[str, ...]] = {}
    for op in flow.ops:
        if isinstance(op.module, NeuronLayer) and op.inputs[0] != INPUT:
            before = flow.op(op.inputs[0])
            if before.kind == "add" and len(before.inputs) == 2 and flow.only_use(before.name):
                sums[op.name] = before.inputs
    return sums


def _parts(
    flow: Flow, sums: Mapping[str, tuple[str, ...]]
) -> tuple[str, tuple[Op, ...], tuple[Op, ...]]:
    """What a constant input needs once, whose result is the first value; and what each timestep needs.

    Where more than one value goes from the one to the other, all is computed at each timestep.
    """
    merged = {op.inputs[0] for op in flow.ops if op.name in sums}
    ops = tuple(op for op in flow.ops if op.name not in merged)
    stateful: set[str] = set()
    for op in ops:
        inputs = sums.get(op.name, op.inputs)
        if isinstance(op.module, NeuronLayer) or stateful.intersection(inputs):
            stateful.add(op.name)
    body = tuple(op for op in ops if op.name in stateful)
    needed = {name for op in body for name in sums.get(op.name, op.inputs)} - stateful
    if len(needed) != 1:
        return INPUT, (), ops
    return needed.pop(), tuple(op for op in ops if op.name not in stateful), body


def _alike(inputs: list[Tensor], rows: int, steps: int) -> list[Tensor]:
    """With one row a timestep each, where they are not all the same at every timestep."""
    if len({len(each) for each in inputs}) == 1:
        return inputs
    return [
        each if len(each) == rows * steps else each.repeat(steps, *(1,) * (each.dim() - 1))
        for each in inputs
    ]
