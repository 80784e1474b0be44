"""What healthy traffic looks like inside a network: the profile that a server compares its own with.

A profile is measured on held-out data. It has, for each layer, how the firing rate of a sample spreads about its mean,
over all timesteps and in the first alone (which also those samples run that leave early); and, for groups of samples,
how many neurons stay silent or saturated, how the channels of the first layer differ, and which pixels never go off.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spiketrain.data import DataSet, SplitName
from spiketrain.manifest import HealthProfile, ImageInput, Input, LayerHealth, Manifest, Spread
from spiketrain.networks import Network
from spiketrain.rates import SATURATED, each_step

GROUP = 64
"""Samples after which neurons are judged silent or saturated."""

_GROUPS = 200
_MOST_BYTES = 256 << 20
_BATCH = 64
# Intensity from which on a pixel of a picture counts as on, of 1; below the other one as dark.
_WHITE, _BLACK = 0.95, 0.5 / 255


@dataclass(frozen=True)
class Look:
    """What N samples did: `fired` has by layer in how many timesteps each neuron fired, int16 [N, neurons], `first` the
    firing rate in the first timestep [N], `channels` [N, C] the firing rates of the first layer's channels.

    `bright` and `dark` [N, pixels] say which inputs were on, or off, in 95 % of the timesteps, and in all.
    """

    timesteps: int
    fired: dict[str, Tensor]
    first: dict[str, Tensor]
    channels: Tensor
    bright: Tensor
    dark: Tensor

    def rates(self, layer: str) -> Tensor:
        """Spikes per neuron per timestep [N]."""
        return self.fired[layer].double().mean(1) / self.timesteps


@torch.inference_mode()
def look(network: Network, x: Tensor, spec: Input) -> Look:
    """Run samples [N, ...] or [T, N, ...] in evaluation mode, as the network takes them, and see what they do."""
    fired: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    timesteps = 0
    channels = torch.zeros((), dtype=torch.double)
    for step in each_step(network, x):
        timesteps += 1
        for i, (name, spikes) in enumerate(step.spikes.items()):
            on = spikes != 0
            flat = on.flatten(1)
            if name not in fired:
                fired[name] = torch.zeros(flat.shape, dtype=torch.int16)
                first[name] = flat.double().mean(1)
            fired[name] += flat
            if i == 0:
                channels = channels + flat.view(*on.shape[:2], -1).double().mean(2)
    bright, dark = _pixels(x, spec)
    return Look(timesteps, fired, first, channels / timesteps, bright, dark)


def shares(fired: Tensor, timesteps: int) -> tuple[float, float]:
    """Of neurons that were silent, and saturated, over a group: counts of timesteps [G, neurons]."""
    return shares_of(fired.sum(0, dtype=torch.int64), len(fired) * timesteps)


def shares_of(total: Tensor, timesteps: int) -> tuple[float, float]:
    """The same, of spikes over so many timesteps of all samples together [neurons]."""
    silent, saturated = total == 0, total >= SATURATED * timesteps
    return silent.double().mean().item(), saturated.double().mean().item()


def stuck(pixels: Tensor) -> int:
    """How many inputs were on (or off) in at least 95 % of a group's samples: bool [G, pixels]."""
    return stuck_of(pixels.sum(0), len(pixels))


def stuck_of(count: Tensor, samples: int) -> int:
    """The same, of the number of samples in which each was so [pixels]."""
    return int((count >= SATURATED * samples).sum())


