"""What lies in the folders of models.

A folder has ANYTHING.safetensors, which is version 1 of the model that its manifest names, and NAME/VERSION.safetensors,
with NAME/settings.toml where the model has settings of its own. Instead of a checkpoint there may be an ONNX file that
was exported from one, with the ending .onnx.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spikeserve.repository.labels import Labels
from spikeserve.repository.model import version_key
from spikeserve.settings import Settings
from spiketrain.convert.onnx_file import manifest_text

SETTINGS_FILE = "settings.toml"
ONNX = ".onnx"
_SUFFIXES = (".safetensors", ONNX)
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9._-]{1,32}")
# Of a checkpoint's JSON; larger ones are refused when the checkpoint is loaded.
_MOST_HEADER_BYTES = 64 << 20


@dataclass(frozen=True)
class ModelFile:
    """`problem` says why there is nothing to be loaded: a folder that cannot be read."""

    path: Path
    name: str
    version: str = "1"
    problem: str | None = None


class ModelSettings(BaseModel):
    """NAME/settings.toml: what differs for one model. The settings of the server hold for all that is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: Literal["all"] | Annotated[int, Field(ge=1)] | tuple[str, ...] = "all"
    """Which versions are served: all, so many of the newest, or those listed."""

    labels: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")], str] = {}
    """Names for versions, which requests may ask for. Requests that ask for none get `stable`."""

    canary_share: float = Field(0.0, ge=0, le=1)
    """The share of requests and streams that ask for no version and get the label `canary`."""

    slots: int | None = Field(None, ge=1, le=65536)
    max_queue: int | None = Field(None, ge=1)
    executor: Literal["auto", "cuda", "cpu", "reference"] | None = None
    precision: Literal["auto", "float32", "bfloat16", "int16", "int8"] | None = None

    @model_validator(mode="after")
    def _canary_is_named(self) -> ModelSettings:
        self.label_set()
        return self

    def label_set(self) -> Labels:
        return Labels(self.labels, self.canary_share)

    def over(self, settings: Settings) -> Settings:
        """The server's settings, as they are for this model."""
        names = ("slots", "max_queue", "executor", "precision")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return settings.model_copy(update=given) if given else settings

    def wanted(self, files: Sequence[ModelFile]) -> list[ModelFile]:
        """Of the versions of this model, those that are to be served."""
        if self.versions == "all":
            return list(files)
        if isinstance(self.versions, int):
            return sorted(files, key=lambda file: version_key(file.version))[-self.versions :]
        return [file for file in files if file.version in self.versions]


def find_files(paths: Iterable[Path]) -> list[ModelFile]:
    """All checkpoints there, in a fixed order. What cannot be read is in the list, with its problem."""
    found: list[ModelFile] = []
    for path in paths:
        try:
            found += _in_path(path)
        except OSError as error:
            found.append(ModelFile(path, path.stem, problem=f"models: {error}"))
    return found


def _in_path(path: Path) -> Iterator[ModelFile]:
    if path.is_file():
        yield ModelFile(path, _name_inside(path))
        return
    for child in sorted(path.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            versions = sorted(file for file in child.iterdir() if file.suffix in _SUFFIXES)
            yield from (
                ModelFile(file, child.name, file.stem)
                for file in versions
                if not file.name.startswith(".")
            )
        elif child.suffix in _SUFFIXES:
            yield ModelFile(child, _name_inside(child))


def model_settings(paths: Iterable[Path], name: str) -> ModelSettings:
    """Those of the first folder that has some. Raises ValueError, which names file and field."""
    for folder in paths:
        path = folder / name / SETTINGS_FILE
        try:
            return ModelSettings.model_validate(tomllib.loads(path.read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValidationError as error:
            said = "; ".join(
                f"{'.'.join(str(part) for part in each['loc']) or 'settings'}: {each['msg']}"
                for each in error.errors()
            )
            raise ValueError(f"{path}: {said}") from None
        except (OSError, ValueError) as error:  # what is no TOML is a ValueError
            raise ValueError(f"{path}: {error}") from None
    return ModelSettings()


def check_name(name: str, version: str) -> None:
    """Raises ValueError."""
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise ValueError(
            f"{name}/{version} cannot name a model: small letters, digits and . _ - between them, "
            "and for the version letters, digits and . _ -"
        )


def stamp(path: Path) -> tuple[int, ...]:
    """Changes whenever the file does. Raises OSError."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _name_inside(path: Path) -> str:
    """The name in the model's manifest; the file's own where that cannot be read."""
    try:
        name = json.loads(_manifest_of(path))["name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return path.stem
    return name if isinstance(name, str) else path.stem


def _manifest_of(path: Path) -> str:
    if path.suffix == ONNX:
        return manifest_text(path) or ""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, _MOST_HEADER_BYTES)))
    return str(header["__metadata__"]["manifest"])
