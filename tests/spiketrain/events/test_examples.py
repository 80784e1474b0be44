"""The files in examples/ are what their script draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from spiketrain.events import read_recording

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_examples", EXAMPLES / "make_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_draws(script, tmp_path):
    script.main(tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        path.name for path in EXAMPLES.iterdir() if path.suffix in (".png", ".npz", ".bin")
    }
    # Compressed bytes depend on the version of zlib, so contents are compared.
    pictures = [np.asarray(Image.open(folder / "garment.png")) for folder in (EXAMPLES, tmp_path)]
    np.testing.assert_array_equal(*pictures)
    for name in ("digit.npz", "digit.bin"):
        assert read_recording(EXAMPLES / name).equals(read_recording(tmp_path / name))


def test_the_garment_is_light_on_black():
    picture = Image.open(EXAMPLES / "garment.png")
    assert picture.mode == "L"
    grey = np.asarray(picture)
    assert min(grey.shape) >= 28
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    assert border.max() < 10
    assert 0.2 < (grey > 100).mean() < 0.6


def test_both_recordings_are_the_same_digit_and_the_files_are_small():
    events = read_recording(EXAMPLES / "digit.npz")
    assert events.equals(read_recording(EXAMPLES / "digit.bin"))
    assert 2000 < len(events) < 7000
    assert max(events.x.max(), events.y.max()) < 34
    assert sum(path.stat().st_size for path in EXAMPLES.iterdir() if path.is_file()) < 100_000
