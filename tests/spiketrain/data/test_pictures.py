"""Tiny-ImageNet and ImageNet in their original layouts, pictures read from disk, and crops before decoding."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spiketrain.data import DataMissingError, load_dataset
from spiketrain.data.augment import Crop, Flip, Pipeline, ResizedCrop
from spiketrain.data.base import Share
from spiketrain.data.crops import centre_crop, rectangle, resized
from spiketrain.data.pictures import decoded

WNIDS = ("n01443537", "n01629819", "n01641577")


def jpeg(
    value: int, size: tuple[int, int] = (64, 64), mode: str = "RGB", format: str = "JPEG"
) -> bytes:
    out = io.BytesIO()
    colour = value if mode == "L" else (value,) * len(mode)
    Image.new(mode, size, colour).save(out, format, quality=95)
    return out.getvalue()


def tiny(root: Path) -> Path:
    """As unpacked from the archive; the value of a training picture is 60 + 10 class + number."""
    top = root / "tiny-imagenet-200" / "tiny-imagenet-200"
    for k, wnid in enumerate(WNIDS):
        place = top / "train" / wnid
        (place / "images").mkdir(parents=True)
        (place / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
        for i in range(5):
            mode = "L" if i == 0 else "RGB"
            (place / "images" / f"{wnid}_{i}.JPEG").write_bytes(jpeg(60 + 10 * k + i, mode=mode))
    (top / "val" / "images").mkdir(parents=True)
    lines = []
    for i in range(6):
        (top / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(150 + i))
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t32\t44\t62\n")
    (top / "val" / "val_annotations.txt").write_text("".join(lines))
    (top / "test" / "images").mkdir(parents=True)
    (top / "test" / "images" / "test_0.JPEG").write_bytes(jpeg(1))
    (top / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(WNIDS)))
    (top / "words.txt").write_text(
        f"{WNIDS[0]}\tgoldfish, Carassius auratus\n{WNIDS[1]}\tsalamander\nn00001740\tentity\n"
    )
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_tiny_imagenet_is_read_from_its_folder_and_from_its_archive(
    tmp_path: Path, packed: bool
) -> None:
    tiny(tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    if packed:
        with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
            for path in sorted((folder / "tiny-imagenet-200").rglob("*")):
                archive.write(path, path.relative_to(folder))
        (folder / "tiny-imagenet-200").rename(tmp_path / "elsewhere")
    data = load_dataset("tiny-imagenet", tmp_path, validation_per_class=1)
    assert data.classes == ("goldfish", "salamander", "n01641577")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [12, 3, 6]
    assert data.test.y.tolist() == [0, 1, 2, 0, 1, 2]
    x = data.test.x[torch.arange(6)]
    assert x.dtype == torch.uint8
    assert x.shape == (6, 3, 64, 64)
    assert (x.float().mean((1, 2, 3)) - (150 + torch.arange(6))).abs().max() < 1
    for split in (data.train, data.validation):
        values = split.x[torch.arange(len(split))].float().mean((1, 2, 3)).round()
        assert torch.equal(values.sub(60).div(10).floor().long(), split.y)


def test_tiny_imagenet_of_genuine_pictures(tmp_path: Path, shared_data: Path) -> None:
    """Three classes of the genuine files, laid out as the archive has them."""
    source = shared_data / "tiny-imagenet-200"
    top = tmp_path / "tiny-imagenet-200"
    wnids = sorted((source / "wnids.txt").read_text().split())[:3]
    found = 0
    with tarfile.open(source / "train_50_per_class.tar.xz") as tar:
        for member in tar:
            parts = member.name.split("/")
            wnid = next((part for part in parts if part in wnids), None)
            if member.isfile() and wnid and parts[-1].endswith(".JPEG"):
                place = top / "train" / wnid / "images" / parts[-1]
                place.parent.mkdir(parents=True, exist_ok=True)
                file = tar.extractfile(member)
                assert file is not None
                place.write_bytes(file.read())
                found += 1
            if found == 150:
                break
    (top / "wnids.txt").write_text("\n".join(wnids))
    (top / "val" / "images").mkdir(parents=True)
    (top / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{wnids[0]}\t0\t0\t1\t1\n")
    (top / "val" / "images" / "val_0.JPEG").write_bytes(jpeg(3))
    data = load_dataset("tiny-imagenet", tmp_path, validation_per_class=5)
    assert [len(data.train), len(data.validation)] == [135, 15]
    x, y = next(data.batches("train", 128, shuffle=torch.Generator().manual_seed(0)))
    assert x.shape == (128, 3, 64, 64)
    assert set(y.tolist()) == {0, 1, 2}
    assert x.isfinite().all()
    assert 0.5 < float(x.std()) < 2


@pytest.mark.parametrize("layout", ["folders", "competition"])
def test_imagenet_is_read_as_folders_and_as_its_competition_has_it(
    tmp_path: Path, layout: str
) -> None:
    root = tmp_path / "imagenet"
    top = root if layout == "folders" else root / "ILSVRC" / "Data" / "CLS-LOC"
    for k, wnid in enumerate(WNIDS):
        (top / "train" / wnid).mkdir(parents=True)
        for i in range(11):
            picture = jpeg(50 * k + 20, (300 + i, 260), "CMYK" if i == 1 else "RGB")
            (top / "train" / wnid / f"{wnid}_{i}.JPEG").write_bytes(picture)
        place = top / "val" / wnid if layout == "folders" else top / "val"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"ILSVRC2012_val_0000000{k}.JPEG").write_bytes(jpeg(50 * k + 30, (224, 400)))
    if layout == "competition":
        rows = "".join(
            f"ILSVRC2012_val_0000000{k},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n"
            for k, wnid in enumerate(WNIDS)
        )
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
        (root / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} goldfish, Carassius auratus\n")
    data = load_dataset("imagenet", tmp_path)
    assert data.classes[0] == ("goldfish" if layout == "competition" else WNIDS[0])
    assert data.input.shape == (3, 224, 224)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 3, 3]
    assert data.test.y.tolist() == [0, 1, 2]
    x, _ = next(data.batches("test", 3))
    levels = (50 * torch.arange(3.0) + 30) / 255
    expected = (levels - 0.485) / 0.229
    torch.testing.assert_close(x[:, 0, 100, 100], expected, atol=0.03, rtol=0)


def test_imagenet_that_is_not_there_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"image-net\.org"):
        load_dataset("imagenet", tmp_path)
    with pytest.raises(DataMissingError, match=r"tiny-imagenet-200\.zip"):
        load_dataset("tiny-imagenet", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(3)[:200]])
def test_a_damaged_picture_is_named(tmp_path: Path, content: bytes) -> None:
    tiny(tmp_path)
    path = next((tmp_path / "tiny-imagenet-200").rglob("val_2.JPEG"))
    path.write_bytes(content)
    data = load_dataset("tiny-imagenet", tmp_path)
    with pytest.raises(ValueError, match=r"val_2\.JPEG: no picture that can be read"):
        list(data.batches("test", 6))


def test_a_picture_too_large_is_refused_before_it_is_decoded(monkeypatch) -> None:
    monkeypatch.setattr("spiketrain.data.pictures.MAX_PIXELS", 64 * 63)
    with pytest.raises(ValueError, match="64x64 pixels"):
        decoded(jpeg(1), 3, "picture")


def test_resizing_is_pillows() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((30, 20), Image.Resampling.BILINEAR))
    found = resized(torch.from_numpy(pixels).permute(2, 0, 1), (20, 30)).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_the_centre_is_cut_out_of_the_shorter_side() -> None:
    picture = torch.zeros(1, 40, 80, dtype=torch.uint8)
    picture[..., 20:60] = 255
    # The outermost columns have some of what is beside them.
    assert (centre_crop(picture, (20, 20))[..., 1:-1] == 255).all()
    assert centre_crop(picture, (20, 20), share=0.5).shape == (1, 20, 20)


def test_random_rectangles_are_within_the_picture_and_their_bounds() -> None:
    draws = ResizedCrop(scale=(0.2, 0.5)).draw((300, 3, 8, 8), torch.Generator().manual_seed(0))[0]
    seen = [rectangle(row, 100, 150) for row in draws]
    shares = [h * w / 15000 for _, _, h, w in seen]
    assert 0.19 < min(shares) < 0.22
    assert 0.48 < max(shares) < 0.51
    assert all(t >= 0 and left >= 0 and t + h <= 100 and left + w <= 150 for t, left, h, w in seen)
    assert all(0.7 < w / h < 1.4 for _, _, h, w in seen)
    # No rectangle of that share fits into a ribbon: the largest of the widest ratio is taken, centred.
    tall = ResizedCrop(scale=(0.9, 1.0)).draw((1, 3, 8, 8), torch.Generator())[0][0]
    assert rectangle(tall, 10, 1000) == (0, 493, 10, 13)


def batches(data, augment=None, seed=0, **more):
    draws = torch.Generator().manual_seed(seed)
    return list(data.batches("train", 4, shuffle=draws, augment=augment, **more))


def test_pictures_on_disk_are_augmented_as_those_in_memory(tmp_path: Path) -> None:
    data = load_dataset("tiny-imagenet", tiny(tmp_path), validation_per_class=1)
    pipeline = Pipeline((Crop(padding=4, fill="black"), Flip()))
    on_disk = batches(data, pipeline)
    memory = type(data)(
        **{
            **data.__dict__,
            "train": type(data.train)(data.train.x[torch.arange(12)], data.train.y),
        }
    )
    for (x, y), (x2, y2) in zip(on_disk, batches(memory, pipeline), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_crops_before_decoding_follow_the_draws(tmp_path: Path) -> None:
    data = load_dataset("tiny-imagenet", tiny(tmp_path), validation_per_class=1)
    pipeline = Pipeline((ResizedCrop(), Flip()))
    first, again, other = (batches(data, pipeline, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(first, other, strict=True))
    assert first[0][0].shape == (4, 3, 64, 64)


def test_parts_of_batches_are_what_they_are_in_the_whole(tmp_path: Path) -> None:
    data = load_dataset("tiny-imagenet", tiny(tmp_path), validation_per_class=1)
    pipeline = Pipeline((ResizedCrop(), Crop(padding=4), Flip()))
    whole = batches(data, pipeline)
    parts = [batches(data, pipeline, share=Share(rank, 2)) for rank in (0, 1)]
    for i, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[i][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[i][1] for part in parts]), y)
