"""Loading and unloading models in the words of the protocol."""

from __future__ import annotations

from collections.abc import Collection

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import Repository

# Models here do not depend on each other.
_IGNORED = ("unload_dependents",)


def load(repository: Repository, name: str, parameters: Collection[str]) -> None:
    """Returns when the model answers; blocks so long. Raises ServiceError as Repository.load, and for parameters."""
    _check(parameters)
    repository.load(name)


def unload(repository: Repository, name: str, parameters: Collection[str]) -> None:
    """A model that is not loaded is left as it is, as the protocol has it. Blocks until what is under way is done."""
    _check(parameters)
    try:
        repository.unload(name)
    except ServiceError as error:
        if error.kind is not ErrorKind.NOT_FOUND:
            raise


def _check(parameters: Collection[str]) -> None:
    if given := sorted(set(parameters) - set(_IGNORED)):
        raise ServiceError(
            ErrorKind.MALFORMED,
            f"parameter {given[0]!r:.60}: models are loaded from the server's own folders, and a checkpoint says all "
            "about itself: neither a configuration nor files can be sent",
        )
