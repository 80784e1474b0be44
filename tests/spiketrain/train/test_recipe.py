"""Recipes: the bundled ones load, settings are laid over, mistakes are named."""

from pathlib import Path

import pytest

from spiketrain.networks import build_network
from spiketrain.recipe import RecipeError, bundled_recipes, load_recipe


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_build_their_network(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    network = build_network(
        recipe.network.name, recipe.network.arguments, recipe.neuron, recipe.training.timesteps
    )
    size = sum(p.numel() for p in network.parameters()) * 4
    small = recipe.network.name in ("small-conv", "feedback-f400", "feedback-64c5s")
    assert (size < 2_000_000) == small


def test_a_schedule_says_the_timesteps_of_each_epoch() -> None:
    training = load_recipe("fashion-clif", ["training.timestep_schedule=[[2, 1], [1, 3]]"]).training
    assert [training.timesteps_of(epoch) for epoch in range(5)] == [1, 1, 3, 4, 4]


def test_what_is_not_set_is_not_written() -> None:
    # Runs begun before these settings were there go on with them.
    written = load_recipe("fashion-clif").model_dump(mode="json")
    assert (
        not {"precision", "timestep_schedule", "decay_all", "target"} & written["training"].keys()
    )
    assert not {"mean", "std"} & written["data"].keys()
    assert "expected" not in written
    chosen = load_recipe("fashion-clif", ["training.precision=bfloat16"]).model_dump(mode="json")
    assert chosen["training"]["precision"] == "bfloat16"


def test_settings_are_laid_over_with_their_types() -> None:
    recipe = load_recipe(
        "fashion-clif",
        ["training.epochs=2", "neuron.kind=lif", "neuron.reset=hard", "neuron.reset_value=-0.06"],
    )
    assert recipe.training.epochs == 2
    assert recipe.neuron.model_dump()["reset_value"] == -0.06


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.epochs=many", "training.epochs"),
        ("training.epoch=2", "training.epoch: Extra inputs"),
        ("nonsense", "write key=value"),
        ("name.more=1", "is a value, not a section"),
        ("neuron.kind=izhikevich", "neuron"),
        ("training.precision=float64", "training.precision"),
        ("training.timestep_schedule=[[13, 1]]", "more epochs than epochs = 12"),
        ("training.timestep_schedule=[[1, 5]]", "beyond timesteps = 4"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("fashion-clif", [setting])


def test_an_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="fashion-clif"):
        load_recipe("fashion")


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("name = ")
    with pytest.raises(RecipeError, match="not TOML"):
        load_recipe(str(path))


def test_an_event_data_set_needs_its_windows(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "x"\n[data]\nname = "nmnist-small"\n[network]\nname = "small-conv"\n'
        '[neuron]\nkind = "clif"\n[training]\ntimesteps = 2\nepochs = 1\n'
    )
    with pytest.raises(RecipeError, match=r"\[events\] section"):
        load_recipe(str(path))
