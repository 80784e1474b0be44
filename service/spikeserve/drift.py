"""Whether a model's neurons fire as they did on held-out data: firing rates as a health signal.

Two tests, both against the checkpoint's profile (spiketrain.health). Each sample's firing rate by layer, in standard
deviations from the profile's mean, goes into a two-sided cumulative sum (CUSUM; Page, Biometrika 41, 1954) with an
allowance: differences of half a standard deviation, which another mix of classes makes, never add up to an alarm, and
those of inputs gone wrong do within some ten samples. And groups of samples that probes have looked at, neuron by
neuron, tell what a layer's mean does not: silent and saturated neurons, pixels that never go off, channels that
respond otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiketrain.health import Look, shares_of, stuck_of
from spiketrain.manifest import HealthProfile, Spread

Array = NDArray[Any]
State = Literal["unknown", "steady", "drifting"]
Signal = Literal["rates", "neurons", "channels", "pixels"]
SIGNALS: tuple[Signal, ...] = ("rates", "neurons", "channels", "pixels")

ALLOWANCE = 0.5
"""Standard deviations of lasting difference that are no drift."""

THRESHOLD = 20.0
"""Standard deviations beyond the allowance, added up over samples, that raise the alarm."""

MOST_OF_A_SAMPLE = 4.0
"""A sample counts for no more standard deviations than this: some five have to agree."""

SHARE = 0.05
"""Of a layer's neurons that may be silent or saturated beyond what chance explains."""

MEMORY = 32
"""Samples of the running mean that is shown; the tests do not use it."""

# Errors of a mean that are taken for chance.
_SIGMAS = 6.0
_PROFILE_SIGMAS = 3.0
# An alarm stays until the score has come down to this.
_CALM = 0.5
_FLOOR = 1e-4
_CHANNEL_FLOOR = 0.01


@dataclass(frozen=True)
class LayerReport:
    """`shift` is a running mean of the samples' distances from the profile, in its standard deviations; `score` is 1
    where an alarm is raised. The shares of neurons are those of the last group, None before there was one."""

    shift: float
    score: float
    silent: float | None = None
    saturated: float | None = None


@dataclass(frozen=True)
class Report:
    """`scores` are by signal, 1 where an alarm is raised; `reasons` say in words which are, and why."""

    state: State
    samples: int
    probes: int
    layers: dict[str, LayerReport] = field(default_factory=dict)
    scores: dict[Signal, float] = field(default_factory=dict)
    hot_pixels: int | None = None
    dark_pixels: int | None = None
    reasons: tuple[str, ...] = ()


