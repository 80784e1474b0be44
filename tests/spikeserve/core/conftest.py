"""Models of every sort, for tests of what the server does without a protocol."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from spikeserve.classify import Classifier
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.settings import load_settings
from spikeserve.streams import Streams
from spiketrain.checkpoint import save_checkpoint
from spiketrain.manifest import DurationWindow, EventInput, ImageInput, Manifest, NetworkSpec
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig

CLASSES = tuple("abcdefghij")
PICTURES = ImageInput(shape=(1, 28, 28), mean=(0.5,), std=(0.5,))
MOVES = EventInput(sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=1000))


@pytest.fixture
def write(tmp_path):
    """Writes a checkpoint with random weights into the folder of models; returns its path."""

    def write(name, spec=PICTURES, *, file=None, neuron=None, timesteps=4, seed=0, **changes):
        neuron = neuron or CLIFConfig()
        classes = changes.pop("classes", CLASSES)
        arguments = {"channels": [4, 8], "input_shape": list(spec.shape), "classes": len(classes)}
        torch.manual_seed(seed)
        network = build_network("small-conv", arguments, neuron, timesteps, changes.get("layers"))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.02, 0.2)
        manifest = Manifest(
            name=name,
            network=NetworkSpec(name="small-conv", arguments=arguments),
            neuron=neuron,
            timesteps=timesteps,
            input=spec,
            classes=classes,
            **changes,
        )
        path = tmp_path / "models" / (file or f"{name}.safetensors")
        save_checkpoint(path, manifest, network.state_dict())
        return path

    return write


@pytest.fixture
def load(tmp_path):
    """Loads the repository; all that it started is stopped afterwards, and no thread stays."""
    before = set(threading.enumerate())
    opened = []

    def load(**changes):
        given = {"models": tmp_path / "models", "slots": 4, "torch_threads": 1}
        settings = load_settings(**given | changes)
        metrics = Metrics()
        repository = Repository(settings, metrics)
        repository.load_all()
        opened.append(repository)
        return repository, metrics, settings

    yield load
    for repository in opened:
        repository.close()
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("engine")]
    assert left == []


@pytest.fixture
def classifier_of(load):
    made = []

    def make(**changes):
        repository, metrics, settings = load(**changes)
        classifier = Classifier(repository, metrics, settings)
        classifier.repository, classifier.metrics = repository, metrics
        made.append(classifier)
        return classifier

    yield make
    for classifier in made:
        classifier.close()


@pytest.fixture
async def streams_of(load):
    made = []

    def make(**changes):
        repository, metrics, settings = load(**changes)
        streams = Streams(repository, metrics, settings)
        streams.repository, streams.metrics = repository, metrics
        made.append(streams)
        return streams

    yield make
    for streams in made:
        await streams.close()


@pytest.fixture
def picture():
    """A PNG of 28 x 28 grey pixels; by seed another one."""

    def make(seed=0):
        file = io.BytesIO()
        raw = np.random.default_rng(seed).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(raw).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def scraped():
    """The value of a metric in what Prometheus would read, None where it is not there."""

    def value(metrics, name, **labels):
        for family in metrics.registry.collect():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return None

    return value
