from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert import (
    FAMILIES,
    PARTS,
    Calibration,
    ConversionError,
    ConversionReport,
    Family,
    ablation,
    calibrate,
    convert_to_lif,
    judge,
)
from spiketrain.convert.layerwise import Knobs, Moments, currents_of, moments_of
from spiketrain.convert.report import state_bytes
from spiketrain.convert.weights import fit_weights
from spiketrain.energy import fan_out
from spiketrain.neurons import CLIFConfig, GLIFConfig, ILIFConfig, LIFConfig, PLIFConfig
from spiketrain.surrogate import Rectangle

MakeCheckpoint = Callable[..., Checkpoint]
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture
def data() -> Batches:
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.randn(24, 1, 8, 8, generator=generator), torch.randint(10, (24,))) for _ in range(4)
    ]


def mismatch(parent: Checkpoint, child: Checkpoint, data: Batches) -> float:
    (judgement,) = judge(parent.network(), [child.network()], data)
    return judgement.total_mismatch


@pytest.mark.parametrize("neuron", [CLIFConfig(), ILIFConfig()])
@pytest.mark.parametrize("family", ["soft", "hard", "nir"])
def test_a_calibrated_child_repeats_more_spikes_on_samples_it_was_not_calibrated_on(
    make_checkpoint: MakeCheckpoint, data: Batches, family: str, neuron: CLIFConfig | ILIFConfig
):
    parent = make_checkpoint(neuron, dtype=torch.float32)
    inputs = [x for x, _ in data[:2]]
    plain = convert_to_lif(
        parent,
        reset="soft" if family == "soft" else "hard",
        value=None if family == "soft" else 0.0,
    )
    child = calibrate(parent, inputs, Calibration(family), calibrated_on="train, 48")  # type: ignore[arg-type]
    assert mismatch(parent, child, data[2:]) < 0.9 * mismatch(parent, plain, data[2:])
    record = child.manifest.conversion
    assert record is not None
    assert record.parent == parent.manifest.digest
    assert record.arguments["family"] == family
    assert record.arguments["calibrated_on"] == "train, 48"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_parent_that_is_a_lif_by_another_name_is_repeated(
    make_checkpoint: MakeCheckpoint, data: Batches, family: Family
):
    """PLIF and GLIF with its gates at their ends are repeated exactly by the family whose reset is theirs."""
    inputs = [x for x, _ in data[:2]]
    ends = {"gates": "hard", "alpha": 0.6, "beta": 0.4, "tau": 0.4, "subtract": 0.3}
    soft = [PLIFConfig(reset="soft"), GLIFConfig(**ends, gamma=0.4)]
    hard = [PLIFConfig(), GLIFConfig(**ends, gamma=0.6)]
    for neuron in (*soft, *hard):
        parent = make_checkpoint(neuron, dtype=torch.float32)
        child = calibrate(parent, inputs, Calibration(family))
        exact = neuron in (soft if family == "soft" else hard)
        limit = 0.02 if exact else 0.8
        assert mismatch(parent, child, data[2:]) < limit, neuron
    with pytest.raises(ConversionError, match="gate alpha"):
        calibrate(make_checkpoint(GLIFConfig(**ends | {"alpha": 0.4})), inputs, Calibration(family))


def test_families_are_what_they_say(make_checkpoint: MakeCheckpoint, data: Batches):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    inputs = [x for x, _ in data]
    soft, hard, nir, portable = (
        calibrate(parent, inputs, Calibration(family)).network().neuron_layers()
        for family in FAMILIES
    )
    for layer in soft.values():
        assert layer.config.reset == "soft"
    for layer in hard.values():
        assert layer.config.per_channel == ()
        assert layer.config.reset == "hard"
    for layer in nir.values():
        assert layer.config.surrogate == Rectangle(strict=True)
    assert any("reset_value" in layer.config.per_channel for layer in nir.values())
    for layer in portable.values():
        assert layer.config.per_channel == ()
        assert (layer.config.reset, layer.config.reset_value, layer.config.rest) == ("hard", 0, 0)
        assert layer.config.surrogate == Rectangle(strict=True)


