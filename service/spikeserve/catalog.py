"""Which model a question about models is about."""

from __future__ import annotations

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import ModelInfo, Repository


def find_model(repository: Repository, name: str, version: str | None) -> ModelInfo:
    """The version asked for; else the newest that is ready, or the newest. Raises ServiceError NOT_FOUND."""
    models = repository.models()
    versions = [info for info in models if info.name == name]
    if not versions:
        known = ", ".join(sorted({info.name for info in models})) or "none"
        raise ServiceError(
            ErrorKind.NOT_FOUND, f"there is no model {name!r}; the models are: {known}"
        )
    if version is None:
        return ([info for info in versions if info.state == "ready"] or versions)[-1]
    for info in versions:
        if info.version == version:
            return info
    known = ", ".join(info.version for info in versions)
    raise ServiceError(
        ErrorKind.NOT_FOUND, f"model {name!r} has no version {version!r}; it has: {known}"
    )
