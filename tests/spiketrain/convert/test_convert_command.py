from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.cli import app
from spiketrain.convert.sweep import LITERATURE, OURS
from spiketrain.neurons import CLIFConfig, GLIFConfig, LIFConfig

MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture
def parent(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    # Nothing may be found by accident: the data of these tests are where they say.
    monkeypatch.setenv("SPIKETRAIN_DATA", str(tmp_path / "nothing-here"))
    path = tmp_path / "parent.safetensors"
    checkpoint = make_checkpoint(CLIFConfig(), size=28, dtype=torch.float32)
    save_checkpoint(path, checkpoint.manifest, checkpoint.tensors)
    return path


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_given_value_needs_no_data_and_says_what_is_left_out(parent: Path, tmp_path: Path):
    output = run(parent, "--to", "lif", "--reset", "hard", "--value", "-0.06", "--rest", "reset")
    assert "accuracy left out" in output
    child = load_checkpoint(tmp_path / "parent-lif.safetensors").manifest
    assert child.neuron == LIFConfig(reset="hard", reset_value=-0.06, rest=-0.06)
    assert child.conversion.parent == load_checkpoint(parent).manifest.digest
    assert child.accuracy == ()


def test_with_data_the_child_is_judged_on_held_out_samples(
    parent: Path, tmp_path: Path, data_root: Path
):
    out, report = tmp_path / "out" / "child.safetensors", tmp_path / "report.json"
    output = run(
        *(parent, "--value", "1.8", "-o", out, "--name", "soft-one"),
        *("--data", data_root, "--json", report, "--batch-size", "8"),
    )
    assert "fashion-mnist, test, 20 samples" in output
    child = load_checkpoint(out)
    assert child.manifest.name == "soft-one"
    (accuracy,) = child.manifest.accuracy
    assert (accuracy.dataset, accuracy.split, accuracy.samples) == ("fashion-mnist", "test", 20)
    record = child.manifest.conversion
    assert record.judged_on == "fashion-mnist, test, 20 samples"
    assert (
        set(record.spike_mismatch)
        == set(child.manifest.firing_rates)
        == set(child.network().neuron_shapes())
    )
    content = json.loads(report.read_text())
    assert content["judgement"]["accuracy"] == accuracy.value
    assert content["conversion"]["agreement"] == record.agreement


def test_auto_chooses_by_layer_from_training_samples(parent: Path, tmp_path: Path, data_root: Path):
    run(
        parent,
        "--value",
        "auto",
        "--data",
        data_root,
        "--calibration",
        "16",
        "--split",
        "validation",
    )
    child = load_checkpoint(tmp_path / "parent-lif.safetensors")
    layers = child.network().neuron_layers()
    values = {name: layer.config.subtract for name, layer in layers.items()}
    assert len(set(values.values())) == 3
    assert all(1.731 <= value < 2 for value in values.values())
    arguments = child.manifest.conversion.arguments
    assert arguments["per_layer"] == values
    assert arguments["calibrated_on"] == "fashion-mnist, train, 16 samples"
    assert child.manifest.accuracy[0].samples == 10


def test_the_sweep_prints_the_table_and_writes_nothing_unasked(
    parent: Path, tmp_path: Path, data_root: Path
):
    report = tmp_path / "sweep.json"
    output = run(parent, "--sweep", "--data", data_root, "--samples", "5", "--json", report)
    assert "hard, -0.06" in output
    assert "closed form" in output
    assert "fashion-mnist, test, 5 samples" in output
    assert not (tmp_path / "parent-lif.safetensors").exists()
    assert len(json.loads(report.read_text())["rows"]) == len(LITERATURE) + len(OURS)
    out = tmp_path / "chosen.safetensors"
    run(parent, "--sweep", "--data", data_root, "--samples", "5", "--value", "1.8", "-o", out)
    assert load_checkpoint(out).manifest.neuron == LIFConfig(subtract=1.8)


@pytest.mark.parametrize("arguments", [("--value", "auto"), ("--sweep",), ("--data", "elsewhere")])
def test_what_needs_data_says_where_it_looked(
    parent: Path, tmp_path: Path, arguments: tuple[str, ...]
):
    output = run(parent, *arguments, code=1)
    assert "error: fashion-mnist: no train-images-idx3-ubyte.gz in" in output
    assert list(tmp_path.glob("*.safetensors")) == [parent]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reset", "hard"), "hard reset needs a value"),
        (("--value", "much"), "--value 'much': a number, or auto"),
        (("--value", "-1"), "greater than 0"),
        (("--name", "No Name"), "name"),
    ],
)
def test_values_that_make_no_neuron_end_in_one_line(
    parent: Path, arguments: tuple[str, ...], message: str
):
    output = run(parent, *arguments, code=1)
    assert message in output.replace("\n", " ")


def test_auto_with_a_moving_rest_is_refused(parent: Path, data_root: Path):
    output = run(
        *(parent, "--reset", "hard", "--rest", "reset", "--value", "auto", "--data", data_root),
        code=1,
    )
    assert "--rest zero" in output


def test_the_parent_is_never_written_over(parent: Path):
    before = parent.read_bytes()
    assert "is the parent itself" in run(parent, "-o", parent, code=1)
    assert "is a folder" in run(parent, "-o", parent.parent, code=1)
    assert parent.read_bytes() == before


def test_a_glif_is_refused_by_its_gates(
    make_checkpoint: MakeCheckpoint, parent: Path, data_root: Path
):
    checkpoint = make_checkpoint(GLIFConfig(), size=28, dtype=torch.float32)
    save_checkpoint(parent, checkpoint.manifest, checkpoint.tensors)
    for value in ("1.0", "auto"):
        output = run(parent, "--value", value, "--data", data_root, code=1)
        assert "gate alpha is 0.55" in output


def test_files_that_are_no_checkpoints_end_in_one_line(tmp_path: Path, parent: Path):
    text = tmp_path / "notes.txt"
    text.write_text("not a checkpoint")
    assert "notes.txt: header: not a .safetensors file" in run(text, code=1)
    assert "No such file" in run(tmp_path / "missing.safetensors", code=1)
    data = bytearray(parent.read_bytes())
    data[-1] ^= 1
    parent.write_bytes(data)
    assert "seal" in run(parent, code=1)


def test_data_of_another_kind_than_the_model_takes_are_refused(
    make_checkpoint: MakeCheckpoint, parent: Path, data_root: Path
):
    checkpoint = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    save_checkpoint(parent, checkpoint.manifest, checkpoint.tensors)
    output = run(parent, "--data", data_root, code=1)
    assert "fashion-mnist has other inputs or classes than the model takes" in output


def test_a_model_without_a_training_record_is_converted_unjudged(
    make_checkpoint: MakeCheckpoint, parent: Path, data_root: Path
):
    checkpoint = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    manifest = checkpoint.manifest.model_copy(update={"training": None})
    save_checkpoint(parent, manifest, checkpoint.tensors)
    assert "names no data set" in run(parent)
    assert "names no data set" in run(parent, "--data", data_root, code=1)