def test_a_rest_that_moves_with_the_reset_value(make_checkpoint: MakeCheckpoint, data: Batches):
    """It is a threshold that is higher, or lower, by as much."""
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    inputs = [x for x, _ in data[:2]]
    child = calibrate(parent, inputs, Calibration("hard", rest="reset"))
    layers = child.network().neuron_layers()
    values = [layer.config.reset_value for layer in layers.values()]
    assert len(set(values)) > 1
    assert all(layer.config.rest == layer.config.reset_value for layer in layers.values())
    assert {layer.config.threshold for layer in layers.values()} == {1.0}
    moved = {
        name: layer.config.model_copy(
            update={"threshold": 1 - layer.config.rest, "rest": 0.0, "reset_value": 0.0}
        )
        for name, layer in layers.items()
    }
    same = child._replace(manifest=child.manifest.model_copy(update={"layers": moved}))
    assert mismatch(child, same, data) < 0.01
    # A parent that is such a neuron is found again.
    parent = make_checkpoint(
        LIFConfig(reset="hard", rest=-0.1, reset_value=-0.1), dtype=torch.float32
    )
    child = calibrate(parent, inputs, Calibration("hard", ("refinement",), rest="reset"))
    assert mismatch(parent, child, data[2:]) < 0.02
    with pytest.raises(ConversionError, match="is for the family hard"):
        Calibration("nir", rest="reset")


def test_a_lif_stays_what_it_is(make_checkpoint: MakeCheckpoint, data: Batches):
    """Nothing is to be made up for: every part must leave it alone."""
    parent = make_checkpoint(LIFConfig(subtract=1.4), dtype=torch.float32)
    child = calibrate(parent, [x for x, _ in data], Calibration("soft"))
    assert mismatch(parent, child, data) == 0
    for name, tensor in parent.tensors.items():
        torch.testing.assert_close(child.tensors[name], tensor)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_changes_the_child_and_can_be_left_out(
    make_checkpoint: MakeCheckpoint, data: Batches, part: str
):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    inputs = [x for x, _ in data]
    nothing = calibrate(parent, inputs, Calibration("hard", parts=()))
    assert (
        nothing.manifest.neuron == convert_to_lif(parent, reset="hard", value=0.0).manifest.neuron
    )
    assert torch.equal(nothing.tensors["readout.weight"], parent.tensors["readout.weight"])
    only = calibrate(parent, inputs, Calibration("hard", parts=(part,)))  # type: ignore[arg-type]
    assert only.manifest.digest != nothing.manifest.digest


def test_calibrating_twice_gives_the_same(make_checkpoint: MakeCheckpoint, data: Batches):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    inputs = [x for x, _ in data[:2]]
    first, second = (calibrate(parent, inputs, Calibration("soft")) for _ in range(2))
    assert first.manifest == second.manifest


