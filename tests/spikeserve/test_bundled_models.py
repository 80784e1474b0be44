"""The models that come with the package: they load, score what they say, and answer the examples rightly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spikeserve.images import ImageLimits, decode_image
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import load_checkpoint
from spiketrain.convert.source import sample_of, training_data
from spiketrain.data import DataSet
from spiketrain.evaluate import evaluate
from spiketrain.events import read_recording, recording_frames
from spiketrain.events.digits import render_digit
from spiketrain.events.emulator import saccade_recording
from spiketrain.exit import NAMED_RISKS
from spiketrain.manifest import EventInput, ImageInput

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(BUNDLED_MODELS.glob("*.safetensors"))
OF_KIND = {
    kind: [f for f in FILES if load_checkpoint(f).manifest.input.kind == kind]
    for kind in ("image", "events")
}


def test_there_is_an_image_model_for_every_neuron_an_event_model_and_a_conversion() -> None:
    manifests = [load_checkpoint(file).manifest for file in FILES]
    images = {m.neuron.kind for m in manifests if m.input.kind == "image"}
    assert images == {"clif", "glif", "ilif", "lif", "plif"}
    assert any(m.input.kind == "events" for m in manifests)
    digests = {m.digest: m.name for m in manifests}
    converted = [m.conversion for m in manifests if m.conversion is not None]
    assert [digests[c.parent] for c in converted] == ["fashion-clif"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_has_a_profile_of_all_its_layers(file: Path) -> None:
    checkpoint = load_checkpoint(file)
    health = checkpoint.manifest.health
    assert health is not None, f"spiketrain profile {file}"
    assert set(health.layers) == set(checkpoint.network().neuron_shapes())
    assert all(0 < layer.rate.mean < 1 for layer in health.layers.values())


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_each_is_small_loads_and_says_what_it_was_trained_on(file: Path) -> None:
    assert file.stat().st_size < 2_000_000
    checkpoint = load_checkpoint(file)
    assert checkpoint.manifest.name == file.stem
    checkpoint.network()
    assert checkpoint.manifest.training is not None
    assert all(len(digest) == 64 for digest in checkpoint.manifest.training.data.values())
    test = [a for a in checkpoint.manifest.accuracy if a.split == "test"]
    assert [a.selected_on for a in test] == ["validation"]


@pytest.mark.parametrize("file", OF_KIND["image"], ids=lambda f: f.stem)
def test_image_models_have_exits_that_save_more_than_half_of_the_timesteps(file: Path) -> None:
    table = load_checkpoint(file).manifest.exit
    assert table is not None
    for risk in NAMED_RISKS.values():
        level = table.level(risk)
        assert level is not None
        assert level.risk == risk
        assert level.mean_timesteps < table.timesteps / 2


@pytest.mark.parametrize("file", OF_KIND["image"], ids=lambda f: f.stem)
def test_image_models_see_an_ankle_boot_in_the_drawn_garment(file: Path) -> None:
    checkpoint = load_checkpoint(file)
    spec = checkpoint.manifest.input
    assert isinstance(spec, ImageInput)
    picture = (EXAMPLES / "garment.png").read_bytes()
    x = decode_image(picture, spec, ImageLimits(bytes=100_000, pixels=100_000))
    with torch.no_grad():
        logits = checkpoint.network()(x.unsqueeze(0)).logits.mean(0)
    assert checkpoint.manifest.classes[int(logits.argmax())] == "Ankle boot"


@pytest.mark.parametrize("file", OF_KIND["events"], ids=lambda f: f.stem)
def test_event_models_name_the_rendered_digits(file: Path) -> None:
    checkpoint = load_checkpoint(file)
    spec = checkpoint.manifest.input
    assert isinstance(spec, EventInput)
    network = checkpoint.network()

    def named(frames: np.ndarray) -> int:
        with torch.no_grad():
            logits = network(
                torch.from_numpy(frames[: checkpoint.manifest.timesteps]).unsqueeze(1)
            ).logits
        return int(logits.mean(0).argmax())

    assert named(recording_frames(read_recording(EXAMPLES / "digit.npz"), spec)) == 3
    wrong = [
        (digit, seed)
        for digit in range(10)
        for seed in (100, 101)
        if named(recording_frames(saccade_recording(render_digit(digit, seed), seed), spec))
        != digit
    ]
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_each_scores_what_its_manifest_says(file: Path, shared_data: Path) -> None:
    checkpoint = load_checkpoint(file)
    data: DataSet = training_data(checkpoint.manifest, shared_data)
    stated = next(a for a in checkpoint.manifest.accuracy if a.split == "test")
    split = sample_of(data.test, 1000)
    found = evaluate(checkpoint.network(), data.batches(split, 250)).accuracy
    # A thousand of ten thousand: three standard deviations of the sample.
    allowed = (
        0.0
        if len(split) == stated.samples
        else 3 * (stated.value * (1 - stated.value) / 1000) ** 0.5
    )
    assert found == pytest.approx(stated.value, abs=allowed + 1e-9)
