"""How many synaptic operations a run causes, by layer and by sample, for every network.

Where each spike of a neuron always causes the same number (`spiketrain.energy.fan_out`), that number is used. Where it
does not, what arrives at each layer of weights is counted during the run: a value of n counts as n spikes. So it is
behind a maximum pooling, for which `fan_out` gives an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from spiketrain.energy import fan_out
from spiketrain.networks import Network

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class OperationCounter:
    """`by` says what the names are: "from" layers of neurons, or "into" layers of weights."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._encoder, self._others = _modules(network)
        self._reach: Mapping[str, Tensor] | None = None
        if not any(isinstance(module, nn.MaxPool2d) for module in network.modules()):
            with suppress(ValueError):  # a module that it cannot count
                self._reach = fan_out(network)
        self.by = "into" if self._reach is None else "from"

    @contextmanager
    def counting(
        self, samples: int
    ) -> Iterator[Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
        """Run the network once inside; what is given then makes operations [N] by name of the run's spikes [T, N, ...]."""
        if self._reach is not None:
            reach = self._reach
            yield lambda spikes: {
                name: spikes[name].flatten(2).sum(0, dtype=torch.float64) @ each.flatten().double()
                for name, each in reach.items()
            }
            return
        counts = {name: torch.zeros(samples, dtype=torch.float64) for name in self._others}

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                # Timesteps may be folded into the batch, or come one by one.
                counts[name] += reached(module, inputs[0]).view(-1, samples).sum(0)

            return add

        handles = [
            module.register_forward_pre_hook(hook(name)) for name, module in self._others.items()
        ]
        try:
            yield lambda _: counts
        finally:
            for handle in handles:
                handle.remove()

    def dense_macs(self) -> tuple[int, int]:
        """Multiply-accumulates of one pass in which nothing is zero: of the encoder alone, and of everything."""
        total: dict[bool, float] = {True: 0.0, False: 0.0}

        def hook(encoder: bool) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                total[encoder] += float(reached(module, torch.ones_like(inputs[0])).sum())

            return add

        like = next(self.network.parameters())
        state = self.network.initial_state(
            1
        )  # runs the network to see its shapes, so before the hooks
        handles = [
            module.register_forward_pre_hook(hook(encoder))
            for encoder, modules in ((True, self._encoder), (False, self._others))
            for module in modules.values()
        ]
        try:
            with torch.no_grad():
                self.network.step(like.new_zeros(1, *self.network.input_shape), state)
        finally:
            for handle in handles:
                handle.remove()
        return int(total[True]), int(total[True] + total[False])

    def weights(self) -> int:
        """Weights of all layers that have some."""
        modules = (*self._encoder.values(), *self._others.values())
        return sum(module.weight.numel() for module in modules)


def reached(module: nn.Module, spikes: Tensor) -> Tensor:
    """How many weights of a layer the spikes [N, ...] meet, float64 [N]; taps on padding are not counted."""
    if isinstance(module, nn.Linear):
        return spikes.flatten(1).sum(1, dtype=torch.float64) * module.out_features
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        # All channels of a group meet the same taps, so they are added up first.
        groups = module.groups
        added = spikes.float().view(len(spikes), groups, -1, *spikes.shape[2:]).sum(2)
        ones = added.new_ones(groups, 1, *module.kernel_size)
        options: dict[str, Any] = {
            "stride": module.stride,
            "padding": module.padding,
            "dilation": module.dilation,
            "groups": groups,
        }
        if isinstance(module, nn.Conv2d):
            met = functional.conv2d(added, ones, **options)
        else:
            met = functional.conv_transpose2d(
                added, ones, output_padding=module.output_padding, **options
            )
        return met.flatten(1).sum(1, dtype=torch.float64) * (module.out_channels // groups)
    raise TypeError(f"{type(module).__name__} has no weights that are counted")


def _modules(network: Network) -> tuple[dict[str, Any], dict[str, Any]]:
    """Layers of weights before the first neurons, and all others, by name."""
    encoder: set[nn.Module] = set()

    def seen(module: nn.Module, *_: Any) -> None:
        encoder.add(module)

    every = {name: m for name, m in network.named_modules() if isinstance(m, _WEIGHTED)}
    handles = [module.register_forward_pre_hook(seen) for module in every.values()]
    try:
        with torch.no_grad():
            network.encode(next(network.parameters()).new_zeros(1, *network.input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return (
        {name: m for name, m in every.items() if m in encoder},
        {name: m for name, m in every.items() if m not in encoder},
    )
