"""Tiny-ImageNet and ImageNet from their original files. Pictures stay on disk.

Tiny-ImageNet, unpacked or as tiny-imagenet-200.zip:

    wnids.txt  words.txt  train/n01443537/images/n01443537_0.JPEG ...  val/val_annotations.txt  val/images/val_0.JPEG ...

ImageNet, sorted into folders (left) or as its competition hands it out (right):

    train/n01440764/*.JPEG                  ILSVRC/Data/CLS-LOC/train/n01440764/*.JPEG
    val/n01440764/*.JPEG                    ILSVRC/Data/CLS-LOC/val/*.JPEG  with  LOC_val_solution.csv

The test pictures of both have no public labels: the ones called validation are the test split here, as in the papers,
and a part of the training pictures is held out for validation. A class's index is the place of its WordNet id in order.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from spiketrain.data.base import DataMissingError, DataSet, Split, cut_validation
from spiketrain.data.files import Stored, Tree, digest_of_lines
from spiketrain.data.pictures import SUFFIXES, Pictures
from spiketrain.manifest import ImageInput

TINY_FOLDER = "tiny-imagenet-200"
_HELD_OUT = 0.1

Labelled = list[tuple[Stored, str]]


def load_tiny_imagenet(
    folder: Path, validation_per_class: int | None = None, seed: int = 0
) -> DataSet:
    """200 classes of 64x64; a tenth of the training pictures is held out unless `validation_per_class` says more."""
    tree = _tiny_tree(folder)
    listed = (tree.text("wnids.txt") or "").split()
    train = [
        (file, parts[1])
        for file in tree.files("train", SUFFIXES)
        if len(parts := tree.parts(file)) == 4 and parts[2] == "images"
    ]
    spec = ImageInput(
        shape=(3, 64, 64), mean=(0.4802, 0.4481, 0.3975), std=(0.2302, 0.2265, 0.2262)
    )
    test = _annotated(tree)
    names = dict(line.split("\t", 1) for line in _lines(tree.text("words.txt")) if "\t" in line)
    return _data_set("tiny-imagenet", spec, listed, train, test, names, validation_per_class, seed)


def load_imagenet(
    folder: Path, validation_per_class: int | None = None, seed: int = 0, size: int = 224
) -> DataSet:
    """ImageNet (ILSVRC 2012): the shorter side becomes `size` and the centre is cut out, where nothing else is drawn."""
    top = folder / "ILSVRC" / "Data" / "CLS-LOC"
    tree = Tree(top if top.is_dir() else folder)
    if not (tree.place / "train").is_dir() or not (tree.place / "val").is_dir():
        raise DataMissingError(
            f"imagenet: no folders train and val in {folder}. ImageNet is given to those who agree to its terms: "
            "get it at https://www.image-net.org/download.php or from its competition at Kaggle, and unpack it there."
        )
    train = [
        (file, parts[1])
        for file in tree.files("train", SUFFIXES)
        if len(parts := tree.parts(file)) == 3
    ]
    test = [
        (file, parts[1])
        for file in tree.files("val", SUFFIXES)
        if len(parts := tree.parts(file)) == 3
    ]
    if not test:
        test = _solved(tree, folder / "LOC_val_solution.csv")
    mapping = folder / "LOC_synset_mapping.txt"
    lines = _lines(mapping.read_text() if mapping.is_file() else None)
    names = dict(line.split(" ", 1) for line in lines if " " in line)
    spec = ImageInput(
        shape=(3, size, size),
        resize="crop",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    wnids = sorted({wnid for _, wnid in train})
    return _data_set("imagenet", spec, wnids, train, test, names, validation_per_class, seed)


def _tiny_tree(folder: Path) -> Tree:
    for place in (folder / TINY_FOLDER, folder):
        if (place / "wnids.txt").is_file() and (place / "train").is_dir():
            return Tree(place)
    archive = folder / f"{TINY_FOLDER}.zip"
    if archive.is_file():
        return Tree(archive, TINY_FOLDER)
    raise DataMissingError(
        f"tiny-imagenet: no {archive.name} in {folder}, and nothing unpacked from it. "
        "Run `spiketrain data prepare tiny-imagenet`, or get it from http://cs231n.stanford.edu/tiny-imagenet-200.zip."
    )


def _annotated(tree: Tree) -> Labelled:
    """The pictures of val/val_annotations.txt: name, tab, WordNet id, tab, a box."""
    pictures = {tree.parts(file)[-1]: file for file in tree.files("val/images", SUFFIXES)}
    labelled = []
    for number, line in enumerate(_lines(tree.text("val/val_annotations.txt")), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise ValueError(f"{tree.place}: val_annotations.txt, line {number}: no name and label")
        if fields[0] in pictures:
            labelled.append((pictures[fields[0]], fields[1]))
    return labelled


def _solved(tree: Tree, path: Path) -> Labelled:
    """The pictures of LOC_val_solution.csv: ImageId,PredictionString, whose first word is the WordNet id."""
    if not path.is_file():
        raise DataMissingError(
            f"imagenet: the pictures in {tree.place / 'val'} are in no folders of their classes, and there is no {path}"
        )
    pictures = {
        tree.parts(file)[-1].rpartition(".")[0]: file for file in tree.files("val", SUFFIXES)
    }
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 2 and row[0] in pictures]
    return [(pictures[name], words.split(" ", 1)[0]) for name, words in rows]


def _data_set(
    name: str,
    spec: ImageInput,
    listed: Sequence[str],
    train: Labelled,
    test: Labelled,
    words: dict[str, str],
    per_class: int | None,
    seed: int,
) -> DataSet:
    wnids = sorted(listed)
    index = {wnid: i for i, wnid in enumerate(wnids)}
    for split, pictures in (("train", train), ("val", test)):
        if not pictures:
            raise DataMissingError(f"{name}: no pictures with labels in {split}: unpack it wholly")
        if unknown := {wnid for _, wnid in pictures} - index.keys():
            raise ValueError(f"{name}: {split} has the class {min(unknown)}, which is in no list")
    counts = Counter(wnid for _, wnid in train)
    if missing := index.keys() - counts.keys():
        raise ValueError(f"{name}: no training pictures of class {min(missing)}: unpack it wholly")
    held = per_class or max(1, int(min(counts.values()) * _HELD_OUT))
    y = torch.tensor([index[wnid] for _, wnid in train])
    kept, validation = cut_validation(Pictures([file for file, _ in train], spec), y, held, seed)
    return DataSet(
        name=name,
        input=spec,
        classes=_names(wnids, words),
        train=kept,
        validation=validation,
        test=Split(
            Pictures([file for file, _ in test], spec),
            torch.tensor([index[wnid] for _, wnid in test]),
        ),
        # Reading all of it for a digest takes longer than the first epoch: names, sizes and labels stand for it.
        digests={
            f"{split}, names, sizes and labels": digest_of_lines(
                f"{file.name} {file.size} {wnid}" for file, wnid in pictures
            )
            for split, pictures in (("train", train), ("val", test))
        },
    )


def _names(wnids: Sequence[str], words: dict[str, str]) -> tuple[str, ...]:
    """The first of each id's words, and the id itself where two have the same or there is none."""
    first = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    counts = Counter(first)
    return tuple(
        name if counts[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(first, wnids, strict=True)
    )


def _lines(text: str | None) -> list[str]:
    return [line.rstrip("\r") for line in (text or "").split("\n") if line.strip()]
