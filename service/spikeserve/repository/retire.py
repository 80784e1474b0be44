"""A model that was replaced or unloaded: freed when nobody works with it any more, or after a while."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

from spikeserve.repository.model import LoadedModel

logger = logging.getLogger(__name__)


class Retirement:
    """Stops the model's engine once the last reference to `model` is gone, at the latest after so many seconds.

    Requests under way and open streams hold such references, so none of them is lost, and nobody has to count them.
    `done` is called in a thread of this class once the engine has stopped.
    """

    def __init__(
        self, model: LoadedModel, seconds: float, done: Callable[[Retirement], None]
    ) -> None:
        self.engine = model.engine
        self.path = model.path
        self._title = f"{model.name} version {model.version}"
        self._seconds = seconds
        self._done = done
        # Not an Event: the collector may run this in any thread, at any point, and a queue's put can bear that.
        self._gone: SimpleQueue[None] = SimpleQueue()
        weakref.finalize(model, self._gone.put, None).atexit = False
        self._thread = threading.Thread(target=self._run, name=f"retire {self._title}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Returns when the model is freed, or after so many seconds."""
        self._thread.join(seconds)

    def end(self) -> None:
        """Do not wait for those who work with it any longer."""
        self._gone.put(None)

    def _run(self) -> None:
        try:
            self._gone.get(timeout=self._seconds)
        except Empty:
            logger.warning("%s is still in use after %g s: ending it", self._title, self._seconds)
        self.engine.stop(f"{self._title} was replaced or unloaded: open a new stream")
        self._done(self)