def test_batch_norms_and_biases_give_the_wanted_moments(
    make_checkpoint: MakeCheckpoint, data: Batches
):
    network = make_checkpoint(CLIFConfig(), dtype=torch.float32).network().requires_grad_(False)
    inputs = [x for x, _ in data]
    knobs = Knobs(network)
    for name in ("stages.1.neuron", "hidden_neuron"):
        found = moments_of(currents_of(network, name, inputs))
        wanted = Moments(found.mean + 0.3, found.variance * 1.44)
        assert knobs.standardise(name, found, wanted)
        now = moments_of(currents_of(network, name, inputs))
        torch.testing.assert_close(now.mean, wanted.mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(now.variance, wanted.variance, rtol=1e-2, atol=1e-3)
        assert knobs.shift(name, torch.full_like(now.mean, -0.2))
        shifted = moments_of(currents_of(network, name, inputs))
        torch.testing.assert_close(shifted.mean, now.mean - 0.2, rtol=1e-3, atol=1e-4)
    assert not knobs.shift("no such layer", torch.zeros(1))


@pytest.mark.parametrize("name", ["stages.1.neuron", "hidden_neuron"])
def test_weights_that_were_changed_are_found_again(
    make_checkpoint: MakeCheckpoint, data: Batches, name: str
):
    checkpoint = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    inputs = [x for x, _ in data]
    wanted = currents_of(checkpoint.network(), name, inputs)
    changed = checkpoint.network().requires_grad_(False)
    knobs = Knobs(changed)
    module = knobs.weights(name)
    assert module is not None
    module.weight += 0.1 * torch.randn_like(module.weight)
    before = (currents_of(changed, name, inputs) - wanted).square().mean()
    assert fit_weights(changed, knobs, name, inputs, wanted)
    after = (currents_of(changed, name, inputs) - wanted).square().mean()
    assert after < before / 100


def test_the_mean_logits_are_the_parents(make_checkpoint: MakeCheckpoint, data: Batches):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    inputs = [x for x, _ in data]
    mean = {}
    with torch.no_grad():
        for parts in (("closed-form",), ("closed-form", "bias")):
            child = calibrate(parent, inputs, Calibration("hard", parts)).network()  # type: ignore[arg-type]
            drift = [child(x).logits - parent.network()(x).logits for x in inputs]
            mean[parts] = torch.cat(drift, 1).mean((0, 1)).abs().max().item()
    assert mean["closed-form", "bias"] < 1e-5 < 1e-3 < mean[("closed-form",)]


def test_what_cannot_be_calibrated_is_refused(make_checkpoint: MakeCheckpoint, data: Batches):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    with pytest.raises(ConversionError, match="needs inputs"):
        calibrate(parent, [])
    with pytest.raises(ConversionError, match="part 'guessing'"):
        Calibration("soft", ("guessing",))  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="family 'firm'"):
        Calibration("firm")  # type: ignore[arg-type]
    glif = make_checkpoint(GLIFConfig(), dtype=torch.float32)
    with pytest.raises(ConversionError, match=r"gate alpha is 0\.55"):
        calibrate(glif, [data[0][0]])


def test_the_report_says_all_in_three_forms(make_checkpoint: MakeCheckpoint, data: Batches):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    how = Calibration("hard", ("closed-form", "refinement"))
    inputs = [x for x, _ in data[:2]]
    child = calibrate(parent, inputs, how)
    network = parent.network()
    (judgement,) = judge(network, [child.network()], data[2:], fan_out=fan_out(network))
    steps = ablation(parent, inputs, data[2:], how)
    assert [label for label, _ in steps] == ["no calibration", "+ closed-form", "+ refinement"]
    assert steps[-1][1].total_mismatch == judgement.total_mismatch
    report = ConversionReport(
        "parent", "child", "hard", "train", "test", judgement, (800, 400), steps
    )
    content = json.loads(report.to_json())
    assert content["judgement"]["gained"] - content["judgement"]["lost"] == pytest.approx(
        judgement.change * judgement.samples / 100
    )
    assert content["judgement"]["synaptic_operations"]["parent"] > 0
    assert set(content["judgement"]["rate_drift"]) == set(network.neuron_shapes())
    picture = ElementTree.fromstring(report.svg())
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert "stages.0.neuron" in texts
    assert "+ refinement" in texts
    low, high = content["judgement"]["interval_95_points"]
    assert low <= judgement.change <= high


def test_the_state_of_a_lif_is_half_that_of_a_clif(make_checkpoint: MakeCheckpoint):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    child = convert_to_lif(parent, reset="soft")
    neurons = 4 * 4 * 4 + 6 * 4 * 4 + 8
    assert state_bytes(child.network()) == 4 * neurons
    assert state_bytes(parent.network()) == 8 * neurons


@pytest.mark.parametrize("family", ["hard", "nir"])
def test_currents_of_many_thresholds(
    make_checkpoint: MakeCheckpoint, data: Batches, family: Family
):
    """After its reset the parent is still above its threshold, where no hard reset can lead."""
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    inputs = [x for x, _ in data[:2]]
    parent.tensors["stages.0.bn.bias"] += 9
    child = calibrate(parent, inputs, Calibration(family))
    layer = child.network().neuron_layers()["stages.0.neuron"]
    neuron = layer.neuron()
    assert (torch.as_tensor(neuron.reset_value) < torch.as_tensor(neuron.threshold)).all()
