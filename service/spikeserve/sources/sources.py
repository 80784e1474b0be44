"""All addresses of a server: fetched before its models are loaded, and again from time to time."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from spikeserve.settings import Settings
from spikeserve.sources.address import SourceError, parse_address
from spikeserve.sources.copy import Copy

logger = logging.getLogger(__name__)

Outcome = Literal["changed", "unchanged", "failed"]


def with_sources(settings: Settings) -> Settings:
    """Settings whose folders of models are the copies of its sources too, or only those where no folders were named.

    Raises SourceError for an address that cannot be used.
    """
    if not settings.sources:
        return settings
    copies = tuple(copy.folder for copy in _copies(settings))
    own = settings.models if "models" in settings.model_fields_set else ()
    return settings.model_copy(update={"models": (*own, *copies)})


class Sources:
    """`changed` is called, in a thread of its own, when a refresh has found something new; `observed` after each fetch."""

    def __init__(
        self,
        settings: Settings,
        changed: Callable[[], None],
        observed: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._copies = _copies(settings)
        self._offline = settings.offline
        self._seconds = settings.refresh_seconds
        self._changed = changed
        self._observed = observed
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def fetch(self) -> bool:
        """Brings all copies up to date; whether any has changed. What cannot be reached is logged, and its copy stays."""
        for copy in self._copies:
            copy.folder.mkdir(parents=True, exist_ok=True)
        if self._offline:
            return False
        changed = False
        for copy in self._copies:
            try:
                now = copy.bring_up_to_date()
            except SourceError as error:
                kept = "its copy is used" if copy.has_files else "there is no copy of it"
                logger.error("%s; %s", error, kept)
                self._observed("failed")
            except OSError as error:
                logger.error("%s cannot be copied: %s", copy.address, error)
                self._observed("failed")
            else:
                changed |= now
                self._observed("changed" if now else "unchanged")
        return changed

    def start(self) -> None:
        """Fetch again every `refresh_seconds`, if that is set."""
        if self._copies and self._seconds is not None and not self._offline:
            self._thread = threading.Thread(target=self._refresh, name="sources", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _refresh(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                if self.fetch() and not self._stopping.is_set():
                    self._changed()
            except Exception:
                logger.exception("models could not be refreshed")


def _copies(settings: Settings) -> list[Copy]:
    cache = settings.source_cache or _cache()
    addresses = [parse_address(text) for text in settings.sources]
    return [Copy(address, cache / address.folder_name) for address in addresses]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "spikeserve" / "models"
