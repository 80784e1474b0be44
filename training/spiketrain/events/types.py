"""Events of a DVS as four columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Int64s: TypeAlias = NDArray[np.int64]
UInt16s: TypeAlias = NDArray[np.uint16]
UInt8s: TypeAlias = NDArray[np.uint8]
Float32s: TypeAlias = NDArray[np.float32]

_COLUMNS: dict[str, np.dtype[Any]] = {
    "t": np.dtype(np.int64),
    "x": np.dtype(np.uint16),
    "y": np.dtype(np.uint16),
    "p": np.dtype(np.uint8),
}


@dataclass(frozen=True, eq=False, slots=True)
class Events:
    """N events: t in microseconds, x to the right and y down in pixels, p is 1 for brighter (ON) and 0 for darker.

    Times need not be sorted. Raises ValueError for a column of another type or length, or a polarity above 1.
    """

    t: Int64s
    x: UInt16s
    y: UInt16s
    p: UInt8s

    def __post_init__(self) -> None:
        for name, dtype in _COLUMNS.items():
            column: object = getattr(self, name)
            if not isinstance(column, np.ndarray) or column.dtype != dtype or column.ndim != 1:
                raise ValueError(
                    f"events: {name} is {_describe(column)}, not an array of {dtype} [N]"
                )
            if len(column) != len(self.t):
                raise ValueError(f"events: {len(column)} values in {name}, but {len(self.t)} in t")
        if len(self.p) and (highest := int(self.p.max())) > 1:
            raise ValueError(f"events: polarity {highest} in p, which holds 0 (OFF) and 1 (ON)")

    @classmethod
    def empty(cls) -> Events:
        return cls(*(np.empty(0, dtype) for dtype in _COLUMNS.values()))

    @classmethod
    def concatenate(cls, parts: Iterable[Events]) -> Events:
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS))

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, which: slice | NDArray[Any]) -> Events:
        """Those in a slice (views), under a boolean mask [N] or at indices [M] (copies)."""
        if not isinstance(which, slice | np.ndarray):
            raise TypeError(f"events take a slice, a mask or an array of indices, not {which!r}")
        return Events(self.t[which], self.x[which], self.y[which], self.p[which])

    def is_sorted(self) -> bool:
        return len(self) < 2 or bool((self.t[1:] >= self.t[:-1]).all())

    def sorted(self) -> Events:
        """In order of time; events of the same microsecond keep their order."""
        return self if self.is_sorted() else self[np.argsort(self.t, kind="stable")]

    def equals(self, other: Events) -> bool:
        return all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        )


def _describe(column: object) -> str:
    if isinstance(column, np.ndarray):
        return f"{column.dtype} {list(column.shape)}"
    return type(column).__name__
