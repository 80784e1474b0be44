"""`spiketrain export` and `spiketrain import`, as they are typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.cli import app
from spiketrain.convert.spikingjelly_export import to_spikingjelly
from spiketrain.manifest import CountWindow, EventInput, ImageInput
from spiketrain.neurons import CLIFConfig, LIFConfig

pytest.importorskip("nir")
pytest.importorskip("onnxruntime")

MakeModel = Callable[..., Checkpoint]
HARD = LIFConfig(reset="hard")


def spiketrain(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Callable[..., Path]:
    def save(*arguments: object) -> Path:
        model = make_model(*arguments)
        save_checkpoint(tmp_path / "model.safetensors", model.manifest, model.tensors)
        return tmp_path / "model.safetensors"

    return save


def test_to_nir_and_back_as_images(saved: Callable[..., Path], tmp_path: Path) -> None:
    parent = saved(HARD)
    said = spiketrain("export", parent, "--to", "nir", "--dt", "1e-3")
    assert "dt 0.001 s" in said
    assert "fire above their threshold" in said
    spiketrain(
        *("import", tmp_path / "model.nir", "--from", "nir", "-o", tmp_path / "back.safetensors"),
        *("--input", "image", "--classes", "a,b,c,d,e,f,g,h,i,j", "--timesteps", "7"),
        *("--mean", "0.25", "--std", "0.5", "--readout", "sum"),
    )
    back = load_checkpoint(tmp_path / "back.safetensors")
    assert back.manifest.name == "model"
    assert back.manifest.timesteps == 7
    assert back.manifest.readout == "sum"
    assert back.manifest.input == ImageInput(shape=(1, 8, 8), mean=(0.25,), std=(0.5,))
    assert back.manifest.neuron == HARD
    x = torch.randn(5, 2, 1, 8, 8)
    with torch.no_grad():
        expected = load_checkpoint(parent).network()(x).logits
        torch.testing.assert_close(back.network()(x).logits, expected, atol=1e-4, rtol=1e-4)


def test_from_nir_as_events(saved: Callable[..., Path], tmp_path: Path) -> None:
    parent = saved(HARD, "tiny-resnet", {})
    spiketrain("export", parent, "--to", "nir", "-o", tmp_path / "x.nir")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(10)) + "\n")
    arguments = ["import", tmp_path / "x.nir", "--from", "nir", "-o", tmp_path / "y.safetensors"]
    spiketrain(
        *(*arguments, "--input", "events", "--window", "count:100:5000", "--classes", f"@{names}"),
        *("--timesteps", 10, "--sensor", "34,34", "--clip", 3, "--name", "events"),
    )
    manifest = load_checkpoint(tmp_path / "y.safetensors").manifest
    assert manifest.name == "events"
    assert manifest.classes[9] == "class 9"
    assert manifest.input == EventInput(
        sensor=(34, 34),
        shape=(2, 8, 8),
        window=CountWindow(events=100, max_microseconds=5000),
        clip=3,
    )
    spiketrain(*arguments, "--like", parent)
    assert load_checkpoint(tmp_path / "y.safetensors").manifest.input.shape == (2, 8, 8)


def test_what_the_file_does_not_say_is_asked_for(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    spiketrain("export", saved(HARD), "--to", "nir", "-o", tmp_path / "x.nir")
    arguments = ["import", tmp_path / "x.nir", "--from", "nir", "-o", tmp_path / "y.safetensors"]
    assert "--input: image or events is needed" in refused(*arguments)
    arguments += ["--input", "image"]
    assert "--classes: the names" in refused(*arguments)
    arguments += ["--classes", "a,b,c"]
    assert "--timesteps: how many" in refused(*arguments)
    arguments += ["--timesteps", 3]
    assert "shape (10,) for 3 classes" in refused(*arguments)
    assert "--mean 'x': numbers" in refused(*arguments, "--mean", "x")
    assert "--shape '1,a': whole numbers" in refused(*arguments, "--shape", "1,a")
    events = [*arguments[:-6], "--input", "events", "--shape", "2,4,8"]
    assert "--window: what makes one timestep" in refused(*events)
    assert "--window 'every:5'" in refused(*events, "--window", "every:5")
    assert not (tmp_path / "y.safetensors").exists()


def test_to_onnx(saved: Callable[..., Path], tmp_path: Path) -> None:
    few = {"input_shape": [1, 6, 6], "channels": [3], "strides": [2], "pools": [1]}
    said = spiketrain("export", saved(CLIFConfig(), "small-conv", few), "--to", "onnx")
    assert "2 state tensors; over 10 timesteps" in said
    assert (tmp_path / "model.onnx").stat().st_size > 0


def test_to_spikingjelly_and_weights_back(saved: Callable[..., Path], tmp_path: Path) -> None:
    parent = saved(CLIFConfig())
    spiketrain("export", parent, "--to", "spikingjelly", "-o", tmp_path / "net.py")
    arguments = ["import", tmp_path / "net.pt", "--from", "spikingjelly"]
    arguments += ["-o", tmp_path / "back.safetensors"]
    assert "name a checkpoint with the same network with --like" in refused(*arguments)
    spiketrain(*arguments, "--like", parent)
    back, model = load_checkpoint(tmp_path / "back.safetensors"), load_checkpoint(parent)
    assert back.manifest.name == "net"
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in model.tensors.items())
    torch.save(to_spikingjelly(model), tmp_path / "net.pt")
    assert "save module.state_dict() instead" in refused(*arguments, "--like", parent)


def test_refusals_leave_nothing(saved: Callable[..., Path], tmp_path: Path) -> None:
    parent = saved(CLIFConfig())
    assert "NIR has no CLIF neuron" in refused("export", parent, "--to", "nir")
    assert "is a folder" in refused("export", parent, "--to", "nir", "-o", tmp_path)
    assert "the checkpoint itself" in refused("export", parent, "--to", "onnx", "-o", parent)
    assert "name it .py" in refused(
        "export", parent, "--to", "spikingjelly", "-o", tmp_path / "net.txt"
    )
    assert "none.safetensors" in refused("export", tmp_path / "none.safetensors", "--to", "nir")
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
