"""What every system is given: one model in each of the forms that they need, pictures, and the right answers.

All forms are made from one checkpoint: SpikingJelly's by `spiketrain export --to spikingjelly`, ONNX by torch's exporter in
two forms, all timesteps of a layer at once ("folded": T times the batch in every convolution) and one timestep after
the other ("unrolled"). The stem, whose input does not change, is computed once in both. A folder has

    model.safetensors  model.json  spikingjelly_model.py/.pt  folded.onnx  unrolled.onnx  pictures-N.npz

where model.json is what a peer needs to know, and pictures-N.npz has the encoded pictures and the class that our network,
in plain torch, gives each of them.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pictures import Pictures, pictures_file, read_pictures, write_pictures
from PIL import Image
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint, load_checkpoint, model_digest, save_checkpoint
from spiketrain.convert.source import training_data
from spiketrain.convert.spikingjelly_export import export_spikingjelly
from spiketrain.data import DataSet, load_dataset
from spiketrain.data.base import DataMissingError
from spiketrain.kernels import plain_steps
from spiketrain.manifest import ImageInput, Manifest, NetworkSpec
from spiketrain.networks import Network, build_network
from spiketrain.neurons import AnyNeuronConfig, CLIFConfig, LIFConfig, NeuronLayer

# The data set of pictures for each input shape.
DATA_SETS = {(1, 28, 28): "fashion-mnist", (3, 32, 32): "cifar10"}
_FORMS = ("folded", "unrolled")
_BATCH = 50


class Workload(NamedTuple):
    folder: Path
    manifest: Manifest
    pictures: Pictures


def prepare(checkpoint: Path, cache: Path, data: Path | None, count: int) -> Workload:
    """The folder for this checkpoint, made unless it is there. Raises ValueError for a model that peers cannot run."""
    loaded = load_checkpoint(checkpoint)
    manifest = loaded.manifest
    if not isinstance(manifest.input, ImageInput) or manifest.readout not in ("mean", "sum"):
        raise ValueError(f"{checkpoint}: only pictures with a readout of mean or sum are compared")
    folder = cache / f"{manifest.name}-{manifest.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    # Always anew: what the manifest says beside the weights, such as when to leave early, may have changed.
    shutil.copyfile(checkpoint, folder / "model.safetensors")
    if not (folder / "model.json").exists():
        export_spikingjelly(loaded, folder / "spikingjelly_model.py")
        for form in _FORMS:
            _export_onnx(loaded, folder / f"{form}.onnx", form)
        (folder / "model.json").write_text(json.dumps(_about(manifest), indent=1))
    return Workload(folder, manifest, _pictures(folder, loaded, data, count))


def _about(manifest: Manifest) -> dict[str, Any]:
    spec = manifest.input
    if not isinstance(spec, ImageInput):
        raise TypeError(f"{manifest.name} takes no pictures")
    return {
        "name": manifest.name,
        "shape": spec.shape,
        "mean": spec.mean,
        "std": spec.std,
        "timesteps": manifest.timesteps,
        "classes": len(manifest.classes),
        "logits_times": manifest.timesteps if manifest.readout == "sum" else 1,
    }


def _pictures(folder: Path, checkpoint: Checkpoint, data: Path | None, count: int) -> Pictures:
    if pictures_file(folder, count).exists():
        cached = read_pictures(folder, count)
        if cached.real:
            return cached
    stored, real = test_pictures(checkpoint.manifest, data, count)
    labels = reference_labels(checkpoint, stored).numpy()
    return write_pictures(folder, [_png(picture) for picture in stored.numpy()], labels, real)


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0))
    image.save(file, "PNG")
    return file.getvalue()


def test_pictures(manifest: Manifest, data: Path | None, count: int) -> tuple[Tensor, bool]:
    """Of the test set of what the model was trained on, in its size; as `stored_pictures`."""
    shape = tuple(manifest.input.shape)
    if manifest.training is None:
        return stored_pictures(shape, data, count)
    try:
        return drawn(training_data(manifest, data), count), True
    except DataMissingError as error:
        return noise(shape, count, error), False


def stored_pictures(shape: tuple[int, ...], data: Path | None, count: int) -> tuple[Tensor, bool]:
    """uint8 [N, C, H, W] of the test set, in a random but fixed order; noise, and False, where there is none."""
    try:
        return drawn(load_dataset(DATA_SETS[shape], data), count), True
    except (DataMissingError, KeyError) as error:
        return noise(shape, count, error), False


def drawn(data: DataSet, count: int) -> Tensor:
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    pictures = data.test.x
    if not isinstance(pictures, Tensor):
        raise ValueError(f"{data.name}: the test set is not held in memory")
    return pictures[order[:count]]


def noise(shape: tuple[int, ...], count: int, why: Exception) -> Tensor:
    logging.getLogger(__name__).warning("pictures are noise: %s", why)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)


def normalised(stored: Tensor, spec: ImageInput) -> Tensor:
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (spec.mean, spec.std))
    return (stored.float() / 255 - mean) / std


@torch.inference_mode()
def reference_labels(checkpoint: Checkpoint, stored: Tensor) -> Tensor:
    network, spec = checkpoint.network(), checkpoint.manifest.input
    if not isinstance(spec, ImageInput):
        raise TypeError(f"{checkpoint.manifest.name} takes no pictures")
    parts = [
        network(normalised(part, spec)).logits.mean(0).argmax(1) for part in stored.split(_BATCH)
    ]
    return torch.cat(parts)


class _AllTimesteps(nn.Module):
    """A picture [N, C, H, W] to the mean of the logits [N, classes], as a function of tensors only."""

    def __init__(self, network: Network, form: str) -> None:
        super().__init__()
        self.network = network
        self.form = form
        # Of one sample: it is the same for all, and a constant in the file.
        self.initial = network.initial_state(1)

    def forward(self, x: Tensor) -> Tensor:
        network, steps = self.network, self.network.timesteps
        encoded = network.encode(x)
        if self.form == "folded":
            return network.body(encoded, _Folded(self)).view(steps, -1, network.classes).mean(0)
        total, state = torch.zeros(()), self.initial
        for _ in range(steps):
            output = network.advance(encoded, state)
            total, state = total + output.logits, output.state
        return total / steps


class _Folded:
    def __init__(self, outer: _AllTimesteps) -> None:
        self.network, self.initial = outer.network, outer.initial
        self.timesteps = outer.network.timesteps
        self.first = True

    def __call__(self, layer: NeuronLayer, current: Tensor) -> Tensor:
        if self.first:  # not yet folded: the same current at every timestep
            currents = [current] * self.timesteps
            self.first = False
        else:
            currents = list(current.unflatten(0, (self.timesteps, -1)).unbind())
        state = self.initial[self.network.name_of(layer)]
        spikes, _ = plain_steps(layer.neuron(), currents, state)
        return spikes.flatten(0, 1)


def _export_onnx(checkpoint: Checkpoint, path: Path, form: str) -> None:
    network = checkpoint.network().requires_grad_(False)
    example = (torch.zeros(2, *network.input_shape),)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _AllTimesteps(network, form),
            example,
            path,
            input_names=["x"],
            output_names=["logits"],
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


NEURONS: dict[str, AnyNeuronConfig] = {"clif": CLIFConfig(), "lif": LIFConfig()}


@torch.no_grad()
def untrained_resnet18(path: Path, neuron: str, data: Path | None) -> Path:
    """A spiking ResNet-18, T=4, for 32x32, with random weights: as fast as a trained one, and right about nothing.

    Batch norm is calibrated on pictures, so that firing rates are those of a trained network (0.1 to 0.2), and the last
    layer fitted to their labels, so that logits are apart and rounding decides few answers.
    """
    torch.manual_seed(0)
    shape, classes = (3, 32, 32), 10
    spec = ImageInput(shape=shape, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    network = build_network("spiking-resnet18", {}, NEURONS[neuron], 4, {})
    stored, _ = stored_pictures(shape, data, 512)
    x = normalised(stored, spec)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    for part in x[:256].split(32):
        network(part)
    network.eval()
    _fit_last_layer(network, x)
    manifest = Manifest(
        name=f"resnet18-{neuron}-untrained",
        network=NetworkSpec(name="spiking-resnet18"),
        neuron=NEURONS[neuron],
        timesteps=4,
        input=spec,
        classes=tuple(f"class {i}" for i in range(classes)),
    )
    tensors = network.state_dict()
    save_checkpoint(
        path, manifest.model_copy(update={"digest": model_digest(manifest, tensors)}), tensors
    )
    return path


def _fit_last_layer(network: Network, x: Tensor) -> None:
    features: list[Tensor] = []
    linear = network.get_submodule("linear")
    if not isinstance(linear, nn.Linear):
        raise TypeError("the network's last layer is not linear")
    handle = linear.register_forward_hook(lambda _m, given, _o: features.append(given[0]))
    for part in x.split(32):
        network(part)
    handle.remove()
    mean = torch.cat([each.view(network.timesteps, -1, each.shape[1]).mean(0) for each in features])
    centred = mean - mean.mean(0)
    # The first directions in which pictures differ most, one a class and its opposite.
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[: network.classes // 2]
    weight = torch.cat([directions, -directions])
    linear.weight.copy_(10 * weight / (centred @ weight.T).std())
    linear.bias.copy_(-linear.weight @ mean.mean(0))
