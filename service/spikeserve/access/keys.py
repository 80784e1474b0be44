"""API keys as they are kept: hashes, never the keys themselves.

A key is 256 random bits, so that a plain SHA-256 of it cannot be turned back by trying; passwords would need another
hash, but nobody chooses a key.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

Scope = Literal["classify", "stream", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = ("classify", "stream", "metrics", "admin")

_PREFIX = "sps_"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class KeysError(ValueError):
    """A key file that cannot be used. The message names the file and what is wrong with it."""


class KeyLimits(BaseModel):
    """What is left out is limited by the server's settings only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    """On average; up to `burst` at once."""

    burst: int | None = Field(None, ge=1)
    """Unless given, what may come in one second, and one at least."""

    events_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Events of all streams of this key, on average over a second."""

    max_requests: int | None = Field(None, ge=1)
    """Requests at once."""

    max_streams: int | None = Field(None, ge=1)
    """Connections of event streams at once."""

    max_body_bytes: int | None = Field(None, ge=1)
    max_pixels: int | None = Field(None, ge=1)
    max_batch: int | None = Field(None, ge=1)
    queue_seconds: float | None = Field(None, gt=0, allow_inf_nan=False)


class KeyEntry(BaseModel):
    """One key. `name` is what logs say instead of the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = Field(min_length=1)
    expires: AwareDatetime | None = None
    limits: KeyLimits = KeyLimits()

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now


class KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def _names_differ(self) -> KeyFile:
        names = [key.name for key in self.keys]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} is there more than once")
        return self


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> KeyFile:
    """Raises KeysError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"keys: {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        return KeyFile.model_validate_json(text)
    except ValidationError as error:
        # Without the values: somebody may have put a key where its hash belongs.
        said = "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or 'file'}: {each['msg']}"
            for each in error.errors(include_input=False)
        )
        raise KeysError(f"keys: {path}: {said}") from None


def write_keys(path: Path, keys: KeyFile) -> None:
    """Whole or not at all, and for its owner's eyes only; a file that is there keeps its owner and mode."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(keys.model_dump_json(indent=2, exclude_none=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            before = path.stat()
            os.chmod(temporary, before.st_mode & 0o777)
            if os.geteuid() == 0:
                os.chown(temporary, before.st_uid, before.st_gid)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
