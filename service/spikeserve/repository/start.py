"""From a checkpoint to a model that answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from spikeserve.engine import Executor, Sample, Scheduler
from spikeserve.engine.choose import Chooser, Model
from spikeserve.engine.onnx_executor import OnnxExecutor, load_onnx
from spikeserve.metrics import Metrics
from spikeserve.probes import Watch
from spikeserve.repository.files import ONNX, ModelFile, check_name
from spikeserve.repository.model import LoadedModel
from spikeserve.settings import Settings
from spiketrain.checkpoint import bare_network, load_checkpoint
from spiketrain.energy import encoder_macs, fan_out
from spiketrain.manifest import Manifest
from spiketrain.networks import Network

WARM_UP_BATCH = 8


def start(file: ModelFile, settings: Settings, metrics: Metrics) -> LoadedModel:
    """Read, verify, and warm up. Raises OSError and ValueError for a file that cannot be served."""
    check_name(file.name, file.version)
    runnable = (_onnx if file.path.suffix == ONNX else _checkpoint)(file, settings)
    manifest, network = runnable.manifest, runnable.network

    def make_executor() -> Executor:
        executor = runnable.make()
        warm_up(executor, network.input_shape)
        return executor

    observer = metrics.model(file.name, file.version)
    engine = Scheduler(
        make_executor,
        name=file.name,
        max_queue=settings.max_queue,
        observer=observer,
        stall_seconds=settings.stall_seconds,
        patience_seconds=settings.priority_seconds,
    )
    engine.start()
    shapes = network.neuron_shapes()
    neurons = {layer: math.prod(shapes[layer]) for layer in engine.layers}
    return LoadedModel(
        name=file.name,
        version=file.version,
        path=file.path,
        manifest=manifest,
        engine=engine,
        metrics=observer,
        neurons=neurons,
        macs=encoder_macs(network),
        watch=Watch(manifest, network, engine.layers, neurons, runnable.probe_share),
    )


class _Runnable(NamedTuple):
    """A file that was read. `make` makes an executor of its model, again after a crash."""

    manifest: Manifest
    network: Network
    make: Callable[[], Executor]
    probe_share: float


def _checkpoint(file: ModelFile, settings: Settings) -> _Runnable:
    checkpoint = load_checkpoint(file.path)
    manifest, network = checkpoint.manifest, checkpoint.network()
    slots, precision = settings.slots, settings.precision
    model = Model(file.name, network, slots, fan_out(network), manifest.digest, precision)
    return _Runnable(manifest, network, Chooser(model, settings.executor), settings.probe_share)


def _onnx(file: ModelFile, settings: Settings) -> _Runnable:
    """ONNX Runtime runs it. Its network has no weights here: it only says where they are, and is never probed."""
    model = load_onnx(file.path, torch.get_num_threads())
    network = bare_network(model.manifest).to_empty(device="cpu").eval()
    neurons = network.neuron_layers()
    spiking = {name for name in network.neuron_shapes() if neurons[name].config.spiking}
    if different := spiking ^ set(model.layers):
        raise ValueError(
            f"{file.path}: output '{min(different)}/spikes': the manifest's network and the graph have other layers"
        )
    return _Runnable(model.manifest, network, lambda: OnnxExecutor(model, settings.slots), 0.0)


def warm_up(executor: Executor, input_shape: tuple[int, ...]) -> None:
    """Run a step with one slot and one with several, so that the first request does not pay for what torch prepares."""
    for count in {1, min(executor.slots, WARM_UP_BATCH)}:
        for slot in range(count):
            executor.admit(slot, Sample(torch.zeros(input_shape), 1))
        executor.step(range(count), None)
