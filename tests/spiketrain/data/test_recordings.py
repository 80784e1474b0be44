"""One's own recordings: labels, splits, samples, and the walk of docs/own-recordings.md on small files and on N-MNIST."""

from __future__ import annotations

import re
import shlex
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import load_checkpoint
from spiketrain.cli import app
from spiketrain.convert.source import training_data
from spiketrain.data import DataMissingError, load_dataset
from spiketrain.data.recordings import RecordingFolder, load_recordings, samples_of
from spiketrain.data.stretches import LabelError, Stretch, draw_splits, from_folders, read_labels
from spiketrain.events import EventFormatError, Events, recording_frames, write_npz
from spiketrain.events.digits import render_digit
from spiketrain.events.emulator import saccade_recording
from spiketrain.events.frames import FrameGrid
from spiketrain.manifest import CountWindow, DurationWindow, EventInput, NumberWindow
from spiketrain.recipe import RecipeError, load_recipe
from spiketrain.train import Run, TrainingError

TOP = Path(__file__).resolve().parents[3]
ARCHIVE = TOP / "../shared/data/n-mnist-small/NMNISTsmall.tar.xz"
WALK = (TOP / "docs/own-recordings.md").read_text()

SPEC = EventInput(sensor=(4, 4), shape=(2, 4, 4), window=DurationWindow(microseconds=10))


