"""A layer over T timesteps is its step T times, whole or in pieces, and differentiates like a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    NeuronConfig,
    NeuronLayer,
    PLIFConfig,
)
from spiketrain.surrogate import Arctangent, Rectangle, Sigmoid, Surrogate

NEURONS = [
    pytest.param(LIFConfig(), id="lif-soft"),
    pytest.param(LIFConfig(reset="hard", reset_value=-0.1, rest=0.05), id="lif-hard"),
    pytest.param(LIFConfig(per_channel=("threshold", "subtract")), id="lif-per-channel"),
    pytest.param(PLIFConfig(), id="plif"),
    pytest.param(CLIFConfig(), id="clif"),
    pytest.param(ILIFConfig(), id="ilif"),
    pytest.param(GLIFConfig(), id="glif"),
]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)


def currents(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(*shape, dtype=torch.float64, generator=generator) + 0.6).to(dtype)


@pytest.mark.parametrize("config", NEURONS)
@DTYPES
def test_running_is_stepping(config: NeuronConfig, dtype: torch.dtype) -> None:
    layer = NeuronLayer(config, 5, 12).to(dtype)
    x = currents(12, 3, 5, 7, 6, dtype=dtype)
    with torch.no_grad():
        spikes, last = layer(x)
        state = layer.initial_state(x[0])
        for t, current in enumerate(x):
            s, state = layer.step(current, state)
            assert torch.equal(spikes[t], s)
    assert type(last) is type(state)
    for whole, stepped in zip(last, state, strict=True):
        torch.testing.assert_close(whole, stepped)
    assert 0 < spikes.mean() < 1


@pytest.mark.parametrize("config", NEURONS)
@DTYPES
def test_pieces_are_the_whole_with_their_gradients(
    config: NeuronConfig, dtype: torch.dtype
) -> None:
    layer = NeuronLayer(config, 5, 12).to(dtype)
    weight = torch.randn(12, 3, 5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for cuts in ([12], [5, 4, 3], [1, 11]):
        x = currents(12, 3, 5, 7, dtype=dtype).requires_grad_()
        layer.zero_grad()
        state, pieces = None, []
        for part in x.split(cuts):
            spikes, state = layer(part, state)
            pieces.append(spikes)
        spikes = torch.cat(pieces)
        (spikes * weight).sum().backward()
        results.append(
            (
                spikes,
                state,
                x.grad,
                [p.grad.clone() for p in layer.parameters() if p.grad is not None],
            )
        )
    whole = results[0]
    for pieces_ in results[1:]:
        torch.testing.assert_close(pieces_, whole)


def reference_fire(surrogate: Surrogate) -> Callable[[Tensor], Tensor]:
    """Spikes whose gradient is that of the surrogate's primitive, left to autograd."""

    def fire(u: Tensor) -> Tensor:
        if isinstance(surrogate, Rectangle):
            soft = (u / surrogate.width + 0.5).clamp(0, 1)
        elif isinstance(surrogate, Arctangent):
            soft = (torch.pi / 2 * surrogate.alpha * u).atan() / torch.pi
        else:
            soft = 1 / (1 + (-surrogate.alpha * u).exp())
        return (u >= 0).to(u.dtype) + soft - soft.detach()

    return fire


def lif_loop(x: Tensor, c: LIFConfig) -> Tensor:
    fire, v, spikes = reference_fire(c.surrogate), torch.full_like(x[0], c.rest), []
    for current in x:
        drive = current / c.tau if c.decay_input else current
        h = v + (c.rest - v) / c.tau + drive
        s = fire(h - c.threshold)
        r = s.detach() if c.detach_reset else s
        if c.reset == "soft":
            v = h - r * (c.subtract or c.threshold)
        else:
            v = h + r * (c.reset_value - h)
        spikes.append(s)
    return torch.stack(spikes)


def clif_loop(x: Tensor, c: CLIFConfig) -> Tensor:
    fire, v, m, spikes = (
        reference_fire(c.surrogate),
        torch.zeros_like(x[0]),
        torch.zeros_like(x[0]),
        [],
    )
    for current in x:
        h = v - v / c.tau + current
        s = fire(h - c.threshold)
        m = m / (1 + (-h / c.tau).exp()) + s
        v = h - s * c.threshold - s / (1 + (-m).exp())
        spikes.append(s)
    return torch.stack(spikes)


