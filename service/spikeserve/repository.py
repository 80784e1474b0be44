"""Models on disk: find, verify, warm up, hand out, close.

A folder has ANYTHING.safetensors, which is version 1 of the model that its manifest names, and NAME/VERSION.safetensors.
A file that cannot be served is listed with the reason, and the others are served.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from spikeserve.engine import Executor, Sample, Scheduler
from spikeserve.engine.choose import Chooser, Model
from spikeserve.engine.threads import use_threads
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics, ModelMetrics
from spikeserve.settings import Settings
from spiketrain.checkpoint import Checkpoint, load_checkpoint
from spiketrain.energy import encoder_macs, fan_out
from spiketrain.manifest import Manifest

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed"]
Kind = Literal["image", "events"]
KINDS: tuple[Kind, ...] = ("image", "events")

_SUFFIX = ".safetensors"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9._-]{1,32}")
WARM_UP_BATCH = 8


@dataclass(frozen=True)
class ModelInfo:
    """One file of the repository. `manifest` is None where it could not be read; `reason` says why it failed."""

    name: str
    version: str
    path: Path
    state: State
    reason: str | None
    manifest: Manifest | None
    default: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers. `neurons` is by layer how many spike, `macs` the operations of encoding one input."""

    name: str
    version: str
    path: Path
    manifest: Manifest
    engine: Scheduler
    metrics: ModelMetrics
    neurons: dict[str, int]
    macs: int

    @property
    def kind(self) -> Kind:
        return self.manifest.input.kind

    @property
    def bound_to_timesteps(self) -> bool:
        """Whether the network has parameters for each timestep, so that it cannot go beyond its own number."""
        neurons = (self.manifest.neuron, *self.manifest.layers.values())
        return any(neuron.kind == "glif" for neuron in neurons)


@dataclass(frozen=True)
class _File:
    path: Path
    name: str | None = None  # None: named by its manifest
    version: str = "1"


