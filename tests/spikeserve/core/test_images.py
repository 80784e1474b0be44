import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.images import ImageLimits, decode_image, decodes_at_once
from spiketrain.manifest import ImageInput

LIMITS = ImageLimits(bytes=1 << 20, pixels=10_000)
GREY = ImageInput(shape=(1, 8, 6), mean=(0.0,), std=(1.0,))
RGB = ImageInput(shape=(3, 8, 6), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
RANDOM = np.random.default_rng(0)


def pixels(channels=3, height=8, width=6):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return RANDOM.integers(0, 256, shape, np.uint8)


def encoded(image, kind="PNG", **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data, spec=RGB, limits=LIMITS):
    """As integers 0 to 255, [H, W, C]."""
    tensor = decode_image(data, spec, limits)
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == spec.shape
    assert tensor.is_contiguous()
    return (tensor.permute(1, 2, 0) * 255).round().int().numpy()


def refused(data, spec=RGB, limits=LIMITS):
    with pytest.raises(ServiceError) as error:
        decode_image(data, spec, limits)
    return error.value


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_lossless_formats_give_the_pixels(kind):
    image = Image.fromarray(pixels()).quantize(16) if kind == "GIF" else Image.fromarray(pixels())
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decoded(encoded(image, kind, **options)) == np.asarray(image.convert("RGB"))).all()


def test_jpeg_gives_nearly_the_pixels():
    smooth = np.fromfunction(lambda y, x, c: y * 20 + x * 10 + c, (8, 6, 3)).astype(np.uint8)
    assert np.abs(decoded(encoded(smooth, "JPEG", quality=100)) - smooth).max() < 6


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.fromarray(pixels()).quantize(16) for _ in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decoded(data) == np.asarray(frames[0].convert("RGB"))).all()