def measure(
    network: Network,
    manifest: Manifest,
    data: DataSet,
    split: SplitName,
    *,
    samples: int | None = None,
    seed: int = 0,
) -> HealthProfile:
    """The profile of a network, on the CPU, from a split or so many samples drawn from it.

    Raises ValueError where the split has fewer than two samples.
    """
    if len(data.split(split)) < 2:
        raise ValueError(f"{data.name}, {split}: a profile needs at least two samples")
    whole: dict[str, list[Tensor]] = {}
    first: dict[str, list[Tensor]] = {}
    kept: list[Look] = []
    count = 0
    limit = max(2 * GROUP, _MOST_BYTES // max(1, 2 * _neurons(network)))
    draws = torch.Generator().manual_seed(seed)
    for each in _looks(network.eval(), manifest.input, data, split, samples, draws):
        for name in each.fired:
            whole.setdefault(name, []).append(each.rates(name))
            first.setdefault(name, []).append(each.first[name])
        if count < limit:
            kept.append(each)
        count += len(each.channels)
    groups = _Groups(kept, draws)
    channels = torch.cat([each.channels for each in kept])
    return HealthProfile(
        model=manifest.digest,
        dataset=data.name,
        split=split,
        samples=count,
        group=groups.size,
        layers={
            name: LayerHealth(
                rate=_spread(torch.cat(whole[name])),
                first=_spread(torch.cat(first[name])) if manifest.input.kind == "image" else None,
                silent=groups.silent(name),
                saturated=groups.saturated(name),
            )
            for name in whole
        },
        channels=tuple(_spread(channels[:, i]) for i in range(channels.shape[1])),
        hot_pixels=groups.most("bright"),
        dark_pixels=groups.most("dark"),
    )


class _Groups:
    """Many groups drawn from the samples that were kept, none twice in one group."""

    def __init__(self, looks: list[Look], draws: torch.Generator) -> None:
        self._looks = looks
        count = sum(len(each.channels) for each in looks)
        self.size = min(GROUP, max(1, count // 2))
        self._timesteps = looks[0].timesteps
        self._chosen = [torch.randperm(count, generator=draws)[: self.size] for _ in range(_GROUPS)]
        # Groups drawn from few samples are more alike than those of fresh ones.
        self._wider = (1 - self.size / count) ** -0.5

    def silent(self, layer: str) -> Spread:
        return self._of_layer(layer, 0)

    def saturated(self, layer: str) -> Spread:
        return self._of_layer(layer, 1)

    def most(self, which: str) -> int:
        """The largest number of inputs that were stuck in one group."""
        pixels = torch.cat([getattr(each, which) for each in self._looks])
        return max(stuck(pixels[chosen]) for chosen in self._chosen)

    def _of_layer(self, layer: str, which: int) -> Spread:
        fired = torch.cat([each.fired[layer] for each in self._looks])
        found = torch.tensor([shares(fired[c], self._timesteps)[which] for c in self._chosen])
        return _spread(found.double(), self._wider)


def _looks(
    network: Network,
    spec: Input,
    data: DataSet,
    split: SplitName,
    samples: int | None,
    draws: torch.Generator,
) -> Iterator[Look]:
    chosen = data.split(split)
    shuffled = chosen.at(torch.randperm(len(chosen), generator=draws)[:samples])
    batches: Iterable[tuple[Tensor, Tensor]] = data.batches(shuffled, _BATCH)
    for x, _ in batches:
        yield look(network, x, spec)


def _neurons(network: Network) -> int:
    return sum(torch.Size(shape).numel() for shape in network.neuron_shapes().values())


def _pixels(x: Tensor, spec: Input) -> tuple[Tensor, Tensor]:
    """Which inputs were on in 95 % of the timesteps or more, and which in none, bool [N, pixels]."""
    if isinstance(spec, ImageInput):
        shape = (-1, 1, 1)
        light = x * torch.tensor(spec.std).view(shape) + torch.tensor(spec.mean).view(shape)
        return (light >= _WHITE).flatten(1), (light <= _BLACK).flatten(1)
    on = (x > 0).flatten(2).double().mean(0)
    return on >= SATURATED, on == 0


def _spread(values: Tensor, wider: float = 1.0) -> Spread:
    return Spread(
        mean=_short(values.mean().item()), std=_short(values.std(correction=1).item() * wider)
    )


def _short(value: float) -> float:
    """Six digits say more than so many samples can."""
    return float(f"{value:.6g}")
