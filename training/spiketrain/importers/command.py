"""What `spiketrain import` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.convert.export_command import needing
from spiketrain.convert.graph_builder import About, ForeignModelError
from spiketrain.importers.build import REPOSITORIES, import_checkpoint
from spiketrain.importers.options import class_names, integers, model_input, name_of
from spiketrain.importers.said import Said
from spiketrain.manifest import EventInput, ImageInput

output = Console(emoji=False)

_AUTHORS = "Files of the papers' codes"
_INPUT = "What the model sees"


def import_model(
    file: Annotated[
        Path,
        typer.Argument(help="A .nir file, weights of SpikingJelly, or a checkpoint of an author."),
    ],
    source: Annotated[
        Literal["nir", "spikingjelly", "clif", "ilif", "glif", "ide", "plif"],
        typer.Option("--from", help="What the file is; the last five are papers' codes."),
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write.")],
    like: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint with the same input and classes; for spikingjelly also the same network, "
            "which a state_dict does not describe."
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="spikingjelly, instead of --like: FILE.py:NAME, a Python file of yours, which is run, and what in it "
            "gives the network for these weights when it is called."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name, the file's unless given.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Names with commas between them, or @FILE with one name a line."),
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option(min=1, help="Timesteps of an image or recording.")
    ] = None,
    readout: Annotated[
        Literal["mean", "sum", "rate", "vote"] | None,
        typer.Option(
            help="nir, spikingjelly: rate where spikes come out, else mean, unless given."
        ),
    ] = None,
    dt: Annotated[
        float | None,
        typer.Option(
            help="nir: length of a timestep in seconds; the file's or 0.0001 if not given."
        ),
    ] = None,
    data_set: Annotated[
        str | None,
        typer.Option(
            help="What it was trained on, for its input as that code makes it, and its classes: mnist, fashion-mnist, "
            "cifar10, cifar100, tiny-imagenet, nmnist, cifar10-dvs, dvs-gesture.",
            rich_help_panel=_AUTHORS,
        ),
    ] = None,
    neuron: Annotated[
        Literal["lif", "clif", "ilif", "plif"] | None,
        typer.Option(help="clif, ilif: read from the run's folder.", rich_help_panel=_AUTHORS),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="clif, ilif: read from the run's folder; plif with LIF neurons.",
            rich_help_panel=_AUTHORS,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="1 unless given, for ide 2, as in all these codes.",
            rich_help_panel=_AUTHORS,
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="ide: lambda, what a neuron keeps of its potential; 1 for IF.",
            rich_help_panel=_AUTHORS,
        ),
    ] = None,
    gates: Annotated[
        Literal["soft", "hard"],
        typer.Option(help="glif: hard without --soft-mode in training.", rich_help_panel=_AUTHORS),
    ] = "soft",
    pooling: Annotated[
        Literal["max", "average"] | None,
        typer.Option(help="plif: where only tensors are there.", rich_help_panel=_AUTHORS),
    ] = None,
    pickled_module: Annotated[
        bool,
        typer.Option(
            "--pickled-module",
            help="plif: take the tensors out of a pickled network, without running any code of it.",
            rich_help_panel=_AUTHORS,
        ),
    ] = False,
    kind: Annotated[
        Literal["image", "events"] | None, typer.Option("--input", rich_help_panel=_INPUT)
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="C,H,W of one input; a .nir file's own unless given.", rich_help_panel=_INPUT
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="image: by channel, subtracted from values of 0 to 1; 0 unless given.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="image: by channel, divided by; 1 unless given.", rich_help_panel=_INPUT),
    ] = None,
    resize: Annotated[
        Literal["squash", "fit", "crop"], typer.Option(help="image", rich_help_panel=_INPUT)
    ] = "squash",
    window: Annotated[
        str | None,
        typer.Option(
            help="events: duration:MICROSECONDS, count:EVENTS:MAX_MICROSECONDS, or number:WINDOWS.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    sensor: Annotated[
        str | None,
        typer.Option(
            help="events: W,H of the sensor; the input's unless given.", rich_help_panel=_INPUT
        ),
    ] = None,
    orientation: Annotated[
        Literal["sensor", "flip-x", "flip-y", "transpose", "rotate-90"],
        typer.Option(
            help="events: how frames lie against sensor coordinates.", rich_help_panel=_INPUT
        ),
    ] = "sensor",
    clip: Annotated[
        int | None,
        typer.Option(
            min=1, help="events: counts above this are cut to it.", rich_help_panel=_INPUT
        ),
    ] = None,
) -> None:
    """Make a checkpoint of another library's or author's model. No code of the file is ever run."""
    if out.exists() and file.exists() and out.samefile(file):
        raise ForeignModelError(f"{out} is the file itself: choose another place with -o")
    seen = _Input(
        kind=kind,
        shape=integers("--shape", shape) if shape else None,
        images={"mean": mean, "std": std, "resize": resize},
        events={"window": window, "sensor": sensor, "orientation": orientation, "clip": clip},
    )
    asked = _Asked(
        file, name or name_of(file), load_checkpoint(like) if like else None, seen, classes,
        timesteps, readout,
    )  # fmt: skip
    if source in REPOSITORIES:
        said = Said(
            asked.name,
            timesteps=timesteps,
            neuron=neuron,
            tau=tau,
            threshold=threshold,
            keep=keep,
            gates=gates,
            pooling=pooling,
            data_set=data_set,
            input=seen.like(asked.parent) if kind or like else None,
            classes=class_names(classes, asked.parent) if classes or like else None,
            pickled_module=pickled_module,
        )
        checkpoint = import_checkpoint(file, source, said)
    elif source == "spikingjelly":
        with needing("train"):
            checkpoint = asked.spikingjelly(network)
    else:
        with needing("export"):
            checkpoint = asked.nir(dt)
    manifest = save_checkpoint(out, checkpoint.manifest, checkpoint.tensors)
    layers = len(checkpoint.network().neuron_layers())
    output.print(
        f"{out}: {manifest.name}, {manifest.network.name}, {layers} layers of neurons ({manifest.neuron.kind}), "
        f"{manifest.timesteps} timesteps, readout {manifest.readout}",
        markup=False,
        soft_wrap=True,
    )


@dataclass(frozen=True)
class _Input:
    """The options that say what a model sees."""

    kind: str | None
    shape: tuple[int, ...] | None
    images: dict[str, Any]
    events: dict[str, Any]

    def like(
        self, parent: Checkpoint | None, shape: tuple[int, ...] | None = None
    ) -> ImageInput | EventInput:
        """`shape` where no option gives it."""
        return model_input(self.kind, self.shape or shape, parent, self.images, self.events)


@dataclass(frozen=True)
class _Asked:
    """An import of another library's model, as the options ask for it."""

    file: Path
    name: str
    parent: Checkpoint | None
    seen: _Input
    classes: str | None
    timesteps: int | None
    readout: Literal["mean", "sum", "rate", "vote"] | None

    def about(self, shape: tuple[int, ...] | None = None) -> About:
        seen = self.seen.like(self.parent, shape)
        names = class_names(self.classes, self.parent)
        steps = self.timesteps or (self.parent.manifest.timesteps if self.parent else None)
        if steps is None:
            raise ForeignModelError("--timesteps: how many an image or a recording takes is needed")
        return About(self.name, seen, names, steps, self.readout)

    def nir(self, dt: float | None) -> Checkpoint:
        from spiketrain.convert.nir_import import import_nir, input_shape

        unsaid = self.seen.shape is None and self.parent is None
        return import_nir(self.file, self.about(input_shape(self.file) if unsaid else None), dt=dt)

    def spikingjelly(self, network: str | None) -> Checkpoint:
        from spiketrain.convert.spikingjelly_import import from_state_dict
        from spiketrain.importers.own_network import from_own_network

        if network is not None:
            return from_own_network(self.file, network, self.about())
        if self.parent is None:
            raise ForeignModelError(
                f"{self.file}: a state_dict does not say what network it is of: name a checkpoint with the same "
                "network with --like, or your Python code of it with --network"
            )
        return from_state_dict(self.file, self.parent, name=self.name)
