"""Profiles: what they count, and that they stay with the model that they were measured of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.data.base import DataSet, Split
from spiketrain.health import GROUP, look, measure, shares, stuck
from spiketrain.manifest import DurationWindow, EventInput, ImageInput, Manifest, NetworkSpec
from spiketrain.networks import build_network
from spiketrain.neurons import LIFConfig

SHAPE = (1, 12, 12)
SPEC = ImageInput(shape=SHAPE, mean=(0.5,), std=(0.25,))
ARGUMENTS = {"channels": [3, 5], "input_shape": list(SHAPE), "classes": 2}


def a_network(timesteps: int = 3):
    torch.manual_seed(0)
    network = build_network("small-conv", ARGUMENTS, LIFConfig(), timesteps)
    with torch.no_grad():
        for stage in network.stages:
            stage.bn.weight.fill_(3.0)
    return network.eval()


def a_manifest() -> Manifest:
    return Manifest(
        name="made",
        network=NetworkSpec(name="small-conv", arguments=ARGUMENTS),
        neuron=LIFConfig(),
        timesteps=3,
        input=SPEC,
        classes=("a", "b"),
    )


def pictures(count: int) -> DataSet:
    draws = torch.Generator().manual_seed(1)
    split = Split(
        torch.randint(0, 256, (count, *SHAPE), generator=draws, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
    )
    return DataSet("made", SPEC, ("a", "b"), split, split, split, {})


def test_a_look_counts_what_the_network_s_own_run_shows() -> None:
    network, x = a_network(), torch.randn(5, *SHAPE)
    run, seen = network(x), look(network, x, SPEC)
    assert seen.timesteps == 3
    for name, spikes in run.spikes.items():
        assert torch.equal(seen.fired[name].long(), spikes.flatten(2).sum(0).long())
        torch.testing.assert_close(seen.rates(name), spikes.double().flatten(2).mean((0, 2)))
        torch.testing.assert_close(seen.first[name], spikes[0].double().flatten(1).mean(1))
    first = next(iter(run.spikes.values()))
    torch.testing.assert_close(seen.channels, first.double().flatten(3).mean((0, 3)))


def test_pixels_of_pictures_are_on_when_white_and_off_when_black() -> None:
    light = torch.tensor([0.0, 0.5, 0.96, 1.0] * 36).view(1, *SHAPE)
    seen = look(a_network(), (light - 0.5) / 0.25, SPEC)
    assert seen.dark[0, :4].tolist() == [True, False, False, False]
    assert seen.bright[0, :4].tolist() == [False, False, True, True]


def test_pixels_of_events_are_on_when_no_window_is_without() -> None:
    spec = EventInput(sensor=(12, 12), shape=(2, 12, 12), window=DurationWindow(microseconds=1))
    arguments = ARGUMENTS | {"input_shape": [2, 12, 12]}
    network = build_network("small-conv", arguments, LIFConfig(), 4).eval()
    frames = torch.zeros(4, 1, 2, 12, 12)
    frames[:, 0, 1, 0, 0] = 1
    frames[:3, 0, 0, 0, 1] = 1
    seen = look(network, frames, spec)
    assert seen.bright[0].nonzero().flatten().tolist() == [144]
    assert int((~seen.dark[0]).sum()) == 2


def test_silent_and_saturated_are_over_the_whole_group() -> None:
    fired = torch.tensor([[0, 4, 4, 1], [0, 4, 0, 0]], dtype=torch.uint8)
    assert shares(fired, 4) == (0.25, 0.25)
    assert stuck(torch.tensor([[True, True], [True, False]])) == 1


def test_a_profile_has_the_figures_of_its_samples() -> None:
    network, data = a_network(), pictures(300)
    health = measure(network, a_manifest(), data, "validation")
    (x, _), *_ = data.batches("validation", 300)
    everything = look(network, x, SPEC)
    assert (health.samples, health.group, health.dataset) == (300, GROUP, "made")
    for name, layer in health.layers.items():
        rates = everything.rates(name)
        assert layer.rate.mean == pytest.approx(rates.mean().item(), rel=1e-4)
        assert layer.rate.std == pytest.approx(rates.std().item(), rel=1e-4)
        assert layer.first is not None
        assert layer.first.mean == pytest.approx(everything.first[name].mean().item(), rel=1e-4)
        silent, _ = shares(everything.fired[name], 3)
        assert layer.silent.mean >= silent
    assert len(health.channels) == 3
    assert health.dark_pixels == 0


def test_a_part_of_the_split_is_enough() -> None:
    health = measure(a_network(), a_manifest(), pictures(300), "validation", samples=100)
    assert (health.samples, health.group) == (100, 50)


def test_few_samples_make_smaller_groups() -> None:
    assert measure(a_network(), a_manifest(), pictures(10), "validation").group == 5
    with pytest.raises(ValueError, match="at least two samples"):
        measure(a_network(), a_manifest(), pictures(1), "validation")


def test_a_profile_stays_with_its_model(tmp_path: Path) -> None:
    network, manifest, path = a_network(), a_manifest(), tmp_path / "made.safetensors"
    saved = save_checkpoint(path, manifest, network.state_dict())
    health = measure(network, saved, pictures(10), "validation")
    again = save_checkpoint(path, saved.model_copy(update={"health": health}), network.state_dict())
    assert again.digest == saved.digest
    assert load_checkpoint(path).manifest.health == health
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    assert save_checkpoint(path, again, network.state_dict()).health is None
