"""Feedback networks, whose last layer's spikes come back to the first at the next timestep (IDE-FSNN).

    timestep t:   s1[t] = neuron(F(x) + W sN[t-1]);   si[t] = neuron(fi(s(i-1)[t]))  for i = 2..N;   logits = C a[t]

where a[t] is the (weighted) average rate of the last layer so far. As t grows, a goes to the solution of

    a = fN(... f2(f1(a))),   f1(a) = clamp((W a + F(x)) / V, 0, 1),   fi(a) = clamp(fi(a) / V, 0, 1)

with the threshold V. Training runs the timesteps without gradients and differentiates that equation instead
(`spiketrain.implicit`), so memory does not grow with T. W is divided by its largest singular value and multiplied by a
gain between -1 and 1, which keeps the equation solvable.
Source: Xiao et al., "Training feedback spiking neural networks by implicit differentiation on the equilibrium state",
NeurIPS 2021; pkuxmq/IDE-FSNN, modules/snnide_module.py and snnide_multilayer_module.py. Other than there, the power
iteration rests in evaluation, and batch-norm statistics are updated once a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spiketrain.implicit import Solver, at_equilibrium
from spiketrain.networks.base import Fire, Network, NeuronFactory, RunOutput, StepFire, StepOutput
from spiketrain.neurons import FeedbackLIFConfig, NeuronLayer, RateConfig


@runtime_checkable
class RecallingFire(Protocol):
    """A `Fire` that also knows the timestep before."""

    def previous(self, source: NeuronLayer, memory: NeuronLayer) -> Tensor | None:
        """Spikes of `source` in the timestep before, which `memory` kept; None where there is no timestep."""


class _Spectral(nn.Module):
    """weight / (largest singular value) * gain, for a weight taken as a matrix of its first axis and the rest."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("u", nn.functional.normalize(torch.randn(rows), dim=0))
        self.register_buffer("v", nn.functional.normalize(torch.randn(columns), dim=0))
        self.u: Tensor
        self.v: Tensor

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        matrix = weight.flatten(1)
        self.v.copy_(nn.functional.normalize(matrix.T @ self.u, dim=0))
        self.u.copy_(nn.functional.normalize(matrix @ self.v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        # Not as products, which autocast rounds: the gain of the loop decides whether there is an equilibrium.
        norm = (self.u * (weight.flatten(1) * self.v).sum(1)).sum()
        return weight / norm * self.gain.clamp(-1, 1)


class Layer(NamedTuple):
    """Channels, and stride, of one convolution 3x3."""

    channels: int
    stride: int = 1


class _Unit(nn.Module):
    def __init__(self, weights: nn.Module, channels: int, flat: bool) -> None:
        super().__init__()
        self.weights = weights
        self.bn = nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(self.weights(x)))


class FeedbackNetwork(Network):
    """`encoder` is F, `units` the fi, `feedback` W, all without neurons; `shapes` those of the layers' neurons.

    `dropout` zeroes currents with one mask for the whole run. `solver` and `iterations` are of the backward equation.
    """

    logit_readout: Literal["last"] = "last"

    def __init__(
        self,
        neurons: NeuronFactory,
        input_shape: tuple[int, ...],
        classes: int,
        encoder: nn.Module,
        units: Sequence[nn.Module],
        feedback: nn.Module,
        shapes: Sequence[tuple[int, ...]],
        dropout: float,
        solver: Literal["broyden", "iteration"],
        iterations: int,
    ) -> None:
        super().__init__(input_shape, classes, neurons.timesteps)
        config = neurons.config
        if not isinstance(config, FeedbackLIFConfig):
            raise ValueError(
                f"neuron is {type(config).__name__}: a feedback network takes 'feedback-lif', whose equilibrium is known"
            )
        if neurons.layers:
            raise ValueError("layers: all layers of a feedback network have the same neuron")
        self.threshold, self.keep = config.threshold, config.keep
        self.p = dropout
        self.solver = Solver(solver, iterations)
        self.encoder = encoder
        self.units = nn.ModuleList(units)
        self.neurons = nn.ModuleList(
            neurons(f"neurons.{i}", shape[0]) for i, shape in enumerate(shapes)
        )
        self.average = NeuronLayer(RateConfig(decay=config.keep), shapes[-1][0], self.timesteps)
        _initialise(self)
        self.feedback = feedback
        _normalise_rows(cast(Tensor, feedback.weight))
        parametrize.register_parametrization(
            feedback, "weight", _Spectral(cast(Tensor, feedback.weight))
        )
        self.linear = nn.Linear(torch.Size(shapes[-1]).numel(), classes)

    def encode(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(x))

    def body(self, x: Tensor, fire: Fire) -> Tensor:
        return cast(Tensor, self.linear(self._rate(x, fire, None).flatten(1)))

    def _rate(self, x: Tensor, fire: Fire, masks: Sequence[Tensor] | None) -> Tensor:
        """The last layer's average rate after this timestep, from the encoded input."""
        if not isinstance(fire, RecallingFire):
            raise ValueError(
                "a feedback network needs the spikes of the timestep before, which cannot be said in this form"
            )
        layers = cast(list[NeuronLayer], list(self.neurons))
        if (spikes := fire.previous(layers[-1], self.average)) is not None:
            x = x + self.feedback(spikes)
        s = fire(layers[0], _masked(x, masks, 0))
        for i, unit in enumerate(self.units, 1):
            s = fire(layers[i], _masked(unit(s), masks, i))
        return fire(self.average, s)

    def equilibrium(self, a: Tensor, x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """f(a) of the equation above, for the encoded input; of a's dtype, also where products are of a lower one."""
        kind = a.dtype
        a = (_masked(self.feedback(a) + x, masks, 0) / self.threshold).clamp(0, 1)
        for i, unit in enumerate(self.units, 1):
            a = (_masked(unit(a), masks, i) / self.threshold).clamp(0, 1)
        return a.to(kind)

    def forward(self, x: Tensor, timesteps: int | None = None) -> RunOutput:
        """All timesteps. In training mode logits are [1, N, classes], of the equilibrium, and differentiable."""
        constant = x.dim() == len(self.input_shape) + 1
        if not constant and x.dim() != len(self.input_shape) + 2:
            raise ValueError(
                f"input of shape {tuple(x.shape)}: expected [N, {self.input_shape}] or [T, N, {self.input_shape}]"
            )
        steps = (timesteps or self.timesteps) if constant else len(x)
        return self._train(x, steps, constant) if self.training else self._run(x, steps, constant)

    def _run(self, x: Tensor, timesteps: int, constant: bool) -> RunOutput:
        encoded = self.encode(x if constant else x.flatten(0, 1))
        if not constant:
            encoded = encoded.view(*x.shape[:2], *encoded.shape[1:])
        state = self.initial_state(x.shape[0] if constant else x.shape[1])
        outputs: list[StepOutput] = []
        for t in range(timesteps):
            outputs.append(self.advance(encoded if constant else encoded[t], state))
            state = outputs[-1].state
        logits = torch.stack([output.logits for output in outputs])
        spikes = {
            name: torch.stack([output.spikes[name] for output in outputs])
            for name in outputs[0].spikes
        }
        return RunOutput(logits, spikes, state)

    def _train(self, x: Tensor, timesteps: int, constant: bool) -> RunOutput:
        spectral = cast(Any, self.feedback).parametrizations.weight
        spectral[0].iterate(spectral.original)
        inputs = x if constant else _weighted_mean(x, self.keep)
        encoded = self.encode(inputs)
        with torch.no_grad():
            masks = self._masks(encoded)
            self.units.eval()
            self.encoder.eval()
            a = self._simulate(encoded if constant else x, timesteps, constant, masks)
            if len(self.units):
                self.units.train()
                self.equilibrium(a, encoded, masks)  # for the statistics of the batch norms
                self.units.eval()
                a = self.equilibrium(a, encoded, masks)
        at = at_equilibrium(lambda z: self.equilibrium(z, encoded, masks), a, self.solver)
        self.train()
        return RunOutput(self.linear(at.flatten(1)).unsqueeze(0), {}, {})

    def _simulate(
        self, x: Tensor, timesteps: int, constant: bool, masks: Sequence[Tensor] | None
    ) -> Tensor:
        state = {
            name: layer.initial_state(
                x.new_zeros(x.shape[0 if constant else 1], *self.neuron_shapes()[name])
            )
            for name, layer in self.neuron_layers().items()
        }
        for t in range(timesteps):
            fire = StepFire(self, state)
            a = self._rate(x if constant else self.encode(x[t]), fire, masks)
            state = fire.state
        return a

    def _masks(self, encoded: Tensor) -> list[Tensor] | None:
        if not self.p:
            return None
        shapes = self.neuron_shapes()
        return [
            encoded.new_empty(len(encoded), *shapes[f"neurons.{i}"]).bernoulli_(1 - self.p)
            / (1 - self.p)
            for i in range(len(self.neurons))
        ]


class FeedbackLinear(FeedbackNetwork):
    """One layer of `hidden` neurons, F and W linear: F400 has 400."""

    def __init__(
        self,
        neurons: NeuronFactory,
        input_shape: tuple[int, ...] = (1, 28, 28),
        classes: int = 10,
        hidden: int = 400,
        dropout: float = 0.2,
        solver: Literal["broyden", "iteration"] = "broyden",
        iterations: int = 30,
    ) -> None:
        inputs = torch.Size(input_shape).numel()
        encoder = nn.Sequential(nn.Flatten(), _Unit(nn.Linear(inputs, hidden), hidden, flat=True))
        feedback = nn.Linear(hidden, hidden, bias=False)
        super().__init__(
            neurons,
            input_shape,
            classes,
            encoder,
            (),
            feedback,
            [(hidden,)],
            dropout,
            solver,
            iterations,
        )


class FeedbackConv(FeedbackNetwork):
    """One layer of `channels` maps, F and W convolutions of `kernel`; F has stride 2. 64C5s: 64 maps, kernel 5.

    `padding` is F's; the paper's parameter count for N-MNIST belongs to 2, its code says 1.
    """

    def __init__(
        self,
        neurons: NeuronFactory,
        input_shape: tuple[int, ...] = (1, 28, 28),
        classes: int = 10,
        channels: int = 64,
        kernel: int = 5,
        padding: int = 2,
        dropout: float = 0.2,
        solver: Literal["broyden", "iteration"] = "broyden",
        iterations: int = 30,
    ) -> None:
        first = nn.Conv2d(input_shape[0], channels, kernel, 2, padding)
        height, width = ((size + 2 * padding - kernel) // 2 + 1 for size in input_shape[1:])
        feedback = nn.Conv2d(channels, channels, kernel, 1, kernel // 2, bias=False)
        super().__init__(
            neurons,
            input_shape,
            classes,
            _Unit(first, channels, flat=False),
            (),
            feedback,
            [(channels, height, width)],
            dropout,
            solver,
            iterations,
        )


class FeedbackConvStack(FeedbackNetwork):
    """F and the fi convolutions 3x3, W a transposed convolution from the last map up to the first.

    AlexNet-F and CIFARNet-F: F with stride 2, then strides 1, 2, 1, 1.
    """

    def __init__(
        self,
        neurons: NeuronFactory,
        layers: Sequence[tuple[int, int]],
        input_shape: tuple[int, ...] = (3, 32, 32),
        classes: int = 10,
        dropout: float = 0.2,
        solver: Literal["broyden", "iteration"] = "broyden",
        iterations: int = 30,
    ) -> None:
        plan = [Layer(*layer) for layer in layers]
        inputs, height, width = input_shape
        shapes: list[tuple[int, ...]] = []
        units: list[nn.Module] = []
        for channels, stride in plan:
            units.append(_Unit(nn.Conv2d(inputs, channels, 3, stride, 1), channels, flat=False))
            inputs, height, width = channels, -(-height // stride), -(-width // stride)
            shapes.append((channels, height, width))
        scale = shapes[0][1] // height
        if scale != 2 or shapes[0][1:] != (2 * height, 2 * width):
            raise ValueError(
                f"layers of {shapes[0][1:]} to {shapes[-1][1:]}: the feedback enlarges by 2, no more and no less"
            )
        feedback = nn.ConvTranspose2d(inputs, plan[0].channels, 3, 2, 1, 1, bias=False)
        super().__init__(
            neurons,
            input_shape,
            classes,
            units[0],
            units[1:],
            feedback,
            shapes,
            dropout,
            solver,
            iterations,
        )


def _masked(x: Tensor, masks: Sequence[Tensor] | None, layer: int) -> Tensor:
    return x if masks is None else x * masks[layer]


def _weighted_mean(x: Tensor, keep: float) -> Tensor:
    """The average input [N, ...] of [T, N, ...], weighted as the rates are."""
    weights = keep ** torch.arange(len(x) - 1, -1, -1, dtype=x.dtype, device=x.device)
    mean: Tensor = torch.tensordot(weights / weights.sum(), x, dims=1)
    return mean


def _normalise_rows(weight: Tensor) -> None:
    with torch.no_grad():
        rows = nn.init.uniform_(weight, -1, 1).flatten(1)
        weight.copy_((rows / rows.norm(dim=1, keepdim=True)).view_as(weight))


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _normalise_rows(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
