"""What each repository feeds its networks: the same data set is normalised differently from one to the next.

Event data sets are here only where our windows give the authors' frames. The CLIF and GLIF repositories shrink
CIFAR10-DVS frames from 128 to 48 pixels by interpolation, which no window of ours does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from spiketrain.data.idx import FASHION_CLASSES, MNIST_CLASSES
from spiketrain.manifest import EventInput, ImageInput, NumberWindow

GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)


@dataclass(frozen=True)
class Events:
    """Whole recordings, cut into as many frames of equally many events as there are timesteps."""

    side: int
    orientation: Literal["sensor", "flip-x"] = "sensor"

    def input(self, timesteps: int) -> EventInput:
        return EventInput(
            sensor=(self.side, self.side),
            shape=(2, self.side, self.side),
            window=NumberWindow(windows=timesteps),
            orientation=self.orientation,
        )


def _image(side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageInput:
    return ImageInput(shape=(len(mean), side, side), mean=mean, std=std)


_CIFAR10 = _image(32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_MNIST = _image(28, (0.1307,), (0.3081,))
_GLIF_CIFAR100 = _image(
    32, (129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)
)
_CLIF: dict[str, ImageInput | Events] = {
    "cifar10": _CIFAR10,
    "cifar100": _image(32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tiny-imagenet": _image(64, (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "dvs-gesture": Events(128),
}
_INPUTS: dict[str, dict[str, ImageInput | Events]] = {
    "clif": _CLIF,
    "ilif": _CLIF,
    "glif": {
        "cifar10": _image(32, (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
        "cifar100": _GLIF_CIFAR100,
    },
    "ide": {
        "mnist": _MNIST,
        "fashion-mnist": _MNIST,
        "cifar10": _CIFAR10,
        "cifar100": _CIFAR10,
    },
    "plif": {
        "mnist": _MNIST,
        "fashion-mnist": _image(28, (0.2860,), (0.3530,)),
        "cifar10": _CIFAR10,
        "nmnist": Events(34),
        "cifar10-dvs": Events(128, "flip-x"),
        "dvs-gesture": Events(128),
    },
}
_CLASSES = {
    "cifar10": CIFAR10_CLASSES,
    "cifar100": CIFAR100_CLASSES,
    "mnist": MNIST_CLASSES,
    "fashion-mnist": FASHION_CLASSES,
    "nmnist": MNIST_CLASSES,
    "cifar10-dvs": CIFAR10_CLASSES,
    "dvs-gesture": GESTURES,
}


def authors_input(repository: str, data_set: str) -> ImageInput | Events:
    """Raises ForeignModelError for a data set that is not one of the repository's, or whose frames are not ours."""
    known = _INPUTS[repository]
    if data_set not in known:
        raise ForeignModelError(
            f"--data-set {data_set!r}: known for {repository} are {', '.join(known)}; for others say --input, --shape "
            "and --mean, --std or --window, and --classes"
        )
    return known[data_set]


def class_names(data_set: str | None) -> tuple[str, ...] | None:
    """None where there is no list of them here."""
    return _CLASSES.get(data_set or "")
