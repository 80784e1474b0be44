"""Puts together a checkpoint of a `graph` network, node by node: what importers of other libraries' networks share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint, CheckpointError, model_digest
from spiketrain.manifest import ConversionRecord, Input, Manifest, NetworkSpec
from spiketrain.networks.base import NeuronFactory
from spiketrain.networks.graph import INPUT, free_name, node_module, parsed_nodes
from spiketrain.neurons import AnyNeuronConfig, NeuronConfig


class ForeignModelError(ValueError):
    """A model of another library that cannot become one of ours. The message names the node or layer, and the field."""


@dataclass(frozen=True)
class About:
    """What a model needs to be served and other libraries' files do not say."""

    name: str
    input: Input
    classes: tuple[str, ...]
    timesteps: int
    readout: Literal["mean", "sum", "rate", "vote"] | None = (
        None  # None: rate where spikes come out, else mean
    )


@dataclass
class GraphBuilder:
    """`source` is what messages call the model. Shapes are those of one sample."""

    source: str
    input_shape: tuple[int, ...]
    timesteps: int
    digest: str = ""  # sha256 of the file, where there is one
    nodes: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, AnyNeuronConfig] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.shapes[INPUT] = self.input_shape

    def shape_of(self, inputs: Sequence[str], wanted: str) -> tuple[int, ...]:
        """The one shape that all of `inputs` have."""
        shapes = {self.shapes[name] for name in inputs}
        if len(shapes) != 1:
            found = ", ".join(map(str, sorted(shapes))) or "nothing"
            raise ForeignModelError(
                f"{self.source}: node {wanted!r}: its inputs cannot be added up: {found}"
            )
        return shapes.pop()

    def add(
        self,
        wanted: str,
        inputs: Sequence[str],
        op: str,
        tensors: Mapping[str, Tensor] | None = None,
        **fields: Any,
    ) -> str:
        """A node with its weights; its name, which is like `wanted`. Raises ForeignModelError where it does not fit."""
        before = self.shape_of(inputs, wanted)
        name = free_name(wanted, self._taken)
        node = {"op": op, "name": name, "inputs": list(inputs), **fields}
        try:
            (parsed,) = parsed_nodes([node])
            if op == "reshape":
                after = torch.zeros(1, *before, device="meta").reshape(-1, *fields["shape"])
            else:
                with torch.device("meta"):
                    module = node_module(parsed, _no_neurons()).eval()
                    after = module(torch.zeros(1, *before), *((1,) if op == "dropout" else ()))
                self._check(module, tensors or {})
            if len(after) != 1:
                raise ValueError(f"{before} cannot become {fields.get('shape')}")
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = str(error).partition("\n")[0].removeprefix(f"node {name!r}: ")
            raise ForeignModelError(
                f"{self.source}: node {wanted!r}: input of shape {before}: {reason}"
            ) from error
        self.shapes[name] = tuple(after.shape[1:])
        self.nodes.append(node)
        self.tensors |= {f"{name}.{key}": value for key, value in (tensors or {}).items()}
        return name

    def _check(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        for key, like in module.state_dict().items():
            if key not in tensors:
                raise ValueError(f"{key} is missing")
            if tensors[key].shape != like.shape:
                raise ValueError(
                    f"{key} has shape {tuple(tensors[key].shape)}, {tuple(like.shape)} is needed"
                )
            if tensors[key].is_floating_point() and not bool(tensors[key].isfinite().all()):
                raise ValueError(f"{key} has values that are not finite")

    def add_neurons(
        self,
        wanted: str,
        inputs: Sequence[str],
        config: AnyNeuronConfig,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> str:
        shape = self.shape_of(inputs, wanted)
        name = free_name(wanted, self._taken)
        self.nodes.append(
            {"op": "neurons", "name": name, "inputs": list(inputs), "channels": shape[0]}
        )
        self.shapes[name] = shape
        self.layers[name] = config
        self.tensors |= {f"{name}.{key}": value for key, value in (tensors or {}).items()}
        return name

    def checkpoint(self, outputs: Sequence[str], about: About, method: str) -> Checkpoint:
        """The checkpoint, which has been loaded once to see that it is whole."""
        shape = self.shape_of(outputs, "output")
        if shape != (len(about.classes),):
            raise ForeignModelError(
                f"{self.source}: output: values of shape {shape} for {len(about.classes)} classes: "
                "each output is one class"
            )
        if not self.layers:
            raise ForeignModelError(f"{self.source}: there is no layer of neurons")
        common = Counter(self.layers.values()).most_common(1)[0][0]
        spiking = all(name in self.layers and self.layers[name].spiking for name in outputs)
        try:
            manifest = Manifest(
                name=about.name,
                network=NetworkSpec(
                    name="graph",
                    arguments={
                        "input_shape": list(self.input_shape),
                        "classes": len(about.classes),
                        "nodes": self.nodes,
                        "output": list(outputs),
                    },
                ),
                neuron=common,
                layers={name: c for name, c in self.layers.items() if c != common},
                timesteps=about.timesteps,
                input=about.input,
                classes=about.classes,
                readout=about.readout or ("rate" if spiking else "mean"),
                conversion=ConversionRecord(
                    parent=self.digest, parent_name=self.source, method=method
                ),
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ForeignModelError(f"{self.source}: {where}: {first['msg']}") from error
        tensors = {
            key: (value.float() if value.is_floating_point() else value).contiguous()
            for key, value in self.tensors.items()
        }
        checkpoint = Checkpoint(
            manifest.model_copy(update={"digest": model_digest(manifest, tensors)}), tensors
        )
        try:
            checkpoint.network()
        except CheckpointError as error:
            raise ForeignModelError(f"{self.source}: {error}") from error
        return checkpoint


def _no_neurons() -> NeuronFactory:
    return NeuronFactory(NeuronConfig(), 1)
