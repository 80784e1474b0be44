"""What the options of `spiketrain import` mean: inputs, windows, classes, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.manifest import (
    CountWindow,
    DurationWindow,
    EventInput,
    ImageInput,
    Input,
    NumberWindow,
    Window,
)

_INPUT: TypeAdapter[ImageInput | EventInput] = TypeAdapter(Input)


def model_input(
    kind: str | None,
    shape: tuple[int, ...] | None,
    parent: Checkpoint | None,
    images: dict[str, Any],
    events: dict[str, Any],
) -> ImageInput | EventInput:
    """Raises ForeignModelError, naming the option that is missing or wrong."""
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
        said["sensor"] = integers("--sensor", sensor) if sensor else (shape[2], shape[1])
        said["window"] = _window(events["window"])
        said["orientation"], said["clip"] = events["orientation"], events["clip"]
    try:
        return _INPUT.validate_python(said)
    except ValidationError as error:
        first = error.errors()[0]
        raise ForeignModelError(f"--{first['loc'][-1]}: {first['msg']}") from error


def _window(text: str) -> Window:
    rule, _, rest = text.partition(":")
    values = integers("--window", rest.replace(":", ","))
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


def class_names(text: str | None, parent: Checkpoint | None) -> tuple[str, ...]:
    if text is None:
        if parent is None:
            raise ForeignModelError("--classes: the names of the classes are needed")
        return parent.manifest.classes
    if text.startswith("@"):
        lines = Path(text[1:]).read_text().splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    return tuple(part.strip() for part in text.split(","))


def integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ForeignModelError(f"{option} {text!r}: whole numbers, commas between them") from None


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ForeignModelError(f"{option} {text!r}: numbers, commas between them") from None


def name_of(file: Path) -> str:
    small = "".join(c if c.isascii() and c.isalnum() else "-" for c in file.stem.lower())
    return small.strip("-")[:60].strip("-") or "imported"
