"""What `spiketrain data list | prepare | check` do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from spiketrain.data import EVENT_SETS, DataSet, SplitName, data_root, folder_of, load_dataset
from spiketrain.data.catalogue import CATALOGUE
from spiketrain.data.event_frames import EventFrames
from spiketrain.data.of_recipe import dataset_of
from spiketrain.data.prepare import Checked, check, prepare
from spiketrain.manifest import EventInput, NumberWindow
from spiketrain.recipe import load_recipe

_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

output = Console(emoji=False)
messages = Console(stderr=True, emoji=False)

app = typer.Typer(no_args_is_help=True, help="Data sets: what there is, fetch them, check them.")

Name = Annotated[
    str, typer.Argument(help="A data set; `spiketrain data list` says which there are.")
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder of the data sets, $SPIKETRAIN_DATA or ./data unless given."
    ),
]


@app.command("list")
def list_data(data: Folder = None) -> None:
    """Show the data sets, their licences, and which are there."""
    root = data_root(data)
    table = Table("name", "what it is", "samples", "there", title=f"data sets in {root}")
    for name, entry in CATALOGUE.items():
        folder = root / folder_of(name)
        there = "yes" if folder.is_dir() and any(folder.iterdir()) else "no"
        table.add_row(name, f"{entry.title} ({entry.licence})", entry.samples, there)
    output.print(table)


@app.command("prepare")
def prepare_data(
    name: Name,
    data: Folder = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take the files from this folder instead.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Also decode all recordings into the frames that this recipe takes."),
    ] = None,
) -> None:
    """Fetch a data set's files, verify them, and unpack what has to be unpacked."""
    root = data_root(data)
    with _bar() as bar:
        tasks: dict[str, TaskID] = {}

        def report(file: str, done: int, of: int | None) -> None:
            if file not in tasks:
                tasks[file] = bar.add_task(file, total=of)
            bar.update(tasks[file], completed=done, total=of)

        checked = prepare(name, root / folder_of(name), source, report)
    for each in checked:
        output.print(f"{each.name}: {_said(each)}", highlight=False, soft_wrap=True)
    if recipe is not None:
        _decode(name, recipe, root)


@app.command("check")
def check_data(name: Name, data: Folder = None) -> None:
    """Compare a data set's files with their digests, and read it as training does."""
    root = data_root(data)
    folder = root / folder_of(name)
    checked = check(name, folder)
    for each in checked:
        output.print(f"{each.name}: {_said(each)}", highlight=False, soft_wrap=True)
    found = load_dataset(name, root, events=_PLAIN.get(name))
    for split in (found.train, found.validation, found.test):
        split.x[:1]  # what lies on disk is read and decoded
    output.print(_described(found), highlight=False, soft_wrap=True)
    if any(each.state == "wrong" for each in checked):
        raise typer.Exit(1)


def _decode(name: str, recipe_name: str, root: Path) -> None:
    recipe = load_recipe(recipe_name)
    if recipe.data.name != name or name not in EVENT_SETS:
        raise ValueError(f"recipe {recipe_name} does not train on recordings of {name}")
    data = dataset_of(recipe.data, root, events=recipe.events, timesteps=recipe.training.timesteps)
    with _bar() as bar:
        for split in _SPLITS:
            frames = data.split(split).x
            if isinstance(frames, EventFrames):
                frames.prepare(_counted(bar, bar.add_task(f"decode {split}", total=None)))
    output.print(_described(data), highlight=False, soft_wrap=True)


def _counted(bar: Progress, task: TaskID) -> Callable[[int, int], None]:
    return lambda done, of: bar.update(task, completed=done, total=of)


def _sensor(side: int) -> EventInput:
    return EventInput(sensor=(side, side), shape=(2, side, side), window=NumberWindow(windows=1))


# To look at recordings without a recipe.
_PLAIN = {
    "nmnist": _sensor(34),
    "nmnist-small": _sensor(34),
    "cifar10-dvs": _sensor(128),
    "dvs-gesture": _sensor(128),
}


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=messages,
    )


def _described(data: DataSet) -> str:
    counts = ", ".join(f"{len(data.split(name))} {name}" for name in _SPLITS)
    return f"{data.name}: {counts}; {len(data.classes)} classes; samples {data.input.shape}"


def _said(checked: Checked) -> str:
    words = {
        "right": "there, with the known digest",
        "recorded": "there; no digest is known, compared with the one recorded",
        "wrong": "there, but not the file that it should be",
        "missing": "not there, which is right where it was unpacked",
    }
    return f"{words[checked.state]} {checked.digest}".strip()
