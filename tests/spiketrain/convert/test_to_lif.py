from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.convert import ConversionError, convert_to_lif
from spiketrain.networks import Network
from spiketrain.neurons import CLIF, LIF, CLIFConfig, GLIFConfig, ILIFConfig, LIFConfig, PLIFConfig
from spiketrain.surrogate import Rectangle, Sigmoid

MakeCheckpoint = Callable[..., Checkpoint]
Batches = list[tuple[Tensor, Tensor]]


def network_of(checkpoint: Checkpoint) -> Network:
    """In float64, so that no spike hangs on the last bit of a float32."""
    network = checkpoint.network().double()
    network.load_state_dict(checkpoint.tensors)
    return network


def spikes_of(checkpoint: Checkpoint, batches: Batches) -> dict[str, Tensor]:
    network = network_of(checkpoint)
    with torch.no_grad():
        runs = [network(x).spikes for x, _ in batches]
    spikes = {name: torch.cat([run[name] for run in runs], 1) for name in runs[0]}
    assert all(0 < layer.mean() < 0.9 for layer in spikes.values())
    return spikes


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def with_neuron(checkpoint: Checkpoint, neuron: LIFConfig) -> Checkpoint:
    return checkpoint._replace(manifest=checkpoint.manifest.model_copy(update={"neuron": neuron}))


@pytest.mark.parametrize("b", [0.02, 0.06, 0.1])
def test_hard_reset_with_moving_rest_is_a_higher_threshold(
    make_checkpoint: MakeCheckpoint, batches: Batches, b: float
):
    parent = make_checkpoint(CLIFConfig())
    moving = convert_to_lif(parent, reset="hard", value=-b, rest="reset")
    shifted = with_neuron(
        parent, LIFConfig(reset="hard", reset_value=0.0, rest=0.0, threshold=1 + b)
    )
    still = convert_to_lif(parent, reset="hard", value=-b, rest="zero")
    assert same(spikes_of(moving, batches), spikes_of(shifted, batches))
    assert not same(spikes_of(moving, batches), spikes_of(still, batches))


def test_both_readings_of_rest_are_what_they_say(make_checkpoint: MakeCheckpoint):
    parent = make_checkpoint(CLIFConfig())
    moving = convert_to_lif(parent, reset="hard", value=-0.06, rest="reset").manifest.neuron
    still = convert_to_lif(parent, reset="hard", value=-0.06, rest="zero").manifest.neuron
    assert moving == LIFConfig(reset="hard", reset_value=-0.06, rest=-0.06)
    assert still == LIFConfig(reset="hard", reset_value=-0.06, rest=0.0)


