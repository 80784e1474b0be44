"""What a recipe will do, before it is done: shapes, parameters, memory, and how long it may take.

The network is built without memory for its weights (torch's meta device) and run with two samples, so that any recipe
can be planned on any machine. Only the speed is measured, on the device that would train, with random inputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn

from spiketrain.data import DataMissingError
from spiketrain.data.catalogue import CATALOGUE
from spiketrain.data.of_recipe import dataset_of
from spiketrain.networks import Network, build_network
from spiketrain.networks.feedback import FeedbackNetwork
from spiketrain.neurons import NeuronLayer
from spiketrain.optimise import loss_of, make_optimizer
from spiketrain.recipe import Recipe
from spiketrain.train import TrainingError, training_device

_SAMPLES = 2
_MIB = 1 << 20


@dataclass(frozen=True)
class LayerPlan:
    """`shape` is the output of one sample at one timestep."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Memory:
    """Bytes: of weights and buffers, gradients, the optimiser, and of what one part of a batch keeps for backward."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.activations


@dataclass(frozen=True)
class Plan:
    """`samples` are those for training, known from the data or from what the data set should have; `measured_at` is
    the batch that `samples_per_second` was measured with. Neither is known for one's own data that are not there."""

    recipe: Recipe
    device: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerPlan, ...]
    parameters: int
    memory: Memory
    samples: int | None
    data: str
    samples_per_second: float | None
    measured_at: int | None

    @property
    def steps(self) -> int | None:
        """Of the optimiser, in an epoch."""
        if self.samples is None:
            return None
        training = self.recipe.training
        return min(training.samples_per_epoch or self.samples, self.samples) // training.batch_size

    @property
    def seconds(self) -> float | None:
        """All epochs, without validation and reading; an epoch of fewer timesteps takes so much less."""
        if self.steps is None or self.samples_per_second is None:
            return None
        training = self.recipe.training
        epochs = sum(training.timesteps_of(e) for e in range(training.epochs)) / training.timesteps
        return epochs * self.steps * training.batch_size / self.samples_per_second

    def table(self) -> Group:
        """For a terminal."""
        layers = Table("layer", "kind", "output", "parameters")
        for layer in self.layers:
            layers.add_row(
                layer.name, layer.kind, "x".join(map(str, layer.shape)), f"{layer.parameters:,}"
            )
        facts = Table(show_header=False)
        for name, value in self.facts().items():
            facts.add_row(name, value)
        return Group(layers, facts)

    def facts(self) -> dict[str, str]:
        training, memory = self.recipe.training, self.memory
        steps = "unknown" if self.steps is None else f"{self.steps:,}"
        speed, total = "not measured", "unknown"
        if self.samples_per_second is not None:
            speed = f"{self.samples_per_second:,.1f} (measured with {self.measured_at} at once)"
        if self.seconds is not None:
            total = f"{_duration(self.seconds)}, without validation and reading"
        return {
            "recipe": self.recipe.name,
            "source": self.recipe.source,
            "expected accuracy": _expected(self.recipe),
            "data": self.data,
            "input": f"{'x'.join(map(str, self.input_shape))}, {training.timesteps} timesteps",
            "network": f"{self.recipe.network.name} with {self.recipe.neuron.kind}",
            "parameters": f"{self.parameters:,}",
            "device": f"{self.device}, {training.precision}, channels last",
            "batch": f"{training.batch_size}, in {training.accumulate} part(s)",
            "steps": f"{training.epochs} epochs of {steps}",
            "learning": f"{training.optimizer}, {training.learning_rate:g}, {training.schedule}",
            "memory": f"{memory.total / _MIB:,.0f} MiB: weights {memory.weights / _MIB:,.0f}, "
            f"gradients {memory.gradients / _MIB:,.0f}, optimiser {memory.optimiser / _MIB:,.0f}, "
            f"activations {memory.activations / _MIB:,.0f} of a part of {training.batch_size // training.accumulate}",
            "samples per second": speed,
            "estimated time": total,
        }


def plan_of(recipe: Recipe, data_root: Path | None = None, measure_seconds: float = 10.0) -> Plan:
    """The plan of a recipe. The data need not be there; a speed is measured unless `measure_seconds` is 0.

    Raises TrainingError where the recipe's network does not take its data, or its device is not there, ValueError where
    it takes its arguments not.
    """
    training = recipe.training
    device = training_device(training.device)
    with torch.device("meta"):
        network = build_network(
            recipe.network.name, recipe.network.arguments, recipe.neuron, training.timesteps
        ).train()
    samples, said = _samples(recipe, data_root, network)
    layers, activations = _walk(network, recipe)
    part = training.batch_size // training.accumulate
    parameters = sum(p.numel() for p in network.parameters())
    held = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    # Adam keeps two moments of each parameter, SGD one where it has a momentum.
    moments = {"adam": 2, "adamw": 2, "sgd": int(training.momentum > 0)}[training.optimizer]
    speed, measured_at = (
        _speed(recipe, device, measure_seconds) if measure_seconds else (None, None)
    )
    return Plan(
        recipe=recipe,
        device=str(device),
        input_shape=network.input_shape,
        layers=layers,
        parameters=parameters,
        memory=Memory(held, 4 * parameters, 4 * moments * parameters, activations * part),
        samples=samples,
        data=said,
        samples_per_second=speed,
        measured_at=measured_at,
    )