def test_values_are_normalised_by_channel():
    spec = ImageInput(shape=(3, 8, 6), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    raw = pixels()
    tensor = decode_image(encoded(raw), spec, LIMITS)
    expected = (
        torch.from_numpy(raw).permute(2, 0, 1).float() / 255 - torch.tensor(spec.mean).view(3, 1, 1)
    ) / (torch.tensor(spec.std).view(3, 1, 1))
    assert torch.equal(tensor, expected)


def test_grey_from_colour_and_colour_from_grey():
    raw = np.zeros((8, 6, 3), np.uint8)
    raw[..., 0], raw[..., 1], raw[..., 2] = 200, 100, 50
    assert (decoded(encoded(raw), GREY) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
    grey = pixels(1)
    assert (decoded(encoded(grey), GREY)[..., 0] == grey).all()
    assert (decoded(encoded(grey)) == grey[..., None]).all()


def test_transparency_is_on_black():
    raw = np.dstack([pixels(), np.full((8, 6), 255, np.uint8)])
    raw[:4, :, 3] = 0
    raw[4, :, 3] = 128
    got = decoded(encoded(raw))
    assert (got[:4] == 0).all()
    assert np.abs(got[4] - raw[4, :, :3] * (128 / 255)).max() <= 1
    assert (got[5:] == raw[5:, :, :3]).all()
    assert (decoded(encoded(Image.fromarray(raw).convert("LA")), GREY)[:4] == 0).all()


def test_palettes_with_and_without_transparency():
    image = Image.fromarray(pixels()).quantize(8)
    assert (decoded(encoded(image)) == np.asarray(image.convert("RGB"))).all()
    index = int(np.asarray(image)[0, 0])
    got = decoded(encoded(image, transparency=index))
    hidden = np.asarray(image) == index
    assert (got[hidden] == 0).all()
    assert (got[~hidden] == np.asarray(image.convert("RGB"))[~hidden]).all()


def test_sixteen_bits_and_one_bit():
    wide = (np.arange(48).reshape(8, 6) * 1365).astype(np.uint16)
    assert np.abs(decoded(encoded(wide), GREY)[..., 0] - wide / 257).max() <= 0.5
    bits = Image.fromarray(pixels(1) > 127)
    assert set(np.unique(decoded(encoded(bits), GREY))) == {0, 255}


def test_cmyk():
    red = Image.new("CMYK", (6, 8), (0, 255, 255, 0))
    got = decoded(encoded(red, "JPEG", quality=100))
    assert np.abs(got - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    upright = pixels(1)
    # What a camera stores so that the viewer's turn makes it upright.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored), exif=exif)
    assert (decoded(data, GREY)[..., 0] == upright).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_no_harm():
    raw = pixels()
    data = encoded(raw, exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff garbage")
    assert (decoded(data) == raw).all()


def bars():
    """24 wide, 8 high: left third 30, middle third 120, right third 210."""
    return np.repeat(np.repeat([[30, 120, 210]], 8, 0), 8, 1).astype(np.uint8)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("squash", {0: 30, 3: 120, 7: 210}),  # all three, narrower
        ("crop", {0: 120, 7: 120}),  # the middle only
    ],
)
def test_resize_rules(resize, expected):
    spec = ImageInput(shape=(1, 8, 8), mean=(0,), std=(1,), resize=resize)
    got = decoded(encoded(bars()), spec)[4, :, 0]
    assert {at: got[at] for at in expected} == expected


def test_fit_shows_the_whole_picture_on_black():
    spec = ImageInput(shape=(1, 12, 12), mean=(0,), std=(1,), resize="fit")
    got = decoded(encoded(bars()), spec)[..., 0]
    assert (got[:4] == 0).all()
    assert (got[8:] == 0).all()
    assert [got[6, at] for at in (0, 6, 11)] == [30, 120, 210]
    tall = decoded(encoded(np.full((2000, 1), 200, np.uint8)), spec)[..., 0]
    assert (tall[:, 6] == 200).sum() + (tall[:, 5] == 200).sum() == 12
    assert tall.sum() == 12 * 200


def test_a_picture_of_the_right_size_is_not_resampled():
    raw = pixels(1)
    for resize in ("squash", "fit", "crop"):
        spec = ImageInput(shape=(1, 8, 6), mean=(0,), std=(1,), resize=resize)
        assert (decoded(encoded(raw), spec)[..., 0] == raw).all()


def test_equal_bytes_give_equal_tensors():
    data = encoded(pixels(3, 91, 57), "JPEG")
    first = decode_image(data, RGB, LIMITS)
    assert all(torch.equal(first, decode_image(data, RGB, LIMITS)) for _ in range(3))


def huge_png(width=30_000, height=30_000):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def huge_webp(kind):
    size = 16_383
    if kind == b"VP8X":
        body = bytes(4) + (size - 1).to_bytes(3, "little") * 2
    elif kind == b"VP8L":
        body = b"\x2f" + ((size - 1) | (size - 1) << 14).to_bytes(4, "little")
    else:
        body = bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", size, size)
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


HUGE = {
    "png": huge_png(),
    "png between the limits": huge_png(101, 100),
    "bmp": encoded(Image.new("1", (8, 8)), "BMP")[:18] + struct.pack("<ii", 30_000, 30_000)
    + encoded(Image.new("1", (8, 8)), "BMP")[26:],
    "gif": b"GIF89a" + struct.pack("<HH", 30_000, 30_000) + encoded(Image.new("P", (8, 8)), "GIF")[10:],
    **{f"webp {kind.decode()}": huge_webp(kind) for kind in (b"VP8X", b"VP8L", b"VP8 ")},
}  # fmt: skip


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE)
def test_a_picture_with_too_many_pixels_is_refused_from_its_header(data, monkeypatch):
    def load(self):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    error = refused(data)
    assert error.kind is ErrorKind.TOO_LARGE
    assert "the limit is 10000" in error.message


def test_a_webp_canvas_is_not_even_allocated(monkeypatch):
    def open_(*arguments, **options):
        raise AssertionError("Pillow was asked to open it")

    monkeypatch.setattr(Image, "open", open_)
    assert refused(huge_webp(b"VP8X")).kind is ErrorKind.TOO_LARGE


def test_more_bytes_than_allowed_are_refused():
    error = refused(encoded(pixels()), limits=ImageLimits(bytes=20, pixels=100))
    assert error.kind is ErrorKind.TOO_LARGE
    assert "the limit is 20" in error.message


@pytest.mark.parametrize(
    "data",
    [b"just some text", b"%PDF-1.7 ...", b"<svg/>", encoded(pixels(), "TIFF"), encoded(pixels(), "PPM"),
     b"RIFF\0\0\0\0WAVEfmt "],
)  # fmt: skip
def test_what_is_no_picture_that_we_take_is_unsupported(data):
    error = refused(data)
    assert error.kind is ErrorKind.UNSUPPORTED_MEDIA
    assert "PNG, JPEG, WEBP, BMP, GIF" in error.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_a_truncated_picture_is_malformed(kind, share):
    data = encoded(
        Image.fromarray(pixels(3, 60, 60)).convert("P" if kind == "GIF" else "RGB"), kind
    )
    error = refused(data[: max(12, int(len(data) * share))])
    assert error.kind is ErrorKind.MALFORMED
    assert kind in error.message


def test_an_empty_body_is_malformed():
    assert refused(b"").kind is ErrorKind.MALFORMED


SAMPLES = [
    encoded(Image.fromarray(pixels()).convert("P" if kind == "GIF" else "RGB"), kind)
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF")
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_pictures_are_decoded_or_refused(data):
    sample = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        sample[data.draw(st.integers(0, len(sample) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(sample)))
    with contextlib.suppress(ServiceError):  # anything else would be a failure of the server
        assert tuple(decode_image(bytes(sample[:cut]), RGB, LIMITS).shape) == RGB.shape


def test_only_what_is_small_is_decoded_on_the_spot():
    def png(size):
        file = io.BytesIO()
        Image.new("L", size).save(file, "PNG")
        return file.getvalue()

    assert decodes_at_once(png((28, 28)))
    assert decodes_at_once(np.zeros((32, 32, 3), np.uint8))
    assert not decodes_at_once(png((1000, 1000)))
    assert not decodes_at_once(np.zeros((224, 224, 3), np.uint8))
    assert not decodes_at_once(png((28, 28)) + bytes(9000))
    file = io.BytesIO()
    Image.new("L", (28, 28)).save(file, "JPEG")
    assert not decodes_at_once(file.getvalue())
    # Cut off before its size: an error all the same, and without a thread.
    assert decodes_at_once(png((28, 28))[:12])