def marked(mark: int, windows: int = 4) -> Events:
    """One event in each window of 10 us, at a pixel that says which recording it is."""
    t = np.arange(windows, dtype=np.int64) * 10 + 1000 * mark
    x, y = np.full(windows, mark % 4, np.uint16), np.full(windows, mark // 4, np.uint16)
    return Events(t, x, y, np.ones(windows, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight recordings each."""
    for mark in range(16):
        place = tmp_path / "mine" / ("left" if mark < 8 else "right")
        place.mkdir(parents=True, exist_ok=True)
        write_npz(place / f"{mark}.npz", marked(mark))
    return tmp_path / "mine"


def marks(split) -> list[int]:
    """Which recording each sample is of."""
    return [int(x.sum((0, 1)).flatten().argmax()) for x in split.x]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_sub_folders_are_classes_and_every_recording_is_in_one_split(folder):
    data = load_recordings(folder, SPEC, 2)
    assert data.classes == ("left", "right")
    assert data.name == "mine"
    seen = {name: set(marks(data.split(name))) for name in ("train", "validation", "test")}
    assert sorted(mark for each in seen.values() for mark in each) == list(range(16))
    assert [len(seen[name]) for name in ("train", "validation", "test")] == [12, 2, 2]
    # Each recording of 4 windows is two samples of 2.
    assert [len(data.split(name)) for name in seen] == [24, 4, 4]
    for split in (data.train, data.validation, data.test):
        assert split.y.tolist() == [int(mark >= 8) for mark in marks(split)]
        assert split.x.shape[1:] == (2, 2, 4, 4)


def test_the_seed_decides_the_splits(folder):
    one, same, other = (load_recordings(folder, SPEC, 4, seed=seed) for seed in (1, 1, 2))
    assert marks(one.test) == marks(same.test)
    assert marks(one.test) != marks(other.test)
    assert one.digests == other.digests


def test_folders_train_and_test_are_kept(folder):
    for split, which in (("Train", range(0, 16, 2)), ("test", range(1, 16, 2))):
        for mark in which:
            place = "left" if mark < 8 else "right"
            (folder / split / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"{mark}.npz").rename(folder / split / place / f"{mark}.npz")
    (folder / "left").rmdir()
    with pytest.raises(LabelError, match="'right' beside it"):
        load_recordings(folder, SPEC, 4)
    (folder / "right").rmdir()
    data = load_recordings(folder, SPEC, 4)
    assert sorted(marks(data.test)) == list(range(1, 16, 2))
    assert sorted(marks(data.train) + marks(data.validation)) == list(range(0, 16, 2))


def test_a_csv_says_stretches_and_splits(folder):
    labels = write(
        folder / "labels.csv",
        "file, label, start_us, end_us, split",
        "left/1.npz, open, , 1020, train",
        "left/1.npz, shut, 1020, , train",
        "left/2.npz, open, , ,",
        "left/3.npz, shut, , , validation",
        "left/4.npz, open, , , test",
    )
    data = load_recordings(folder, SPEC, 2, labels)
    assert data.classes == ("open", "shut")
    assert data.train.y.tolist() == [0, 1, 0, 0]
    assert data.validation.y.tolist() == [1, 1]
    assert data.test.y.tolist() == [0, 0]
    assert all(x.sum() == 2 for x in data.train.x)
    assert set(data.digests) == {"mine/", "labels.csv"}


def test_stretches_of_one_recording_stay_together(folder):
    rows = [f"left/{m}.npz,{c},{1000 * m + s}," for m in range(8) for c, s in (("a", 0), ("b", 20))]
    labels = write(folder / "l.csv", "file,label,start_us,end_us", *rows)
    stretches = draw_splits(read_labels(labels, folder), 0.3, 0.3, None, 0)
    splits = {}
    for each in stretches:
        assert splits.setdefault(each.path, each.split) == each.split
    assert sorted(splits.values()).count("test") == 2
    assert sorted(splits.values()).count("validation") == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("name,label", "left/1.npz,a"), "it must be file,label"),
        (("file,label,colour", "left/1.npz,a,red"), "it must be file,label"),
        (("file,label",), "has no rows"),
        (("file,label", "left/1.npz"), "line 2: has another number of fields"),
        (("file,label", "left/1.npz,a,b"), "line 2: has another number of fields"),
        (("file,label", "left/1.npz,"), "line 2: file and label must not be empty"),
        (("file,label,start_us", "left/1.npz,a,soon"), "line 2: start_us 'soon'"),
        (("file,label,start_us,end_us", "left/1.npz,a,5,5"), "line 2: start_us 5 is not before"),
        (("file,label,split", "left/1.npz,a,exam"), "line 2: split 'exam' is none of"),
        (
            ("file,label,split", "left/1.npz,a,train", "left/1.npz,b,test"),
            "is in train and in test; a recording is in one split",
        ),
        (("file,label", "left/1.npz,a", "left/2.npz,a"), "two classes are needed"),
        (("file,label", "left/1.npz,a", "left/2.npz,b"), "class 'a' has only 1 recordings left"),
        (
            (
                "file,label,split",
                "left/1.npz,a,train",
                "left/2.npz,b,test",
                "left/3.npz,a,validation",
            ),
            "no recording of class 'b' is left for training",
        ),
    ],
)
def test_labels_that_cannot_be_used_say_where_and_why(folder, lines, message):
    with pytest.raises(LabelError, match=message):
        load_recordings(folder, SPEC, 2, write(folder / "labels.csv", *lines))


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(DataMissingError, match=r"no folder .*nowhere"):
        load_recordings(tmp_path / "nowhere", SPEC, 2)
    with pytest.raises(DataMissingError, match=r"no labels .*labels.csv"):
        load_recordings(folder, SPEC, 2, folder / "labels.csv")
    labels = write(folder / "labels.csv", "file,label", "left/99.npz,a")
    with pytest.raises(DataMissingError, match=r"line 2: no recording .*99.npz"):
        load_recordings(folder, SPEC, 2, labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissingError, match="a sub-folder for each class"):
        from_folders(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"data\.folder"):
        load_dataset("recordings", tmp_path, events=SPEC)


def test_a_damaged_recording_and_one_of_another_camera_are_refused(folder):
    damaged = folder / "left" / "1.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(EventFormatError, match=r"1\.npz.*mend the file, or take it out"):
        load_recordings(folder, SPEC, 2)
    write_npz(damaged, marked(1), sensor=(640, 480))
    with pytest.raises(ValueError, match=r"1\.npz: was recorded on a sensor of 640x480"):
        load_recordings(folder, SPEC, 2)
    near = marked(1)
    write_npz(damaged, Events(near.t, near.x + np.uint16(9), near.y, near.p))
    with pytest.raises(ValueError, match="none of its 4 events is on a sensor of 4x4"):
        load_recordings(folder, SPEC, 2)


@pytest.mark.parametrize(
    ("windows", "timesteps", "events"),
    [
        (4, 2, [2, 2]),
        (5, 2, [2, 2, 1]),
        (5, 4, [4]),
        (6, 4, [4, 2]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_recording_is_cut_into_samples(windows, timesteps, events):
    samples = samples_of(Stretch(Path("r"), "a"), marked(1, windows), SPEC, timesteps)
    assert samples.shape == (len(events), timesteps, 2, 4, 4)
    assert samples.sum((1, 2, 3, 4)).tolist() == events
    flat = samples.reshape(-1, 2, 4, 4)
    frames = recording_frames(marked(1, windows), SPEC)[: len(flat)]
    assert np.array_equal(flat[: len(frames)], frames)


def test_a_stretch_begins_where_its_label_says():
    stretch = Stretch(Path("r"), "a", 1000, 1040)
    assert samples_of(stretch, marked(1), SPEC, 2).sum((1, 2, 3, 4)).tolist() == [2, 2]
    early = Stretch(Path("r"), "a", 980, 1020)
    assert samples_of(early, marked(1), SPEC, 2).sum((1, 2, 3, 4)).tolist() == [0, 2]


@pytest.mark.parametrize(
    "window",
    [
        DurationWindow(microseconds=10),
        CountWindow(events=1, max_microseconds=10),
        NumberWindow(windows=4),
    ],
    ids=lambda window: window.kind,
)
def test_memory_is_bounded(window):
    spec = SPEC.model_copy(update={"window": window})
    with pytest.raises(ValueError, match="take more than"):
        samples_of(Stretch(Path("r"), "a"), marked(1, 4), spec, 4, max_bytes=4 * 2 * 16 * 4 - 1)
    assert len(samples_of(Stretch(Path("r"), "a"), marked(1, 4), spec, 4, max_bytes=1 << 20)) >= 1


def test_the_recipe_asks_for_a_folder_and_its_dump_is_as_before_for_others():
    recipe = load_recipe(
        "recordings", ["data.folder=mine", "data.labels=l.csv", "data.test_share=0.5"]
    )
    assert recipe.data.recordings == RecordingFolder("mine", "l.csv", 0.15, 0.5)
    with pytest.raises(RecipeError, match=r"is for data\.name 'recordings'"):
        load_recipe("nmnist-clif", ["data.folder=mine"])
    dumped = load_recipe("nmnist-clif").model_dump_json()
    assert not any(name in dumped for name in ("folder", "labels", "share", "filters"))


def test_numbers_are_classes_in_their_order(folder):
    for mark, number in enumerate(("10", "9", "2")):
        (folder / number).mkdir()
        for copy in range(4):
            write_npz(folder / number / f"{copy}.npz", marked(mark))
    for name in ("left", "right"):
        (folder / name).rename(folder.parent / name)
    assert load_recordings(folder, SPEC, 4).classes == ("2", "9", "10")


def commands(program: str) -> list[list[str]]:
    """The command lines of that program in the walk's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", WALK, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


def test_the_walks_example_of_another_camera_is_right():
    (block,) = re.findall(r"```toml\n(.*?)```", WALK, re.DOTALL)
    spec = EventInput.model_validate(tomllib.loads(block)["events"])
    assert spec.filtered_sensor == (128, 128)
    FrameGrid(spec)


SMALL = (
    "training.epochs=2",
    "training.batch_size=8",
    "training.learning_rate=0.01",
    "training.timesteps=5",
    "network.arguments.channels=[4, 8]",
    "network.arguments.strides=[2, 2]",
)


def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> None:
    """The walk's own commands, with a smaller training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPIKETRAIN_DATA", raising=False)
    (train,), (evaluate,) = (
        [each for each in commands("spiketrain") if each[0] == verb]
        for verb in ("train", "evaluate")
    )
    given = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
    for arguments in ([*train, *given], evaluate):
        result = CliRunner().invoke(app, [*arguments, "--threads", "1"])
        assert result.exit_code == 0, result.output


def test_the_walk_on_a_small_set_of_the_emulator(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "digits"
    folder.mkdir(parents=True)
    rows = []
    for number in range(24):
        digit = number % 2
        write_npz(folder / f"{number}.npz", saccade_recording(render_digit(digit, number), number))
        rows.append(f"{number}.npz,{digit}")
    write(folder / "labels.csv", "file,label", *rows)
    with pytest.raises(
        TrainingError, match=r"network\.arguments\.classes is 10, digits has 2: 0, 1"
    ):
        Run(
            load_recipe("recordings", ["data.folder=digits", "data.labels=labels.csv"]),
            tmp_path / "refused",
            tmp_path / "data",
        )
    walk(
        tmp_path, monkeypatch, "network.arguments.classes=2", "events.filters=[{kind='refractory'}]"
    )
    manifest = load_checkpoint(tmp_path / "runs/digits/best.safetensors").manifest
    assert manifest.name == "digits"
    assert manifest.classes == ("0", "1")
    assert [each.kind for each in manifest.input.filters] == ["refractory"]
    assert manifest.training.data.keys() == {"digits/", "labels.csv"}
    assert {each.split for each in manifest.accuracy} == {"validation", "test"}
    # What the checkpoint says is enough to find the same samples again.
    again = training_data(manifest, tmp_path / "data")
    first = Run(
        load_recipe(
            "recordings",
            [
                *SMALL,
                "data.folder=digits",
                "data.labels=labels.csv",
                "network.arguments.classes=2",
                "events.filters=[{kind='refractory'}]",
            ],
        ),
        tmp_path / "other",
        tmp_path / "data",
    ).data
    assert torch.equal(again.test.x, first.test.x)
    assert again.digests == manifest.training.data


@pytest.mark.slow
def test_the_walk_on_nmnist(tmp_path, monkeypatch):
    if not ARCHIVE.is_file():
        pytest.skip(f"no N-MNIST at {ARCHIVE}")
    folder = tmp_path / "data" / "digits"
    folder.mkdir(parents=True)
    rows = []
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter=lambda member, path: _without_folder(member))
    for split, listing in (("train", "train1K.txt"), ("test", "test100.txt")):
        lines = (folder / listing).read_text().splitlines()
        pairs = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        rows += [f"{sample}.bs2,{label},{split}" for sample, label in pairs]
    write(folder / "labels.csv", "file,label,split", *rows)
    walk(tmp_path, monkeypatch, "training.epochs=6", "training.batch_size=32")
    manifest = load_checkpoint(tmp_path / "runs/digits/best.safetensors").manifest
    assert manifest.classes == tuple("0123456789")
    samples = {each.split: each for each in manifest.accuracy}
    # Recordings of 310 ms give two samples of five windows of 30 ms.
    assert 190 <= samples["test"].samples <= 210
    assert samples["test"].value > 0.3


def _without_folder(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = member.name.rpartition("/")[2]
    return member.replace(name=name, deep=False) if member.isfile() else None
