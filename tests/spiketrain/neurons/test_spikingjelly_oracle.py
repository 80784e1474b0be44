"""SpikingJelly's neurons, spike for spike, in float64 over thousands of random neurons, and their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    LIFConfig,
    NeuronConfig,
    NeuronLayer,
    PLIFConfig,
)
from spiketrain.surrogate import Arctangent, Rectangle, Sigmoid

neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")

STEPS, NEURONS = 200, 4000


def currents(steps: int, *shape: int, seed: int = 0) -> Tensor:
    """Currents around a level of each neuron's own, so that some are nearly silent and some nearly always fire."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(shape, dtype=torch.float64, generator=generator) * 1.6 - 0.2
    return level + 0.8 * torch.randn(steps, *shape, dtype=torch.float64, generator=generator)


def check_same_spikes(config: NeuronConfig, node: Any, x: Tensor) -> NeuronLayer:
    layer = NeuronLayer(config, channels=x.shape[2], timesteps=len(x)).double()
    with torch.no_grad():
        expected = node(x)
        spikes, state = layer(x)
    assert torch.equal(spikes, expected)
    assert 0.05 < spikes.mean() < 0.95
    torch.testing.assert_close(state[0], node.v, atol=1e-10, rtol=0)
    return layer


@pytest.mark.parametrize("tau", [2.0, 3.7])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.06, 0.2])
def test_lif(tau: float, decay_input: bool, v_reset: float | None) -> None:
    node = neuron.LIFNode(tau=tau, decay_input=decay_input, v_reset=v_reset, step_mode="m")
    config = LIFConfig(
        tau=tau,
        decay_input=decay_input,
        reset="soft" if v_reset is None else "hard",
        reset_value=v_reset or 0.0,
        rest=v_reset or 0.0,
    )
    x = currents(STEPS, 4, NEURONS // 4) * (tau if decay_input else 1.0)
    check_same_spikes(config, node.double(), x)


@pytest.mark.parametrize("initial_tau", [1.3, 2.0, 6.0])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0, -0.1])
def test_plif(initial_tau: float, decay_input: bool, v_reset: float | None) -> None:
    node = neuron.ParametricLIFNode(initial_tau, decay_input, v_reset=v_reset, step_mode="m")
    config = PLIFConfig(
        initial_tau=initial_tau,
        decay_input=decay_input,
        reset="soft" if v_reset is None else "hard",
        reset_value=v_reset or 0.0,
        rest=v_reset or 0.0,
    )
    x = currents(STEPS, 4, NEURONS // 4) * (initial_tau if decay_input else 1.0)
    check_same_spikes(config, node.double(), x)


@pytest.mark.parametrize("tau", [2.0, 1.5, 5.0])
def test_clif(tau: float) -> None:
    node = neuron.ComplementaryLIFNode(tau=tau, step_mode="m").double()
    check_same_spikes(CLIFConfig(tau=tau), node, currents(STEPS, 4, NEURONS // 4))


NAMES_IN_SPIKINGJELLY = {
    "threshold": "v_threshold",
    "leak": "linear_decay",
    "subtract": "v_subreset",
}


def glif_pair(steps: int, channels: int) -> tuple[NeuronLayer, Any]:
    """Ours and theirs with the same random parameters."""
    config = GLIFConfig(surrogate=Sigmoid(alpha=4.0))
    layer = NeuronLayer(config, channels, steps).double()
    node = neuron.GatedLIFNode(T=steps, inplane=channels).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
            getattr(node, NAMES_IN_SPIKINGJELLY.get(name, name)).copy_(parameter)
    return layer, node


def test_glif() -> None:
    # Theirs fires at the threshold, ours only above: with continuous random currents nothing is ever at it.
    layer, node = glif_pair(STEPS, 25)
    x = currents(STEPS, 4, 25, 8, 5)
    with torch.no_grad():
        expected = node(x)
        spikes, state = layer(x)
    assert torch.equal(spikes, expected)
    assert 0.05 < spikes.mean() < 0.95
    torch.testing.assert_close(state.u, node.v, atol=1e-10, rtol=0)


def check_same_gradients(layer: NeuronLayer, node: Any, x: Tensor) -> None:
    weight = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(7))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (layer(ours)[0] * weight).sum().backward()
    (node(theirs) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-10, rtol=1e-8)
    assert ours.grad is not None
    assert ours.grad.abs().sum() > 0
    for name, parameter in layer.named_parameters():
        expected = getattr(node, NAMES_IN_SPIKINGJELLY.get(name, name)).grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [None, -0.06])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sigmoid(alpha=4.0), surrogate.Sigmoid(4.0)),
        (Arctangent(alpha=2.0), surrogate.ATan(2.0)),
        # Their alpha is the height of the window, our width its width.
        (Rectangle(width=2.0), surrogate.Rect(0.5)),
    ],
    ids=["sigmoid", "arctangent", "rectangle"],
)
def test_gradients_of_lif(
    ours: Any, theirs: Any, v_reset: float | None, detach_reset: bool
) -> None:
    node = neuron.LIFNode
    config = LIFConfig(
        tau=3.0,
        reset="soft" if v_reset is None else "hard",
        reset_value=v_reset or 0.0,
        rest=v_reset or 0.0,
        detach_reset=detach_reset,
        surrogate=ours,
    )
    x = currents(12, 4, 100)
    layer = NeuronLayer(config, 100, 12).double()
    check_same_gradients(
        layer,
        node(3.0, False, 1.0, v_reset, theirs, detach_reset, step_mode="m").double(),
        x,
    )


@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_gradients_of_plif_and_of_its_leak(decay_input: bool, v_reset: float | None) -> None:
    config = PLIFConfig(
        decay_input=decay_input, reset="soft" if v_reset is None else "hard", detach_reset=False
    )
    node = neuron.ParametricLIFNode(
        2.0, decay_input, 1.0, v_reset, surrogate.ATan(2.0), step_mode="m"
    ).double()
    layer = NeuronLayer(config, 100, 12).double()
    check_same_gradients(layer, node, 2 * currents(12, 4, 100))


def test_gradients_of_clif() -> None:
    layer = NeuronLayer(CLIFConfig(tau=2.5), 100, 12).double()
    node = neuron.ComplementaryLIFNode(tau=2.5, step_mode="m").double()
    check_same_gradients(layer, node, currents(12, 4, 100))


def test_gradients_of_glif_and_of_all_its_parameters() -> None:
    layer, node = glif_pair(12, 7)
    check_same_gradients(layer, node, currents(12, 4, 7, 5, 3))
