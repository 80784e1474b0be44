"""Moves tensors from their names to ours, and knows of each where it came from, so that errors can name it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.neurons import AnyNeuronConfig

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Layout:
    """The network of ours that a file's tensors belong to; `timesteps` where the file says how many."""

    network: str
    arguments: dict[str, Any]
    neuron: AnyNeuronConfig
    timesteps: int | None = None


@dataclass
class Moving:
    """`left` are the file's tensors that have no place yet, `made` ours, `origin` the name that each of ours had."""

    source: str
    left: dict[str, Tensor]
    made: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.left

    def take(self, key: str) -> Tensor:
        if key not in self.left:
            raise ForeignModelError(f"{self.source}: {key!r} is missing")
        return self.left.pop(key)

    def move(
        self, theirs: str, ours: str, change: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        tensor = self.take(theirs)
        self.made[ours] = tensor if change is None else change(tensor)
        self.origin[ours] = theirs
        return tensor

    def weights(self, theirs: str, ours: str, bias: bool) -> Tensor:
        """A convolution or linear layer; its weight."""
        self._of_axes(f"{theirs}.weight", (2, 4))
        if bias:
            self.move(f"{theirs}.bias", f"{ours}.bias")
        return self.move(f"{theirs}.weight", f"{ours}.weight")

    def norm(self, theirs: str, ours: str, scale: float = 1.0) -> None:
        """A batch norm, whose weight is multiplied by `scale`."""
        for key in _NORM:
            scaled = key == "weight" and scale != 1.0
            self.move(f"{theirs}.{key}", f"{ours}.{key}", (lambda t: t * scale) if scaled else None)

    def indices(self, pattern: str) -> list[int]:
        """The numbers that stand at the one group of `pattern` in names that begin with it, in order."""
        found = (re.match(pattern, key) for key in self.left)
        return sorted({int(match[1]) for match in found if match})

    def dropped(self, *prefixes: str) -> None:
        """Leave out tensors that are copies of others, by how their names begin."""
        for key in [key for key in self.left if key.startswith(prefixes)]:
            del self.left[key]

    def done(self, network: str) -> None:
        if self.left:
            raise ForeignModelError(
                f"{self.source}: {min(self.left)!r} belongs to no layer of {network}"
            )

    def of_axes(self, key: str, axes: int) -> Tensor:
        """A tensor that stays, and must have so many axes."""
        return self._of_axes(key, (axes,))

    def _of_axes(self, key: str, axes: tuple[int, ...]) -> Tensor:
        if key not in self.left:
            raise ForeignModelError(f"{self.source}: {key!r} is missing")
        tensor = self.left[key]
        if tensor.dim() not in axes or not tensor.is_floating_point():
            raise ForeignModelError(
                f"{self.source}: {key!r} has shape {tuple(tensor.shape)} and type {tensor.dtype}: "
                f"{' or '.join(map(str, axes))} axes of floating-point numbers are needed"
            )
        return tensor
