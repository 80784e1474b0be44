"""The loop on a tiny data set in the original format: it learns, resumes exactly, and stops when it must."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import load_checkpoint
from spiketrain.cli import app
from spiketrain.evaluate import evaluate
from spiketrain.optimise import loss_of
from spiketrain.plan import plan_of
from spiketrain.recipe import RecipeError, TrainingSection, load_recipe
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
    [("readout.bias", "readout.bias"), ("stages.0.conv.weight", "stages.0.conv.weight")],
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


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("stages.1.bn.weight", 3e38, r"stages\.1|readout|the gradient of stages"),
        ("readout.weight", 3e38, "the output of readout"),
    ],
)
def test_a_number_that_grows_beyond_all_bounds_is_traced_to_its_layer(
    bars: Path, tmp_path: Path, parameter: str, value: float, message: str
) -> None:
    run = run_in(tmp_path, bars)
    with torch.no_grad():
        run.network.get_parameter(parameter).fill_(value)
    with pytest.raises(TrainingError, match=rf"epoch 1, step 1: ({message}).* is not finite"):
        run.train()


def test_large_numbers_that_are_finite_do_not_stop_a_run(bars: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path, bars, "training.epochs=1", "training.learning_rate=1e-30")
    with torch.no_grad():
        run.network.get_parameter("readout.bias").fill_(1e20)  # whose square is not
    run.train()


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
    nowhere = CliRunner().invoke(
        app, ["evaluate", str(path), "--data", str(bars), "--device", "abacus"]
    )
    assert nowhere.exit_code == 1
    assert "--device is abacus: expected cpu, cuda" in nowhere.output.replace("\n", " ")


def test_a_missing_data_set_ends_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "fashion-clif", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "no train-images-idx3-ubyte.gz in" in result.output.replace("\n", " ")
    assert "Traceback" not in result.output


def test_a_gpu_that_is_not_there_is_refused_with_what_to_do(bars: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        TrainingError, match=r"training\.device is cuda, but torch sees no GPU.*--device cpu"
    ):
        run_in(tmp_path, bars, "training.device=cuda")
    assert run_in(tmp_path, bars, "training.device=auto").device.type == "cpu"


def test_the_device_is_no_part_of_what_a_run_is_resumed_by() -> None:
    recipe = load_recipe("fashion-clif", ["training.device=cuda", "training.precision=bfloat16"])
    assert recipe.training.device == "cuda"
    assert "device" not in recipe.model_dump_json()


# One convolution, neurons and a readout: no batch norm, whose statistics are those of a part.
PLAIN_NETWORK = """
name = "plain"
[data]
name = "fashion-mnist"
validation_per_class = 4
augment = [{ kind = "crop", padding = 2 }]
[network]
name = "graph"
[network.arguments]
input_shape = [1, 28, 28]
classes = 10
output = "readout"
nodes = [
  { name = "conv", op = "convolution", inputs = ["input"], in_channels = 1, out_channels = 4, kernel = [5, 5], stride = [4, 4], padding = [0, 0], dilation = [1, 1] },
  { name = "fire", op = "neurons", inputs = ["conv"], channels = 4 },
  { name = "flat", op = "reshape", inputs = ["fire"], shape = [144] },
  { name = "readout", op = "linear", inputs = ["flat"], in_features = 144, out_features = 10 },
]
[neuron]
kind = "clif"
[training]
timesteps = 2
epochs = 1
batch_size = 40
learning_rate = 0.05
"""


@pytest.mark.parametrize("more", [(), ("data.mix={mixup=0.2, cutmix=1.0}",)])
def test_a_batch_in_parts_gives_the_step_of_the_whole(
    bars: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    path = tmp_path / "plain.toml"
    path.write_text(PLAIN_NETWORK)
    found = []
    for accumulate in (1, 4):
        recipe = load_recipe(str(path), [f"training.accumulate={accumulate}", *more])
        run = Run(recipe, tmp_path / str(accumulate), bars)
        before = run.network.get_parameter("readout.weight").clone()
        run.train()
        assert not torch.equal(before, run.network.get_parameter("readout.weight"))
        found.append(run.network.state_dict())
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, atol=2e-6, rtol=1e-5)


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(RecipeError, match="accumulate 3 does not divide batch_size 128"):
        load_recipe("fashion-clif", ["training.accumulate=3"])


CHILD = """
import sys
from pathlib import Path
import torch
from spiketrain.recipe import load_recipe
from spiketrain.train import Run
torch.set_num_threads(1)
folder, data, *settings = sys.argv[1:]
run = Run(load_recipe("fashion-clif", settings), Path(folder), Path(data))
def report(progress):
    print(progress.epoch, progress.step, flush=True)
