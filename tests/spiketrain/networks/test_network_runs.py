"""Every network with every neuron: T timesteps at once are one timestep T times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain.networks import NETWORKS, Network, PlifNet, SharedDropout, build_network
from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronConfig,
    PLIFConfig,
)

T = 3
# Small pictures, so that float64 convolutions, in which no spike flips, take no time.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "small-conv": {"input_shape": (2, 12, 12), "channels": (4, 6, 8), "hidden": 10},
    "spiking-resnet18": {"input_shape": (3, 25, 25)},
    "spiking-resnet34": {"input_shape": (3, 25, 25)},
    "spiking-vgg11": {"input_shape": (2, 32, 32)},
    "spiking-vgg13": {"input_shape": (3, 32, 32), "classes": 20},
    "spiking-vgg9": {"input_shape": (2, 32, 32)},
    "vggsnn": {"input_shape": (2, 16, 16)},
    "snn5": {"input_shape": (3, 32, 32)},
    "snn5-strided": {"input_shape": (3, 32, 32)},
    "tdbn-cifarnet": {"input_shape": (3, 8, 8)},
    "tdbn-resnet18": {"input_shape": (3, 8, 8)},
    "tdbn-resnet19": {"input_shape": (3, 8, 8), "classes": 60},
    "ms-resnet18": {"input_shape": (3, 48, 48), "classes": 10},
    "sew-7b-wide": {"input_shape": (2, 16, 16)},
    "plif-mnist": {"input_shape": (1, 8, 8), "hidden": 64},
    "ms-resnet34": {"input_shape": (3, 48, 48), "classes": 10},
    "plif-nmnist": {"input_shape": (2, 10, 10), "pooling": "average"},
    "plif-cifar10": {"input_shape": (3, 8, 8), "hidden": 64},
    "plif-cifar10-dvs": {"input_shape": (2, 16, 16)},
    "plif-dvs-gesture": {"input_shape": (2, 32, 32)},
}
NEURONS: dict[str, NeuronConfig] = {
    "lif": LIFConfig(),
    "lif-hard": LIFConfig(reset="hard", reset_value=-0.06, rest=-0.06),
    "plif": PLIFConfig(),
    "clif": CLIFConfig(),
    "ilif": ILIFConfig(),
    "glif": GLIFConfig(),
}
# The same classes as others, with longer plans.
LIKE_OTHERS = ("ms-resnet34", "plif-cifar10", "plif-cifar10-dvs", "plif-dvs-gesture")
# All neurons in one network of each kind.
FAMILIES = ("small-conv", "spiking-resnet18", "spiking-vgg11")
PAIRS = [
    *((network, neuron) for network in FAMILIES for neuron in NEURONS),
    *((network, "clif") for network in ARGUMENTS if network not in (*FAMILIES, *LIKE_OTHERS)),
]
FEED_FORWARD = [name for name in NETWORKS if name != "graph" and not name.startswith("feedback-")]


def pictures(network: Network, *leading: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*leading, *network.input_shape, dtype=torch.float64, generator=generator)


def lively(name: str, neuron: str, **arguments: Any) -> Network:
    """A network in float64 and eval mode whose batch norms have seen data and whose layers all fire."""
    torch.manual_seed(0)
    network = build_network(name, ARGUMENTS[name] | arguments, NEURONS[neuron], T).double()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean of what it sees
        torch.nn.init.uniform_(norm.weight, 0.8, 1.5)
        torch.nn.init.uniform_(norm.bias, 0.1, 0.5)
    if isinstance(network, PlifNet):  # its linear layers have no batch norm to make them fire
        for linear in (network.linear1, network.linear2):
            torch.nn.init.uniform_(linear.weight, -0.2, 0.25)
    network.train()
    with torch.no_grad():
        network(pictures(network, 2, seed=9), timesteps=2)
    return network.eval()


def steps(network: Network, x: Tensor, state: Any) -> tuple[Tensor, dict[str, list[Tensor]], Any]:
    logits, spikes = [], {}
    for one in x:
        output = network.step(one, state)
        state = output.state
        logits.append(output.logits)
        for layer, s in output.spikes.items():
            spikes.setdefault(layer, []).append(s)
    return torch.stack(logits), spikes, state


@pytest.mark.parametrize(("name", "neuron"), PAIRS)
def test_all_timesteps_at_once_are_single_timesteps(name: str, neuron: str) -> None:
    network = lively(name, neuron)
    batch = 4 if name == "small-conv" else 1
    x = pictures(network, T, batch)
    with torch.no_grad():
        run = network(x)
        logits, spikes, state = steps(network, x, network.initial_state(batch))
        assert run.logits.shape == (T, batch, network.classes)
        torch.testing.assert_close(run.logits, logits)
        for layer, s in run.spikes.items():
            assert torch.equal(s, torch.stack(spikes[layer]))
        assert min(s.mean() for s in run.spikes.values()) > 0
        # From the state in the middle of a run, single timesteps go on where the run goes on.
        middle = network(x[:1]).state
        rest, _, end = steps(network, x[1:], middle)
        torch.testing.assert_close(rest, run.logits[1:])
        for layer in end:
            torch.testing.assert_close(end[layer], run.state[layer])
            torch.testing.assert_close(state[layer], run.state[layer])
        # Else the state would not matter, and the lines above would show nothing.
        fresh, _, _ = steps(network, x[1:], network.initial_state(batch))
        assert not torch.allclose(fresh, rest)


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_every_feed_forward_network_runs_with_every_neuron(name: str) -> None:
    """And with neurons of several kinds in one network."""
    with torch.device("meta"):  # shapes and types of everything, and no arithmetic
        for neuron, config in NEURONS.items():
            network = build_network(name, ARGUMENTS[name], config, 2).eval()
            layers = network.neuron_layers()
            assert all(layer.config == config for layer in layers.values())
            x = torch.zeros(1, *network.input_shape)
            output = network.step(x, network.initial_state(1))
            assert output.logits.shape == (1, network.classes), neuron
            assert output.spikes.keys() == layers.keys()
        mixed = dict(zip(layers, 20 * list(NEURONS.values()), strict=False))
        network = build_network(name, ARGUMENTS[name], CLIFConfig(), 2, mixed).eval()
        output = network.step(x, network.initial_state(1))
        assert output.spikes.keys() == layers.keys()
        assert len({type(layer.config) for layer in network.neuron_layers().values()}) >= 3


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_samples_answer_does_not_depend_on_its_neighbours(neuron: str) -> None:
    network = lively("small-conv", neuron)
    x = pictures(network, T, 4)
    with torch.no_grad():
        together = network(x).logits
        for sample in range(4):
            alone = network(x[:, sample : sample + 1]).logits
            torch.testing.assert_close(together[:, sample : sample + 1], alone)
        shuffled = network(x[:, [2, 0, 3, 1]]).logits
        torch.testing.assert_close(shuffled, together[:, [2, 0, 3, 1]])


@pytest.mark.parametrize(
    ("name", "training"),
    [("small-conv", False), *((name, True) for name in FAMILIES)],
)
def test_a_constant_picture_is_the_picture_repeated(name: str, training: bool) -> None:
    """In training too: folding the constant picture's encoding leaves the batch statistics as they are."""
    outputs, statistics = [], []
    for repeated in (False, True):
        network = lively(name, "clif").train(training)
        x = pictures(network, 2)
        outputs.append(network(x.expand(T, *x.shape) if repeated else x))
        statistics.append({k: v for k, v in network.named_buffers() if "running" in k})
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    assert outputs[0].spikes.keys() == outputs[1].spikes.keys()
    for layer in outputs[0].spikes:
        assert torch.equal(outputs[0].spikes[layer], outputs[1].spikes[layer])
    for key, value in statistics[0].items():
        # The unbiased variance of n numbers and of each of them T times differ by less than 1/n.
        rtol = 1e-6 if "mean" in key else 2e-2
        torch.testing.assert_close(value, statistics[1][key], rtol=rtol, atol=1e-9)


