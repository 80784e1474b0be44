"""The authors' files as data: tensors by name, and the numbers beside them. No code of a file is ever run.

Files of `torch.save` are pickles. They are read with `weights_only=True`, which builds tensors, numbers and plain
containers and refuses everything else. A whole network that was pickled, as the PLIF repository saves it, names
classes of its authors' code; to load it as intended is to run what the file says. Where the caller asks for it, each of
those classes is replaced by `_StandIn`, which does nothing but keep the values it was pickled with, and the tensors are
taken from there.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from spiketrain.convert.graph_builder import ForeignModelError

MAX_BYTES = 4 << 30
_MAX_CLASSES = 200
_WRAPPERS = ("net", "state_dict", "model")
_SAID = ("epoch", "max_test_acc", "acc", "best_acc")


@dataclass(frozen=True)
class AuthorsFile:
    """`tensors` by name, without the prefix of DataParallel; `said` are the file's own numbers, such as its epoch.

    `attributes` has, for a pickled network, the plain values of each of its modules by name ("" is the network), and
    `kinds` the modules' class names.
    """

    path: Path
    digest: str
    tensors: dict[str, Tensor]
    said: dict[str, float] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)


def read_file(path: Path, pickled_module: bool = False) -> AuthorsFile:
    """Raises ForeignModelError, naming the key, for what is no such file; OSError where it cannot be read."""
    if path.stat().st_size > MAX_BYTES:
        raise ForeignModelError(f"{path}: more than the limit of {MAX_BYTES} bytes")
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    data: Any = _load(path, pickled_module)
    said = {k: float(data[k]) for k in _SAID if isinstance(data.get(k), int | float)}
    for wrapper in _WRAPPERS:
        if isinstance(inner := data.get(wrapper), Mapping | _StandIn):
            data = inner
            break
    if isinstance(data, _StandIn):
        state: dict[str, Any] = {}
        attributes: dict[str, dict[str, Any]] = {}
        kinds: dict[str, str] = {}
        _walk(path, data, "", state, attributes, kinds)
        return AuthorsFile(path, digest, _checked(path, state), said, attributes, kinds)
    return AuthorsFile(path, digest, _checked(path, data), said)


def _load(path: Path, pickled_module: bool) -> Mapping[str, Any]:
    try:
        if pickled_module:
            with torch.serialization.safe_globals(_stand_ins(path)):
                data = torch.load(path, map_location="cpu", weights_only=True)
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise ForeignModelError(f"{path}: {_why_refused(path, pickled_module)}") from error
    except Exception as error:  # the unpickler raises whatever damage leads it to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ForeignModelError(f"{path}: damaged, or no file of torch.save: {reason}") from error
    if isinstance(data, _StandIn):
        data = {"net": data}
    if not isinstance(data, Mapping) or not data:
        raise ForeignModelError(f"{path}: no state_dict: names with tensors are needed")
    return data


def _why_refused(path: Path, pickled_module: bool) -> str:
    if not zipfile.is_zipfile(path):
        return (
            "a pickled network in the format of torch before 1.6, which is refused: loading it runs code from the file. "
            "Where you trust it, load it with the code that wrote it and save net.state_dict()"
        )
    if pickled_module:
        return "it names code that a network has no use for, and is refused"
    return (
        "a pickled network, not plain weights, which is refused: loading it as its authors do runs code from the file. "
        "--pickled-module takes its tensors and constants out without running any; or load it with the code that wrote it, "
        "where you trust it, and save net.state_dict()"
    )


class _StandIn:
    """In place of a class that a pickle names: keeps what it was pickled with, and does nothing."""

    state: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else MappingProxyType({})


def _stand_ins(path: Path) -> list[Any]:
    """A stand-in for each class or function that the file names and torch does not know to be harmless."""
    if not zipfile.is_zipfile(path):
        raise ForeignModelError(f"{path}: {_why_refused(path, True)}")
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if len(names) > _MAX_CLASSES:
        raise ForeignModelError(f"{path}: names {len(names)} classes: no network of the papers")
    return [(type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in names]


def _walk(
    path: Path,
    module: _StandIn,
    name: str,
    tensors: dict[str, Any],
    attributes: dict[str, dict[str, Any]],
    kinds: dict[str, str],
) -> None:
    """What `state_dict` of the network would give, and the plain values of each module."""
    if name in kinds or len(kinds) > 10_000 or name.count(".") > 30:
        raise ForeignModelError(f"{path}: {name!r}: modules that contain themselves")
    kinds[name] = type(module).__name__
    own = module.state
    attributes[name] = {
        key: value
        for key, value in own.items()
        if isinstance(value, bool | int | float | str | None) and not key.startswith("_")
    }
    prefix = f"{name}." if name else ""
    for kind in ("_parameters", "_buffers"):
        values = own.get(kind)
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if value is not None:
                tensors[f"{prefix}{key}"] = value
    children = own.get("_modules")
    for key, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, _StandIn):
            _walk(path, child, f"{prefix}{key}", tensors, attributes, kinds)


def _checked(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors, float64 as float32, with plain names."""
    size = 0
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ForeignModelError(f"{path}: {name!r}: is no tensor")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
            raise ForeignModelError(f"{path}: {name!r}: is no plain tensor of numbers")
        # A tensor can repeat one number of the file as often as it says.
        size += tensor.numel() * tensor.element_size()
        if size > MAX_BYTES:
            raise ForeignModelError(f"{path}: {name!r}: more than the limit of {MAX_BYTES} bytes")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ForeignModelError(f"{path}: {name!r}: has values that are not finite")
    if not state:
        raise ForeignModelError(f"{path}: no tensors in it")
    parallel = all(name.startswith("module.") for name in state)
    return {
        name.removeprefix("module.") if parallel else name: (
            tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        )
        for name, tensor in state.items()
    }
