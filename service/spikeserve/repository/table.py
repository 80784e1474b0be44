"""What is there and what answers, and which of it a request gets. All under one lock, held for moments only."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from spikeserve.engine import Scheduler
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository.files import ModelFile
from spikeserve.repository.labels import Labels
from spikeserve.repository.model import KINDS, Kind, LoadedModel, ModelInfo, State, version_key


class Table:
    """`default` is the name of the model for requests that name none. `loading` is the first loading of all."""

    def __init__(self, default: str | None) -> None:
        self._default_name = default
        self._lock = threading.Lock()
        self._infos: dict[Path, ModelInfo] = {}
        self._loaded: dict[tuple[str, str], LoadedModel] = {}
        self._labels: dict[str, Labels] = {}
        self._retiring: set[Scheduler] = set()
        self.loading = True
        self.stopping = False

    # What is there.

    def infos(self) -> list[ModelInfo]:
        """All files, by name and version, the newest version last."""
        with self._lock:
            defaults = {model.path for kind in KINDS for model in self._default(kind)}
            infos = [
                replace(
                    info,
                    default=info.path in defaults,
                    labels=self._labels.get(info.name, Labels()).of(info.version),
                )
                for info in self._infos.values()
            ]
        return sorted(infos, key=lambda info: (info.name, version_key(info.version), info.path))

    def note(self, file: ModelFile, state: State, reason: str | None = None) -> None:
        """What has become of a file. One that answers goes on, with the reason why its new content does not."""
        with self._lock:
            known = self._infos.get(file.path)
            serving = self._loaded.get((file.name, file.version))
            manifest = None if known is None else known.manifest
            if serving is not None and serving.path == file.path:
                manifest, state = serving.manifest, "ready"
            elif state == "unloaded" and known is not None and known.state == "unloading":
                return
            self._infos[file.path] = ModelInfo(
                file.name, file.version, file.path, state, reason, manifest
            )

    def forget(self, path: Path) -> None:
        with self._lock:
            self._infos.pop(path, None)

    def faults(self) -> int:
        """Files that could not be served."""
        with self._lock:
            return sum(
                info.state == "failed" or (info.state == "ready" and info.reason is not None)
                for info in self._infos.values()
            )

    def loaded(self, name: str | None = None) -> list[LoadedModel]:
        with self._lock:
            return [model for model in self._loaded.values() if name in (None, model.name)]

    def holder(self, name: str, version: str) -> Path | None:
        """The file whose model answers under this name and version."""
        with self._lock:
            model = self._loaded.get((name, version))
            return None if model is None else model.path

    def engines(self) -> list[Scheduler]:
        """All that run, those of models being freed too."""
        with self._lock:
            return [model.engine for model in self._loaded.values()] + list(self._retiring)

    # Changes.

    def put(self, model: LoadedModel) -> LoadedModel | None:
        """It answers from now on. Returns the one whose place it took."""
        with self._lock:
            key = (model.name, model.version)
            before = self._loaded.get(key)
            self._loaded[key] = model
            self._loaded = dict(sorted(self._loaded.items(), key=_by_name_and_version))
            self._infos[model.path] = ModelInfo(
                model.name, model.version, model.path, "ready", None, model.manifest
            )
            if before is not None:
                self._retiring.add(before.engine)
            return before

    def take(self, name: str, version: str) -> LoadedModel | None:
        """It does not answer any more."""
        with self._lock:
            model = self._loaded.pop((name, version), None)
            if model is not None:
                self._retiring.add(model.engine)
                known = self._infos.get(model.path)
                if known is None or known.name == name:  # the file may be another model's now
                    info = ModelInfo(name, version, model.path, "unloading", None, model.manifest)
                    self._infos[model.path] = info
            return model

    def retired(self, engine: Scheduler, path: Path, there: bool) -> None:
        """The engine has stopped; `there` says whether its file still is."""
        with self._lock:
            self._retiring.discard(engine)
            info = self._infos.get(path)
            if info is not None and info.state == "unloading":
                self._infos[path] = replace(info, state="unloaded")
                if not there:
                    del self._infos[path]

    def label(self, name: str, labels: Labels) -> None:
        with self._lock:
            self._labels[name] = labels

    def labels(self, name: str) -> Labels:
        with self._lock:
            return self._labels.get(name, Labels())

    # Which one a request gets.

    def get(self, name: str | None, version: str | None, kind: Kind) -> LoadedModel:
        """Raises ServiceError: NOT_FOUND, with the names that there are; UNAVAILABLE where it is not ready."""
        with self._lock:
            if name is None:
                name = self._default_model(kind)
            # Names and no models: an error that is kept would keep what its frames know.
            found = [held for called, held in self._loaded if called == name]
            if not found or name is None:
                raise self._not_found(name, version, kind)
            labels = self._labels.get(name, Labels())
            if version is None:
                version = labels.choose(name, found)
            elif version not in found and version in labels.versions:
                label, version = version, labels.versions[version]
                if version not in found:
                    raise ServiceError(
                        ErrorKind.UNAVAILABLE,
                        f"{label} of model {name} is version {version}, which is not loaded",
                        30.0,
                    )
            if version not in found:
                raise self._not_found(name, version, kind)
            return self._loaded[name, version]

    def _default_model(self, kind: Kind) -> str | None:
        return next((model.name for model in self._default(kind)), None)

    def _default(self, kind: Kind) -> list[LoadedModel]:
        """The default model for this kind of input, newest version or stable one, or nothing."""
        fitting = [model for model in self._loaded.values() if model.kind == kind]
        wanted = self._default_name
        if wanted is not None and not any(
            model.name == wanted and model.kind != kind for model in self._loaded.values()
        ):
            fitting = [model for model in fitting if model.name == wanted]
        if not fitting:
            return []
        name = fitting[0].name
        found = {model.version: model for model in fitting if model.name == name}
        stable = replace(self._labels.get(name, Labels()), canary_share=0.0)
        return [found[stable.choose(name, found)]]

    def _not_found(self, name: str | None, version: str | None, kind: Kind) -> ServiceError:
        known = sorted({model.name for model in self._loaded.values()})
        if self.loading:
            return ServiceError(ErrorKind.UNAVAILABLE, "the models are being loaded", 1.0)
        if not known:
            return ServiceError(ErrorKind.UNAVAILABLE, "no model could be loaded", 30.0)
        if name is None:
            what = f"the default model {self._default_name!r} is not loaded"
            if self._default_name is None:
                what = f"no model takes {'pictures' if kind == 'image' else 'events'}"
        elif name in known:
            return ServiceError(
                ErrorKind.NOT_FOUND,
                f"model {name!r} has no version {version!r}; it has {self._versions(name)}",
            )
        else:
            what = f"there is no model {name!r}"
        return ServiceError(ErrorKind.NOT_FOUND, f"{what}; the models are {', '.join(known)}")

    def _versions(self, name: str) -> str:
        return ", ".join(model.version for model in self._loaded.values() if model.name == name)


def nothing_there(name: str, version: str | None, names: Iterable[str]) -> ServiceError:
    """For an operator who asks for a model of which there is no file."""
    what = f"model {name!r}" if version is None else f"version {version!r} of model {name!r}"
    known = ", ".join(sorted(set(names))) or "none"
    return ServiceError(
        ErrorKind.NOT_FOUND,
        f"there is no file of {what} in the folders of models; there are {known}",
    )


def _by_name_and_version(item: tuple[tuple[str, str], LoadedModel]) -> tuple[str, tuple[int, str]]:
    return item[0][0], version_key(item[0][1])
