"""What a caller says about an authors' file, since the file does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.manifest import Input

T = TypeVar("T")


@dataclass(frozen=True)
class Said:
    """None for what is left to the file, to its run's folder, or to the only value that the authors ever use.

    `neuron` is lif, clif, ilif or plif; `keep` is what a feedback neuron keeps of its potential (lambda; 1 for IF);
    `gates` is how GLIF's gates were trained; `pooling` is PLIF's.
    """

    name: str
    timesteps: int | None = None
    neuron: Literal["lif", "clif", "ilif", "plif"] | None = None
    tau: float | None = None
    threshold: float | None = None
    keep: float | None = None
    gates: Literal["soft", "hard"] = "soft"
    pooling: Literal["max", "average"] | None = None
    dropout: float | None = None
    data_set: str | None = None
    input: Input | None = None
    classes: Sequence[str] | None = None
    pickled_module: bool = False


def needed(value: T | None, option: str, why: str) -> T:
    """The value; ForeignModelError, with the option that gives it, where there is none."""
    if value is None:
        raise ForeignModelError(f"--{option}: {why}")
    return value
