from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert import ConversionError, ResetMoments, closed_form, reset_moments
from spiketrain.networks import Network
from spiketrain.neurons import CLIFConfig, GLIFConfig, ILIFConfig, LIFConfig

MakeCheckpoint = Callable[..., Checkpoint]
Batches = list[tuple[Tensor, Tensor]]


def parent_and_inputs(
    make_checkpoint: MakeCheckpoint, batches: Batches, config: object
) -> tuple[Network, list[Tensor]]:
    checkpoint = make_checkpoint(config)
    network = checkpoint.network().double()
    network.load_state_dict(checkpoint.tensors)
    return network, [x for x, _ in batches]


def test_clif_values_are_the_mean_of_threshold_plus_sigmoid_at_spikes(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    network, inputs = parent_and_inputs(make_checkpoint, batches, CLIFConfig())
    moments = reset_moments(network, inputs)
    soft, hard = closed_form(moments, "soft"), closed_form(moments, "hard")
    assert all(1.731 <= value < 2 for value in soft.values())

    # The first layer again, from CLIF's equations.
    subtracted, after = [], []
    with torch.no_grad():
        for x in inputs:
            current = network.encode(x)
            v = m = torch.zeros_like(current)
            for _ in range(6):
                h = v / 2 + current
                fired = h >= 1
                m = m * torch.sigmoid(h / 2) + fired
                amount = 1 + torch.sigmoid(m)
                v = h - fired * amount
                subtracted.append(amount[fired])
                after.append(v[fired])
    spikes = moments["stages.0.neuron"].spikes
    assert spikes.sum() == sum(map(len, after)) > 100
    assert spikes.shape == (4,)
    assert soft["stages.0.neuron"] == pytest.approx(torch.cat(subtracted).mean().item())
    assert hard["stages.0.neuron"] == pytest.approx(torch.cat(after).mean().item())


def test_ilif_values_are_those_of_clif_and_the_inhibition_that_follows(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    network, inputs = parent_and_inputs(make_checkpoint, batches, ILIFConfig())
    with_inhibition = closed_form(reset_moments(network, inputs), "soft")
    network, inputs = parent_and_inputs(make_checkpoint, batches, ILIFConfig(current_decay=0.0))
    without = closed_form(reset_moments(network, inputs), "soft")
    assert all(1.5 <= value < 2 for value in without.values())

    # The first layer again, from ILIF's equations.
    subtracted = []
    with torch.no_grad():
        for x in inputs:
            current = network.encode(x)
            v = m = inhibition = torch.zeros_like(current)
            for _ in range(6):
                h = v / 2 + current - inhibition.clamp(min=0)
                fired = h >= 1
                m = m + fired * (h - 1)
                inhibition = 0.03 * (inhibition + current * fired)
                v = h - fired * (1 + torch.sigmoid(m))
                subtracted.append((h - v + inhibition.clamp(min=0) / 0.5)[fired])
    expected = torch.cat(subtracted).mean().item()
    assert with_inhibition["stages.0.neuron"] == pytest.approx(expected)
    assert expected > 1.5


def test_a_lif_is_found_to_do_what_it_does(make_checkpoint: MakeCheckpoint, batches: Batches):
    network, inputs = parent_and_inputs(
        make_checkpoint, batches, LIFConfig(subtract=1.4, threshold=0.9, rest=0.1)
    )
    assert closed_form(reset_moments(network, inputs), "soft") == pytest.approx(
        dict.fromkeys(network.neuron_layers(), 1.4)
    )
    network, inputs = parent_and_inputs(
        make_checkpoint, batches, LIFConfig(reset="hard", reset_value=-0.3)
    )
    assert closed_form(reset_moments(network, inputs), "hard") == pytest.approx(
        dict.fromkeys(network.neuron_layers(), -0.3)
    )


def test_glif_is_found_to_subtract_before_its_decay(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    config = GLIFConfig(gates="hard", alpha=0.6, beta=0.4, gamma=0.4, tau=0.4, subtract=0.3)
    network, inputs = parent_and_inputs(make_checkpoint, batches, config)
    values = closed_form(reset_moments(network, inputs), "soft")
    assert values == pytest.approx(dict.fromkeys(network.neuron_layers(), 0.3 / 0.4))


def test_event_frames_are_run_in_their_own_order(make_checkpoint: MakeCheckpoint, batches: Batches):
    network, inputs = parent_and_inputs(make_checkpoint, batches, CLIFConfig())
    constant = reset_moments(network, inputs[:1])
    repeated = reset_moments(network, [inputs[0].expand(6, *inputs[0].shape)])
    assert closed_form(constant, "soft") == pytest.approx(closed_form(repeated, "soft"))


def test_a_silent_layer_takes_the_mean_of_the_others():
    moments = {
        "a": ResetMoments(
            torch.tensor([1.0, 1.0]), torch.tensor([1.7, 1.9]), torch.tensor([-0.2, -0.4])
        ),
        "b": ResetMoments(torch.tensor([2.0]), torch.tensor([3.8]), torch.tensor([-0.8])),
        "silent": ResetMoments(torch.zeros(1), torch.zeros(1), torch.zeros(1)),
    }
    assert closed_form(moments, "soft") == pytest.approx({"a": 1.8, "b": 1.9, "silent": 1.85})
    assert closed_form(moments, "hard") == pytest.approx({"a": -0.3, "b": -0.4, "silent": -0.35})


def test_no_spikes_at_all_are_refused(make_checkpoint: MakeCheckpoint, batches: Batches):
    network, inputs = parent_and_inputs(make_checkpoint, batches, CLIFConfig(threshold=1e6))
    with pytest.raises(ConversionError, match="no neuron fired"):
        closed_form(reset_moments(network, inputs), "soft")
    with pytest.raises(ConversionError, match="no neuron fired"):
        closed_form({}, "soft")