class DriftMonitor:
    """Of one model. All methods may be called from any thread. Without a profile it does nothing."""

    def __init__(self, profile: HealthProfile | None, layers: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._profile = (
            profile if profile and all(each in profile.layers for each in layers) else None
        )
        self._layers = tuple(layers)
        self._samples = self._probes = 0
        self._alarms: dict[str, str] = {}
        self._scores: dict[Signal, float] = {}
        if self._profile is None:
            return
        known = [self._profile.layers[each] for each in layers]
        self._whole = _table([each.rate for each in known])
        self._first = _table([each.first or each.rate for each in known])
        self._allowance = ALLOWANCE + _PROFILE_SIGMAS / self._profile.samples**0.5
        self._shift = np.zeros(len(layers))
        self._up, self._down = np.zeros(len(layers)), np.zeros(len(layers))
        self._group = _Group()
        self._shares: dict[str, tuple[float, float]] = {}
        self._hot: int | None = None
        self._dark: int | None = None

    @property
    def watches(self) -> bool:
        return self._profile is not None

    def sample(self, rates: Array, first: bool = False) -> None:
        """Firing rates [layers] of one sample, over all of its model's timesteps or in the first one."""
        if self._profile is None:
            return
        means, deviations = self._first if first else self._whole
        distance = (rates - means) / deviations
        pull = _within(distance, -MOST_OF_A_SAMPLE, MOST_OF_A_SAMPLE)
        with self._lock:
            self._samples += 1
            self._shift += (distance - self._shift) / min(self._samples, MEMORY)
            most = 2 * THRESHOLD
            self._up = _within(self._up + pull - self._allowance, 0, most)
            self._down = _within(self._down - pull - self._allowance, 0, most)
            scores = np.maximum(self._up, self._down) / THRESHOLD
            self._scores["rates"] = float(scores.max())
            if self._alarms or self._scores["rates"] >= 1:
                self._judge_rates(scores)

    def look(self, look: Look) -> None:
        """What a probe saw of one sample or several."""
        if self._profile is None:
            return
        with self._lock:
            self._probes += len(look.channels)
            group = self._group
            group.add(look)
            if group.samples < self._profile.group:
                return
            self._group = _Group()
            self._judge_neurons(self._profile, group)
            self._judge_channels(self._profile, group)
            self._judge_pixels(self._profile, group)

    def report(self) -> Report:
        if self._profile is None:
            return Report("unknown", 0, 0)
        with self._lock:
            scores = np.maximum(self._up, self._down) / THRESHOLD
            layers = {
                name: LayerReport(
                    float(self._shift[i]), float(scores[i]), *self._shares.get(name, (None, None))
                )
                for i, name in enumerate(self._layers)
            }
            return Report(
                state="drifting" if self._alarms else "steady" if self._samples else "unknown",
                samples=self._samples,
                probes=self._probes,
                layers=layers,
                scores=dict(self._scores),
                hot_pixels=self._hot,
                dark_pixels=self._dark,
                reasons=tuple(self._alarms.values()),
            )

    # With the lock held.

    def _judge_rates(self, scores: Array) -> None:
        for i, name in enumerate(self._layers):
            than = "more" if self._up[i] > self._down[i] else "less"
            why = f"{name} fires {than} than on held-out data: lately {self._shift[i]:+.1f} standard deviations"
            self._alarm(f"rates {name}", float(scores[i]), why)

    def _judge_neurons(self, profile: HealthProfile, group: _Group) -> None:
        worst = 0.0
        for name in self._layers:
            found = shares_of(group.fired[name], group.timesteps)
            self._shares[name] = found
            known = profile.layers[name]
            for what, share, usual in zip(
                ("silent", "saturated"), found, (known.silent, known.saturated), strict=True
            ):
                score = abs(share - usual.mean) / (SHARE + _SIGMAS * usual.std)
                worst = max(worst, score)
                why = f"{share:.1%} of {name} is {what}, on held-out data {usual.mean:.1%}"
                self._alarm(f"{what} {name}", score, why)
        self._scores["neurons"] = worst

    def _judge_channels(self, profile: HealthProfile, group: _Group) -> None:
        channels = group.channels.numpy() / group.samples
        if len(channels) != len(profile.channels):
            return
        means, deviations = _table(profile.channels, _CHANNEL_FLOOR)
        shifts = np.abs(channels - means) / deviations
        chance = 4 / group.samples**0.5 + _PROFILE_SIGMAS / profile.samples**0.5
        worst = int(shifts.argmax())
        self._scores["channels"] = float(shifts[worst]) / (ALLOWANCE + chance)
        why = (
            f"channel {worst} of the first layer responds otherwise than on held-out data, "
            f"by {shifts[worst]:.1f} standard deviations"
        )
        self._alarm("channels", self._scores["channels"], why)

    def _judge_pixels(self, profile: HealthProfile, group: _Group) -> None:
        pixels = len(group.bright)
        self._hot = stuck_of(group.bright, group.samples)
        self._dark = stuck_of(group.dark, group.samples)
        hot = self._hot / (profile.hot_pixels + 1)
        # Fewer dark ones than usual is no fault.
        gone = max(0.0, (self._dark - profile.dark_pixels) / (2 * SHARE * pixels))
        self._scores["pixels"] = max(hot, gone)
        self._alarm("hot", hot, f"{self._hot} of {pixels} inputs never go off")
        self._alarm("dark", gone, f"{self._dark} of {pixels} inputs never go on")

    def _alarm(self, name: str, score: float, why: str) -> None:
        if score >= 1 or (name in self._alarms and score > _CALM):
            self._alarms[name] = why
        else:
            self._alarms.pop(name, None)


class _Group:
    """Samples that probes have looked at, added up: a large network's neurons are many."""

    def __init__(self) -> None:
        self.samples = self.timesteps = 0
        self.fired: dict[str, Tensor] = {}
        self.channels = torch.zeros((), dtype=torch.double)
        self.bright, self.dark = (
            torch.zeros((), dtype=torch.long),
            torch.zeros((), dtype=torch.long),
        )

    def add(self, look: Look) -> None:
        self.samples += len(look.channels)
        self.timesteps += look.timesteps * len(look.channels)
        for name, fired in look.fired.items():
            total = fired.sum(0, dtype=torch.int32)
            self.fired[name] = self.fired[name] + total if name in self.fired else total
        self.channels = self.channels + look.channels.sum(0)
        self.bright = self.bright + look.bright.sum(0)
        self.dark = self.dark + look.dark.sum(0)


def _within(values: Array, least: float, most: float) -> Array:
    """np.clip, which takes several times as long for so few values."""
    return np.asarray(np.minimum(np.maximum(values, least), most))


def _table(spreads: Sequence[Spread], floor: float = _FLOOR) -> tuple[Array, Array]:
    """Means and standard deviations, none so small that rounding would count."""
    means = np.array([each.mean for each in spreads])
    return means, np.array([max(each.std, floor) for each in spreads])
