"""Where a model is, and what it has to be."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

SCHEMES = ("file", "s3", "gs", "https", "http")
SUFFIXES = (".safetensors", ".onnx")
SETTINGS_FILE = "settings.toml"
SUMS_FILE = "SHA256SUMS"

_DIGEST = re.compile(r"sha256=([0-9a-f]{64})")


class SourceError(ValueError):
    """An address that cannot be used, or something that could not be had from one. The message says which, and why."""


@dataclass(frozen=True)
class Address:
    """`url` has neither digest nor password. `digest` is the SHA-256 that the one file has to have."""

    url: str
    digest: str | None = None

    @property
    def is_file(self) -> bool:
        return self.url.endswith(SUFFIXES)

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def folder_name(self) -> str:
        """Of its copy in the cache: readable, and another one for each address."""
        readable = re.sub(r"[^a-z0-9]+", "-", self.url.lower()).strip("-")[-40:].strip("-")
        return f"{readable}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    def __str__(self) -> str:
        return self.url


def parse_address(text: str) -> Address:
    """`SCHEME://WHERE`, a folder as the server's folders of models are, or one file, with `#sha256=...` if it is known.

    Raises SourceError.
    """
    bare, _, fragment = text.partition("#")
    parts = urlsplit(bare)
    if parts.scheme not in SCHEMES:
        raise SourceError(f"{_shown(text)}: expected an address with {', '.join(SCHEMES)}")
    if parts.username or parts.password:
        raise SourceError(
            f"{_shown(text)}: no password in an address, which is logged: credentials come from the environment"
        )
    if not parts.path.strip("/") and not parts.netloc:
        raise SourceError(f"{_shown(text)}: the address has no path")
    digest = None
    if fragment:
        if (match := _DIGEST.fullmatch(fragment)) is None:
            raise SourceError(f"{bare}: after # expected sha256= and 64 digits of 0-9 a-f")
        digest = match[1]
    address = Address(bare.rstrip("/"), digest)
    if digest is not None and not address.is_file:
        raise SourceError(f"{bare}: a digest is of one file; a folder has them in {SUMS_FILE}")
    if parts.scheme in ("http", "https") and not address.is_file:
        raise SourceError(
            f"{bare}: a web server does not list folders: name a file ({', '.join(SUFFIXES)})"
        )
    return address


def _shown(text: str) -> str:
    """Without what may be a password."""
    return re.sub(r"//[^/@]*@", "//...@", text.partition("#")[0])
