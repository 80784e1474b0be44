"""Recipes: the bundled ones load, settings are laid over, mistakes are named."""

from pathlib import Path

import pytest

from spiketrain.networks import build_network
from spiketrain.plan import plan_of
from spiketrain.recipe import RecipeError, bundled_recipes, load_recipe

# Of the papers' networks, some of which go with several neurons.
PARAMETERS = {
    "dvs-cifar10-glif-7bwidenet": 1_236_298,
    "imagenet-glif-msresnet18": 11_739_584,
    "cifar10-if-alexnetf-t30": 3_709_515,
    "cifar100-feedback-lif-cifarnetf-t100": 14_789_221,
    "nmnist-if-64c5s": 290_763,
    "fashion-if-f400-paper": 478_811,
    "nmnist-plif-plifnet": 17_132_292,
    "dvs-cifar10-plif-plifnet": 17_427_718,
    "dvs-gesture-plif-plifnet": 1_698_311,
    "dvs-gesture-plif-plifnet-avg": 1_698_311,
    "cifar10-plif-plifnet": 36_718_344,
}


@pytest.mark.parametrize("name", bundled_recipes())
def test_a_bundled_recipe_passes_its_dry_run(name: str, tmp_path: Path) -> None:
    """Its network is built and run, its loss computed, on a device that refuses what is made on another."""
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.source
    plan = plan_of(recipe, tmp_path, 0)
    assert plan.parameters == PARAMETERS.get(name, plan.parameters)
    small = recipe.network.name in ("small-conv", "feedback-f400", "feedback-64c5s")
    assert (plan.parameters < 500_000) == small
    assert plan.memory.activations > 0
    if recipe.data.name != "recordings":
        assert plan.steps is not None
        assert plan.steps > 10
    network = (
        build_network(
            recipe.network.name, recipe.network.arguments, recipe.neuron, recipe.training.timesteps
        )
        if small
        else None
    )
    if network is not None:
        assert plan.parameters == sum(p.numel() for p in network.parameters())


def test_every_row_of_the_papers_tables_has_a_recipe() -> None:
    names = set(bundled_recipes())
    rows = {
        *(f"cifar{n}-{neuron}-resnet18" for n in (10, 100) for neuron in ("clif", "ilif", "lif")),
        *(f"cifar{n}-glif-resnet{d}-t{t}" for n in (10, 100) for d in (18, 19) for t in (2, 4, 6)),
        *(
            f"{data}-{neuron}-vgg11"
            for data in ("dvs-cifar10", "dvs-gesture")
            for neuron in ("clif", "ilif", "lif")
        ),
        *(f"tiny-imagenet-{neuron}-vgg13" for neuron in ("clif", "lif")),
        "dvs-cifar10-glif-7bwidenet",
        "imagenet-glif-msresnet18",
        *(
            f"cifar10-{n}-{net}-t{t}"
            for n in ("if", "feedback-lif")
            for net in ("alexnetf", "cifarnetf")
            for t in (30, 100)
        ),
        *(f"cifar100-{n}-cifarnetf-t{t}" for n in ("if", "feedback-lif") for t in (30, 100)),
        "cifar100-if-alexnetf-t100",
        *(f"{data}-{n}-64c5s" for data in ("mnist", "nmnist") for n in ("if", "feedback-lif")),
        *(f"fashion-{n}-f400" for n in ("if", "feedback-lif")),
        *(
            f"{data}-{row}"
            for data in ("mnist", "fashion", "cifar10", "nmnist", "dvs-cifar10", "dvs-gesture")
            for row in (
                "plif-plifnet",
                "plif16-plifnet",
                "lif-plifnet",
                "lif16-plifnet",
                "plif-plifnet-avg",
            )
        ),
    }
    assert rows <= names


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.schedule=steps"], "'steps' and milestones belong together"),
        (["training.milestones=[3]"], "'steps' and milestones belong together"),
        (["data.split=numeric"], "split is for data.name 'cifar10-dvs'"),
        (["training.device=tpu"], "training.device"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("fashion-clif", settings)


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
