"""Pictures and their right answers, as workload.py has written them; without torch, which a client need not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pictures(NamedTuple):
    """Encoded pictures, and the class that the network gives each; `real` whether they are of a data set."""

    content: list[bytes]
    labels: NDArray[np.int64]
    real: bool


def pictures_file(folder: Path, count: int) -> Path:
    return folder / f"pictures-{count}.npz"


def read_pictures(folder: Path, count: int) -> Pictures:
    with np.load(pictures_file(folder, count)) as arrays:
        ends = np.cumsum(arrays["sizes"]).tolist()
        content = arrays["content"].tobytes()
        parts = zip([0, *ends[:-1]], ends, strict=True)
        pictures = [content[begin:end] for begin, end in parts]
        return Pictures(pictures, arrays["labels"], bool(arrays["real"]))


def write_pictures(
    folder: Path, pictures: list[bytes], labels: NDArray[Any], real: bool
) -> Pictures:
    np.savez(
        pictures_file(folder, len(pictures)),
        sizes=np.array([len(each) for each in pictures]),
        content=np.concatenate([np.frombuffer(each, np.uint8) for each in pictures]),
        labels=labels,
        real=np.array(real),
    )
    return Pictures(pictures, labels, real)
