from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import save_checkpoint
from spiketrain.cli import app
from spiketrain.manifest import (
    Accuracy,
    ConversionRecord,
    CountWindow,
    EventInput,
    ImageInput,
    Manifest,
    NetworkSpec,
    RateProfile,
    TrainingRecord,
)
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig, LIFConfig


def write(path: Path, **changes: Any) -> Manifest:
    spec = NetworkSpec(
        name="small-conv", arguments={"input_shape": [1, 8, 8], "classes": 3, "channels": [4, 6]}
    )
    manifest = Manifest(
        name="garments",
        network=spec,
        neuron=LIFConfig(subtract=1.8, tau=1.75),
        layers={"stages.1.neuron": LIFConfig(subtract=1.834)},
        timesteps=5,
        input=ImageInput(shape=(1, 8, 8), mean=(0.286,), std=(0.353,), resize="crop"),
        classes=("Shirt", "Coat", "Ankle boot"),
        accuracy=(
            Accuracy(
                dataset="fashion-mnist",
                split="test",
                samples=9876,
                value=0.91234,
                selected_on="validation",
                by_timestep=(0.71, 0.85),
            ),
        ),
        training=TrainingRecord(
            recipe="fashion-lif",
            settings={"training": {"learning_rate": 0.0125}},
            seed=4711,
            epochs=12,
            commit="abc123",
            versions={"torch": "2.13.0"},
            data={"train.gz": "d1gest"},
        ),
        firing_rates={"stages.0.neuron": RateProfile(mean=0.5, p1=0.0123, p50=0.0456, p99=0.789)},
        conversion=ConversionRecord(
            parent="f00d" * 16,
            parent_name="garments-clif",
            method="clif to lif, soft reset",
            arguments={"value": 1.8},
            agreement=0.987,
            spike_mismatch={"stages.0.neuron": 0.0321},
            judged_on="fashion-mnist, test, 9876 samples",
        ),
    ).model_copy(update=changes)
    network = build_network(
        spec.name, spec.arguments, manifest.neuron, manifest.timesteps, manifest.layers
    )
    return save_checkpoint(path, manifest, network.state_dict())


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "150"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_every_value_of_the_manifest_is_shown(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    manifest = write(path)
    output = run(path)
    percent = {0.91234: "91.23 %", 0.71: "71.00 %", 0.85: "85.00 %"}
    rates = {0.5: "50.00", 0.0123: "1.23", 0.0456: "4.56", 0.789: "78.90"}
    for leaf in leaves(manifest.model_dump(mode="json")):
        assert (percent | rates).get(leaf, str(leaf)) in output
    for layer in ("stages.0.neuron", "stages.1.neuron"):
        assert layer in output
    assert "█" * 20 in output
    assert "█" * 21 not in output
    assert "not recorded" in output  # the second layer's rates


def test_tensors_are_listed_with_their_sizes(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write(path)
    output = run(path)
    (line,) = (line for line in output.splitlines() if "stages.1.conv.weight" in line)
    assert line.split() == ["stages.1.conv.weight", "6x4x3x3", "float32", "216", "864"]
    assert "stages.0.bn.num_batches_tracked" in output


def test_json_has_all_of_it(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    manifest = write(path)
    content = json.loads(run(path, "--json"))
    assert Manifest.model_validate(content["manifest"]) == manifest
    assert content["bytes"] == path.stat().st_size
    assert content["neurons"] == {"stages.0.neuron": [4, 4, 4], "stages.1.neuron": [6, 2, 2]}
    # conv 4*9, bn 8, conv 6*4*9, bn 12, linear 24*3 + 3
    assert content["parameters"] == 36 + 8 + 216 + 12 + 75
    tensors = {entry["name"]: entry for entry in content["tensors"]}
    assert tensors["readout.weight"] == {
        "name": "readout.weight",
        "shape": [3, 24],
        "dtype": "float32",
        "elements": 72,
        "bytes": 288,
    }


def test_an_event_model_shows_its_windows(tmp_path: Path):
    path = tmp_path / "events.safetensors"
    spec = NetworkSpec(
        name="small-conv", arguments={"input_shape": [2, 17, 17], "classes": 3, "channels": [4]}
    )
    window = CountWindow(events=1234, max_microseconds=56789)
    manifest = Manifest(
        name="digits",
        network=spec,
        neuron=CLIFConfig(),
        timesteps=5,
        input=EventInput(
            sensor=(34, 34), shape=(2, 17, 17), window=window, clip=7, orientation="flip-x"
        ),
        classes=("0", "1", "2"),
    )
    network = build_network(spec.name, spec.arguments, manifest.neuron, manifest.timesteps)
    save_checkpoint(path, manifest, network.state_dict())
    output = run(path)
    for words in (
        "window.events",
        "1234",
        "window.max_microseconds",
        "56789",
        "flip-x",
        "clip",
        "34, 34",
    ):
        assert words in output


def test_text_from_a_file_cannot_steer_the_terminal(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    write(path, classes=("\x1b[2Jgone", "[bold]loud[/bold]", "a\nb"))
    output = run(path)
    assert "\x1b" not in output
    assert "\\x1b[2Jgone, [bold]loud[/bold], a\\nb" in output


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_wrong_files_end_in_one_line_and_exit_code_1(tmp_path: Path, as_json: tuple[str, ...]):
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    assert "error: " in (output := run(text, *as_json, code=1))
    assert "not a .safetensors file" in output
    assert "No such file" in run(tmp_path / "missing.safetensors", *as_json, code=1)
    assert "error: " in run(tmp_path, *as_json, code=1)
    path = tmp_path / "model.safetensors"
    write(path)
    path.write_bytes(path.read_bytes()[:-3])
    assert "seal" in run(path, *as_json, code=1)


def test_weights_that_do_not_fit_are_an_error_too(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    manifest = write(path)
    save_checkpoint(path, manifest, {"stages.0.conv.weight": torch.zeros(1)})
    assert "is missing" in run(path, code=1)
