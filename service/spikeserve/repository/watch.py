"""Follows the folders of models: what is put there is served, what is taken away is not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

logger = logging.getLogger(__name__)

# Between the first change and looking, so that a file that is being written is not read half.
_SETTLE_MS = 400
_STEP_MS = 200
_RETRY_SECONDS = 5.0


class Watch:
    """Calls `changed` in a thread of its own, from `start` to `stop`, once after each group of changes."""

    def __init__(self, paths: tuple[Path, ...], changed: Callable[[], None]) -> None:
        self._paths = paths
        self._changed = changed
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="watch models", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns once what was under way is done. May be called again."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._call()  # for what has changed while nobody looked
            try:
                self._follow()
            except OSError as error:
                logger.error("the folders of models cannot be watched: %s", error)
            # A folder that is not there, or was taken away.
            self._stop.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        there = [path if path.is_dir() else path.parent for path in self._paths if path.exists()]
        if not there:
            return
        for _ in watchfiles.watch(
            *there,
            watch_filter=None,
            debounce=_SETTLE_MS,
            step=_STEP_MS,
            stop_event=self._stop,
            raise_interrupt=False,
        ):
            self._call()
            if not all(path.exists() for path in there):
                return

    def _call(self) -> None:
        try:
            self._changed()
        except Exception:
            logger.exception("the models could not be brought up to date")
