from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.cli import app
from spiketrain.convert import Calibration, ConversionError, FineTuning, calibrate, fine_tune
from spiketrain.convert.fine_tune import divergence
from spiketrain.convert.samples import Samples, Unlabelled
from spiketrain.data import DataSet, Split
from spiketrain.data.augment import Flip, Pipeline
from spiketrain.manifest import ImageInput
from spiketrain.neurons import CLIFConfig, ILIFConfig

MakeCheckpoint = Callable[..., Checkpoint]
QUICK = FineTuning(epochs=4, learning_rate=3e-3, batch_size=32)


@pytest.fixture
def data() -> DataSet:
    """Smooth pictures, so that there is something in them that a convolution can see."""
    generator = torch.Generator().manual_seed(5)

    def split(count: int) -> Split:
        coarse = torch.rand(count, 1, 3, 3, generator=generator)
        x = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear")
        return Split((255 * x).to(torch.uint8), torch.randint(10, (count,), generator=generator))

    spec = ImageInput(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
    return DataSet("made-up", spec, tuple("abcdefghij"), split(512), split(128), split(128), {})


def converted(parent: Checkpoint, data: DataSet, parts: tuple[str, ...] = ()) -> Checkpoint:
    inputs = [x for x, _ in data.batches(data.train.at(torch.arange(32)), 32)]
    return calibrate(parent, inputs, Calibration("hard", parts))  # type: ignore[arg-type]


@pytest.mark.parametrize("neuron", [CLIFConfig(), ILIFConfig()])
def test_a_hard_child_comes_nearer_to_its_parent_on_samples_it_has_not_seen(
    make_checkpoint: MakeCheckpoint, data: DataSet, neuron: CLIFConfig | ILIFConfig
):
    parent = make_checkpoint(neuron, dtype=torch.float32)
    parent.tensors["readout.weight"] *= 10  # which makes it as sure of its classes as a trained one
    child = converted(parent, data)
    unseen = [x for x, _ in data.batches("test", 64)]
    steps: list[tuple[int, int]] = []
    tuned = fine_tune(parent, child, Unlabelled(data), QUICK, lambda *step: steps.append(step))
    assert tuned.kept
    before, after = (
        divergence(parent.network(), checkpoint.network(), unseen)
        for checkpoint in (child, tuned.checkpoint)
    )
    assert after < 0.9 * before
    assert steps == [(done, 4 * 16) for done in range(1, 4 * 16 + 1)]
    assert (
        tuned.checkpoint.network().neuron_layers().keys() == child.network().neuron_layers().keys()
    )
    assert tuned.checkpoint.manifest.layers == child.manifest.layers
    for name, tensor in child.tensors.items():
        if "running" in name:
            assert torch.equal(tensor, tuned.checkpoint.tensors[name])
    record = tuned.checkpoint.manifest.conversion
    assert record is not None
    assert record.method.endswith("calibrated, fine-tuned")
    said = record.arguments["fine_tuning"]
    assert said["trained_on"] == "made-up, train, 512 samples, without labels"
    assert said["chosen_on"] == "made-up, validation, 128 samples, without labels"
    assert said["divergence"] == [tuned.before, tuned.after]


def test_the_same_seed_gives_the_same_child_whatever_the_labels(
    make_checkpoint: MakeCheckpoint, data: DataSet
):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    child = converted(parent, data)
    flipping = Pipeline((Flip(),))
    wrong = replace(
        data,
        train=Split(data.train.x, data.train.y.flip(0)),
        validation=Split(data.validation.x, data.validation.y.flip(0)),
    )
    how = replace(QUICK, epochs=1)
    first, again, other = (
        fine_tune(parent, child, Unlabelled(source, flipping), tuning).checkpoint.manifest.digest
        for source, tuning in ((data, how), (wrong, how), (data, replace(how, seed=1)))
    )
    assert first == again != other


def test_what_does_not_help_is_not_kept(make_checkpoint: MakeCheckpoint, data: DataSet):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    child = converted(parent, data)
    tuned = fine_tune(parent, child, Unlabelled(data), replace(QUICK, epochs=1, learning_rate=3.0))
    assert not tuned.kept
    assert tuned.checkpoint.manifest.digest == child.manifest.digest
    record = tuned.checkpoint.manifest.conversion
    assert record is not None
    assert record.arguments["fine_tuning"]["kept"] is False
    assert "fine-tuned" not in record.method


def test_it_sees_the_training_split_and_is_chosen_by_validation(data: DataSet):
    def level(count: int, value: int) -> Split:
        return Split(torch.full((count, 1, 8, 8), value, dtype=torch.uint8), torch.zeros(count))

    spec = ImageInput(shape=(1, 8, 8), mean=(0.0,), std=(1 / 255,))
    levels = replace(data, input=spec, train=level(20, 1), validation=level(7, 2), test=level(9, 3))
    unlabelled = Unlabelled(levels)

    def values(batches: list[Tensor]) -> set[int]:
        return {round(value) for x in batches for value in x.flatten().tolist()}

    seen = list(unlabelled.epoch(8, torch.Generator()))
    held = list(unlabelled.held_out(4))
    assert (values(seen), len(seen)) == ({1}, unlabelled.steps(8))
    assert (values(held), sum(map(len, held))) == ({2}, 7)


def test_samples_that_are_judged_on_are_refused(make_checkpoint: MakeCheckpoint, data: DataSet):
    manifest = make_checkpoint(CLIFConfig()).manifest
    with pytest.raises(ConversionError, match="judge on the test split"):
        Samples(data, 16, "validation", None, 8).unlabelled(manifest)
    nothing = replace(data, validation=data.validation.at(torch.arange(0)))
    with pytest.raises(ConversionError, match="made-up has no validation split"):
        Samples(nothing, 16, "test", None, 8).unlabelled(manifest)
    assert Samples(data, 16, "test", None, 8).unlabelled(manifest).data is data


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_settings_that_train_nothing_are_refused(wrong: dict[str, float]):
    with pytest.raises(ConversionError, match="fine-tuning"):
        FineTuning(**wrong)  # type: ignore[arg-type]


def test_numbers_that_are_none_are_said(make_checkpoint: MakeCheckpoint, data: DataSet):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    child = converted(parent, data)
    with pytest.raises(ConversionError, match=r"fine-tuning, step \d+: numbers are no longer"):
        fine_tune(parent, child, Unlabelled(data), replace(QUICK, learning_rate=1e30))


def test_the_command_says_what_fine_tuning_adds(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, data_root: Path
):
    checkpoint = make_checkpoint(CLIFConfig(), size=28, dtype=torch.float32)
    parent = tmp_path / "parent.safetensors"
    save_checkpoint(parent, checkpoint.manifest, checkpoint.tensors)
    out, report = tmp_path / "child.safetensors", tmp_path / "report.json"
    arguments = ["convert", str(parent), "--family", "hard", "--fine-tune", "1"]
    arguments += ["--data", str(data_root), "--calibration", "16"]

    def run(*more: str) -> str:
        result = CliRunner().invoke(app, [*arguments, *more])
        assert "Traceback" not in result.output
        return result.output

    assert "judge on the test split" in " ".join(run("--split", "validation").split())
    assert not out.exists()
    output = run("-o", str(out), "--json", str(report))
    assert "kept: KL divergence from the parent" in output
    assert "fashion-mnist, validation, 10 samples, without labels" in output
    said = load_checkpoint(out).manifest.conversion
    assert said is not None
    assert said.arguments["fine_tuning"]["trained_on"].startswith("fashion-mnist, train, 30 ")
    steps = [step["parts"] for step in json.loads(report.read_text())["steps"]]
    assert steps == ["calibrated", "+ fine-tuning"]
    run("-o", str(out), "--json", str(report), "--ablation", "--without", "weights")
    steps = [step["parts"] for step in json.loads(report.read_text())["steps"]]
    assert steps[-2:] == ["+ line-search", "+ fine-tuning"]
