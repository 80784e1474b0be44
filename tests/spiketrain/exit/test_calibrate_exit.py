"""`spiketrain calibrate-exit`: from held-out data into the checkpoint, and what a checkpoint does with it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from spiketrain.cli import app
from spiketrain.convert.source import training_data
from spiketrain.exit import exit_scores, leaving_timesteps, running_means
from spiketrain.manifest import (
    DurationWindow,
    EventInput,
    ImageInput,
    Manifest,
    NetworkSpec,
    TrainingRecord,
)
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig

PER_CLASS = 100
SPEC = ImageInput(shape=(1, 28, 28), mean=(0.286,), std=(0.353,))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set in Fashion-MNIST's format: class k is a bar at row 2k + 4, fainter in some pictures than in others."""
    import gzip
    import struct

    import numpy as np

    from spiketrain.data.idx import FILES

    root = tmp_path_factory.mktemp("faint")
    (root / "fashion-mnist").mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 1200), ("test", 200)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 120, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 6] += rng.integers(20, 135)
        for name, array in zip(FILES[split], (images, labels), strict=True):
            header = (
                b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            )
            (root / "fashion-mnist" / name).write_bytes(
                gzip.compress(header + array.astype(np.uint8).tobytes())
            )
    return root


def write(path: Path, **changes) -> Manifest:
    spec = changes.get("input", SPEC)
    arguments = {"input_shape": list(spec.shape), "channels": [4, 6], "classes": 10}
    torch.manual_seed(0)
    timesteps = changes.get("timesteps", 4)
    network = build_network("small-conv", arguments, CLIFConfig(), timesteps)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.02, 0.2)
    given = {
        "name": "faint",
        "network": NetworkSpec(name="small-conv", arguments=arguments),
        "neuron": CLIFConfig(),
        "timesteps": timesteps,
        "input": spec,
        "classes": tuple("abcdefghij"),
        "training": TrainingRecord(
            recipe="r",
            settings={"data": {"name": "fashion-mnist", "validation_per_class": PER_CLASS}},
            seed=0,
            epochs=1,
        ),
    }
    return save_checkpoint(path, Manifest(**given | changes), network.state_dict())


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate-exit", *map(str, arguments)])


def test_the_table_is_in_the_checkpoint_and_nothing_else_has_changed(tmp_path, root):
    path = tmp_path / "faint.safetensors"
    before = write(path)
    figures = tmp_path / "figures.json"
    options = ("--risk", 0.3, "--risk", 0.1, "--confidence", 0.9, "--test", "--json", figures)
    result = run(path, "--data", root, *options)
    assert result.exit_code == 0, result.output
    loaded = load_checkpoint(path)
    table = loaded.manifest.exit
    assert loaded.manifest.model_copy(update={"exit": None}) == before
    assert (table.model, table.split, table.dataset) == (
        before.digest,
        "validation",
        "fashion-mnist",
    )
    assert (table.fitted, table.verified, table.confidence) == (400, 600, 0.9)
    assert [level.risk for level in table.levels] == [0.1, 0.3]
    assert 1 <= table.levels[1].mean_timesteps < table.levels[0].mean_timesteps < 4
    said = json.loads(figures.read_text())
    assert said["exit"] == table.model_dump(mode="json")
    # What it says of the test split is what the network does there.
    data = training_data(loaded.manifest, root)
    ((x, y),) = data.batches("test", 200)
    with torch.no_grad():
        means = running_means(loaded.network()(x).logits)
    left = leaving_timesteps(exit_scores(means, table.temperatures), table.levels[1].thresholds)
    answers = means.argmax(2)
    early = answers[left - 1, range(200)]
    assert said["test"][1] == pytest.approx(
        {
            "risk": 0.3,
            "samples": 200,
            "disagreement": (early != answers[-1]).mean(),
            "mean_timesteps": left.mean(),
            "accuracy": (early == y.numpy()).mean(),
            "accuracy_of_all": (answers[-1] == y.numpy()).mean(),
        }
    )
    shown = " ".join(CliRunner().invoke(app, ["inspect", str(path)]).output.split())
    assert "fitted on 400 samples, verified on 600, confidence 0.9" in shown
    assert f"{table.levels[0].mean_timesteps:.3f}" in shown


def test_it_looks_at_validation_samples_only(tmp_path, root, monkeypatch):
    from spiketrain.data import DataSet

    path, seen = tmp_path / "faint.safetensors", []
    write(path)
    batches = DataSet.batches
    monkeypatch.setattr(
        DataSet,
        "batches",
        lambda self, split, size: seen.append(split) or batches(self, split, size),
    )
    assert run(path, "--data", root, "--risk", 0.3).exit_code == 0
    assert set(seen) == {"validation"}


def test_another_output_leaves_the_file_alone(tmp_path, root):
    path, other = tmp_path / "faint.safetensors", tmp_path / "new" / "faint.safetensors"
    write(path)
    before = path.read_bytes()
    assert run(path, "--data", root, "--risk", 0.3, "-o", other).exit_code == 0
    assert path.read_bytes() == before
    assert load_checkpoint(other).manifest.exit is not None


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"readout": "vote"}, (), "readout is vote"),
        ({"readout": "last"}, (), "readout is last"),
        ({"timesteps": 1}, (), "one timestep"),
        ({"training": None}, (), "names no data set"),
        ({}, ("--risk", 0), "risks and confidence"),
        ({}, ("--risk", 0.3, "--confidence", 1), "risks and confidence"),
        (
            {
                "input": EventInput(
                    sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=1000)
                )
            },
            (),
            "takes events",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_said_and_the_file_stays(
    tmp_path, root, changes, options, says
):
    path = tmp_path / "faint.safetensors"
    write(path, **changes)
    before = path.read_bytes()
    result = run(path, "--data", root, *options)
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())
    assert path.read_bytes() == before


@pytest.fixture
def calibrated(tmp_path, root):
    path = tmp_path / "faint.safetensors"
    write(path)
    assert run(path, "--data", root, "--risk", 0.3).exit_code == 0
    return load_checkpoint(path)


def test_other_weights_do_not_keep_the_exits(tmp_path, calibrated):
    tensors = {name: tensor.clone() for name, tensor in calibrated.tensors.items()}
    save_checkpoint(tmp_path / "same.safetensors", calibrated.manifest, tensors)
    assert load_checkpoint(tmp_path / "same.safetensors").manifest.exit == calibrated.manifest.exit
    name = min(tensors)
    tensors[name] = tensors[name] + 1
    save_checkpoint(tmp_path / "other.safetensors", calibrated.manifest, tensors)
    assert load_checkpoint(tmp_path / "other.safetensors").manifest.exit is None


def test_exits_of_another_model_are_refused(tmp_path, calibrated, monkeypatch):
    table = calibrated.manifest.exit.model_copy(update={"model": "0" * 64})
    forged = calibrated.manifest.model_copy(update={"exit": table})
    monkeypatch.setattr("spiketrain.checkpoint.model_digest", lambda *_: "0" * 64)
    save_checkpoint(tmp_path / "forged.safetensors", forged, calibrated.tensors)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(tmp_path / "forged.safetensors")


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"timesteps": 5}, "exit is for 4 timesteps"), ({"readout": "vote"}, "no early exit")],
)
def test_a_manifest_that_its_exits_do_not_fit(calibrated, changes, says):
    content = calibrated.manifest.model_dump() | changes
    with pytest.raises(ValueError, match=says):
        Manifest.model_validate(content)
