"""Pictures that are nearly valid: bits flipped, cut, sizes that lie, bombs; decoded in this process and by the server."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from fuzz_mutations import mutated, noise
from fuzz_target import Tally, Target, picture
from PIL import Image

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.images import ImageLimits, decode_image
from spiketrain.manifest import ImageInput

_REFUSED = (ErrorKind.MALFORMED, ErrorKind.UNSUPPORTED_MEDIA, ErrorKind.TOO_LARGE)
_SPECS = (
    ImageInput(shape=(1, 28, 28), mean=(0.5,), std=(0.5,)),
    ImageInput(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
)
# Small enough that what decompresses to it is decoded in milliseconds.
_LIMITS = ImageLimits(1 << 20, 1 << 20)


def fuzz_pictures(inputs: int, tally: Tally, first: int) -> None:
    dice = random.Random(first)
    seeds = _seeds()
    while tally.inputs < inputs:
        data = _damaged(seeds, dice)
        spec = dice.choice(_SPECS)
        tally.begin()
        try:
            tensor = decode_image(data, spec, _LIMITS)
        except ServiceError as error:
            tally.end(error.kind.slug)
            if error.kind not in _REFUSED:
                tally.wrong(error.kind.slug, data)
        except Exception as error:
            tally.end(type(error).__name__)
            tally.wrong(repr(error), data)
        else:
            tally.end("decoded")
            if tuple(tensor.shape) != tuple(spec.shape) or not bool(tensor.isfinite().all()):
                tally.wrong(f"a tensor of {tuple(tensor.shape)}", data)


def fuzz_pictures_served(target: Target, inputs: int, tally: Tally, first: int) -> None:
    dice = random.Random(first)
    seeds = _seeds()
    while tally.inputs < inputs:
        data = _damaged(seeds, dice)
        route = dice.choice(("/classify", "/classify", "/classify/trace"))
        kind = dice.choice(("image/png", "image/jpeg", "application/octet-stream"))
        tally.begin()
        reply = target.http.post(route, content=data, headers={"content-type": kind})
        tally.answered(str(reply.status_code), data)


def _damaged(seeds: list[bytes], dice: random.Random) -> bytes:
    chance = dice.random()
    if chance < 0.03:
        return noise(dice)
    if chance < 0.06:
        return _bomb(dice)
    return mutated(dice.choice(seeds), dice, seeds if chance > 0.9 else ())


def _seeds() -> list[bytes]:
    kinds = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
    plain = [picture(number, kind, (30, 40)) for number, kind in enumerate(kinds)]
    colours = np.random.default_rng(0).integers(0, 256, (20, 20, 4), np.uint8)
    transparent = Image.fromarray(colours)
    turned = Image.Exif()
    turned[0x0112] = 6
    made = []
    for kind, image, options in (
        ("PNG", transparent, {"exif": turned}),
        ("WEBP", transparent, {"lossless": True, "exif": turned}),
        ("JPEG", transparent.convert("RGB"), {"progressive": True, "exif": turned}),
        ("JPEG", transparent.convert("CMYK"), {}),
        ("GIF", transparent, {"save_all": True, "append_images": [transparent]}),
        ("PNG", transparent.convert("P"), {}),
        ("PNG", transparent.convert("1"), {}),
        ("TIFF", transparent, {}),  # not taken
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        made.append(file.getvalue())
    return plain + made


def _bomb(dice: random.Random) -> bytes:
    """A PNG with sums that are right, whose size lies, or whose pixels are many more than its bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    sides = (0, 1, 28, 1000, 1024, 30_000, 2**31 - 1, 2**32 - 1)
    size = struct.pack(">II", dice.choice(sides), dice.choice(sides))
    how = bytes((dice.choice((1, 8, 16)), dice.choice((0, 2, 3, 4, 6)), 0, 0, dice.choice((0, 1))))
    pixels = zlib.compress(bytes(dice.choice((10, 1000, 1 << 22))))
    parts = (chunk(b"IHDR", size + how), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
