"""The loop on a tiny data set in the original format: it learns, resumes exactly, and stops when it must."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import load_checkpoint
from spiketrain.cli import app
from spiketrain.evaluate import evaluate
from spiketrain.optimise import loss_of
from spiketrain.recipe import TrainingSection, load_recipe
from spiketrain.train import Progress, Run, TrainingError

SETTINGS = (
    "training.epochs=3",
    "training.batch_size=32",
    "training.timesteps=2",
    "network.arguments.channels=[4, 8]",
    "network.arguments.strides=[2, 2]",
    "network.arguments.dropout=0.2",
    "data.validation_per_class=4",
    "data.augment=[]",
    "training.learning_rate=0.02",
)


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle."""


def run_in(folder: Path, data: Path, *more: str, recipe: str = "fashion-clif") -> Run:
    return Run(load_recipe(recipe, (*SETTINGS, *more)), folder, data)


@pytest.fixture(scope="module")
def trained(bars: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_in(tmp_path_factory.mktemp("run"), bars, "training.epochs=6")
    run.train()
    return run


def test_training_learns_and_scores_the_best_epoch_on_test(trained: Run) -> None:
    manifest = load_checkpoint(trained.best_path).manifest
    validation, test = manifest.accuracy
    assert (validation.split, test.split) == ("validation", "test")
    assert (validation.samples, test.samples) == (40, 100)
    assert test.value > 0.5
    assert test.selected_on == "validation"
    assert len(test.by_timestep) == 2


def test_the_checkpoint_says_how_it_came_about(trained: Run) -> None:
    manifest = load_checkpoint(trained.best_path).manifest
    assert manifest.training is not None
    assert manifest.training.recipe == "fashion-clif"
    assert manifest.training.settings["training"]["batch_size"] == 32
    assert len(manifest.training.data) == 4
    assert all(len(digest) == 64 for digest in manifest.training.data.values())
    assert manifest.firing_rates.keys() == trained.network.neuron_shapes().keys()


def test_what_was_saved_scores_what_the_manifest_says(trained: Run) -> None:
    checkpoint = load_checkpoint(trained.best_path)
    again = evaluate(checkpoint.network(), trained.data.batches("test", 33))
    assert again.accuracy == checkpoint.manifest.accuracy[1].value


def test_tensorboard_has_firing_rates_by_layer_and_epoch(trained: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(trained.folder / "tensorboard"))
    log.Reload()
    assert len(log.Scalars("firing_rate/stages.0.neuron")) == 6
    assert len(log.Scalars("loss/train")) == 6


@pytest.mark.parametrize("stop_at", [(2, 1), (2, 11), (3, 5)])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights_bit_for_bit(
    bars: Path, tmp_path: Path, stop_at: tuple[int, int]
) -> None:
    whole = run_in(tmp_path / "whole", bars)
    whole.train()

    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == stop_at:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_in(tmp_path / "parts", bars).train(stop)
    resumed = run_in(tmp_path / "parts", bars)
    resumed.train()
    expected, found = whole.network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (
        load_checkpoint(whole.best_path).manifest.digest
        == load_checkpoint(resumed.best_path).manifest.digest
    )


def test_another_recipe_does_not_go_on_in_the_same_folder(trained: Run, bars: Path) -> None:
    with pytest.raises(TrainingError, match="another recipe"):
        run_in(trained.folder, bars, "training.learning_rate=0.5").train()


@pytest.mark.parametrize(
    ("parameter", "culprit"),
    [("readout.bias", "the loss"), ("stages.0.conv.weight", "stages.0.conv.weight")],
)
def test_what_is_no_number_stops_the_run_and_is_named(
    bars: Path, tmp_path: Path, parameter: str, culprit: str
) -> None:
    run = run_in(tmp_path, bars)
    with torch.no_grad():
        run.network.get_parameter(parameter).fill_(float("nan"))
    with pytest.raises(TrainingError, match=f"epoch 1, step 1: {culprit} is not finite"):
        run.train()
    assert not run.last_path.exists()


def test_a_network_for_another_input_is_refused(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"\(1, 32, 32\).*\(1, 28, 28\)"):
        run_in(tmp_path, bars, "network.arguments.input_shape=[1, 32, 32]")


def test_a_batch_larger_than_the_data_is_refused(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batch_size 1000 is more than the 360"):
        run_in(tmp_path, bars, "training.batch_size=1000")


@pytest.mark.parametrize("recipe", ["fashion-ilif", "fashion-lif", "fashion-plif", "fashion-glif"])
def test_every_neuron_trains(bars: Path, tmp_path: Path, recipe: str) -> None:
    run = run_in(tmp_path, bars, "training.epochs=1", recipe=recipe)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.train()
    after = run.network.state_dict()
    learned = [name for name, _ in run.network.named_parameters()]
    assert [name for name in learned if torch.equal(before[name], after[name])] == []


def test_trains_with_fewer_timesteps_first_and_in_bfloat16(bars: Path, tmp_path: Path) -> None:
    settings = ("training.timestep_schedule=[[1, 1]]", "training.precision=bfloat16")
    run = run_in(tmp_path, bars, *settings)
    seen = []
    run.network.register_forward_hook(
        lambda _, inputs, output: seen.append((len(output.logits), output.logits.dtype))
    )
    manifest = run.train()
    lengths = [length for length, dtype in seen if dtype == torch.bfloat16]
    assert set(lengths[: run.steps]) == {1}
    assert set(lengths[run.steps :]) == {run.recipe.training.timesteps}
    assert all(
        length == run.recipe.training.timesteps for length, dtype in seen if dtype == torch.float32
    )
    assert manifest.accuracy[0].value > 0.5


def test_the_loss_per_step_is_the_mean_of_each_steps_cross_entropy() -> None:
    logits, y = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    section = TrainingSection(timesteps=3, epochs=1, regulariser=0.05, label_smoothing=0.1)
    each = [torch.nn.functional.cross_entropy(step, y, label_smoothing=0.1) for step in logits]
    expected = 0.95 * torch.stack(each).mean() + 0.05 * ((logits - 1) ** 2).mean()
    torch.testing.assert_close(loss_of(logits, y, section), expected)
    mean = section.model_copy(update={"loss": "mean"})
    expected = torch.nn.functional.cross_entropy(logits.mean(0), y, label_smoothing=0.1)
    torch.testing.assert_close(loss_of(logits, y, mean), expected)


def test_the_commands_train_and_evaluate(bars: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    command = ["train", "fashion-clif", *options, "-o", str(folder), "--data", str(bars)]
    trained = CliRunner().invoke(app, command)
    assert trained.exit_code == 0, trained.output
    assert "test: " in trained.output
    path = folder / "best.safetensors"
    scored = CliRunner().invoke(
        app, ["evaluate", str(path), "--data", str(bars), "--json", str(tmp_path / "e.json")]
    )
    assert scored.exit_code == 0, scored.output
    test = load_checkpoint(path).manifest.accuracy[1]
    assert f"{test.value:.2%}" in scored.output
    assert f'"accuracy": {test.value}' in (tmp_path / "e.json").read_text()


def test_a_missing_data_set_ends_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "fashion-clif", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "no train-images-idx3-ubyte.gz in" in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
