"""Names for versions, and which of them a request gets that asks for none."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from spikeserve.requests import current_request_id

STABLE, CANARY = "stable", "canary"


@dataclass(frozen=True)
class Labels:
    """`versions` is by label. So large a `canary_share` of what asks for no version gets the canary. Raises ValueError."""

    versions: Mapping[str, str] = field(default_factory=dict)
    canary_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.canary_share <= 1:
            raise ValueError(f"canary_share is {self.canary_share:g}: it must be from 0 to 1")
        if self.canary_share > 0 and CANARY not in self.versions:
            raise ValueError("canary_share needs a version with the label canary")

    def of(self, version: str) -> tuple[str, ...]:
        return tuple(sorted(label for label, named in self.versions.items() if named == version))

    def choose(self, name: str, loaded: Collection[str]) -> str:
        """The version, of those loaded in their order, for a request that asks for none.

        The same request id has the same version. Where the canary is not loaded, or nothing but it is, all get what
        there is.
        """
        canary = self.versions.get(CANARY)
        stable = self.versions.get(STABLE)
        others = [version for version in loaded if version != canary]
        if canary in loaded and (not others or _part(name) < self.canary_share):
            return str(canary)
        return stable if stable in others and stable is not None else others[-1]


def _part(name: str) -> float:
    """From 0 to below 1, evenly, by the request under way; another one for each model."""
    request = current_request_id.get() or uuid.uuid4().hex
    digest = hashlib.blake2b(f"{name}\0{request}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
