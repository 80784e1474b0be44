"""All that a checkpoint says, for reading: `spiketrain inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from spiketrain.checkpoint import Checkpoint, load_checkpoint
from spiketrain.exit import ExitTable
from spiketrain.manifest import HealthProfile, Manifest, Spread
from spiketrain.networks import Network

_BAR = 40


def inspect_file(path: Path) -> tuple[RenderableType, str]:
    """A checkpoint as something rich can print, and as JSON.

    Raises CheckpointError, naming file and field, where the file is not a checkpoint that can be run.
    """
    checkpoint = load_checkpoint(path)
    network = checkpoint.network()
    size = path.stat().st_size
    return _tables(path, size, checkpoint, network), json.dumps(
        _report(path, size, checkpoint, network), indent=2
    )


def _report(path: Path, size: int, checkpoint: Checkpoint, network: Network) -> dict[str, Any]:
    return {
        "file": str(path),
        "bytes": size,
        "parameters": _parameters(network),
        "neurons": {name: list(shape) for name, shape in network.neuron_shapes().items()},
        "manifest": checkpoint.manifest.model_dump(mode="json"),
        "tensors": [
            {
                "name": name,
                "shape": list(tensor.shape),
                "dtype": _dtype(tensor.dtype),
                "elements": tensor.numel(),
                "bytes": tensor.numel() * tensor.element_size(),
            }
            for name, tensor in _in_order(checkpoint, network)
        ],
    }


def _tables(path: Path, size: int, checkpoint: Checkpoint, network: Network) -> Group:
    manifest = checkpoint.manifest
    parts: list[RenderableType] = [
        _pairs(
            "model",
            {
                "name": manifest.name,
                "file": path,
                "bytes": f"{size:,}",
                "format_version": manifest.format_version,
                "digest": manifest.digest,
                "timesteps": manifest.timesteps,
                "readout": manifest.readout,
                "classes": f"{len(manifest.classes)}: {', '.join(manifest.classes)}",
            },
        ),
        _pairs(
            "network",
            {
                "name": manifest.network.name,
                **manifest.network.arguments,
                "parameters": f"{_parameters(network):,}",
                "neurons": f"{sum(_count(shape) for shape in network.neuron_shapes().values()):,}",
            },
        ),
        _pairs("neuron", manifest.neuron),
    ]
    parts += [_pairs(f"neuron of {name}", config) for name, config in manifest.layers.items()]
    parts.append(_pairs("input", manifest.input))
    parts += [
        _pairs(f"accuracy, {entry.dataset} {entry.split}", _accuracy(entry))
        for entry in manifest.accuracy
    ]
    if manifest.training is not None:
        parts.append(_pairs("training", manifest.training))
    if manifest.conversion is not None:
        parts.append(_pairs("conversion", manifest.conversion))
    if manifest.exit is not None:
        parts.append(exit_table(manifest.exit))
    if manifest.health is not None:
        parts.append(health_table(manifest.health))
    parts += [_rates(manifest, network), _tensors(checkpoint, network)]
    return Group(*parts, *_not_shown(manifest))


def exit_table(table: ExitTable) -> Table:
    """A row for each level."""
    shown = Table(
        title=f"exit, {table.dataset} {table.split}: fitted on {table.fitted} samples, verified on {table.verified}, "
        f"confidence {table.confidence:g}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("risk", "timesteps", "disagreement", "bound"):
        shown.add_column(heading, justify="right")
    shown.add_column(f"threshold by timestep, 1 to {table.timesteps - 1}")
    for level in table.levels:
        shown.add_row(
            f"{level.risk:g}",
            f"{level.mean_timesteps:.3f}",
            f"{100 * level.disagreement:.3f} %",
            f"{100 * level.upper_bound:.3f} %",
            " ".join("never" if each is None else f"{each:.4f}" for each in level.thresholds),
        )
    shown.caption = "temperatures: " + " ".join(f"{each:.4f}" for each in table.temperatures)
    shown.caption_justify = "left"
    return shown


def health_table(health: HealthProfile) -> Table:
    """Each layer's firing rate by sample, and the neurons that stay silent or saturated in a group, in %."""
    about = f"health, {health.dataset} {health.split}: {health.samples} samples, groups of {health.group}, in %"
    shown = Table(title=Text(_plain(about)), title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("layer", no_wrap=True)
    for heading in ("rate", "first timestep", "silent", "saturated"):
        shown.add_column(heading, justify="right")
    for name, layer in health.layers.items():
        spreads = (layer.rate, layer.first, layer.silent, layer.saturated)
        shown.add_row(Text(_plain(name)), *map(_spread, spreads))
    return shown


def _spread(spread: Spread | None) -> str:
    return "" if spread is None else f"{100 * spread.mean:.2f} ± {100 * spread.std:.2f}"


# What the tables above are made of. A field that is not here is shown as it is, so that none is ever left out.
_SHOWN = {
    "format_version",
    "name",
    "network",
    "neuron",
    "layers",
    "timesteps",
    "input",
    "classes",
    "readout",
    "accuracy",
    "training",
    "firing_rates",
    "conversion",
    "exit",
    "health",
    "digest",
}


def _not_shown(manifest: Manifest) -> list[RenderableType]:
    others = {
        name: value
        for name, value in manifest.model_dump(mode="json").items()
        if name not in _SHOWN
    }
    return [_pairs("also", others)] if others else []


def _pairs(title: str, values: BaseModel | Mapping[str, Any]) -> Table:
    table = Table(
        title=Text(_plain(title)), title_justify="left", box=box.SIMPLE, show_header=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    content = values.model_dump(mode="json") if isinstance(values, BaseModel) else values
    for name, value in _flat("", content):
        table.add_row(Text(_plain(name)), Text(_plain(value)))
    return table


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Nested sections as dotted names, the way `--set` takes them."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        rows += _flat(f"{name}.", value) if isinstance(value, dict) and value else [(name, value)]
    return rows


def _accuracy(entry: BaseModel) -> dict[str, Any]:
    values = entry.model_dump(mode="json")
    values["value"] = f"{100 * values['value']:.2f} %"
    values["by_timestep"] = ", ".join(f"{100 * value:.2f} %" for value in values["by_timestep"])
    return values


def _rates(manifest: Manifest, network: Network) -> Table:
    table = Table(title="firing rate by layer, in %", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    for heading in ("neurons", "mean", "p1", "p50", "p99"):
        table.add_column(heading, justify="right")
    table.add_column("", no_wrap=True)
    shapes = network.neuron_shapes()
    # Layers in the order of the current, then anything the manifest names besides.
    for layer in dict.fromkeys((*shapes, *manifest.firing_rates)):
        shape = "x".join(map(str, shapes[layer])) if layer in shapes else "no such layer"
        profile = manifest.firing_rates.get(layer)
        if profile is None:
            table.add_row(Text(_plain(layer)), shape, "not recorded")
            continue
        numbers = [
            f"{100 * value:.2f}" for value in (profile.mean, profile.p1, profile.p50, profile.p99)
        ]
        bar = "█" * round(min(max(profile.mean, 0.0), 1.0) * _BAR)
        table.add_row(Text(_plain(layer)), shape, *numbers, bar)
    return table


def _in_order(checkpoint: Checkpoint, network: Network) -> list[tuple[str, Tensor]]:
    """The tensors as the network has them; a file does not keep their order."""
    return [(name, checkpoint.tensors[name]) for name in network.state_dict()]


def _tensors(checkpoint: Checkpoint, network: Network) -> Table:
    tensors = dict(_in_order(checkpoint, network))
    table = Table(title="tensors", title_justify="left", box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("name", "total", no_wrap=True)
    table.add_column("shape")
    table.add_column("type")
    table.add_column("elements", f"{sum(t.numel() for t in tensors.values()):,}", justify="right")
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    table.add_column("bytes", f"{total:,}", justify="right")
    for name, tensor in tensors.items():
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        elements, size = tensor.numel(), tensor.numel() * tensor.element_size()
        table.add_row(Text(_plain(name)), shape, _dtype(tensor.dtype), f"{elements:,}", f"{size:,}")
    return table


def _parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: object) -> str:
    """Text without what could steer a terminal: a checkpoint may come from anywhere."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
