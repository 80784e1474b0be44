"""`spiketrain import` for files of authors, and for SpikingJelly weights in a network of the user's own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from spiketrain.checkpoint import load_checkpoint
from spiketrain.cli import app
from spiketrain.convert.source import training_data
from spiketrain.manifest import ImageInput

OWN = """
from torch import nn
from spikingjelly.activation_based import layer, neuron

def make():
    return nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), neuron.LIFNode(tau=2.0),
        layer.Flatten(), layer.Linear(4 * 8 * 8, 3),
    )

def number():
    return 3
"""


def spiketrain(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def f400() -> dict[str, torch.Tensor]:
    x, s = nn.Linear(784, 400), nn.Linear(400, 400, bias=False)
    norm, classifier = nn.BatchNorm1d(400), nn.Linear(400, 10)
    state = {f"network_x.fc.{k}": v for k, v in x.state_dict().items()}
    state |= {f"network_x.bn.{k}": v for k, v in norm.state_dict().items()}
    state |= {"network_s.fc.weight_g": torch.tensor(0.5), "network_s.fc.weight_w": s.weight.data}
    state |= {"network_s.fc.weight_u": torch.ones(400), "network_s.fc.weight_v": torch.ones(400)}
    state |= {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    return {f"module.{k}": v for k, v in state.items()}


def test_an_authors_file(tmp_path: Path) -> None:
    source, out = tmp_path / "model_best.pth.tar", tmp_path / "f400.safetensors"
    torch.save({"state_dict": f400(), "epoch": 99}, source)
    command = ("import", source, "--from", "ide", "-o", out)
    assert "--data-set: the data set" in spiketrain(*command, code=1)
    command = (*command, "--data-set", "fashion-mnist")
    assert "--keep: what neurons keep" in spiketrain(*command, code=1)
    command = (*command, "--keep", 0.95)
    assert "--timesteps: how many" in spiketrain(*command, code=1)
    assert not out.exists()
    said = spiketrain(*command, "--timesteps", 5, "--name", "f400-lif")
    assert "f400-lif, feedback-f400, 2 layers of neurons (feedback-lif), 5 timesteps" in said
    manifest = load_checkpoint(out).manifest
    assert manifest.input == ImageInput(shape=(1, 28, 28), mean=(0.1307,), std=(0.3081,))
    assert manifest.classes[9] == "Ankle boot"
    assert manifest.conversion.method == "ide import"  # type: ignore[union-attr]
    own = (*command, "--timesteps", 5, "--input", "image", "--shape", "1,28,28", "--mean", "0.5")
    assert "choose another place" in spiketrain("import", out, "--from", "ide", "-o", out, code=1)
    spiketrain(*own, "--std", "0.25", "--classes", "a,b,c,d,e,f,g,h,i,j")
    assert load_checkpoint(out).manifest.input.mean == (0.5,)  # type: ignore[union-attr]
    assert load_checkpoint(out).manifest.classes[0] == "a"
    # A checkpoint with the same input says the same.
    spiketrain(*command[:-4], "--keep", 1, "--timesteps", 5, "--like", out)
    assert load_checkpoint(out).manifest.classes[0] == "a"


def test_a_network_of_ones_own_with_its_weights(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly.activation_based.neuron")
    code, weights = tmp_path / "own.py", tmp_path / "weights.pt"
    code.write_text(OWN)
    scope: dict[str, object] = {}
    exec(OWN, scope)
    network = scope["make"]()  # type: ignore[operator]
    torch.manual_seed(0)
    nn.init.uniform_(network[1].weight, 1, 3)
    # As DataParallel and early releases write it.
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save(state | {"module.2.surrogate_function.alpha": torch.tensor(4.0)}, weights)
    out = tmp_path / "own.safetensors"
    command = ("import", weights, "--from", "spikingjelly", "-o", out, "--classes", "a,b,c")
    command = (*command, "--input", "image", "--shape", "1,8,8", "--timesteps", 3)
    assert "--like, or your Python code" in spiketrain(*command, code=1)
    spiketrain(*command, "--network", f"{code}:make")
    x = torch.rand(2, 1, 8, 8) * 4
    with torch.no_grad():
        ours = load_checkpoint(out).network()(x, 3)
        network.eval()
        theirs = torch.stack([network(x) for _ in range(3)])
    torch.testing.assert_close(ours.logits, theirs)
    assert theirs.std(0).min() > 0
    for name, message in (
        (f"{code}:numbers", "has nothing to call named 'numbers'"),
        (f"{code}:number", "gives int, no module"),
        ("own:make", "FILE.py:NAME is needed"),
        (f"{tmp_path}/none.py:make", "with a file that is there"),
    ):
        assert message in spiketrain(*command, "--network", name, code=1)
    del state["module.4.bias"]
    torch.save(state, weights)
    missing = spiketrain(*command, "--network", f"{code}:make", code=1)
    assert "'4.bias' is missing, which" in missing


def test_an_imported_model_can_be_evaluated_on_its_data_set(
    tmp_path: Path, shared_data: Path
) -> None:
    torch.save({"state_dict": f400()}, tmp_path / "x.pth.tar")
    out = tmp_path / "x.safetensors"
    command = ("import", tmp_path / "x.pth.tar", "--from", "ide", "--keep", 1, "--timesteps", 1)
    spiketrain(*command, "--data-set", "fashion-mnist", "-o", out)
    data = training_data(load_checkpoint(out).manifest, shared_data)
    assert data.input == load_checkpoint(out).manifest.input
    assert len(data.split("test")) == 10_000
