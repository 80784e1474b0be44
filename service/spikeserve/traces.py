"""What one picture does inside a network, timestep by timestep: for people who look, not for throughput.

The engine answers with sums only, so that it stays fast. A trace is a run of its own, of one picture at a time and in
plain torch, on the network of the same checkpoint. Its last digits may differ from the engine's, whose sums are in
another order.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeserve.classify import image_limits
from spikeserve.engine.readout import probabilities
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.images import ImageLimits, decode_image
from spikeserve.repository import LoadedModel, Repository
from spikeserve.repository.files import ONNX
from spikeserve.settings import Settings
from spiketrain.checkpoint import load_checkpoint
from spiketrain.energy import fan_out
from spiketrain.manifest import ImageInput, RateProfile
from spiketrain.networks import Network

MAX_NEURONS = 64
"""Of one layer in a raster."""

MAX_TIMESTEPS = 32
"""Of one trace, unless the model was trained with more."""

_MOST_WAITING = 8
_MOST_NETWORKS = 4


@dataclass(frozen=True)
class TraceRequest:
    image: bytes
    model: str | None = None
    version: str | None = None
    timesteps: int | None = None
    neurons: int = MAX_NEURONS


@dataclass(frozen=True)
class LayerTrace:
    """`rates` are by timestep. `fired` has by timestep the positions, in `raster`, of the neurons that spiked.

    `raster` are the flat indices of neurons evenly spread over the layer; `trained` is the layer's firing rate over
    held-out data, None where the checkpoint does not say it.
    """

    name: str
    neurons: int
    rates: tuple[float, ...]
    raster: tuple[int, ...]
    fired: tuple[tuple[int, ...], ...]
    trained: RateProfile | None


@dataclass(frozen=True)
class Trace:
    """`probabilities` [timesteps, classes] are those after each timestep, `synaptic_operations` those of each."""

    model: str
    version: str
    classes: tuple[str, ...]
    probabilities: NDArray[Any]
    layers: tuple[LayerTrace, ...]
    synaptic_operations: tuple[int, ...]


class Tracer:
    """To be used on one event loop. Traces are made one after the other, in one thread."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository = repository
        self._settings = settings
        self._worker = ThreadPoolExecutor(1, "trace")
        self._waiting = 0
        self._closed = False
        # Of the worker's thread; by digest, the one used last at the end.
        self._networks: OrderedDict[str, tuple[Network, dict[str, Tensor]]] = OrderedDict()

    async def trace(self, request: TraceRequest) -> Trace:
        """Raises ServiceError: as for a picture to be classified; UNAVAILABLE where too many wait."""
        model = self._repository.get(request.model, request.version)
        timesteps = self._checked(request, model)
        if self._closed or self._waiting >= _MOST_WAITING:
            why = "the server is shutting down" if self._closed else "too many traces wait"
            raise ServiceError(ErrorKind.UNAVAILABLE, why, 1.0)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._worker, self._run, request, model, timesteps, image_limits(self._settings)
            )
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Those that wait are not made any more. May be called again."""
        self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _checked(self, request: TraceRequest, model: LoadedModel) -> int:
        trained = model.manifest.timesteps
        if model.kind != "image":
            raise _impossible(f"model {model.name} takes events, not pictures")
        if model.path.suffix == ONNX:
            raise _impossible(
                f"model {model.name} is an ONNX file, which tells nothing of single neurons: serve its checkpoint"
            )
        if not 1 <= request.neurons <= MAX_NEURONS:
            raise _impossible(f"neurons is {request.neurons}: a trace has 1 to {MAX_NEURONS}")
        timesteps = trained if request.timesteps is None else request.timesteps
        most = min(MAX_TIMESTEPS, self._settings.max_timesteps)
        limit = trained if model.bound_to_timesteps else max(trained, most)
        if not 1 <= timesteps <= limit:
            raise _impossible(f"timesteps is {timesteps}: a trace of {model.name} has 1 to {limit}")
        return timesteps

    # In the worker's thread.

    def _run(
        self, request: TraceRequest, model: LoadedModel, timesteps: int, limits: ImageLimits
    ) -> Trace:
        spec = model.manifest.input
        if not isinstance(spec, ImageInput):
            raise TypeError(f"{model.name} has no image input")
        picture = decode_image(request.image, spec, limits)
        network, reach = self._network(model)
        logits, counts, recorder = _recorded(network, picture, timesteps, request.neurons)
        operations = [
            round(sum(float(flat @ reach[name].flatten().double()) for name, flat in step.items()))
            for step in counts
        ]
        manifest = model.manifest
        return Trace(
            model=model.name,
            version=model.version,
            classes=tuple(manifest.classes),
            probabilities=np.stack(
                [probabilities(manifest.readout, logits[:t]) for t in range(1, timesteps + 1)]
            ),
            layers=tuple(
                LayerTrace(
                    name=name,
                    neurons=neurons,
                    rates=tuple(float(step[name].sum()) / neurons for step in counts),
                    raster=tuple(shown.tolist()),
                    fired=tuple(
                        tuple(step[name][shown].nonzero().flatten().tolist()) for step in counts
                    ),
                    trained=manifest.firing_rates.get(name),
                )
                for name, (neurons, shown) in recorder.items()
            ),
            synaptic_operations=tuple(operations),
        )

    def _network(self, model: LoadedModel) -> tuple[Network, dict[str, Tensor]]:
        digest = model.manifest.digest
        if digest not in self._networks:
            try:
                checkpoint = load_checkpoint(model.path)
            except (OSError, ValueError) as error:
                raise _changed(model) from error
            if checkpoint.manifest.digest != digest:
                raise _changed(model)
            network = checkpoint.network().eval().requires_grad_(False)
            self._networks[digest] = (network, fan_out(network))
        self._networks.move_to_end(digest)
        while len(self._networks) > _MOST_NETWORKS:
            self._networks.popitem(last=False)
        return self._networks[digest]


@torch.inference_mode()
def _recorded(
    network: Network, picture: Tensor, timesteps: int, most: int
) -> tuple[NDArray[Any], list[dict[str, Tensor]], dict[str, tuple[int, Tensor]]]:
    """Logits [timesteps, classes]; by timestep and layer all spikes, flat float64; by layer neurons and those shown."""
    encoded, state = network.encode(picture.unsqueeze(0)), network.initial_state(1)
    logits, spikes = [], []
    for _ in range(timesteps):
        output = network.advance(encoded, state)
        state = output.state
        logits.append(output.logits[0].numpy())
        spikes.append({name: layer.flatten().double() for name, layer in output.spikes.items()})
    shown = {
        name: (len(flat), torch.linspace(0, len(flat) - 1, min(most, len(flat))).round().long())
        for name, flat in spikes[0].items()
    }
    return np.stack(logits), spikes, shown


def _impossible(message: str) -> ServiceError:
    return ServiceError(ErrorKind.IMPOSSIBLE, message)


def _changed(model: LoadedModel) -> ServiceError:
    return ServiceError(
        ErrorKind.UNAVAILABLE,
        f"the file of model {model.name} version {model.version} is not the one that was loaded any more: "
        "no traces of it can be made",
    )
