"""A recipe: one TOML file that says all of a training run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from spiketrain.data import EVENT_SETS, DvsSplit
from spiketrain.data.augment import Transform
from spiketrain.data.mixing import Mixing
from spiketrain.data.recordings import RecordingFolder
from spiketrain.manifest import EventInput, NetworkSpec
from spiketrain.neurons import AnyNeuronConfig


class RecipeError(ValueError):
    """The recipe is not there or not right. The message names the field and what it takes."""


_OF_RECORDINGS = ("folder", "labels", "validation_share", "test_share")

# Settings of training that came after the first release, and are written only where they are set.
_LATER_SETTINGS = (
    "samples_per_epoch",
    "precision",
    "timestep_schedule",
    "decay_all",
    "neuron_learning_rate",
    "cosine_epochs",
    "milestones",
    "milestone_factor",
    "warmup_steps",
    "target",
    "accumulate",
)
_LATER_OF_DATA = (*_OF_RECORDINGS, "size", "mean", "std", "split", "mix")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    name: str
    validation_per_class: int | None = Field(None, gt=0)
    split_seed: int = 0
    augment: tuple[Transform, ...] = ()
    size: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]] | None = Field(
        None,
        description="height and width to which pictures are resized; the data set's own unless given",
    )
    mean: tuple[float, ...] | None = Field(
        None, description="of each channel, for pictures; the data set's own unless given"
    )
    std: tuple[float, ...] | None = None
    folder: str | None = Field(
        None, description="of one's own recordings, under the folder of the data sets or absolute"
    )
    labels: str | None = Field(
        None, description="CSV file in `folder` with the recordings' labels; sub-folders without it"
    )
    split: DvsSplit | None = Field(
        None,
        description="of cifar10-dvs, which recordings are for training: the first 900 of each class in the order of "
        "the number in their name, or of the name itself; numeric unless given",
    )
    mix: Mixing | None = Field(
        None, description="mixup and CutMix of pairs of training samples; none unless given"
    )
    validation_share: float | None = Field(None, gt=0, lt=1)
    test_share: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _a_folder_for_recordings(self) -> DataSection:
        given = [name for name in _OF_RECORDINGS if getattr(self, name) is not None]
        if self.name == "recordings" and self.folder is None:
            raise ValueError("recordings: set data.folder to the folder where they lie")
        if self.name != "recordings" and given:
            raise ValueError(f"{given[0]} is for data.name 'recordings', not {self.name!r}")
        if self.split is not None and self.name != "cifar10-dvs":
            raise ValueError(f"split is for data.name 'cifar10-dvs', not {self.name!r}")
        return self

    @property
    def recordings(self) -> RecordingFolder | None:
        if self.folder is None:
            return None
        given = {name: getattr(self, name) for name in _OF_RECORDINGS}
        return RecordingFolder(
            **{name: value for name, value in given.items() if value is not None}
        )

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A stopped run goes on only with a recipe that is written as it was before these fields were there.
        content: dict[str, Any] = handler(self)
        return {k: v for k, v in content.items() if v is not None or k not in _LATER_OF_DATA}


class TrainingSection(_Section):
    timesteps: int = Field(gt=0)
    epochs: int = Field(gt=0)
    batch_size: int = Field(128, gt=0)
    samples_per_epoch: int | None = Field(
        None,
        gt=0,
        description="drawn anew for each epoch, where one through all samples takes too long; all of them unless given",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    decay_all: bool = Field(
        False,
        description="weight decay also for biases, batch norms and the neurons' own parameters, not for weights alone",
    )
    neuron_learning_rate: float = Field(
        1.0, gt=0, description="learning rate of the neurons' own parameters, as a factor"
    )
    schedule: Literal["cosine", "one-cycle", "steps"] = Field(
        "cosine",
        description="cosine: down to 0; one-cycle: up for a fifth, then down; steps: times `milestone_factor` at each "
        "of `milestones`",
    )
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="epochs after which the learning rate falls, for the schedule steps"
    )
    milestone_factor: float = Field(0.1, gt=0, lt=1)
    warmup_steps: int = Field(
        0,
        ge=0,
        description="optimiser steps in which the learning rate rises to its value, linearly",
    )
    cosine_epochs: int | None = Field(
        None,
        gt=0,
        description="epochs from the highest learning rate to 0; after as many more it is back. All epochs unless given",
    )
    loss: Literal["per-step", "mean", "vote"] = Field(
        "per-step",
        description="per-step: cross entropy of every timestep's logits; mean: of their mean over time; "
        "vote: squared distance of their mean to 1 for the class and 0 for the others",
    )
    target: Literal["ones", "one-hot"] = Field(
        "ones", description="what the regulariser draws the logits to"
    )
    regulariser: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="weight of the mean squared distance of every logit to 1 (the CLIF recipe uses 0.05)",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    gradient_clip: float | None = Field(
        None, gt=0, description="norm to which the gradient is clipped"
    )
    accumulate: int = Field(
        1,
        gt=0,
        description="parts in which a batch is computed, one after the other, for the memory of one; the step is that "
        "of the whole batch, but for batch norms, whose statistics are those of a part",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        exclude=True,
        description="auto takes the GPU where there is one; a run may go on where it did not begin",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="arithmetic of convolutions and linear layers; weights, neurons and validation stay float32",
    )
    timestep_schedule: tuple[
        tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]], ...
    ] = Field(
        (),
        description="[epochs, timesteps] pairs: the first epochs run fewer timesteps, all further ones `timesteps`",
    )
    seed: int = 0

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainingSection:
        if sum(epochs for epochs, _ in self.timestep_schedule) > self.epochs:
            raise ValueError(f"timestep_schedule has more epochs than epochs = {self.epochs}")
        if any(timesteps > self.timesteps for _, timesteps in self.timestep_schedule):
            raise ValueError(f"timestep_schedule goes beyond timesteps = {self.timesteps}")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("schedule 'steps' and milestones belong together")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}"
            )
        return self

    def timesteps_of(self, epoch: int) -> int:
        """How many timesteps the epoch runs, counted from 0."""
        for epochs, timesteps in self.timestep_schedule:
            if epoch < epochs:
                return timesteps
            epoch -= epochs
        return self.timesteps

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A stopped run goes on only with a recipe that is written as it was before these fields were there.
        content: dict[str, Any] = handler(self)
        for name in _LATER_SETTINGS:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content


class Expected(_Section):
    """What others report for these settings. `selected_on` says on which split they chose the epoch."""

    accuracy: float = Field(gt=0, lt=1)
    selected_on: Literal["test", "validation", "unknown"]
    source: str


class Recipe(_Section):
    name: str
    source: str = Field("", description="where the settings come from")
    expected: Expected | None = None
    data: DataSection
    events: EventInput | None = None
    network: NetworkSpec
    neuron: AnyNeuronConfig
    training: TrainingSection

    @model_serializer(mode="wrap")
    def _without_nothing_expected(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.expected is None:
            content.pop("expected", None)
        return content

    @model_validator(mode="after")
    def _window_for_events(self) -> Recipe:
        if self.data.name in EVENT_SETS and self.events is None:
            raise ValueError("an event data set needs an [events] section: sensor, shape, window")
        if self.events is not None and self.training.timestep_schedule:
            raise ValueError(
                "training.timestep_schedule is for pictures: the timesteps of a recording are its windows"
            )
        return self


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("spiketrain") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(name_or_path: str, settings: Iterable[str] = ()) -> Recipe:
    """A bundled recipe by name, or one from a .toml file, with `key=value` settings (dotted keys) laid over it.

    Raises RecipeError naming the field that is wrong.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RecipeError(f"no recipe file {path}")
        text = path.read_text()
    elif name_or_path in bundled_recipes():
        text = (resources.files("spiketrain") / "recipes" / f"{name_or_path}.toml").read_text()
    else:
        raise RecipeError(
            f"no recipe {name_or_path!r}: a path to a .toml file, or one of {', '.join(bundled_recipes())}"
        )
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name_or_path}: not TOML: {error}") from error
    for setting in settings:
        _lay_over(content, setting)
    return parse_recipe(content, name_or_path)


def parse_recipe(content: dict[str, Any], source: str) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise RecipeError(f"{source}: " + "; ".join(lines)) from error


def _lay_over(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {setting!r}: write key=value, for example training.epochs=2")
    *path, last = key.split(".")
    place = content
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise RecipeError(f"--set {setting!r}: {part} is a value, not a section")
    try:
        place[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        place[last] = text
