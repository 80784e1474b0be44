"""Pictures to tensors.

PNG, JPEG, WebP, BMP and the first frame of GIF, told by content. Turned upright by EXIF, composited on black where they
are transparent, made grey (ITU-R 601) or RGB as the model needs, resized bilinearly (with antialiasing; a picture
that has the size already is left alone), scaled to 0..1 and normalised. Colour profiles are ignored.
Equal bytes give equal tensors.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from spikeserve.errors import ErrorKind, ServiceError
from spiketrain.manifest import ImageInput

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_SIGNATURES = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff",
    "WEBP": b"RIFF",
    "BMP": b"BM",
    "GIF": b"GIF8",
}

# Under one of these Pillow has what may say how the camera was held.
_ORIENTED = frozenset(("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"))

# About 0.1 ms.
_FEW_BYTES = 8192
_FEW_PIXELS = 64 * 64

# Pillow only warns between its limit and twice that; here every limit refuses.
warnings.simplefilter("error", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageLimits:
    """The names are what the limits are called in messages to clients."""

    bytes: int
    pixels: int
    bytes_name: str = "SPIKESERVE_MAX_BODY_BYTES"
    pixels_name: str = "SPIKESERVE_MAX_PIXELS"


def decode_image(data: bytes | NDArray[Any], spec: ImageInput, limits: ImageLimits) -> Tensor:
    """A file's bytes as float32 [C, H, W], normalised. Size in bytes and pixels is checked before anything is decoded.

    Instead of a file: pixels [H, W, C] of the input's own size, uint8, or float32 from 0 to 1.

    Raises ServiceError: TOO_LARGE; UNSUPPORTED_MEDIA for what is no picture, or in another format; MALFORMED for a
    picture that is damaged.
    """
    if isinstance(data, np.ndarray):
        return _from_pixels(data, spec)
    if len(data) > limits.bytes:
        raise ServiceError(
            ErrorKind.TOO_LARGE,
            f"the picture has {len(data)} bytes, the limit is {limits.bytes} ({limits.bytes_name})",
        )
    name = _format(data)
    try:
        if name == "WEBP":  # Pillow allocates the whole canvas on opening one
            _check_pixels(_webp_size(data), limits)
        with Image.open(io.BytesIO(data), formats=(name,)) as image:
            _check_pixels(image.size, limits)
            image.load()
            return _normalised(_resized(_converted(_upright(image), spec), spec), spec)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(None, limits) from None
    except ServiceError:
        raise
    except UnidentifiedImageError:
        reason = "its header is damaged or cut off"
    # Pillow's decoders raise all sorts of exceptions for damaged files.
    except Exception as error:
        reason = str(error) or type(error).__name__
    raise ServiceError(ErrorKind.MALFORMED, f"the {name} picture cannot be decoded: {reason}")


def decodes_at_once(data: bytes | NDArray[Any]) -> bool:
    """Whether decoding takes less time than handing it to another thread: pixels, and small PNG files."""
    if isinstance(data, np.ndarray):
        return data.size <= _FEW_PIXELS
    if len(data) > _FEW_BYTES or not data.startswith(_SIGNATURES["PNG"]):
        return False
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return width * height <= _FEW_PIXELS


def _from_pixels(pixels: NDArray[Any], spec: ImageInput) -> Tensor:
    shape = (*spec.shape[1:], spec.shape[0])
    if pixels.shape != shape or pixels.dtype not in (np.uint8, np.float32):
        raise ServiceError(
            ErrorKind.MALFORMED,
            f"pixels {list(pixels.shape)} of {pixels.dtype}: expected {list(shape)} of uint8 or float32",
        )
    if pixels.dtype == np.uint8:
        return _looked_up(pixels, spec)
    scaled = _scaled(pixels, tuple(spec.mean), tuple(spec.std))
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def _format(data: bytes) -> str:
    if not data:
        raise ServiceError(ErrorKind.MALFORMED, "the picture is empty: send the file's bytes")
    for name, signature in _SIGNATURES.items():
        if data.startswith(signature) and (name != "WEBP" or data[8:12] in (b"WEBP", b"")):
            return name
    raise ServiceError(
        ErrorKind.UNSUPPORTED_MEDIA,
        f"the content is not a picture in one of the formats {', '.join(FORMATS)}",
    )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk of a WebP file."""
    kind = data[12:16]
    try:
        if kind == b"VP8X":
            return (
                1 + int.from_bytes(data[24:27], "little"),
                1 + int.from_bytes(data[27:30], "little"),
            )
        if kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    except struct.error:
        raise UnidentifiedImageError from None


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    if size[0] * size[1] > limits.pixels:
        raise _too_many_pixels(size, limits)


def _too_many_pixels(size: tuple[int, int] | None, limits: ImageLimits) -> ServiceError:
    what = "too many pixels" if size is None else f"{size[0]} x {size[1]} pixels"
    return ServiceError(
        ErrorKind.TOO_LARGE,
        f"the picture has {what}, the limit is {limits.pixels} in all ({limits.pixels_name}): make it smaller",
    )


def _upright(image: Image.Image) -> Image.Image:
    if not _ORIENTED.isdisjoint(image.info):
        # Damaged EXIF data does not make the picture unusable.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _converted(image: Image.Image, spec: ImageInput) -> Image.Image:
    """The picture in mode L or RGB."""
    mode = "L" if spec.shape[0] == 1 else "RGB"
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size)
        image.paste(layer, mask=layer)
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _resized(image: Image.Image, spec: ImageInput) -> Image.Image:
    _, height, width = spec.shape
    if image.size == (width, height):
        return image
    if spec.resize == "squash":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if spec.resize == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    scale = min(width / image.width, height / image.height)
    inside = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (width, height))
    corner = (width - inside[0]) // 2, (height - inside[1]) // 2
    canvas.paste(image.resize(inside, Image.Resampling.BILINEAR), corner)
    return canvas


def _normalised(image: Image.Image, spec: ImageInput) -> Tensor:
    pixels = np.frombuffer(image.tobytes(), np.uint8)
    return _looked_up(pixels.reshape(*spec.shape[1:], spec.shape[0]), spec)


def _looked_up(pixels: NDArray[np.uint8], spec: ImageInput) -> Tensor:
    """[H, W, C] as [C, H, W], normalised: a byte has few values, which are computed once for a model."""
    table = _table(tuple(spec.mean), tuple(spec.std))
    planes = np.empty(spec.shape, np.float32)
    for channel, plane in enumerate(planes):
        np.take(table[channel], pixels[..., channel], out=plane)
    return torch.from_numpy(planes)


@functools.lru_cache(64)
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """What each byte becomes in each channel, [C, 256]."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return _scaled(values[:, None], mean, std).T.copy()


def _scaled(
    values: NDArray[np.float32], mean: tuple[float, ...], std: tuple[float, ...]
) -> NDArray[np.float32]:
    """From 0 to 1, channels last, normalised."""
    scaled = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.asarray(scaled, np.float32)
