"""Pictures on disk as samples: decoded one by one when a batch asks for them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spiketrain.data.crops import centre_crop, resized, resized_crop
from spiketrain.data.files import Stored
from spiketrain.data.lazy import OnDisk
from spiketrain.manifest import ImageInput

MAX_PIXELS = 100_000_000
"""Of one picture; checked before it is decoded."""

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")


class Pictures(OnDisk):
    """uint8 [C, H, W] of the input's shape, as the input's `resize` makes them of pictures of any size."""

    crops_at_reading = True

    def __init__(self, files: Sequence[Stored], spec: ImageInput) -> None:
        super().__init__(torch.arange(len(files)))
        self._files = files
        self._spec = spec

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self._spec.shape

    def read(self, item: int, draws: Tensor | None = None) -> Tensor:
        file = self._files[item]
        channels, height, width = self._spec.shape
        picture = decoded(file.read(), channels, str(file))
        size = (height, width)
        if draws is not None:
            return resized_crop(picture, draws, size)
        if self._spec.resize == "crop":
            return centre_crop(picture, size)
        return resized(picture, size)

    def at_size(self, spec: ImageInput) -> Self:
        """The same pictures for another input."""
        other = self.subset(torch.arange(len(self)))
        other._spec = spec
        return other


def decoded(data: bytes, channels: int, name: str) -> Tensor:
    """A picture in any format that Pillow knows as uint8 [C, H, W]; 1 channel is grey, 3 are RGB.

    Raises ValueError, with the name, for what is no picture, is damaged, or has more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"it has {image.width}x{image.height} pixels")
            pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    except Exception as error:  # Pillow's plugins raise whatever a damaged file leads to
        raise ValueError(f"{name}: no picture that can be read: {error}") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).copy()).permute(2, 0, 1)