run.train(report)
if run.group.first:
    torch.save(run.network.state_dict(), Path(folder) / "final.pt")
run.group.close()
"""


def test_a_killed_process_goes_on_to_the_same_weights_bit_for_bit(
    bars: Path, tmp_path: Path
) -> None:
    """The process is killed (SIGKILL) in the middle of its second epoch, and started again."""
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", CHILD, str(folder), str(bars), *SETTINGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split() == ["2", "5"]:
                process.kill()
                break
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = run_in(tmp_path / "whole", bars)
    whole.train()
    resumed = torch.load(folder / "final.pt", weights_only=True)
    expected = whole.network.state_dict()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_two_processes_train_as_one_does(bars: Path, tmp_path: Path) -> None:
    """Started by torchrun, with Gloo: batch norm, crops, flips and the order of samples are those of the whole batch."""
    settings = (
        *SETTINGS,
        "training.epochs=1",
        "network.arguments.dropout=0.0",
        "data.augment=[{kind='crop', padding=2}, {kind='flip'}]",
        # A difference by rounding can make a spike, and a spike all the difference: few steps, small ones.
        "training.batch_size=120",
        "training.optimizer=sgd",
        "training.learning_rate=0.02",
    )
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two = tmp_path / "two"
    subprocess.run(
        [*torchrun, str(child), str(two), str(bars), *settings],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    one = Run(load_recipe("fashion-clif", settings), tmp_path / "one", bars)
    start = {name: value.clone() for name, value in one.network.state_dict().items()}
    one.train()
    found = torch.load(two / "final.pt", weights_only=True)
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=1e-3, msg=name)
    assert not torch.equal(start["readout.weight"], found["readout.weight"])
    manifests = [
        load_checkpoint(folder / "best.safetensors").manifest for folder in (two, tmp_path / "one")
    ]
    assert [a.samples for a in manifests[0].accuracy] == [40, 100]
    for ours, theirs in zip(manifests[0].accuracy, manifests[1].accuracy, strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=0.03)


def test_a_dry_run_shows_the_plan_and_trains_nothing(bars: Path, tmp_path: Path) -> None:
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    result = CliRunner().invoke(
        app,
        [
            "train",
            "fashion-clif",
            *options,
            "-o",
            str(tmp_path / "run"),
            "--data",
            str(bars),
            "--dry-run",
            "--measure-seconds",
            "0.2",
        ],
        env={"COLUMNS": "200"},
    )
    assert result.exit_code == 0, result.output
    assert "360 train, 40 validation, 100 test" in result.output
    assert "3 epochs of 11" in result.output
    assert "samples per second" in result.output
    assert "not measured" not in result.output
    assert not (tmp_path / "run").exists()


def test_a_plan_has_the_parameters_the_shapes_and_the_memory_of_the_run(
    bars: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("fashion-clif", SETTINGS)
    plan = plan_of(recipe, bars, 0)
    run = run_in(tmp_path, bars)
    assert plan.parameters == sum(p.numel() for p in run.network.parameters())
    shapes = {layer.name: layer.shape for layer in plan.layers}
    assert {
        name: shapes[name] for name in run.network.neuron_shapes()
    } == run.network.neuron_shapes()
    assert plan.steps == run.steps
    # What torch keeps for the backward pass of a real batch, counted by storage.
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            alive.append(tensor)
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x, y = next(run.data.batches("train", 32, shuffle=torch.Generator()))
    run.network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(run.network(x).logits, y, recipe.training)
    assert plan.memory.activations == pytest.approx(sum(kept.values()), rel=0.25)


def test_a_plan_needs_no_data(tmp_path: Path) -> None:
    plan = plan_of(load_recipe("fashion-clif"), tmp_path, 0)
    assert plan.samples == 54_000
    assert "not there" in plan.data
    assert plan.seconds is None
