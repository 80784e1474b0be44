"""What a recipe asks of its data: another size, another normalisation, part of the samples an epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spiketrain.convert.source import training_data
from spiketrain.data import load_dataset
from spiketrain.data.of_recipe import dataset_of
from spiketrain.evaluate import evaluate
from spiketrain.recipe import DataSection, load_recipe
from spiketrain.train import Run, TrainingError

SETTINGS = (
    "training.epochs=2",
    "training.batch_size=32",
    "training.timesteps=2",
    "network.arguments.channels=[4, 8]",
    "network.arguments.strides=[2, 2]",
    "network.arguments.input_shape=[1, 32, 24]",
    "data.validation_per_class=4",
    "data.size=[32, 24]",
    "data.mean=[0.25]",
    "training.samples_per_epoch=100",
)


def test_pictures_are_resized_as_a_server_does_it(bars: Path) -> None:
    section = DataSection(name="fashion-mnist", validation_per_class=4, size=(32, 24))
    data, plain = (
        dataset_of(section, bars),
        load_dataset("fashion-mnist", bars, validation_per_class=4),
    )
    assert data.input.shape == (1, 32, 24)
    for split in ("train", "validation", "test"):
        found, before = data.split(split), plain.split(split)
        assert torch.equal(found.y, before.y)
        picture = Image.fromarray(before.x[3, 0].numpy()).resize(
            (24, 32), Image.Resampling.BILINEAR
        )
        assert np.array_equal(found.x[3, 0].numpy(), np.asarray(picture))


@pytest.mark.parametrize(
    ("changes", "says"), [({"mean": (0.1, 0.2)}, "mean"), ({"std": (0.0,)}, "std")]
)
def test_a_normalisation_that_does_not_fit_is_refused(
    bars: Path, changes: dict[str, tuple[float, ...]], says: str
) -> None:
    section = DataSection(name="fashion-mnist", validation_per_class=4, **changes)
    with pytest.raises(ValueError, match=f"data.mean, data.std: .*{says}"):
        dataset_of(section, bars)


def test_a_checkpoint_is_evaluated_on_the_data_that_its_recipe_asked_for(
    bars: Path, tmp_path: Path
) -> None:
    run = Run(load_recipe("fashion-clif", SETTINGS), tmp_path, bars)
    steps = []
    manifest = run.train(lambda progress: steps.append(progress.step))
    assert run.steps == 3
    assert max(steps) == 3
    data = training_data(manifest, bars)
    assert data.input == manifest.input
    assert data.input.mean == (0.25,)
    assert torch.equal(data.validation.x, run.data.validation.x)
    said = {each.split: each.value for each in manifest.accuracy}
    assert evaluate(run.network, data.batches("test", 64)).samples == 100
    assert set(said) == {"validation", "test"}


def test_fewer_samples_than_a_batch_are_refused(bars: Path, tmp_path: Path) -> None:
    recipe = load_recipe("fashion-clif", (*SETTINGS, "training.samples_per_epoch=20"))
    with pytest.raises(TrainingError, match="batch_size 32 is more than the 20"):
        Run(recipe, tmp_path, bars)
