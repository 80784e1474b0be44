"""What the repository knows about a model: as a file, and as something that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spikeserve.engine import Scheduler
from spikeserve.metrics import ModelMetrics
from spikeserve.probes import Watch
from spiketrain.manifest import Manifest

State = Literal["loading", "ready", "failed", "unloading", "unloaded"]
Kind = Literal["image", "events"]
KINDS: tuple[Kind, ...] = ("image", "events")


@dataclass(frozen=True)
class ModelInfo:
    """One file of the repository. `manifest` is None where it could not be read, or nobody has read it yet.

    `reason` says why it failed; of a model that is ready, why the file that is there now could not take its place.
    """

    name: str
    version: str
    path: Path
    state: State
    reason: str | None
    manifest: Manifest | None
    default: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers. `neurons` is by layer how many spike, `macs` the operations of encoding one input;
    `watch` is told of every answer.

    Whoever works with a model holds on to this object: a model that was replaced or unloaded is freed when nobody
    does any more.
    """

    name: str
    version: str
    path: Path
    manifest: Manifest
    engine: Scheduler
    metrics: ModelMetrics
    neurons: dict[str, int]
    macs: int
    watch: Watch

    @property
    def kind(self) -> Kind:
        return self.manifest.input.kind

    @property
    def bound_to_timesteps(self) -> bool:
        """Whether the network has parameters for each timestep, so that it cannot go beyond its own number."""
        neurons = (self.manifest.neuron, *self.manifest.layers.values())
        return any(neuron.kind == "glif" for neuron in neurons)


def version_key(version: str) -> tuple[int, str]:
    """Numbers in their order, before them whatever is no number."""
    return (int(version), "") if version.isdecimal() else (-1, version)