class Repository:
    """Making one is cheap. `load` takes as long as the models do, and blocks; so do `drain` and `close`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._lock = threading.Lock()
        self._infos: dict[Path, ModelInfo] = {}
        self._loaded: dict[tuple[str, str], LoadedModel] = {}
        self._loading = True
        self._stopping = False

    def load(self) -> None:
        """Load all models of the settings, one after the other. A file that is wrong is listed, never raised."""
        use_threads(self._settings.torch_threads)
        files = [file for path in self._settings.models for file in self._files(path)]
        for file in files:
            self._note(file, "loading")
        for file in files:
            self._load_one(file)
        with self._lock:
            self._loading = False
            self._metrics.failed.set(sum(info.state == "failed" for info in self._infos.values()))
            if not self._loaded:
                logger.error("no model is served: nothing could be loaded")

    def models(self) -> list[ModelInfo]:
        """All files that were found, by name and version, the newest version last."""
        with self._lock:
            defaults = {model.path for kind in KINDS for model in self._default(kind)}
            infos = [replace(info, default=info.path in defaults) for info in self._infos.values()]
        return sorted(infos, key=lambda info: (info.name, _version_key(info.version), info.path))

    def get(
        self, name: str | None = None, version: str | None = None, kind: Kind = "image"
    ) -> LoadedModel:
        """The model of that name, or the default one for this kind of input; the newest version unless given.

        Raises ServiceError: NOT_FOUND, with the names that there are; UNAVAILABLE where it is not ready.
        """
        with self._lock:
            if name is None:
                name = next((model.name for model in self._default(kind)), None)
            found = [model for model in self._loaded.values() if model.name == name]
            if version is not None:
                found = [model for model in found if model.version == version]
            if not found:
                raise self._not_found(name, version, kind)
            return found[-1]

    @property
    def ready(self) -> bool:
        """Whether all is loaded that can be, something is, it can answer, and the server is not stopping."""
        with self._lock:
            if self._loading or self._stopping or not self._loaded:
                return False
            return all(model.engine.healthy for model in self._loaded.values())

    def drain(self, seconds: float) -> bool:
        """Refuse new work and wait for what is under way; False where `seconds` was too short."""
        end = time.monotonic() + seconds
        with self._lock:
            self._stopping = True
            engines = [model.engine for model in self._loaded.values()]
        for engine in engines:
            engine.drain(0)  # from now on none takes anything new
        return all(engine.drain(max(0, end - time.monotonic())) for engine in engines)

    def close(self) -> None:
        """Stop all engines; what they have not answered fails as UNAVAILABLE. May be called again."""
        with self._lock:
            self._stopping = True
            engines = [model.engine for model in self._loaded.values()]
        for engine in engines:
            engine.stop()

    def _files(self, path: Path) -> Iterator[_File]:
        try:
            if path.is_file():
                yield _File(path)
                return
            for child in sorted(path.iterdir()):
                if child.is_dir():
                    versions = sorted(child.glob(f"*{_SUFFIX}"))
                    yield from (_File(file, child.name, file.stem) for file in versions)
                elif child.suffix == _SUFFIX and not child.name.startswith("."):
                    yield _File(child)
        except OSError as error:
            self._fail(_File(path), f"models: {error}")

    def _load_one(self, file: _File) -> None:
        try:
            checkpoint = load_checkpoint(file.path)
            name = file.name or checkpoint.manifest.name
            self._check_name(name, file.version)
            with self._lock:
                if (twin := self._loaded.get((name, file.version))) is not None:
                    raise ValueError(f"{name} version {file.version} is {twin.path} already")
            model = self._start(file, name, checkpoint)
        except (OSError, ValueError) as error:  # CheckpointError is a ValueError
            self._fail(file, str(error))
        except Exception as error:
            logger.exception("%s could not be loaded", file.path)
            self._fail(file, f"{type(error).__name__}: {error}")
        else:
            self._add(model)

    def _check_name(self, name: str, version: str) -> None:
        if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
            raise ValueError(
                f"{name}/{version} cannot name a model: small letters, digits and . _ - between them, "
                "and for the version letters, digits and . _ -"
            )

    def _start(self, file: _File, name: str, checkpoint: Checkpoint) -> LoadedModel:
        manifest, network = checkpoint.manifest, checkpoint.network()
        reach = fan_out(network)

        slots, precision = self._settings.slots, self._settings.precision
        chooser = Chooser(
            Model(name, network, slots, reach, manifest.digest, precision), self._settings.executor
        )

        def make_executor() -> Executor:
            executor = chooser()
            warm_up(executor, network.input_shape)
            return executor

        metrics = self._metrics.model(name, file.version)
        engine = Scheduler(
            make_executor,
            name=name,
            max_queue=self._settings.max_queue,
            observer=metrics,
            stall_seconds=self._settings.stall_seconds,
            patience_seconds=self._settings.priority_seconds,
        )
        engine.start()
        shapes = network.neuron_shapes()
        neurons = {layer: math.prod(shapes[layer]) for layer in engine.layers}
        return LoadedModel(
            name, file.version, file.path, manifest, engine, metrics, neurons, encoder_macs(network)
        )

    def _add(self, model: LoadedModel) -> None:
        with self._lock:
            self._loaded[model.name, model.version] = model
            self._loaded = dict(sorted(self._loaded.items(), key=_by_name_and_version))
            self._infos[model.path] = ModelInfo(
                model.name, model.version, model.path, "ready", None, model.manifest
            )
            late = self._stopping
        model.metrics.watch(model.engine)
        if late:  # the server was told to stop meanwhile
            model.engine.stop()
        logger.info("model %s version %s is ready, from %s", model.name, model.version, model.path)

    def _fail(self, file: _File, reason: str) -> None:
        logger.error("%s is not served: %s", file.path, reason)
        self._note(file, "failed", reason)

    def _note(self, file: _File, state: State, reason: str | None = None) -> None:
        info = ModelInfo(file.name or file.path.stem, file.version, file.path, state, reason, None)
        with self._lock:
            self._infos[file.path] = info

    # The following are called with the lock held.

    def _default(self, kind: Kind) -> list[LoadedModel]:
        """The default model for this kind of input, newest version, or nothing."""
        fitting = [model for model in self._loaded.values() if model.kind == kind]
        wanted = self._settings.default_model
        if wanted is not None and not any(
            model.name == wanted and model.kind != kind for model in self._loaded.values()
        ):
            fitting = [model for model in fitting if model.name == wanted]
        return [model for model in fitting if model.name == fitting[0].name][-1:]

    def _not_found(self, name: str | None, version: str | None, kind: Kind) -> ServiceError:
        known = sorted({model.name for model in self._loaded.values()})
        if self._loading:
            return ServiceError(ErrorKind.UNAVAILABLE, "the models are being loaded", 1.0)
        if not known:
            return ServiceError(ErrorKind.UNAVAILABLE, "no model could be loaded", 30.0)
        if name is None:
            what = f"the default model {self._settings.default_model!r} is not loaded"
            if self._settings.default_model is None:
                what = f"no model takes {'pictures' if kind == 'image' else 'events'}"
        elif name in known:
            versions = ", ".join(
                model.version for model in self._loaded.values() if model.name == name
            )
            return ServiceError(
                ErrorKind.NOT_FOUND, f"model {name!r} has no version {version!r}; it has {versions}"
            )
        else:
            what = f"there is no model {name!r}"
        return ServiceError(ErrorKind.NOT_FOUND, f"{what}; the models are {', '.join(known)}")


def warm_up(executor: Executor, input_shape: tuple[int, ...]) -> None:
    """Run a step with one slot and one with several, so that the first request does not pay for what torch prepares."""
    for count in {1, min(executor.slots, WARM_UP_BATCH)}:
        for slot in range(count):
            executor.admit(slot, Sample(torch.zeros(input_shape), 1))
        executor.step(range(count), None)


def _by_name_and_version(item: tuple[tuple[str, str], LoadedModel]) -> tuple[str, tuple[int, str]]:
    return item[0][0], _version_key(item[0][1])


def _version_key(version: str) -> tuple[int, str]:
    """Numbers in their order, before them whatever is no number."""
    return (int(version), "") if version.isdecimal() else (-1, version)
