"""Synaptic operations and energy.

A synaptic operation is one weight added to a potential because of one spike. How many a spike causes depends only on
where its neuron sits: `fan_out` counts them once for each neuron, so that those of a run are a weighted sum of its
spikes. The first layer of weights sees analog values and multiplies: `encoder_macs`.

    energy = 4.6 pJ x multiply-accumulates + 0.9 pJ x synaptic operations

with the 32-bit floating-point energies in 45 nm of M. Horowitz, "Computing's energy problem (and what we can do about
it)", ISSCC 2014: multiply 3.7 pJ, add 0.9 pJ. It is the arithmetic of synapses only: memory traffic, leak and
threshold of the neurons, and biases (batch norms are folded into weights and biases) are left out, and it says
nothing about dense hardware, which does not skip what is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from spiketrain.networks import Network, SharedDropout, with_plain_weights
from spiketrain.networks.graph import Scale
from spiketrain.neurons import NeuronLayer

MAC_JOULES = 4.6e-12
ACCUMULATE_JOULES = 0.9e-12

_WEIGHTED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    Scale,
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_AVERAGES = (nn.AvgPool2d, nn.AvgPool3d)
_TRANSPARENT = (
    NeuronLayer,
    SharedDropout,
    nn.Dropout,
    nn.Identity,
    nn.Flatten,
    nn.ModuleList,
    nn.Sequential,
)
_COUNTABLE = (
    *_WEIGHTED,
    *_BATCH_NORMS,
    *_AVERAGES,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    *_TRANSPARENT,
)


def fan_out(network: Network) -> dict[str, Tensor]:
    """How many synaptic operations one spike of each neuron causes in one timestep.

    By layer, a tensor of whole numbers shaped like one sample of the layer. Weights that a spike reaches are counted
    as they are used: taps that fall on padding are not, strides and what a pooling leaves over are right, an average
    pooling passes a spike on to every weight behind its window, and a pooling that enlarges passes on every copy.
    A max pooling of spikes passes on the first of its window and nothing for the others of the same timestep. Which
    one is first is not known beforehand, so each is counted as if it were: behind a max pooling the operations are an
    upper bound, and exact wherever no two neurons of a window fire at once.
    A spike that reaches a neuron without a weight on its way, through an identity shortcut, counts as one operation
    for each neuron reached: it is one addition, though no weight is stored for it (SpikingJelly leaves these out).

    Raises ValueError for a network with a module whose operations per spike are not known, such as a softmax.
    """
    unit = _unit_network(network)
    reached = _Reached(unit)
    for module in unit.modules():
        if isinstance(module, _WEIGHTED):
            module.register_forward_hook(reached.at_weights)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            module.register_forward_hook(_as_sum)
        elif isinstance(module, nn.MaxPool2d):
            module.register_forward_hook(_each_as_first)
    with torch.enable_grad():
        x = next(unit.parameters()).new_zeros(1, *unit.input_shape)
        reached.count(unit.body(unit.encode(x).detach(), reached))
        gradients = torch.autograd.grad(
            reached.total, list(reached.leaves.values()), allow_unused=True, materialize_grads=True
        )
    return {
        name: gradient[0].round() for name, gradient in zip(reached.leaves, gradients, strict=True)
    }


def synaptic_operations(spikes: Mapping[str, Tensor], fan_out: Mapping[str, Tensor]) -> Tensor:
    """Operations that these spikes cause, by sample: spikes [N, ...] by layer in, float64 [N] out."""
    if spikes.keys() != fan_out.keys():
        raise ValueError(
            f"spikes of {', '.join(spikes)}, fan-out of {', '.join(fan_out)}: not the same layers"
        )
    return torch.stack(
        [
            spikes[name].flatten(1).double() @ reach.flatten().double()
            for name, reach in fan_out.items()
        ]
    ).sum(0)


def encoder_macs(network: Network) -> int:
    """Multiply-accumulates of the analog layer before the first neurons, for one input.

    A constant image is encoded once for all its timesteps, an event stream once for each window. As in `fan_out`,
    padding is not counted; batch norm is taken as folded.
    """
    unit = _unit_network(network)
    macs = 0

    def with_ones(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return (torch.ones_like(inputs[0]),)

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal macs
        macs += int(output.double().sum().item())

    for module in unit.modules():
        if isinstance(module, _WEIGHTED):
            module.register_forward_pre_hook(with_ones)
            module.register_forward_hook(add)
    with torch.no_grad():
        unit.encode(next(unit.parameters()).new_zeros(1, *unit.input_shape))
    return macs


def energy_joules(synaptic_operations: float, macs: float) -> float:
    """Energy of so many synaptic operations and multiply-accumulates, by the formula above.

    Both are totals: operations of all timesteps, and `encoder_macs` once for an image or once for each window. The
    firing rate is in the operations already and is not applied again.
    """
    return MAC_JOULES * macs + ACCUMULATE_JOULES * synaptic_operations


class _Reached:
    """A `fire` that spikes everywhere, and counts at each layer of weights what the spikes reach.

    Each layer's spikes are leaves of their own, and what leaves a layer of weights is cut off, so that the gradient of
    `total` at a spike is the number of weights that it alone reaches directly.
    """

    timesteps = 1

    def __init__(self, network: Network) -> None:
        self.network = network
        self.leaves: dict[str, Tensor] = {}
        self.total = next(network.parameters()).new_zeros(())

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor:
        self.count(current)
        if not layer.config.spiking:  # analog values: what is behind them multiplies
            return torch.ones_like(current)
        leaf = self._leaf(self.network.name_of(layer), current)
        if "feedback_weight" in dict(
            layer.named_parameters()
        ):  # each spike reaches the whole layer
            self.count(leaf * layer.channels)
        return leaf

    def previous(self, source: NeuronLayer, memory: NeuronLayer) -> Tensor:
        """Spikes reach also what they come back to at the next timestep."""
        name = self.network.name_of(source)
        return self._leaf(name, self.total.new_empty(1, *self.network.neuron_shapes()[name]))

    def _leaf(self, name: str, like: Tensor) -> Tensor:
        if name not in self.leaves:
            self.leaves[name] = torch.ones_like(like).requires_grad_()
        return self.leaves[name]

    def at_weights(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        self.count(output)
        return output.detach()

    def count(self, reached: Tensor) -> None:
        if reached.requires_grad:
            self.total = self.total + reached.sum()


def _unit_network(network: Network) -> Network:
    """A copy in which every weight is 1, biases are 0, batch norms do nothing and poolings add up."""
    unit = with_plain_weights(network).eval().requires_grad_(False)
    for name, module in unit.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if (own or not list(module.children())) and not isinstance(module, _COUNTABLE):
            raise ValueError(
                f"{name} is a {type(module).__name__}: its operations per spike are not known, "
                "so synaptic operations cannot be counted by neuron"
            )
    for module in unit.modules():
        if isinstance(module, _WEIGHTED):
            module.weight.fill_(1)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, _BATCH_NORMS):
            _make_identity(module)
        elif isinstance(module, _AVERAGES):
            module.divisor_override = 1
    return unit


def _make_identity(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
    constants: tuple[tuple[Tensor | None, Callable[[Tensor], Tensor]], ...] = (
        (norm.running_mean, Tensor.zero_),
        (norm.running_var, torch.nn.init.ones_),
        (norm.weight, torch.nn.init.ones_),
        (norm.bias, Tensor.zero_),
    )
    for tensor, fill in constants:
        if tensor is not None:
            fill(tensor)
    norm.eps = 0.0


def _as_sum(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Adaptive average pooling without its division: each bin times its size."""
    (before_h, before_w), (h, w) = inputs[0].shape[-2:], output.shape[-2:]
    sizes = torch.outer(_bin_sizes(before_h, h), _bin_sizes(before_w, w))
    return output * sizes.to(output)


def _each_as_first(module: nn.MaxPool2d, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Max pooling as if each value of a window were the only one: their sum."""
    if module.dilation not in (1, (1, 1)):
        raise ValueError(
            f"a max pooling with dilation {module.dilation}: its windows are not counted"
        )
    return functional.avg_pool2d(
        inputs[0],
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        divisor_override=1,
    )


def _bin_sizes(size: int, bins: int) -> Tensor:
    # Bin i covers floor(i size / bins) to ceil((i + 1) size / bins), so that bins overlap where sizes do not divide.
    return torch.tensor([-(-(i + 1) * size // bins) - i * size // bins for i in range(bins)])
