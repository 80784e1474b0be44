"""What is sent to a server to see whether it notices: test pictures and recordings, as they are and gone wrong.

Unlike `drift.py`, which changes what the network gets, this changes what a camera or a client would send: pixels from 0 to
255, and events. Normalisation is the server's own, so a wrong one is a client's that has normalised already: its pixels are such
that the network gets what another mean and standard deviation would have made of them, as far as 0 to 255 go.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from workload import _png, test_pictures

from spikeserve.client import Advance, Packet
from spiketrain.data.nmnist import load_nmnist_small
from spiketrain.events.types import Events
from spiketrain.manifest import DurationWindow, EventInput, ImageInput, Manifest

Draws = np.random.Generator
Place = float
"""Where a fault with a place is, from 0 to 1; the same throughout a trial."""

PictureFault = Callable[[NDArray[Any], Draws, Place], NDArray[Any]]
EventFault = Callable[[Events, int, EventInput, Draws, Place], Events]


class Source(Protocol):
    """`message(i, fault, draws, place)` is what is sent for test sample i."""

    faults: tuple[str, ...]

    def __len__(self) -> int: ...

    def message(self, i: int, fault: str | None, draws: Draws, place: Place) -> Any: ...


class PictureSource:
    """Messages are PNG files."""

    def __init__(self, manifest: Manifest, data: Path | None) -> None:
        spec = manifest.input
        if not isinstance(spec, ImageInput):
            raise TypeError(f"{manifest.name} takes no pictures")
        stored, real = test_pictures(manifest, data, 10_000)
        if not real:
            raise ValueError(f"{manifest.name}: its data set is not there")
        self._light = stored.numpy().astype(np.float64) / 255
        self._faults = _picture_faults(spec)
        self.faults = tuple(self._faults)

    def __len__(self) -> int:
        return len(self._light)

    def message(self, i: int, fault: str | None, draws: Draws, place: Place) -> bytes:
        light = self._light[i]
        if fault is not None:
            light = self._faults[fault](light, draws, place)
        return _png((light * 255).round().clip(0, 255).astype(np.uint8))


def _picture_faults(spec: ImageInput) -> dict[str, PictureFault]:
    """Of intensities [C, H, W] from 0 to 1; what is beyond is cut off."""
    mean, std = (np.array(each)[:, None, None] for each in (spec.mean, spec.std))

    def normalised(by_mean: float, by_std: float) -> PictureFault:
        return lambda light, _draws, _place: (light - by_mean) / by_std * std + mean

    def noise(size: float) -> PictureFault:
        return lambda light, draws, _: light + size * draws.standard_normal(light.shape)

    def hot(light: NDArray[Any], _: Draws, place: Place) -> NDArray[Any]:
        light = light.copy()
        light.reshape(len(light), -1)[:, int(place * light[0].size)] = 1.0
        return light

    return {
        "wrong normalisation: none": normalised(0.0, 1.0),
        "wrong normalisation: mean 0.5, std 0.5": normalised(0.5, 0.5),
        "inverted": lambda light, _draws, _place: 1 - light,
        "noise, standard deviation 0.3": noise(0.3),
        "noise, standard deviation 0.1": noise(0.1),
        "half as bright": lambda light, _draws, _place: light / 2,
        "a hot pixel": hot,
        "a dead camera": lambda light, _draws, _place: 0 * light,
    }


class EventSource:
    """Messages are packets of one stream each, which has as many windows as the model was trained with."""

    def __init__(self, manifest: Manifest, data: Path | None) -> None:
        spec = manifest.input
        if not isinstance(spec, EventInput) or not isinstance(spec.window, DurationWindow):
            raise TypeError(f"{manifest.name} takes no events in windows of a fixed duration")
        self._spec = spec
        self._span = manifest.timesteps * spec.window.microseconds
        root = Path("data") if data is None else data
        self._recordings = [events.sorted() for events, _ in load_nmnist_small(root)[1]]
        self._faults = _event_faults(spec, spec.window.microseconds)
        self.faults = tuple(self._faults)

    def __len__(self) -> int:
        return len(self._recordings)

    def message(
        self, i: int, fault: str | None, draws: Draws, place: Place
    ) -> tuple[int, list[Packet]]:
        """The stream's first time, and its packets."""
        events = self._recordings[i]
        start = int(events.t[0])
        events = events[events.t < start + self._span]
        if fault is not None:
            events = self._faults[fault](events, self._span, self._spec, draws, place)
        packets: list[Packet] = [events] if len(events) else []
        return start, [*packets, Advance(start + self._span)]


def _event_faults(spec: EventInput, window_us: int) -> dict[str, EventFault]:
    width, height = spec.sensor

    def flipped(events: Events, _span: int, _spec: EventInput, _: Draws, _place: Place) -> Events:
        return Events(events.t, events.x, events.y, 1 - events.p)

    def lost(events: Events, _span: int, _spec: EventInput, draws: Draws, _: Place) -> Events:
        return events[draws.random(len(events)) < 0.5]

    def dead(_e: Events, _span: int, _spec: EventInput, _: Draws, _place: Place) -> Events:
        return Events.empty()

    def noise(rate: float) -> EventFault:
        """`rate` is in events of each polarity for each pixel and window."""

        def add(events: Events, span: int, _: EventInput, draws: Draws, _place: Place) -> Events:
            n = draws.poisson(rate * 2 * width * height * span / window_us)
            more = Events(
                events.t[0] + draws.integers(0, span, n),
                draws.integers(0, width, n).astype(np.uint16),
                draws.integers(0, height, n).astype(np.uint16),
                draws.integers(0, 2, n).astype(np.uint8),
            )
            return Events.concatenate([events, more]).sorted()

        return add

    def hot(events: Events, span: int, spec: EventInput, _: Draws, place: Place) -> Events:
        """As often in each window as counts."""
        row, column = divmod(int(place * width * height), width)
        step = window_us // int(spec.clip or 4)
        t = events.t[0] + np.arange(0, span, step, dtype=np.int64)
        ones = np.ones(len(t))
        x, y = ((value * ones).astype(np.uint16) for value in (column, row))
        more = Events(t, x, y, ones.astype(np.uint8))
        return Events.concatenate([events, more]).sorted()

    return {
        "flipped polarity": flipped,
        "noise, 0.05 events per pixel and window": noise(0.05),
        "noise, 0.2 events per pixel and window": noise(0.2),
        "half of the events lost": lost,
        "a hot pixel": hot,
        "a dead camera": dead,
    }


def source_of(manifest: Manifest, data: Path | None) -> Source:
    if isinstance(manifest.input, ImageInput):
        return PictureSource(manifest, data)
    return EventSource(manifest, data)