def ilif_loop(x: Tensor, c: ILIFConfig) -> Tensor:
    fire, spikes = reference_fire(c.surrogate), []
    v, m, inhibition, previous_x, previous_s = (torch.zeros_like(x[0]) for _ in range(5))
    for current in x:
        inhibition = c.current_decay * (inhibition + previous_x * previous_s)
        h = v - v / c.tau + current - inhibition.clamp(min=0)
        s = fire(h - c.threshold)
        v = h - s * c.threshold
        m = c.potential_decay * (m + s * v)
        v = v - s / (1 + (-m).exp())
        previous_x, previous_s = current, s
        spikes.append(s)
    return torch.stack(spikes)


LOOPS: dict[type, Callable[..., Tensor]] = {
    LIFConfig: lif_loop,
    CLIFConfig: clif_loop,
    ILIFConfig: ilif_loop,
}
SURROGATES = [Rectangle(width=1.5), Arctangent(alpha=1.5), Sigmoid(alpha=3.0)]
CONFIGS = [
    LIFConfig(tau=3.0),
    LIFConfig(tau=3.0, subtract=1.8),
    LIFConfig(tau=3.0, detach_reset=True),
    LIFConfig(reset="hard", reset_value=-0.2),
    LIFConfig(reset="hard", reset_value=-0.2, rest=0.1, detach_reset=True),
    LIFConfig(decay_input=True, rest=-0.1, tau=1.5),
    CLIFConfig(tau=3.0),
    CLIFConfig(threshold=0.7),
    ILIFConfig(tau=3.0),
    ILIFConfig(current_decay=0.4, potential_decay=0.9, threshold=0.8),
]


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: s.kind)
@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@DTYPES
def test_backward_is_autograd_of_a_plain_loop(
    config: Any, surrogate: Surrogate, dtype: torch.dtype
) -> None:
    config = config.model_copy(update={"surrogate": surrogate})
    x = currents(10, 3, 50)
    weight = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected_x = x.clone().requires_grad_()
    expected = LOOPS[type(config)](expected_x, config)
    (expected * weight).sum().backward()
    x = x.to(dtype).requires_grad_()
    spikes = NeuronLayer(config, 50, 10)(x)[0]
    (spikes * weight.to(dtype)).sum().backward()
    assert torch.equal(spikes.double(), expected.round())
    # In float32 the gradient goes through the rounding of ten steps.
    close = (
        {"atol": 1e-10, "rtol": 1e-8} if dtype == torch.float64 else {"atol": 1e-4, "rtol": 1e-4}
    )
    torch.testing.assert_close(x.grad, expected_x.grad.to(dtype), **close)  # type: ignore[union-attr]


def test_detaching_the_reset_changes_the_gradient_and_not_the_spikes() -> None:
    results = {}
    for detach in (False, True):
        x = currents(10, 3, 50).requires_grad_()
        spikes = NeuronLayer(LIFConfig(detach_reset=detach), 50, 10)(x)[0]
        spikes.sum().backward()
        results[detach] = spikes, x.grad
    assert torch.equal(results[False][0], results[True][0])
    assert not torch.allclose(results[False][1], results[True][1])  # type: ignore[arg-type]


@pytest.mark.parametrize("surrogate", [*SURROGATES, Rectangle(strict=True)], ids=repr)
def test_the_derivative_is_that_of_the_primitive(surrogate: Surrogate) -> None:
    u = torch.linspace(-2, 2, 1001, dtype=torch.float64).requires_grad_()
    reference_fire(surrogate)(u).sum().backward()
    torch.testing.assert_close(surrogate.derivative(u.detach()), u.grad)


def test_the_closed_rectangle_has_its_edges_and_the_strict_one_has_not() -> None:
    edges = torch.tensor([-0.5, 0.5, 0.500001])
    assert Rectangle().derivative(edges).tolist() == [1, 1, 0]
    assert Rectangle(strict=True).derivative(edges).tolist() == [0, 0, 0]
    zero = torch.zeros(1)
    assert Rectangle()(zero).item() == 1
    assert Rectangle(strict=True)(zero).item() == 0