def test_timesteps_of_a_constant_picture_can_be_chosen() -> None:
    network = lively("small-conv", "clif")
    x = pictures(network, 2)
    with torch.no_grad():
        assert network(x).logits.shape[0] == T
        longer = network(x, timesteps=9).logits
        torch.testing.assert_close(longer[:T], network(x).logits)
    assert longer.shape[0] == 9


def test_gradients_reach_every_parameter() -> None:
    for neuron in NEURONS:
        network = lively("small-conv", neuron).train()
        network(pictures(network, T, 3)).logits.square().sum().backward()
        missing = [
            name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()
        ]
        assert not missing, neuron


def test_the_dropout_mask_is_one_for_all_timesteps() -> None:
    torch.manual_seed(0)
    dropout = SharedDropout(0.3)
    x = torch.ones(6 * 50, 40)
    y = dropout(x, 6).unflatten(0, (6, 50))
    assert all(torch.equal(y[0], other) for other in y)
    kept = y[0] != 0
    assert 0.65 < kept.float().mean() < 0.75
    torch.testing.assert_close(y[0][kept], torch.full_like(y[0][kept], 1 / 0.7))
    assert not torch.equal(y[0, 0], y[0, 1])
    assert torch.equal(dropout.eval()(x, 6), x)


def test_dropout_in_a_network_silences_a_unit_for_the_whole_run() -> None:
    network = lively("small-conv", "clif", dropout=0.5)
    network.dropout.train()
    seen: list[Tensor] = []
    network.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = pictures(network, 3)
    with torch.no_grad():
        spikes = network(x).spikes["stages.2.neuron"].flatten(2)
    features = seen[0].unflatten(0, (T, 3))
    silenced = (features == 0).all(0) & (spikes != 0).any(0)
    assert silenced.any()
    # What is not silenced is all there, at every timestep.
    assert torch.equal(features, 2 * spikes * ~silenced)


@pytest.mark.parametrize("shape", [(2, 12), (12, 12), (1, 1, 1, 2, 12, 12)])
def test_an_input_of_a_wrong_rank_is_refused(shape: tuple[int, ...]) -> None:
    network = lively("small-conv", "lif")
    with pytest.raises(ValueError, match="expected"):
        network(torch.zeros(shape, dtype=torch.float64))
