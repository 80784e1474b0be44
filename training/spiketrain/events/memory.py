"""What the parts of a stream remember from one message to the next, as plain values: to go on elsewhere.

A part names the fields that change while it works. `memory` takes them out as numbers, bytes and arrays, and `remember`
puts them into a fresh part that was made on the same terms, which then goes on exactly as the old one would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from spiketrain.events.types import Events

Memory: TypeAlias = dict[str, Any]
"""Of None, bool, int, float, str, bytes, arrays, and lists and dictionaries of them."""

_LARGEST = 1 << 63


class Remembers:
    """`MEMORY` has the fields that change, and their types."""

    MEMORY: ClassVar[Mapping[str, Any]] = {}

    def memory(self) -> Memory:
        """Copies: the part may go on."""
        return {name.lstrip("_"): _taken(getattr(self, name)) for name in self.MEMORY}

    def remember(self, memory: Memory) -> None:
        """Raises ValueError for what a part made on these terms cannot have remembered; it is not to be used then."""
        expect(memory, (name.lstrip("_") for name in self.MEMORY))
        for name, kind in self.MEMORY.items():
            value, present = memory[name.lstrip("_")], getattr(self, name)
            if isinstance(present, Remembers):
                present.remember(value)
            else:
                setattr(self, name, _checked(name.lstrip("_"), kind, value, present))


def expect(memory: Any, names: Any) -> None:
    """Raises ValueError for a memory of other fields."""
    names = set(names)
    if not isinstance(memory, dict) or set(memory) != names:
        found = sorted(memory) if isinstance(memory, dict) else type(memory).__name__
        raise ValueError(f"memory of {', '.join(sorted(names)) or 'nothing'} expected, not {found}")


def _taken(value: Any) -> Any:
    if isinstance(value, Remembers):
        return value.memory()
    if isinstance(value, Events):
        return {name: getattr(value, name).copy() for name in ("t", "x", "y", "p")}
    return value.copy() if isinstance(value, np.ndarray) else value


def _checked(name: str, kind: Any, value: Any, present: Any) -> Any:
    if kind is Events:
        expect(value, ("t", "x", "y", "p"))
        return Events(**value)
    if not isinstance(value, kind):
        raise ValueError(f"memory: {name} is {type(value).__name__}")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(f"memory: {name} is {value}")
    # Compiled loops write where the array says that there is room.
    if isinstance(present, np.ndarray) and isinstance(value, np.ndarray):
        expected = (present.dtype, present.shape)
        if (value.dtype, value.shape) != expected:
            raise ValueError(f"memory: {name} is {value.dtype} {value.shape}, not {expected}")
    return value
