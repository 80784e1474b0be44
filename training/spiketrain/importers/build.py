"""From an authors' file to a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import ValidationError

from spiketrain.checkpoint import Checkpoint, CheckpointError, model_digest
from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.data import DATA_SETS
from spiketrain.importers import clif, glif, ide, plif
from spiketrain.importers.inputs import Events, authors_input, class_names
from spiketrain.importers.moving import Layout, Moving
from spiketrain.importers.run_name import RunName, read_run
from spiketrain.importers.said import Said, needed
from spiketrain.importers.weights import AuthorsFile, read_file
from spiketrain.manifest import ConversionRecord, ImageInput, Input, Manifest, NetworkSpec
from spiketrain.networks import build_network

Repository = Literal["clif", "ilif", "glif", "ide", "plif"]
REPOSITORIES: tuple[Repository, ...] = get_args(Repository)
_RUN_FOLDERS = ("clif", "ilif")


def import_checkpoint(path: Path, repository: Repository, said: Said) -> Checkpoint:
    """The checkpoint that `path` of that repository is.

    Raises ForeignModelError for a file that is damaged, not plain weights or of another network, naming the key, and for
    what is missing in `said`, naming the command's option; OSError where the file cannot be read.
    """
    file = read_file(path, said.pickled_module)
    run = read_run(path) if repository in _RUN_FOLDERS else RunName()
    said = _with_run(said, run, path)
    given = _input(repository, said)
    moving = Moving(str(path), dict(file.tensors))
    layout = _layout(repository, moving, file, said, given)
    moving.done(layout.network)
    why = f"how many timesteps is needed: {path} does not say"
    timesteps = needed(said.timesteps or layout.timesteps, "timesteps", why)
    manifest = _manifest(repository, file, said, layout, timesteps, given)
    return _checked(Checkpoint(manifest, moving.made), moving)


def _with_run(said: Said, run: RunName, path: Path) -> Said:
    """What the caller says goes before what the run's folder says."""
    neuron: Any = said.neuron or run.neuron
    if neuron is not None and neuron not in ("lif", "clif", "ilif", "plif"):
        raise ForeignModelError(
            f"{path}: its run's folder names {neuron!r}, which is no spiking neuron of ours"
        )
    return replace(
        said,
        timesteps=said.timesteps or run.timesteps,
        tau=said.tau if said.tau is not None else run.tau,
        neuron=neuron,
        data_set=said.data_set or run.data_set,
        dropout=said.dropout if said.dropout is not None else run.dropout,
    )


def _input(repository: Repository, said: Said) -> Input | Events:
    if said.input is not None:
        return said.input
    why = "the data set it was trained on is needed, or --input with what belongs to it: the file does not say"
    return authors_input(repository, needed(said.data_set, "data-set", why))


def _layout(
    repository: Repository, moving: Moving, file: AuthorsFile, said: Said, given: Input | Events
) -> Layout:
    try:
        match repository:
            case "clif" | "ilif":
                return clif.layout(moving, said)
            case "glif":
                return glif.layout(moving, said)
            case "ide":
                return ide.layout(moving, said, _shape(given))
            case "plif":
                return plif.layout(moving, file, said)
    except ValidationError as error:  # of a neuron's constants
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ForeignModelError(f"{file.path}: neuron: {field}: {first['msg']}") from error


def _shape(given: Input | Events) -> tuple[int, int, int]:
    return (2, given.side, given.side) if isinstance(given, Events) else given.shape


def _manifest(
    repository: Repository,
    file: AuthorsFile,
    said: Said,
    layout: Layout,
    timesteps: int,
    given: Input | Events,
) -> Manifest:
    classes: Sequence[str] = needed(
        said.classes if said.classes is not None else class_names(said.data_set),
        "classes",
        f"the names of the {layout.arguments['classes']} classes are needed",
    )
    if len(classes) != layout.arguments["classes"]:
        raise ForeignModelError(
            f"--classes: {len(classes)} names, and {file.path} has {layout.arguments['classes']} outputs"
        )
    arguments = {**layout.arguments, "input_shape": _shape(given)}
    try:
        with torch.device("meta"):
            network = build_network(layout.network, arguments, layout.neuron, timesteps)
        return Manifest(
            name=said.name,
            network=NetworkSpec(name=layout.network, arguments=arguments),
            neuron=layout.neuron,
            timesteps=timesteps,
            input=given.input(timesteps) if isinstance(given, Events) else given,
            classes=tuple(classes),
            readout=network.logit_readout,
            conversion=ConversionRecord(
                parent=file.digest,
                parent_name=file.path.name,
                method=f"{repository} import",
                arguments=_said_of_training(file, said, given),
            ),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ForeignModelError(f"{file.path}: {field}: {first['msg']}") from error
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ForeignModelError(f"{file.path}: {layout.network}: {reason}") from error


def _said_of_training(file: AuthorsFile, said: Said, given: Input | Events) -> dict[str, Any]:
    """The file's own numbers, and the data set, so that the checkpoint can be evaluated on it."""
    kept: dict[str, Any] = {"said by the file": file.said} if file.said else {}
    if said.data_set in DATA_SETS and said.input is None:
        data: dict[str, Any] = {"name": said.data_set}
        if isinstance(given, ImageInput):
            data |= {"mean": given.mean, "std": given.std}
        kept["data"] = data
    return kept


def _checked(checkpoint: Checkpoint, moving: Moving) -> Checkpoint:
    """With its digest, once the tensors fit; an error names the file's key, not ours."""
    manifest = checkpoint.manifest
    with torch.device("meta"):
        network = build_network(
            manifest.network.name, manifest.network.arguments, manifest.neuron, manifest.timesteps
        )
    expected = network.state_dict()
    for name, like in expected.items():
        found = checkpoint.tensors.get(name)
        if found is not None and found.shape != like.shape:
            raise ForeignModelError(
                f"{moving.source}: {moving.origin.get(name, name)!r} has shape {tuple(found.shape)}, "
                f"{manifest.network.name} with inputs of {_shape(manifest.input)} needs {tuple(like.shape)}"
            )
    tensors = {
        name: tensor.to(expected[name].dtype).contiguous() if name in expected else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    manifest = manifest.model_copy(update={"digest": model_digest(manifest, tensors)})
    checked = Checkpoint(manifest, tensors)
    try:
        checked.network()
    except CheckpointError as error:
        raise ForeignModelError(f"{moving.source}: {error}") from error
    return checked


__all__ = ["REPOSITORIES", "Repository", "Said", "import_checkpoint"]
