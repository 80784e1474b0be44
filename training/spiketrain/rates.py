"""Firing rates, silent and saturated neurons, and how the spikes of two runs differ, without keeping any spikes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spiketrain.evaluate import rate_profile
from spiketrain.manifest import RateProfile
from spiketrain.networks import Network, StepOutput

# A neuron that fires at this share of all timesteps, or more, tells its layer nothing any more.
SATURATED = 0.95


@dataclass(frozen=True)
class LayerRates:
    """Firing rates of one layer, in spikes per neuron per timestep.

    `profile` is over samples; `silent` and `saturated` are the shares of neurons that never fired on any sample, and
    that fired at `SATURATED` of all timesteps or more.
    """

    neurons: int
    samples: int
    profile: RateProfile
    by_timestep: tuple[float, ...]
    silent: float
    saturated: float

    @property
    def mean(self) -> float:
        return self.profile.mean


@torch.no_grad()
def each_step(network: Network, x: Tensor, timesteps: int | None = None) -> Iterator[StepOutput]:
    """Run a batch timestep by timestep, so that only one timestep's spikes are in memory.

    `x` and `timesteps` as for `Network.forward`: [T, N, ...], or [N, ...] for an input that stays the same.
    """
    if x.dim() == len(network.input_shape) + 1:
        encoded, state = network.encode(x), network.initial_state(len(x))
        for _ in range(timesteps or network.timesteps):
            output = network.advance(encoded, state)
            state = output.state
            yield output
    elif x.dim() == len(network.input_shape) + 2:
        state = network.initial_state(x.shape[1])
        for frame in x:
            output = network.step(frame, state)
            state = output.state
            yield output
    else:
        raise ValueError(
            f"input of shape {tuple(x.shape)}: expected [N, {network.input_shape}] or [T, N, {network.input_shape}]"
        )


def firing_rates(
    network: Network, batches: Iterable[Tensor], timesteps: int | None = None
) -> dict[str, LayerRates]:
    """Firing rates of each layer, in evaluation mode, over batches of inputs ([N, ...] or [T, N, ...])."""
    training = network.training
    network.eval()
    meter = RateMeter()
    for x in batches:
        for t, output in enumerate(each_step(network, x, timesteps)):
            meter.add(t, output.spikes)
    network.train(training)
    return meter.rates()


def spike_mismatch(
    parent: Network, child: Network, batches: Iterable[Tensor], timesteps: int | None = None
) -> dict[str, float]:
    """`MismatchMeter.by_layer` of two networks that see the same inputs. Both must be in evaluation mode."""
    meter = MismatchMeter()
    for x in batches:
        pairs = zip(each_step(parent, x, timesteps), each_step(child, x, timesteps), strict=True)
        for before, after in pairs:
            meter.add(before.spikes, after.spikes)
    return meter.by_layer()


class RateMeter:
    """Adds up spikes, one timestep of one batch at a time."""

    def __init__(self) -> None:
        self._layers: dict[str, _Counts] = {}

    def add(self, timestep: int, spikes: Mapping[str, Tensor]) -> None:
        """Spikes [N, C, ...] of each layer. Timestep 0 begins a new batch; the others must follow in order."""
        for name, layer in spikes.items():
            self._layers.setdefault(name, _Counts()).add(timestep, layer.flatten(1))

    def rates(self) -> dict[str, LayerRates]:
        """Raises ValueError when nothing was added."""
        if not self._layers:
            raise ValueError("no spikes were added: no batches")
        return {name: counts.rates() for name, counts in self._layers.items()}


@dataclass
class _Counts:
    neurons: int = 0
    by_neuron: Tensor = field(default_factory=lambda: torch.zeros(()))
    by_sample: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    by_timestep: list[float] = field(default_factory=list)
    samples_by_timestep: list[int] = field(default_factory=list)

    def add(self, timestep: int, spikes: Tensor) -> None:
        # Whole numbers: exact in float32 below 2^24, and several times faster to add up.
        exact = max(spikes.shape) < 1 << 24
        wide = None if exact and spikes.dtype == torch.float32 else torch.float64
        by_sample = spikes.sum(1, dtype=wide).double()
        if timestep == 0:
            self.by_sample.append(torch.zeros_like(by_sample))
            self.steps.append(0)
        if not self.steps or timestep != self.steps[-1]:
            raise ValueError(f"timestep {timestep} does not follow the one before in its batch")
        self.neurons = spikes.shape[1]
        self.by_neuron = self.by_neuron + spikes.sum(0, dtype=wide).double()
        self.by_sample[-1] += by_sample
        self.steps[-1] += 1
        if timestep == len(self.by_timestep):
            self.by_timestep.append(0.0)
            self.samples_by_timestep.append(0)
        self.by_timestep[timestep] += by_sample.sum().item()
        self.samples_by_timestep[timestep] += len(spikes)

    def rates(self) -> LayerRates:
        sample_steps = sum(self.samples_by_timestep)
        by_sample = torch.cat(
            [
                counts / (self.neurons * steps)
                for counts, steps in zip(self.by_sample, self.steps, strict=True)
            ]
        )
        by_timestep = zip(self.by_timestep, self.samples_by_timestep, strict=True)
        return LayerRates(
            neurons=self.neurons,
            samples=len(by_sample),
            profile=rate_profile(by_sample),
            by_timestep=tuple(spikes / (self.neurons * samples) for spikes, samples in by_timestep),
            silent=_share(self.by_neuron == 0),
            saturated=_share(self.by_neuron >= SATURATED * sample_steps),
        )


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()


class MismatchMeter:
    """Counts where the spikes of a child differ from its parent's.

    A layer's mismatch is the number of places and timesteps at which one fired and the other did not, divided by the
    number of the parent's spikes (by 1 where the parent is silent). 0 is the same spike train; it can exceed 1.
    """

    def __init__(self) -> None:
        self._different: dict[str, int] = {}
        self._spikes: dict[str, int] = {}

    def add(self, parent: Mapping[str, Tensor], child: Mapping[str, Tensor]) -> None:
        """Spikes of each layer, of the same shape in both. Raises ValueError where the layers differ."""
        if parent.keys() != child.keys():
            raise ValueError(
                f"layers {', '.join(parent)} against {', '.join(child)}: not two runs of one network"
            )
        for name, spikes in parent.items():
            fired, other = spikes != 0, child[name] != 0
            if fired.shape != other.shape:
                raise ValueError(
                    f"{name}: spikes of shape {tuple(fired.shape)} against {tuple(other.shape)}"
                )
            different = int(torch.count_nonzero(fired != other))
            self._different[name] = self._different.get(name, 0) + different
            self._spikes[name] = self._spikes.get(name, 0) + int(torch.count_nonzero(fired))

    def by_layer(self) -> dict[str, float]:
        return {name: count / max(self._spikes[name], 1) for name, count in self._different.items()}

    def total(self) -> float:
        """All layers together."""
        return sum(self._different.values()) / max(sum(self._spikes.values()), 1)
