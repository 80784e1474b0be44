"""Decoded event frames on disk, one small file a sample.

A sample's key is the digest of all that shaped it: its recording, the stretch of it, the rule by which events become
frames, and this code's version. So nothing has to be thrown away when a recipe changes, and nothing stale is ever read.
Files appear whole (written beside and renamed); processes that make the same one at the same time write the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.checkpoint import write_atomically
from spiketrain.events.types import Float32s
from spiketrain.manifest import EventInput

VERSION = 1
"""Goes up when the same events become other frames."""

_log = logging.getLogger(__name__)


def cache_folder(root: Path) -> Path:
    """Where frames are kept: SPIKETRAIN_CACHE, else frames-cache in the folder of the data sets."""
    given = os.environ.get("SPIKETRAIN_CACHE")
    return Path(given) if given else root / "frames-cache"


def frame_key(
    digest: str, spec: EventInput, timesteps: int, start_us: int | None, end_us: int | None
) -> str:
    """`digest` is that of the recording's bytes. The scale is applied when frames are read, and is no part of it."""
    shaped_by = {
        "version": VERSION,
        "recording": digest,
        "events": spec.model_dump(mode="json", exclude={"scale"}),
        "timesteps": timesteps,
        "stretch": [start_us, end_us],
    }
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode()).hexdigest()


class FrameCache:
    """Counts are kept in the smallest type that holds them. Where the folder cannot be written to, nothing is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writable = True

    def get(self, key: str) -> Float32s | None:
        """The frames of this key; None where there are none, or where the file is damaged."""
        try:
            kept = np.load(self._path(key), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return np.asarray(kept, np.float32)

    def put(self, key: str, frames: Float32s) -> None:
        if not self._writable:
            return
        buffer = io.BytesIO()
        np.save(buffer, compact(frames), allow_pickle=False)
        try:
            write_atomically(self._path(key), buffer.getvalue())
        except OSError as error:
            self._writable = False
            _log.warning("decoded frames are not kept in %s: %s", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.npy"


def compact(frames: Float32s) -> NDArray[Any]:
    """The same values as bytes or 16-bit numbers where they are whole and small enough."""
    highest = float(frames.max(initial=0))
    if float(frames.min(initial=0)) < 0 or not np.array_equal(frames, np.rint(frames)):
        return frames
    for small in (np.uint8, np.uint16):
        if highest <= np.iinfo(small).max:
            return frames.astype(small)
    return frames