def _samples(recipe: Recipe, root: Path | None, network: Network) -> tuple[int | None, str]:
    """How many samples there are for training, and where that is known from."""
    try:
        data = dataset_of(
            recipe.data, root, events=recipe.events, timesteps=recipe.training.timesteps
        )
    except DataMissingError as error:
        entry = CATALOGUE.get(recipe.data.name)
        if entry is None:
            return None, str(error)
        per_class = recipe.data.validation_per_class
        held = per_class * network.classes if per_class else entry.training // 10
        return entry.training - held, f"{recipe.data.name} is not there; it should have so many"
    if (network.input_shape, network.classes) != (data.input.shape, len(data.classes)):
        raise TrainingError(
            f"{recipe.name}: the network takes {network.input_shape} and {network.classes} classes, {data.name} has "
            f"{data.input.shape} and {len(data.classes)}"
        )
    counts = [
        f"{len(split)} {name}"
        for name, split in (
            ("train", data.train),
            ("validation", data.validation),
            ("test", data.test),
        )
    ]
    return len(data.train), f"{data.name}: {', '.join(counts)}"


def _walk(network: Network, recipe: Recipe) -> tuple[tuple[LayerPlan, ...], int]:
    """The layers in the order in which they compute, and the bytes that one sample keeps for the backward pass."""
    layers: dict[str, LayerPlan] = {}
    shapes = network.neuron_shapes()
    for name, module in network.named_modules():
        if list(module.children()) or isinstance(module, nn.Identity):
            continue
        module.register_forward_hook(_note(name, layers))
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Kept alive, so that no other tensor gets the same place; views share one storage.
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    timesteps = recipe.training.timesteps
    if isinstance(network, FeedbackNetwork):  # keeps nothing of its timesteps
        timesteps = 1
    lead = (timesteps, _SAMPLES) if recipe.events is not None else (_SAMPLES,)
    x = torch.empty(*lead, *network.input_shape, device="meta")
    half = recipe.training.precision == "bfloat16"
    with _fused_neurons(network), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        # Autocast has no rules for the meta device; those of the CPU are the same for what is counted here.
        logits = network(x, timesteps).logits
        loss_of(logits, torch.zeros(_SAMPLES, dtype=torch.long, device="meta"), recipe.training)
    activations = sum(size for _, size in kept.values()) // _SAMPLES
    for name, layer in network.neuron_layers().items():
        own = sum(p.numel() for p in layer.parameters())
        layers.setdefault(name, LayerPlan(name, _kind(layer), shapes.get(name, ()), own))
    return tuple(layers.values()), activations // 2 if half else activations


def _note(name: str, layers: dict[str, LayerPlan]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        own = sum(p.numel() for p in module.parameters())
        if isinstance(module, NeuronLayer):
            layers.setdefault(name, LayerPlan(name, _kind(module), tuple(output[0].shape[2:]), own))
        elif isinstance(output, Tensor):
            kind = type(module).__name__
            layers.setdefault(name, LayerPlan(name, kind, tuple(output.shape[1:]), own))

    return hook


def _kind(layer: NeuronLayer) -> str:
    return str(layer.config.model_dump()["kind"])


class _Fused(torch.autograd.Function):
    """Keeps what the kernels keep of a layer of neurons: its currents."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@contextmanager
def _fused_neurons(network: Network) -> Iterator[None]:
    layers = [module for module in network.modules() if isinstance(module, NeuronLayer)]
    for layer in layers:
        layer.forward = lambda x, state=None: (_Fused.apply(x.contiguous()), None)  # type: ignore[method-assign, no-untyped-call]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _speed(recipe: Recipe, device: torch.device, seconds: float) -> tuple[float, int]:
    """Samples a second of whole steps with random inputs, and the batch that they were measured with: the recipe's,
    or what fits into the time."""
    training = recipe.training
    network = build_network(
        recipe.network.name, recipe.network.arguments, recipe.neuron, training.timesteps
    )
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = make_optimizer(network, training)
    part = training.batch_size // training.accumulate
    batch = min(_SAMPLES, part)

    def step(count: int) -> float:
        lead = (training.timesteps, count) if recipe.events is not None else (count,)
        x = torch.rand(*lead, *network.input_shape, device=device)
        y = torch.randint(network.classes, (count,), device=device)
        begin = time.perf_counter()
        half = training.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = network(x, training.timesteps).logits
        loss = loss_of(logits.float(), y, training)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # a GPU is done when its answer is here
        return time.perf_counter() - begin

    step(batch)  # kernels are compiled, and choose how they compute
    end = time.perf_counter() + seconds
    taken = step(batch)
    while batch < part and time.perf_counter() + 6 * taken < end:
        batch = min(part, 4 * batch)
        step(batch)
        taken = step(batch)
    times = [taken]
    while time.perf_counter() + taken < end and len(times) < 20:
        times.append(step(batch))
    return batch * len(times) / sum(times), batch


def _expected(recipe: Recipe) -> str:
    if recipe.expected is None:
        return "none reported"
    return f"{recipe.expected.accuracy:.2%} ({recipe.expected.source}; epoch selected on {recipe.expected.selected_on})"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
