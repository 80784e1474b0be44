"""What `spiketrain export` and `spiketrain import` do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.convert.flow import ExportError
from spiketrain.convert.graph_builder import About, ForeignModelError
from spiketrain.manifest import (
    CountWindow,
    DurationWindow,
    EventInput,
    ImageInput,
    Input,
    NumberWindow,
    Window,
)

output = Console()

_SUFFIXES = {"onnx": ".onnx", "nir": ".nir", "spikingjelly": ".py"}
_INPUT: TypeAdapter[ImageInput | EventInput] = TypeAdapter(Input)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to write out.")],
    to: Annotated[
        Literal["onnx", "nir", "spikingjelly"],
        typer.Option(
            help="onnx: one timestep with its state as inputs and outputs; nir: a graph for other simulators and "
            "neuromorphic hardware; spikingjelly: a Python module that needs SpikingJelly only."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where to write; beside the checkpoint unless given."),
    ] = None,
    form: Annotated[
        Literal["step", "scan"],
        typer.Option(help="onnx: one timestep, or a whole sequence in one Scan node."),
    ] = "step",
    opset: Annotated[int, typer.Option(help="onnx: version of the operators, 17 or more.")] = 18,
    dt: Annotated[float, typer.Option(help="nir: the length of a timestep in seconds.")] = 1e-4,
    fold_r: Annotated[
        bool,
        typer.Option(
            "--fold-r",
            help="nir: r = 1, and weights times tau, for simulators that ignore r (Norse).",
        ),
    ] = False,
) -> None:
    """Write a checkpoint for other programs."""
    model = load_checkpoint(checkpoint)
    path = out or checkpoint.with_suffix(_SUFFIXES[to])
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name the file to write with -o")
    if path.exists() and path.samefile(checkpoint):
        raise ExportError(f"{path} is the checkpoint itself: choose another place with -o")
    with _extra("train" if to == "spikingjelly" else "export"):
        if to == "onnx":
            from spiketrain.convert.onnx_export import export_onnx
            from spiketrain.convert.onnx_verify import VERIFIED_STEPS

            made = export_onnx(model, path, opset=opset, form=form)
            _say(
                f"{path}: opset {made.opset}, {len(made.states)} state tensors; over {VERIFIED_STEPS} timesteps "
                f"ONNX Runtime differs from torch in {100 * made.different:.3g} % of the values"
            )
        elif to == "nir":
            from spiketrain.convert.nir_export import export_nir

            written = export_nir(model, path, dt=dt, fold_r=fold_r)
            _say(
                f"{path}: {len(written.graph.nodes)} nodes, {len(written.graph.edges)} edges, dt {dt:g} s"
            )
            if written.fires_at_threshold:
                _say(
                    "NIR's neurons fire above their threshold, these at it too: that matters only where a potential "
                    "can be exactly there, with integer weights and counts"
                )
        else:
            from spiketrain.convert.spikingjelly_export import export_spikingjelly

            weights = export_spikingjelly(model, path)
            _say(f"{path} and {weights}: {path.stem}.load() gives the network")


def import_model(
    file: Annotated[Path, typer.Argument(help="A .nir file, or a SpikingJelly state_dict (.pt).")],
    source: Annotated[
        Literal["nir", "spikingjelly"], typer.Option("--from", help="What the file is.")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="The checkpoint to write.")],
    like: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint with the same input and classes; for spikingjelly also the same network, "
            "which a state_dict does not describe."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name, the file's unless given.")
    ] = None,
    kind: Annotated[
        Literal["image", "events"] | None, typer.Option("--input", help="What the model sees.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="C,H,W of one input; the file's own unless given.")
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
        typer.Option(help="rate where spikes come out, else mean, unless given."),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="image: by channel, subtracted from values of 0 to 1; 0 unless given."),
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="image: by channel, divided by; 1 unless given.")
    ] = None,
    resize: Annotated[Literal["squash", "fit", "crop"], typer.Option(help="image")] = "squash",
    window: Annotated[
        str | None,
        typer.Option(
            help="events: duration:MICROSECONDS, count:EVENTS:MAX_MICROSECONDS, or number:WINDOWS."
        ),
    ] = None,
    sensor: Annotated[
        str | None, typer.Option(help="events: W,H of the sensor; the input's unless given.")
    ] = None,
    orientation: Annotated[
        Literal["sensor", "flip-x", "flip-y", "transpose", "rotate-90"],
        typer.Option(help="events: how frames lie against sensor coordinates."),
    ] = "sensor",
    clip: Annotated[
        int | None, typer.Option(min=1, help="events: counts above this are cut to it.")
    ] = None,
    dt: Annotated[
        float | None,
        typer.Option(
            help="nir: length of a timestep in seconds; the file's or 0.0001 if not given."
        ),
    ] = None,
) -> None:
    """Make a checkpoint of another library's model."""
    if out.exists() and file.exists() and out.samefile(file):
        raise ForeignModelError(f"{out} is the file itself: choose another place with -o")
    parent = None if like is None else load_checkpoint(like)
    name = name or _name_of(file)
    with _extra("export"):
        if source == "spikingjelly":
            from spiketrain.convert.spikingjelly_import import from_state_dict

            if parent is None:
                raise ForeignModelError(
                    f"{file}: a state_dict does not say what network it is of: name a checkpoint with the same "
                    "network with --like"
                )
            checkpoint = from_state_dict(file, parent, name=name)
        else:
            from spiketrain.convert.nir_import import import_nir, input_shape

            said = _integers("--shape", shape) if shape else None
            if said is None and parent is None:
                said = input_shape(file)
            images = {"mean": mean, "std": std, "resize": resize}
            events = {"window": window, "sensor": sensor, "orientation": orientation, "clip": clip}
            seen = _input(kind, said, parent, images, events)
            names = _classes(classes, parent)
            steps = timesteps or (parent.manifest.timesteps if parent else None)
            if steps is None:
                raise ForeignModelError(
                    "--timesteps: how many an image or a recording takes is needed"
                )
            checkpoint = import_nir(file, About(name, seen, names, steps, readout), dt=dt)
    manifest = save_checkpoint(out, checkpoint.manifest, checkpoint.tensors)
    layers = len(checkpoint.network().neuron_layers())
    _say(f"{out}: {manifest.name}, {layers} layers of neurons, readout {manifest.readout}")


