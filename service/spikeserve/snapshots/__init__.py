"""Streams that outlive their server: their states as bytes, and where these are kept for another one to take.

`form` says what a snapshot is, `folder` and `redis_store` keep them, and `Snapshots` is what the streams use of it.
"""

from spikeserve.snapshots.form import ForeignError, SnapshotError, pack, unpack
from spikeserve.snapshots.snapshots import Snapshots, StoreUnavailableError
from spikeserve.snapshots.store import Store, StoreSettingError, open_store

__all__ = [
    "ForeignError",
    "SnapshotError",
    "Snapshots",
    "Store",
    "StoreSettingError",
    "StoreUnavailableError",
    "open_store",
    "pack",
    "unpack",
]