def test_a_lif_parent_converted_soft_is_the_same_to_the_last_bit(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    parent = make_checkpoint(LIFConfig(tau=1.7, rest=0.1, surrogate=Sigmoid()))
    child = convert_to_lif(parent, reset="soft")
    assert child.manifest.neuron == parent.manifest.neuron
    x = batches[0][0]
    with torch.no_grad():
        assert torch.equal(network_of(parent)(x).logits, network_of(child)(x).logits)


def test_thresholds_by_channel_stay_and_other_values_by_channel_go(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    parent = make_checkpoint(LIFConfig(subtract=1.5, per_channel=("threshold", "subtract")))
    parent.tensors["stages.0.neuron.threshold"].copy_(torch.tensor([0.8, 0.9, 1.0, 1.1]))
    child = convert_to_lif(parent, reset="soft", value=1.5)
    assert not any(name.endswith(".subtract") for name in child.tensors)
    assert same(spikes_of(parent, batches), spikes_of(child, batches))
    child = convert_to_lif(parent, reset="hard", value=-0.1)
    assert child.manifest.neuron.per_channel == ("threshold",)
    spikes_of(child, batches)


def test_plif_is_exact_where_the_reset_is_its_own(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    parent = make_checkpoint(PLIFConfig(decay_input=False, reset_value=-0.2, threshold=0.9))
    for i, name in enumerate(sorted(n for n in parent.tensors if n.endswith(".w"))):
        parent.tensors[name].fill_(0.4 * i - 0.3)
    child = convert_to_lif(parent, reset="hard", value=-0.2)
    assert not any(name.endswith(".w") for name in child.tensors)
    layers = network_of(child).neuron_layers()
    for name, layer in layers.items():
        leak = 1 / (1 + math.exp(-parent.tensors[f"{name}.w"].item()))
        assert 1 / layer.config.tau == pytest.approx(leak, rel=1e-6)
    assert len({layer.config.tau for layer in layers.values()}) == 3
    assert same(spikes_of(parent, batches), spikes_of(child, batches))


def test_plif_with_decayed_input_keeps_it(make_checkpoint: MakeCheckpoint, batches: Batches):
    parent = make_checkpoint(PLIFConfig(threshold=0.4, rest=0.05))
    child = convert_to_lif(parent, reset="soft")
    assert child.manifest.neuron.decay_input
    assert child.manifest.neuron.rest == 0.05
    spikes_of(child, batches)


@pytest.mark.parametrize("config", [CLIFConfig, ILIFConfig])
def test_charge_and_threshold_are_the_parents(
    make_checkpoint: MakeCheckpoint, config: type[CLIFConfig] | type[ILIFConfig]
):
    parent = make_checkpoint(config(tau=1.5, threshold=0.7, surrogate=Sigmoid(alpha=2)))
    child = convert_to_lif(parent, reset="soft", value=1.4).manifest
    assert child.neuron == LIFConfig(
        tau=1.5, threshold=0.7, subtract=1.4, surrogate=Sigmoid(alpha=2)
    )
    assert child.layers == {}


def test_a_decoupled_soft_reset_is_very_nearly_clif():
    """The toy check of one neuron: Gaussian currents, six timesteps, spikes that differ from CLIF's."""
    torch.manual_seed(0)
    differ = {}
    for mean, spread in ((0.3, 0.8), (0.6, 0.6)):
        x = mean + spread * torch.randn(6, 20000, dtype=torch.float64)
        runs = {}
        for key, neuron in {
            "clif": CLIF(),
            "1.8": LIF(subtract=1.8),
            "1.0": LIF(),
            "hard": LIF(reset="hard"),
        }.items():
            state, spikes = neuron.initial_state(x[0]), []
            for current in x:
                s, state = neuron.step(current, state)
                spikes.append(s)
            runs[key] = torch.stack(spikes)
        for key in ("1.8", "1.0", "hard"):
            differ[key] = (runs[key] != runs["clif"]).sum() / runs["clif"].sum()
        assert differ["1.8"] < differ["1.0"] / 4
        assert differ["1.8"] < differ["hard"] / 3


def glif(gates: str = "hard", **values: float) -> GLIFConfig:
    return GLIFConfig.model_validate(
        {"gates": gates, "alpha": 0.6, "beta": 0.4, "gamma": 0.6} | values
    )


@pytest.mark.parametrize(
    ("config", "named", "unnamed"),
    [
        (glif("soft"), ("gate alpha is 0.6", "gate beta is 0.4", "gate gamma is 0.6"), ()),
        (glif(alpha=0.4), ("gate alpha is 0 and a LIF needs 1",), ("beta", "gamma")),
        (glif(beta=0.6), ("gate beta is 1 and a LIF needs 0",), ("alpha", "gamma")),
    ],
)
def test_glif_is_refused_with_the_gate_in_the_way(
    make_checkpoint: MakeCheckpoint,
    config: GLIFConfig,
    named: tuple[str, ...],
    unnamed: tuple[str, ...],
):
    with pytest.raises(ConversionError) as refused:
        convert_to_lif(make_checkpoint(config), reset="soft")
    message = str(refused.value)
    assert message.startswith("stages.0.neuron: this GLIF is no LIF")
    assert all(gate in message for gate in named)
    assert not any(f"gate {gate}" in message for gate in unnamed)


def test_glif_with_a_tau_for_each_channel_is_refused(make_checkpoint: MakeCheckpoint):
    parent = make_checkpoint(glif())
    parent.tensors["stages.1.neuron.tau"][2] += 1
    with pytest.raises(
        ConversionError, match=r"stages\.1\.neuron.*its gates allow one, but tau is 0\.25 to 0\.4"
    ):
        convert_to_lif(parent, reset="soft")


@pytest.mark.parametrize("gamma", [0.6, 0.4])
def test_glif_with_its_gates_at_their_ends_is_a_lif(
    make_checkpoint: MakeCheckpoint, batches: Batches, gamma: float
):
    parent = make_checkpoint(glif(gamma=gamma, threshold=0.7, tau=0.4, subtract=0.3))
    parent.tensors["stages.0.neuron.threshold"] += torch.linspace(-0.2, 0.2, 4)
    if gamma > 0.5:
        child = convert_to_lif(parent, reset="hard", value=0.0)
    else:  # GLIF subtracts after the decay by tau, a LIF before it
        child = convert_to_lif(parent, reset="soft", value=0.3 / 0.4)
    assert child.manifest.neuron.surrogate == Rectangle(strict=True)
    assert same(spikes_of(parent, batches), spikes_of(child, batches))


def test_values_of_layers_and_channels_go_into_the_manifest_and_back(
    make_checkpoint: MakeCheckpoint, batches: Batches, tmp_path: Path
):
    parent = make_checkpoint(CLIFConfig())
    by_channel = torch.tensor([1.7, 1.8, 1.9, 2.0], dtype=torch.float64)
    child = convert_to_lif(
        parent,
        reset="soft",
        value=1.8,
        per_layer={"stages.0.neuron": by_channel, "hidden_neuron": 1.75},
    )
    save_checkpoint(tmp_path / "child.safetensors", child.manifest, child.tensors)
    loaded = load_checkpoint(tmp_path / "child.safetensors")
    assert loaded.manifest == child.manifest
    layers = network_of(loaded).neuron_layers()
    assert layers["stages.1.neuron"].config == LIFConfig(subtract=1.8)
    assert layers["hidden_neuron"].config == LIFConfig(subtract=1.75)
    assert torch.equal(layers["stages.0.neuron"].neuron().subtract, by_channel)
    assert loaded.manifest.conversion.arguments["per_layer"] == {
        "stages.0.neuron": by_channel.tolist(),
        "hidden_neuron": 1.75,
    }
    assert same(spikes_of(loaded, batches), spikes_of(child, batches))


def test_the_child_names_its_parent_and_claims_nothing_of_its(make_checkpoint: MakeCheckpoint):
    parent = make_checkpoint(CLIFConfig())
    child = convert_to_lif(parent, reset="hard", value=-0.06, rest="reset").manifest
    assert child.name == "parent-lif"
    assert child.conversion.parent == parent.manifest.digest
    assert child.conversion.parent_name == "parent"
    assert child.conversion.method == "clif to lif, hard reset"
    assert child.conversion.arguments == {"reset": "hard", "value": -0.06, "rest": "reset"}
    assert child.accuracy == ()
    assert child.firing_rates == {}
    assert child.training == parent.manifest.training


def test_a_parent_that_was_never_saved_is_named_by_its_tensors(make_checkpoint: MakeCheckpoint):
    parent = make_checkpoint(CLIFConfig())
    unsaved = parent._replace(manifest=parent.manifest.model_copy(update={"digest": ""}))
    child = convert_to_lif(unsaved, reset="soft")
    assert child.manifest.conversion.parent == parent.manifest.digest


def test_a_long_name_still_makes_a_name(make_checkpoint: MakeCheckpoint):
    parent = make_checkpoint(CLIFConfig())
    parent = parent._replace(manifest=parent.manifest.model_copy(update={"name": "a" * 64}))
    assert convert_to_lif(parent, reset="soft").manifest.name == "a" * 60 + "-lif"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reset": "hard"}, "hard reset needs a value"),
        ({"reset": "soft", "value": 0.0}, r"stages\.0\.neuron: subtract: .*greater than 0"),
        ({"reset": "soft", "value": float("nan")}, "a number is needed"),
        ({"reset": "hard", "value": float("-inf")}, "a number is needed"),
        ({"reset": "hard", "value": 1.0, "rest": "reset"}, "would fire without input"),
        ({"reset": "soft", "per_layer": {"stages.7.neuron": 1.0}}, "no layer of neurons is called"),
        (
            {
                "reset": "hard",
                "value": 0.0,
                "rest": "reset",
                "per_layer": {"stages.0.neuron": torch.zeros(4)},
            },
            "one rest for a layer",
        ),
        ({"reset": "soft", "name": "Not A Name"}, "name: "),
    ],
)
def test_values_that_make_no_neuron_are_refused(
    make_checkpoint: MakeCheckpoint, arguments: dict[str, object], message: str
):
    with pytest.raises(ConversionError, match=message):
        convert_to_lif(make_checkpoint(CLIFConfig()), **arguments)
