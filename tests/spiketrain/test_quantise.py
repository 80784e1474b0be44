"""Weights of eight bits: codes, bias correction, and the checkpoint that holds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    model_digest,
    save_checkpoint,
)
from spiketrain.cli import app
from spiketrain.manifest import ImageInput, Manifest, NetworkSpec, TrainingRecord
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig
from spiketrain.quantise import (
    QuantisationError,
    codes_by_channel,
    quantisation_record,
    quantised_layers,
    quantised_tensors,
)
from spiketrain.rates import each_step

ARGUMENTS = {"input_shape": [1, 28, 28], "channels": [4, 6], "hidden": 8, "classes": 10}
LAYERS = ("stages.1.conv", "hidden", "readout")


def network_of(name: str = "small-conv", arguments=ARGUMENTS):
    torch.manual_seed(0)
    network = build_network(name, arguments, CLIFConfig(), 3).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 0.1)
            module.running_var.uniform_(0.1, 0.5)
    return network


def parent_of(network, **changes) -> Checkpoint:
    manifest = Manifest(
        name="digits",
        network=NetworkSpec(name="small-conv", arguments=ARGUMENTS),
        neuron=CLIFConfig(),
        timesteps=3,
        input=ImageInput(shape=(1, 28, 28), mean=(0.2860,), std=(0.3530,)),
        classes=tuple("abcdefghij"),
        **changes,
    )
    tensors = network.state_dict()
    digest = model_digest(manifest, tensors)
    return Checkpoint(manifest.model_copy(update={"digest": digest}), tensors)


def child_of(parent: Checkpoint, tensors) -> Checkpoint:
    record = quantisation_record(parent.manifest, LAYERS)
    changes = {"name": "digits-int8", "quantisation": record}
    return Checkpoint(parent.manifest.model_copy(update=changes), tensors)


@pytest.mark.parametrize("largest", [127, 32639])
def test_codes_are_the_nearest_whole_numbers_of_their_channel(largest):
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-6, 1, 3, 1e4, 0]).view(-1, 1, 1, 1)
    codes, scale = codes_by_channel(weight, largest)
    assert codes.flatten(1).abs().amax(1).tolist() == [largest] * 4 + [0]
    rebuilt = codes.double() * scale.double().view(-1, 1, 1, 1)
    off = (rebuilt - weight.double()).abs().flatten(1).amax(1)
    assert bool((off <= scale.double() * 0.5001).all())
    assert bool((scale > 0).all())
    # Rounding what was rounded changes nothing.
    again, same = codes_by_channel(rebuilt.float(), largest)
    assert torch.equal(codes, again)
    torch.testing.assert_close(scale[:4], same[:4])


def test_all_layers_behind_the_encoder_are_quantised():
    assert quantised_layers(network_of()) == LAYERS
    names = quantised_layers(network_of("spiking-resnet18", {}))
    assert "conv1" not in names
    assert "layer1.0.conv1" in names
    assert "layer2.0.shortcut" in names
    assert "linear" in names


def test_a_quantised_checkpoint_is_loaded_as_what_its_codes_say(tmp_path: Path):
    network = network_of()
    parent = parent_of(network)
    child = child_of(parent, quantised_tensors(network))
    path = tmp_path / "digits-int8.safetensors"
    manifest = save_checkpoint(path, child.manifest, child.tensors)
    assert manifest.digest != parent.manifest.digest
    loaded = load_checkpoint(path)
    assert loaded.manifest.quantisation is not None
    assert loaded.manifest.quantisation.parent == parent.manifest.digest
    assert loaded.tensors["hidden.weight"].dtype == torch.int8
    weights = loaded.network().state_dict()
    for name in LAYERS:
        codes, scale = codes_by_channel(network.get_submodule(name).weight)
        expected = codes.float() * scale.view(-1, *(1,) * (codes.dim() - 1))
        assert torch.equal(weights[f"{name}.weight"], expected)
    assert torch.equal(weights["stages.0.conv.weight"], network.stages[0].conv.weight)


def test_checkpoints_that_are_not_quantised_keep_their_digest():
    parent = parent_of(network_of())
    assert parent.manifest.quantisation is None
    assert "quantisation" not in {"network", "neuron", "layers", "timesteps", "input", "classes"}
    assert model_digest(parent.manifest, parent.tensors) == parent.manifest.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("hidden.weight_scale"), "'hidden.weight_scale' has not one float32"),
        (lambda t: t.update({"hidden.weight_scale": torch.ones(3)}), "has not one float32"),
        (lambda t: t["hidden.weight_scale"].fill_(0), "a value that is no scale"),
        (lambda t: t["hidden.weight_scale"].fill_(float("nan")), "a value that is no scale"),
        (lambda t: t.update({"hidden.weight": torch.ones(8, 2)}), "has no codes of eight bits"),
        (lambda t: t.update({"x.weight_scale": torch.ones(3)}), "belongs to no layer"),
    ],
)
def test_codes_and_scales_that_make_no_weights_are_refused(change, message):
    network = network_of()
    tensors = quantised_tensors(network)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        child_of(parent_of(network), tensors).network()


def mean_currents(parent, child, inputs):
    """Of each quantised layer of `child`, with the batch norm behind it, given the spikes of `parent`."""
    norms = {"stages.1.conv": child.stages[1].bn, "hidden": child.hidden_bn}
    seen = {name: [] for name in LAYERS}

    def watch(name):
        @torch.no_grad()
        def hook(module, x, y):
            current = child.get_submodule(name)(x[0])
            current = norms[name](current) if name in norms else current
            seen[name].append(current.transpose(0, 1).flatten(1).double().mean(1))

        return hook

    parent.neuron_shapes()  # found by a run of its own
    hooks = [parent.get_submodule(name).register_forward_hook(watch(name)) for name in LAYERS]
    for x in inputs:
        list(each_step(parent, x))
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}


def test_bias_correction_gives_each_channel_its_mean_current_back():
    parent = network_of()
    inputs = [torch.rand(16, 1, 28, 28) for _ in range(3)]
    truth = mean_currents(parent, network_of(), inputs)
    off = {}
    for calibration in (None, inputs):
        child = child_of(parent_of(parent), quantised_tensors(parent, calibration)).network()
        found = mean_currents(parent, child, inputs)
        off[calibration is None] = {n: (found[n] - truth[n]).abs().max() for n in LAYERS}
    for name in LAYERS:
        assert off[False][name] < 1e-5
        assert off[True][name] > 1e-4


def test_there_is_nothing_to_correct_without_samples():
    with pytest.raises(QuantisationError, match="no calibration samples"):
        quantised_tensors(network_of(), [])


def fashion_parent(tmp_path: Path) -> Path:
    settings = {"data": {"name": "fashion-mnist", "validation_per_class": 10}}
    record = TrainingRecord(recipe="none", settings=settings, seed=0, epochs=0)
    parent = parent_of(network_of(), training=record)
    path = tmp_path / "digits.safetensors"
    save_checkpoint(path, parent.manifest, parent.tensors)
    return path


def test_the_command_judges_against_the_parent_and_says_what_was_lost(tmp_path, shared_data):
    path, report = fashion_parent(tmp_path), tmp_path / "report.json"
    arguments = ["quantise", str(path), "--data", str(shared_data), "--samples", "60"]
    arguments += ["--calibration", "40", "--json", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "points against the parent's" in result.output
    child = load_checkpoint(tmp_path / "digits-int8.safetensors")
    record = child.manifest.quantisation
    assert record is not None
    assert record.parent == load_checkpoint(path).manifest.digest
    assert record.calibrated_on == "fashion-mnist, train, 40 samples"
    assert record.judged_on == "fashion-mnist, test, 60 samples"
    assert record.agreement is not None
    assert record.agreement > 0.8
    assert record.spike_mismatch.keys() == child.network().neuron_shapes().keys()
    assert child.manifest.accuracy[0].samples == 60
    assert child.manifest.firing_rates.keys() == record.spike_mismatch.keys()
    assert '"agreement"' in report.read_text()
    again = CliRunner().invoke(app, ["quantise", str(tmp_path / "digits-int8.safetensors")])
    assert again.exit_code == 1


def test_the_command_does_not_overwrite_the_parent(tmp_path, shared_data):
    path = fashion_parent(tmp_path)
    result = CliRunner().invoke(app, ["quantise", str(path), "-o", str(path)])
    assert result.exit_code == 1
