"""A model on disk: one .safetensors file, tensors and a JSON manifest in its header.

The header's metadata has two entries: `manifest`, and `seal`, the sha256 of the whole file with the seal's own 64
digits replaced by zeros. So any changed byte is noticed, in the tensors or in what is said of them. Loading never
runs code from the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from spiketrain.manifest import FORMAT_VERSION, Manifest
from spiketrain.networks import Network, build_network
from spiketrain.quantise import QuantisationError, dequantised

MAX_BYTES = 4 << 30
_UNSEALED = "0" * 64


class CheckpointError(ValueError):
    """The file is not a checkpoint that can be loaded. The message names the file and the field."""


class Checkpoint(NamedTuple):
    manifest: Manifest
    tensors: dict[str, Tensor]

    def network(self) -> Network:
        """The network with these weights, in evaluation mode. Raises CheckpointError where they do not fit."""
        manifest = self.manifest
        network = bare_network(manifest)
        try:
            tensors = dequantised(manifest, self.tensors)
        except QuantisationError as error:
            raise CheckpointError(f"{manifest.name}: {error}") from error
        expected = network.state_dict()
        if missing := expected.keys() - tensors.keys():
            raise CheckpointError(f"{manifest.name}: tensor {min(missing)!r} is missing")
        if extra := tensors.keys() - expected.keys():
            raise CheckpointError(
                f"{manifest.name}: tensor {min(extra)!r} belongs to no layer of the network"
            )
        for name, tensor in expected.items():
            if tensor.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{manifest.name}: tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                    f"the network needs {tuple(tensor.shape)}"
                )
        network.to_empty(device="cpu").load_state_dict(tensors)
        return network.eval()


def bare_network(manifest: Manifest) -> Network:
    """The network that a manifest describes, on the meta device: all but its tensors.

    Raises CheckpointError, naming the field, for a network that there is not.
    """
    try:
        # What a file claims of its network is checked before any memory is taken for it.
        with torch.device("meta"):
            network = build_network(
                manifest.network.name,
                manifest.network.arguments,
                manifest.neuron,
                manifest.timesteps,
                manifest.layers,
            )
            network.neuron_shapes()
    except Exception as error:  # arguments from a file can be wrong in any way
        raise CheckpointError(f"{manifest.name}: network: {error}") from error
    if network.classes != len(manifest.classes):
        raise CheckpointError(
            f"{manifest.name}: classes: {len(manifest.classes)} names for a network with {network.classes} outputs"
        )
    if network.input_shape != manifest.input.shape:
        raise CheckpointError(
            f"{manifest.name}: input.shape is {manifest.input.shape}, the network takes {network.input_shape}"
        )
    return network


# What a model computes; the rest of a manifest is said about it.
_COMPUTES = {"network", "neuron", "layers", "timesteps", "input", "classes", "readout"}


def model_digest(manifest: Manifest, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of all that decides a model's answers.

    That is, in the order of their names, each tensor's name, type, shape and bytes, and the manifest's network,
    neuron, timesteps, input, classes, readout and decision, if it has one. So a network and its conversion differ, and a checkpoint whose
    accuracy was measured again does not. Exits are not in it: the answer after all timesteps is the same with and
    without them, and they name the digest that they were found for.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    computes = _COMPUTES if manifest.decision is None else _COMPUTES | {"decision"}
    said = manifest.model_dump(mode="json", include=computes)
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


def save_checkpoint(path: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Manifest:
    """Write the file, whole or not at all; returns the manifest with the digest filled in.

    Exits and a profile that are of another model, such as the one that this was converted from, are left out.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = model_digest(manifest, kept)
    exits = manifest.exit if manifest.exit and manifest.exit.model == digest else None
    health = manifest.health if manifest.health and manifest.health.model == digest else None
    changes = {"digest": digest, "exit": exits, "health": health}
    manifest = manifest.model_copy(update=changes)
    metadata = {"manifest": manifest.model_dump_json(), "seal": _UNSEALED}
    data = bytearray(safetensors.torch.save(kept, metadata))
    at = _seal_position(data)
    data[at : at + 64] = hashlib.sha256(data).hexdigest().encode()
    write_atomically(path, bytes(data))
    return manifest


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises CheckpointError, naming file and field, where the file is too large, truncated, changed by a byte, of
    another version, or not a checkpoint at all; OSError where it cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size} bytes, more than the limit of {MAX_BYTES}")
    return parse_checkpoint(path.read_bytes(), str(path))


def parse_checkpoint(data: bytes, source: str) -> Checkpoint:
    """`load_checkpoint` from bytes; `source` is what messages call the file."""
    metadata = _metadata(data, source)
    at = _seal_position(data)
    found = data[at : at + 64]
    sealed = hashlib.sha256(data[:at] + _UNSEALED.encode() + data[at + 64 :]).hexdigest().encode()
    if at < 0 or found != sealed:
        raise CheckpointError(
            f"{source}: seal: the file was changed or damaged after it was written; copy it again from its source"
        )
    manifest = parse_manifest(metadata["manifest"], source)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{source}: tensors: {error}") from error
    if model_digest(manifest, tensors) != manifest.digest:
        raise CheckpointError(f"{source}: digest: the manifest was not written for these tensors")
    if manifest.exit is not None and manifest.exit.model != manifest.digest:
        raise CheckpointError(
            f"{source}: manifest.exit: found for another model; run spiketrain calibrate-exit for this one"
        )
    if manifest.health is not None and manifest.health.model != manifest.digest:
        raise CheckpointError(
            f"{source}: manifest.health: measured of another model; run spiketrain profile for this one"
        )
    return Checkpoint(manifest, tensors)


def _metadata(data: bytes, source: str) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8 or data[8:9] != b"{":
        raise CheckpointError(f"{source}: header: not a .safetensors file, or a truncated one")
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if not isinstance(metadata["manifest"], str) or not isinstance(metadata["seal"], str):
            raise TypeError("metadata that is not text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: header: no manifest of ours in it ({error}); weights from elsewhere are imported first"
        ) from error
    return dict(metadata)


def parse_manifest(text: str, source: str) -> Manifest:
    """A manifest from JSON. Raises CheckpointError, naming `source` and the field."""
    try:
        version = json.loads(text).get("format_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{source}: manifest: not JSON ({error})") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{source}: format_version: this is {version}, this release reads {FORMAT_VERSION}"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{source}: manifest.{field}: {first['msg']}") from error


def _seal_position(data: bytes | bytearray) -> int:
    key = b'"seal":"'
    at = data.find(key, 0, 8 + int.from_bytes(data[:8], "little"))
    return -1 if at < 0 else at + len(key)
