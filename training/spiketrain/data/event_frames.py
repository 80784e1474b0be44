"""Recordings on disk as samples of T frames: decoded once, then read from the cache of frames."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiketrain.data.files import Stored
from spiketrain.data.frame_cache import FrameCache, frame_key
from spiketrain.data.lazy import OnDisk, readers
from spiketrain.events.formats import EventFormatError, open_recording
from spiketrain.events.types import Events, Float32s
from spiketrain.events.windows import recording_frames
from spiketrain.manifest import CountWindow, DurationWindow, EventInput


class Take(NamedTuple):
    """A recording, or the stretch of it from start_us to before end_us, and its class. `digest` is of all its bytes."""

    file: Stored
    digest: str
    label: int
    start_us: int | None = None
    end_us: int | None = None


class EventFrames(OnDisk):
    """float32 [T, 2, H, W] of each take: its first `timesteps` windows; a shorter one ends in empty windows."""

    def __init__(
        self,
        takes: Sequence[Take],
        spec: EventInput,
        timesteps: int,
        cache: FrameCache,
        format: str | None = None,
    ) -> None:
        super().__init__(torch.arange(len(takes)))
        self._takes = takes
        self._spec = spec.model_copy(update={"scale": 1.0})
        self._scale = np.float32(spec.scale)
        self._timesteps = timesteps
        self._cache = cache
        self._format = format
        self._of_file: dict[Stored, list[int]] = {}
        for i, take in enumerate(takes):
            self._of_file.setdefault(take.file, []).append(i)
        self._lock = threading.Lock()
        self._busy: dict[Stored, threading.Lock] = {}

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self._timesteps, *self._spec.shape)

    def read(self, item: int, draws: Tensor | None = None) -> Tensor:
        frames = self._cache.get(self._key(item))
        if frames is None or frames.shape != self.sample_shape:
            frames = self._decode(item)
        if self._scale != 1:
            frames = frames * self._scale
        return torch.from_numpy(frames)

    def prepare(self, report: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Decode all that is not in the cache yet; `report` hears how many recordings are done, of how many."""
        files = list(dict.fromkeys(self._takes[i].file for i in self._index.tolist()))
        for done, _ in enumerate(readers().map(self._prepare_file, files), 1):
            report(done, len(files))

    def _prepare_file(self, file: Stored) -> None:
        missing = [i for i in self._of_file[file] if self._cache.get(self._key(i)) is None]
        if missing:
            self._decode(missing[0])

    def _decode(self, item: int) -> Float32s:
        """A sample; all other stretches of its recording go to the cache with it, as it is read only once."""
        file = self._takes[item].file
        with self._lock:
            busy = self._busy.setdefault(file, threading.Lock())
        with busy:
            frames = self._cache.get(self._key(item))
            if frames is not None and frames.shape == self.sample_shape:
                return frames
            events = self._events(file)
            for i in self._of_file[file]:
                take = self._takes[i]
                try:
                    made = first_frames(
                        events, self._spec, self._timesteps, take.start_us, take.end_us
                    )
                except ValueError as error:
                    stretch = "" if take.start_us is None else f" from {take.start_us} us"
                    raise ValueError(f"{file}{stretch}: {error}") from error
                self._cache.put(self._key(i), made)
                if i == item:
                    frames = made
        if frames is None:
            raise ValueError(f"{file}: has no sample {item}")
        return frames

    def _events(self, file: Stored) -> Events:
        source = file.read() if file.packed else file.place / file.name
        try:
            with open_recording(source, self._format) as recording:
                return recording.read()
        except EventFormatError as error:
            raise EventFormatError(f"{file}: {error}: get it anew") from error

    def _key(self, item: int) -> str:
        take = self._takes[item]
        return frame_key(take.digest, self._spec, self._timesteps, take.start_us, take.end_us)


def first_frames(
    events: Events,
    spec: EventInput,
    timesteps: int,
    start_us: int | None = None,
    end_us: int | None = None,
) -> Float32s:
    """The first `timesteps` windows of a stretch, [T, 2, H, W]; a shorter one ends in empty windows.

    Raises ValueError where no event of the stretch lies on the sensor.
    """
    events = events.sorted()
    first, last = (
        None if t is None else int(np.searchsorted(events.t, t)) for t in (start_us, end_us)
    )
    events = events[first:last]
    width, height = spec.sensor
    on = (events.x < width) & (events.y < height)
    if not on.any():
        raise ValueError(
            f"none of {len(events)} events is on a sensor of {width}x{height} pixels; set events.sensor to the camera's size"
        )
    events = events[on]
    window = spec.window
    # What comes after the windows that are wanted is left out before it becomes frames.
    if isinstance(window, DurationWindow):
        begin = int(events.t[0]) if start_us is None else start_us
        events = events[: int(np.searchsorted(events.t, begin + timesteps * window.microseconds))]
    elif isinstance(window, CountWindow) and not spec.filters:
        events = events[: timesteps * window.events]
    found = recording_frames(events, spec, start_us)[:timesteps]
    frames = np.zeros((timesteps, *spec.shape), np.float32)
    frames[: len(found)] = found
    return frames


def packed_digest(file: Stored, of_archive: str) -> str:
    """The digest of a member of an archive, from the archive's own."""
    return hashlib.sha256(f"{of_archive} {file.name}".encode()).hexdigest()