@contextmanager
def _extra(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed: pip install 'spikeserve[{extra}]'"
        ) from error


def _input(
    kind: str | None,
    shape: tuple[int, ...] | None,
    parent: Checkpoint | None,
    images: dict[str, Any],
    events: dict[str, Any],
) -> ImageInput | EventInput:
    if kind is None and parent is not None:
        return parent.manifest.input
    if kind is None:
        raise ForeignModelError("--input: image or events is needed: the file does not say")
    shape = shape or (parent.manifest.input.shape if parent else ())
    if len(shape) != 3:
        raise ForeignModelError(f"--shape: the file says {shape}, and C,H,W is needed")
    said: dict[str, Any] = {"kind": kind, "shape": shape}
    if kind == "image":
        channels = shape[0]
        said["mean"] = _numbers("--mean", images["mean"]) or (0.0,) * channels
        said["std"] = _numbers("--std", images["std"]) or (1.0,) * channels
        said["resize"] = images["resize"]
    else:
        if events["window"] is None:
            raise ForeignModelError("--window: what makes one timestep of events is needed")
        sensor = events["sensor"]
        said["sensor"] = _integers("--sensor", sensor) if sensor else (shape[2], shape[1])
        said["window"] = _window(events["window"])
        said["orientation"], said["clip"] = events["orientation"], events["clip"]
    try:
        return _INPUT.validate_python(said)
    except ValidationError as error:
        first = error.errors()[0]
        raise ForeignModelError(f"--{first['loc'][-1]}: {first['msg']}") from error


def _window(text: str) -> Window:
    rule, _, rest = text.partition(":")
    values = _integers("--window", rest.replace(":", ","))
    try:
        if rule == "duration" and len(values) == 1:
            return DurationWindow(microseconds=values[0])
        if rule == "count" and len(values) == 2:
            return CountWindow(events=values[0], max_microseconds=values[1])
        if rule == "number" and len(values) == 1:
            return NumberWindow(windows=values[0])
    except ValidationError as error:
        raise ForeignModelError(f"--window {text!r}: {error.errors()[0]['msg']}") from error
    raise ForeignModelError(
        f"--window {text!r}: duration:MICROSECONDS, count:EVENTS:MAX_MICROSECONDS or number:WINDOWS"
    )


def _classes(text: str | None, parent: Checkpoint | None) -> tuple[str, ...]:
    if text is None:
        if parent is None:
            raise ForeignModelError("--classes: the names of the classes are needed")
        return parent.manifest.classes
    if text.startswith("@"):
        lines = Path(text[1:]).read_text().splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    return tuple(part.strip() for part in text.split(","))


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ForeignModelError(f"{option} {text!r}: whole numbers, commas between them") from None


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ForeignModelError(f"{option} {text!r}: numbers, commas between them") from None


def _name_of(file: Path) -> str:
    small = "".join(c if c.isascii() and c.isalnum() else "-" for c in file.stem.lower())
    return small.strip("-")[:60].strip("-") or "imported"


def _say(text: str) -> None:
    output.print(text, markup=False, soft_wrap=True)
