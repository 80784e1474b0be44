"""All models of a server: loaded at the start, handed out to requests, loaded and unloaded while it serves.

A model is replaced in this order: read, verified, warmed up, swapped; then the old one is freed, once nobody works with
it any more. A file that cannot be served changes nothing but the list of models, which says why.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from spikeserve.engine.threads import use_threads
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.repository.files import (
    ModelFile,
    ModelSettings,
    find_files,
    model_settings,
    stamp,
)
from spikeserve.repository.labels import Labels
from spikeserve.repository.model import Kind, LoadedModel, ModelInfo
from spikeserve.repository.retire import Retirement
from spikeserve.repository.start import start
from spikeserve.repository.table import Table, nothing_there
from spikeserve.repository.watch import Watch
from spikeserve.settings import Settings

logger = logging.getLogger(__name__)

_Stamp = tuple[object, ...]
"""Of a file, and of the settings that it was loaded with."""


class Repository:
    """Making one is cheap. `load_all`, `load`, `unload`, `drain` and `close` block, for as long as the models take; they
    may be called in any thread, several at once. What concerns one model is done one after the other."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._table = Table(settings.default_model)
        self._turns: dict[str, threading.Lock] = {}
        self._turns_lock = threading.Lock()
        # Guarded by each model's turn: by path, what was last tried and why it failed; by name, its settings file,
        # and whether that cannot be read.
        self._tried: dict[Path, _Stamp] = {}
        self._faults: dict[Path, str] = {}
        self._own: dict[str, ModelSettings] = {}
        self._unread: set[str] = set()
        self._retiring: set[Retirement] = set()
        self._progress = (0, 0)
        self._watch: Watch | None = None

    def load_all(self) -> None:
        """Load all models of the settings, one after the other. A file that is wrong is listed, never raised."""
        use_threads(self._settings.torch_threads)
        files = find_files(self._settings.models)
        self._progress = (0, len(files))
        for file in files:
            self._table.note(file, "loading")
        for name in dict.fromkeys(file.name for file in files):
            if self._table.stopping:
                return
            group = [file for file in files if file.name == name]
            self._bring_up(name, group)
            done = self._progress[0] + len(group)
            self._progress = (done, len(files))
            logger.info("%d of %d models looked at", done, len(files))
        self._table.loading = False
        _settle()
        if not self._table.loaded():
            logger.error("no model is served: nothing could be loaded")
        if self._settings.watch and not self._table.stopping:
            self._watch = Watch(self._settings.models, self.refresh)
            self._watch.start()

    @property
    def progress(self) -> tuple[int, int]:
        """Files looked at, of how many, in the first loading of all."""
        return self._progress

    def load(self, name: str, version: str | None = None) -> list[ModelInfo]:
        """Serve what the folders have of this model now: one version, or all that its settings want.

        A version that is served already and whose file has not changed stays as it is; one whose file is gone is
        unloaded, unless `version` names another one. Returns when what was loaded answers. Raises ServiceError:
        NOT_FOUND where there is no such file; IMPOSSIBLE, with the reason, where one cannot be served: what answered
        before goes on; UNAVAILABLE when the server is stopping.
        """
        every = find_files(self._settings.models)
        files = [file for file in every if file.name == name and version in (None, file.version)]
        if not files:
            raise nothing_there(name, version, (file.name for file in every))
        if self._table.stopping:
            raise ServiceError(ErrorKind.UNAVAILABLE, "the server is shutting down", 1.0)
        self._bring_up(name, files, again=True, others=version is None)
        paths = {file.path for file in files}
        infos = [info for info in self.models() if info.path in paths]
        if wrong := [info.reason for info in infos if info.reason is not None]:
            raise ServiceError(ErrorKind.IMPOSSIBLE, f"model {name}: {'; '.join(wrong)}")
        return infos

    def unload(self, name: str, version: str | None = None) -> list[ModelInfo]:
        """Stop serving a model, or one version of it: new requests do not find it from now on.

        Returns when it is freed, after `drain_seconds` at the latest: work under way goes on, and its state is
        "unloading" so long. Raises ServiceError NOT_FOUND where it is not loaded.
        """
        with self._turn(name):
            found = [
                model.version
                for model in self._table.loaded(name)
                if version in (None, model.version)
            ]
            if not found:
                known = (model.name for model in self._table.loaded())
                what = f"model {name!r}" if version is None else f"model {name!r} {version!r}"
                raise ServiceError(
                    ErrorKind.NOT_FOUND,
                    f"{what} is not loaded; loaded are {', '.join(sorted(set(known))) or 'none'}",
                )
            freed = [self._take(name, each) for each in found]
        end = time.monotonic() + self._settings.drain_seconds
        for each in freed:
            if each is not None:
                each.wait(max(0.0, end - time.monotonic()))
        return [info for info in self.models() if info.name == name and info.version in found]

    def refresh(self) -> None:
        """Serve what the folders have now; a file that has not changed since it was last tried is left alone."""
        files = find_files(self._settings.models)
        names = [file.name for file in files] + [model.name for model in self._table.loaded()]
        for name in dict.fromkeys(names):
            if not self._table.stopping:
                self._bring_up(name, [file for file in files if file.name == name])
        paths = {file.path for file in files}
        for info in self.models():
            if info.path not in paths and info.state in ("failed", "unloaded"):
                self._table.forget(info.path)
        self._count_faults()

    def models(self) -> list[ModelInfo]:
        """All files that were found, by name and version, the newest version last."""
        return self._table.infos()

    def get(
        self, name: str | None = None, version: str | None = None, kind: Kind = "image"
    ) -> LoadedModel:
        """The model of that name, or the default one for this kind of input. Hold on to it as long as you use it.

        `version` is a version or a label. Without it: the one with the label `stable`, or `canary` for its share of the
        requests; the newest where there are no labels. Raises ServiceError: NOT_FOUND, with the names that there are;
        UNAVAILABLE where it is not ready.
        """
        return self._table.get(name, version, kind)

    def labels(self, name: str) -> Labels:
        return self._table.labels(name)

    def set_labels(self, name: str, labels: Labels) -> None:
        """Until the model's settings file changes, or the server ends. Raises ServiceError: NOT_FOUND; IMPOSSIBLE."""
        with self._turn(name):
            loaded = {model.version for model in self._table.loaded(name)}
            if not loaded:
                self._table.get(name, None, "image")  # which says what there is
            for label, version in labels.versions.items():
                if version not in loaded:
                    raise ServiceError(
                        ErrorKind.IMPOSSIBLE,
                        f"label {label}: version {version!r} of model {name} is not loaded; "
                        f"loaded are {', '.join(sorted(loaded))}",
                    )
            self._table.label(name, labels)

    @property
    def ready(self) -> bool:
        """Whether all is loaded that can be, something is, it can answer, and the server is not stopping."""
        loaded = self._table.loaded()
        if self._table.loading or self._table.stopping or not loaded:
            return False
        return all(model.engine.healthy for model in loaded)

    def drain(self, seconds: float) -> bool:
        """Refuse new work and wait for what is under way; False where `seconds` was too short."""
        end = time.monotonic() + seconds
        self._table.stopping = True
        engines = self._table.engines()
        for engine in engines:
            engine.drain(0)  # from now on none takes anything new
        return all(engine.drain(max(0, end - time.monotonic())) for engine in engines)

    def close(self) -> None:
        """Stop all engines; what they have not answered fails as UNAVAILABLE. May be called again."""
        self._table.stopping = True
        if self._watch is not None:
            self._watch.stop()
        for engine in self._table.engines():
            engine.stop()
        for each in list(self._retiring):
            each.end()
            each.wait(1.0)

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        with self._turns_lock:
            turn = self._turns.setdefault(name, threading.Lock())
        with turn:
            yield

    def _bring_up(
        self, name: str, files: Sequence[ModelFile], again: bool = False, others: bool = True
    ) -> None:
        """Serve these files of one model, as far as its settings want them, and with `others` no other ones.

        With `again` a file that could not be served is tried again, even if it has not changed.
        """
        with self._turn(name):
            own = self._read_settings(name, files, again)
            if own is None:
                return
            wanted = own.wanted(files) if others else files
            for file in files:
                if file not in wanted:
                    self._table.note(file, "unloaded")
            if others:
                paths = {file.path for file in wanted}
                for model in self._table.loaded(name):
                    if model.path not in paths:
                        self._tried.pop(model.path, None)
                        self._take(name, model.version)
            for file in wanted:
                self._try(file, own, again)

    def _read_settings(
        self, name: str, files: Sequence[ModelFile], again: bool
    ) -> ModelSettings | None:
        """None where they cannot be used: what answers goes on, with the settings that it has."""
        try:
            own = model_settings(self._settings.models, name)
        except ValueError as error:
            for file in files:
                self._fail(file, str(error), again)
                self._tried.pop(
                    file.path, None
                )  # once they can be used, each file is looked at anew
            self._unread.add(name)
            return None
        if name in self._unread:
            self._unread.discard(name)
            for file in files:
                self._faults.pop(file.path, None)
        if own != self._own.get(name, ModelSettings()):
            self._table.label(name, own.label_set())
        self._own[name] = own
        return own

    def _try(self, file: ModelFile, own: ModelSettings, again: bool) -> None:
        holder = self._table.holder(file.name, file.version)
        try:
            if file.problem is not None:
                raise ValueError(file.problem)
            now = (*stamp(file.path), own.slots, own.max_queue, own.executor, own.precision)
            if self._tried.get(file.path) == now and (holder == file.path or not again):
                if holder == file.path:
                    self._table.note(file, "ready", self._faults.get(file.path))
                return
            if holder not in (None, file.path) and holder.exists():
                raise ValueError(f"{file.name} version {file.version} is {holder} already")
            self._tried[file.path] = now
            if holder is None:
                self._table.note(file, "loading")
            model = start(file, own.over(self._settings), self._metrics)
        except (OSError, ValueError) as error:  # CheckpointError is a ValueError
            self._fail(file, str(error), again)
        except Exception as error:
            logger.exception("%s could not be loaded", file.path)
            self._fail(file, f"{type(error).__name__}: {error}", again)
        else:
            self._swap(model)

    def _swap(self, model: LoadedModel) -> None:
        model.metrics.watch(model.engine, model.watch.monitor)
        self._metrics.load_tried(model.name, "loaded")
        self._faults.pop(model.path, None)
        before = self._table.put(model)
        if self._table.stopping:  # the server was told to stop meanwhile
            model.engine.stop()
        if before is not None:
            self._retire(before)
        self._count_faults()
        logger.info("model %s version %s is ready, from %s", model.name, model.version, model.path)

    def _take(self, name: str, version: str) -> Retirement | None:
        model = self._table.take(name, version)
        if model is None:
            return None
        model.metrics.forget()
        logger.info("model %s version %s is not served any more", name, version)
        return self._retire(model)

    def _retire(self, model: LoadedModel) -> Retirement:
        retirement = Retirement(model, self._settings.retire_seconds, self._retired)
        self._retiring.add(retirement)
        retirement.start()
        return retirement

    def _retired(self, retirement: Retirement) -> None:
        self._retiring.discard(retirement)
        self._table.retired(retirement.engine, retirement.path, retirement.path.exists())
        _settle()

    def _fail(self, file: ModelFile, reason: str, again: bool) -> None:
        self._table.note(file, "failed", reason)
        if self._faults.get(file.path) == reason and not again:
            return  # that is known
        logger.error("%s is not served: %s", file.path, reason)
        self._faults[file.path] = reason
        self._metrics.load_tried(file.name, "failed")
        self._count_faults()

    def _count_faults(self) -> None:
        self._metrics.failed.set(self._table.faults())


def _settle() -> None:
    """Spare the garbage collector all that is there to stay: looking through it takes a tenth of a second each time."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
