"""Feedback networks: published sizes, the equilibrium that spikes approach, and its implicit gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.energy import fan_out, synaptic_operations
from spiketrain.implicit import Solver, at_equilibrium
from spiketrain.manifest import ImageInput, Manifest, NetworkSpec
from spiketrain.networks import build_network
from spiketrain.networks.feedback import FeedbackNetwork
from spiketrain.neurons import CLIFConfig, FeedbackLIFConfig

# Neurons, as the paper's table has them without the input's, and parameters.
PUBLISHED = [
    ("feedback-f400", {}, 400, 478_811),
    ("feedback-64c5s", {}, 12_544, 229_643),
    ("feedback-64c5s", {"input_shape": (2, 34, 34), "padding": 1}, 16_384, 269_643),
    ("feedback-64c5s", {"input_shape": (2, 34, 34)}, 18_496, 290_763),
    ("feedback-alexnet", {}, 155_648, 3_709_515),
    ("feedback-alexnet", {"classes": 100}, 155_648, 5_184_165),
    ("feedback-cifarnet", {}, 229_376, 11_840_011),
    ("feedback-cifarnet", {"classes": 100}, 229_376, 14_789_221),
]
SMALL: dict[str, dict[str, Any]] = {
    "feedback-f400": {"input_shape": (1, 4, 4), "classes": 3, "hidden": 12},
    "feedback-64c5s": {"input_shape": (2, 8, 8), "classes": 3, "channels": 4},
    "feedback-alexnet": {
        "input_shape": (3, 8, 8),
        "classes": 3,
        "layers": ((4, 2), (6, 1), (8, 2), (8, 1), (6, 1)),
    },
}
LIF = FeedbackLIFConfig(keep=0.9, threshold=1.0)


def small(name: str, neuron: FeedbackLIFConfig = LIF, **more: Any) -> FeedbackNetwork:
    torch.manual_seed(0)
    network = build_network(name, SMALL[name] | {"dropout": 0.0} | more, neuron, timesteps=6)
    assert isinstance(network, FeedbackNetwork)
    network = network.double()
    spectral: Any = network.feedback.parametrizations.weight  # type: ignore[union-attr]
    for _ in range(100):
        spectral[0].iterate(spectral.original)
    return network.eval()


def pictures(network: FeedbackNetwork, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *network.input_shape, dtype=torch.float64, generator=generator)


def solved(network: FeedbackNetwork, encoded: Tensor) -> Tensor:
    a = encoded.new_zeros(len(encoded), *network.neuron_shapes()["average"])
    for _ in range(200):
        a = network.equilibrium(a, encoded)
    return a


@pytest.mark.parametrize(("name", "arguments", "neurons", "parameters"), PUBLISHED)
def test_published_sizes(
    name: str, arguments: dict[str, Any], neurons: int, parameters: int
) -> None:
    network = build_network(name, arguments, FeedbackLIFConfig(), 5)
    assert sum(p.numel() for p in network.parameters()) == parameters
    shapes = network.neuron_shapes()
    assert sum(torch.Size(shapes[n]).numel() for n in shapes if n != "average") == neurons


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_all_timesteps_at_once_are_single_timesteps(name: str) -> None:
    network = small(name)
    x = pictures(network)
    run = network(x, 6)
    state = network.initial_state(3)
    for t in range(6):
        output = network.step(x, state)
        state = output.state
        assert torch.equal(output.logits, run.logits[t])
    frames = network(x.expand(6, *x.shape))
    torch.testing.assert_close(frames.logits, run.logits)


@torch.no_grad()
def test_two_timesteps_by_hand() -> None:
    network = small("feedback-f400")
    x = pictures(network, 1)
    current, w = network.encode(x), network.feedback.weight
    s1 = (current >= 1).double()
    h2 = 0.9 * (current - s1) + current + s1 @ w.T  # type: ignore[operator]
    s2 = (h2 >= 1).double()
    rate = (0.9 * s1 + s2) / 1.9
    expected = rate @ network.linear.weight.T + network.linear.bias
    torch.testing.assert_close(network(x, 2).logits[-1], expected)


@pytest.mark.parametrize("keep", [1.0, 0.99])
@torch.no_grad()
def test_spikes_approach_the_equilibrium(keep: float) -> None:
    network = small("feedback-f400", FeedbackLIFConfig(keep=keep, threshold=1.0))
    x = pictures(network)
    state = network(x, 1500).state["average"]
    rate = state.total / state.weight.view(-1, 1)
    a = solved(network, network.encode(x))
    # What a neuron holds back, at most a few thresholds, is spread over the timesteps that count.
    counted = 1500 if keep == 1 else 1 / (1 - keep)
    assert (rate - a).abs().max() < 4 / counted
    assert a.std() > 0.1


@pytest.mark.parametrize("name", SMALL)
def test_autocast_gives_the_gradient_to_its_precision(name: str) -> None:
    network = small(name).float()
    encoded = network.encode(pictures(network, 16).float()).detach()
    with torch.no_grad():
        a = solved(network, encoded)
    weights = torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    gradients: list[Tensor] = []
    for enabled in (False, True):
        parameters = list(network.feedback.parameters()) + list(network.units.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            at = at_equilibrium(lambda z: network.equilibrium(z, encoded), a, Solver())
        assert at.dtype == torch.float32
        found = torch.autograd.grad((at * weights).sum(), parameters)
        assert all(gradient.dtype == torch.float32 for gradient in found)
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    exact, rounded = gradients
    # Rounding also decides for some neurons whether they are saturated, which passes nothing on.
    assert (exact - rounded).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["broyden", "iteration"])
def test_the_gradient_is_that_of_the_unrolled_equilibrium(name: str, kind: Any) -> None:
    network = small(name)
    encoded = network.encode(pictures(network))
    with torch.no_grad():
        a = solved(network, encoded)
    weights = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(2))
    parameters = [p for name, p in network.named_parameters() if "linear" not in name]
    implicit = at_equilibrium(
        lambda z: network.equilibrium(z, encoded), a, Solver(kind, 300, 1e-15)
    )
    torch.testing.assert_close(implicit, a)
    ours = torch.autograd.grad((implicit * weights).sum(), parameters, retain_graph=True)
    unrolled = torch.autograd.grad((solved(network, encoded) * weights).sum(), parameters)
    assert max(g.abs().max() for g in unrolled) > 0.01
    for mine, theirs in zip(ours, unrolled, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)


def test_the_gradient_is_that_of_finite_differences() -> None:
    network = small("feedback-f400")
    x = pictures(network)
    a = solved(network, network.encode(x)).detach()
    encoded = network.encode(x)
    at = at_equilibrium(lambda z: network.equilibrium(z, encoded), a, Solver("broyden", 60, 1e-14))
    weight = network.encoder[1].weights.weight  # type: ignore[index]
    (gradient,) = torch.autograd.grad((at**2).sum(), weight)
    step = 1e-6
    for i, j in ((0, 0), (3, 7), (11, 15)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[i, j] += sign * step
                values.append((solved(network, network.encode(x)) ** 2).sum())
                weight[i, j] -= sign * step
        torch.testing.assert_close(
            gradient[i, j], (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize("name", ["feedback-f400", "feedback-64c5s"])
def test_training_reduces_the_loss_and_moves_the_feedback(name: str) -> None:
    network = small(name, dropout=0.1).train()
    x, y = pictures(network, 12), torch.arange(12) % 3
    before = {k: v.detach().clone() for k, v in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        logits = network(x).logits
        assert logits.shape == (1, 12, 3)
        loss = torch.nn.functional.cross_entropy(logits[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(
        not torch.equal(before[k], v) for k, v in network.named_parameters() if "feedback" in k
    )


@torch.no_grad()
def test_evaluation_leaves_the_network_as_it_is() -> None:
    network = small("feedback-alexnet")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(pictures(network))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    norm = torch.linalg.matrix_norm(network.feedback.weight.flatten(1), 2)  # type: ignore[operator]
    torch.testing.assert_close(norm, torch.tensor(1.0, dtype=torch.float64), rtol=1e-3, atol=0)


@torch.no_grad()
def test_synaptic_operations_count_the_feedback() -> None:
    network = small("feedback-64c5s")
    reach = fan_out(network)
    # In the middle of the map, a spike reaches 25 taps of 4 maps, and its own average.
    assert reach["neurons.0"][0, 2, 1].item() >= 4 * 12
    spikes = network(pictures(network), 1).spikes["neurons.0"][0]
    assert (synaptic_operations({"neurons.0": spikes}, reach) > 0).all()
    flat = build_network("feedback-f400", SMALL["feedback-f400"], LIF, 3)
    assert set(fan_out(flat)["neurons.0"].tolist()) == {12 + 1}


def test_a_checkpoint_keeps_the_answers(tmp_path: Path) -> None:
    arguments = SMALL["feedback-64c5s"] | {"input_shape": (3, 8, 8)}
    network = build_network("feedback-64c5s", arguments, LIF, 6).eval()
    manifest = Manifest(
        name="feedback",
        network=NetworkSpec(name="feedback-64c5s", arguments=arguments),
        neuron=LIF,
        timesteps=6,
        input=ImageInput(shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=("a", "b", "c"),
        readout=network.logit_readout,
    )
    save_checkpoint(tmp_path / "f.safetensors", manifest, network.state_dict())
    loaded = load_checkpoint(tmp_path / "f.safetensors").network().eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, network(x).logits)


@pytest.mark.parametrize(
    ("name", "arguments", "neuron", "message"),
    [
        ("feedback-f400", {}, CLIFConfig(), "takes 'feedback-lif'"),
        (
            "feedback-alexnet",
            {"layers": ((4, 2), (4, 1))},
            FeedbackLIFConfig(),
            "enlarges by 2",
        ),
    ],
)
def test_what_makes_no_feedback_network_is_refused(
    name: str, arguments: dict[str, Any], neuron: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(name, arguments, neuron, 5)
