"""The GPU kernels for T timesteps against the plain loop: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain import kernels
from spiketrain.kernels import plain_steps, run_steps
from spiketrain.neurons import CLIF, GLIF, ILIF, LIF, PLIF, CLIFConfig, LIFConfig, NeuronLayer
from spiketrain.surrogate import Arctangent, Rectangle, Sigmoid

pytest.importorskip("triton")
gpu = pytest.importorskip("spiketrain.kernels.triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

SURROGATES = {
    "rectangle": Rectangle(width=1.3),
    "strict": Rectangle(strict=True),
    "arctangent": Arctangent(),
    "sigmoid": Sigmoid(),
}
NEURONS: dict[str, Callable[[Any], Any]] = {
    "lif": lambda fire: LIF(tau=3.1, threshold=0.7, subtract=1.8, fire=fire),
    "lif-rest": lambda fire: LIF(rest=-0.1, detach_reset=True, fire=fire),
    "lif-hard": lambda fire: LIF(reset="hard", reset_value=-0.06, fire=fire),
    "lif-decayed-hard": lambda fire: LIF(
        tau=1.7, decay_input=True, reset="hard", rest=0.1, detach_reset=True, fire=fire
    ),
    "plif": lambda fire: PLIF(torch.tensor(0.4, device=DEVICE).requires_grad_(), fire=fire),
    "plif-rest-soft": lambda fire: PLIF(
        torch.tensor(-0.4, device=DEVICE).requires_grad_(),
        rest=0.2,
        reset="soft",
        decay_input=False,
        detach_reset=False,
        fire=fire,
    ),
    "clif": lambda fire: CLIF(tau=3.1, threshold=0.8, fire=fire),
    "ilif": lambda fire: ILIF(3.1, 0.8, current_decay=0.6, potential_decay=0.9, fire=fire),
    "glif": lambda fire: glif(5, 4, fire),
}


def glif(channels: int, timesteps: int, fire: Any) -> GLIF:
    generator = torch.Generator().manual_seed(5)
    shapes = [(channels,)] * 7 + [(timesteps, channels)]
    values = [0.1 + 0.8 * torch.rand(shape, generator=generator) for shape in shapes]
    return GLIF(*(value.to(DEVICE).requires_grad_() for value in values), fire=fire)


def floating(state: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """The state with `make` applied to all but GLIF's count of timesteps."""
    return type(state)(*(make(value) if value.is_floating_point() else value for value in state))


def currents(*shape: int, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.6).to(DEVICE)


def like(values: Any, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(value.shape, generator=generator).to(value) for value in values]


def somewhere(neuron: Any, x: Tensor) -> Any:
    """A state in the middle of a run."""
    return floating(neuron.initial_state(x[0]), lambda value: 0.5 * like([value], 2)[0])


def outcome(run: Callable[..., Any], neuron: Any, x: Tensor, state: Any) -> dict[str, Any]:
    """Spikes, last state, and the gradients of everything for random gradients of spikes and last state."""
    x = x.detach().requires_grad_()
    state = floating(state, lambda value: value.detach().requires_grad_())
    spikes, last = run(neuron, x, state)
    outputs = [value for value in (spikes, *last) if value.is_floating_point()]
    learned = [value for value in neuron if isinstance(value, Tensor)]
    inputs = [value for value in (x, *state) if value.is_floating_point()] + learned
    gradients = torch.autograd.grad(outputs, inputs, like(outputs, 1))
    return {"spikes": spikes.detach(), "last": [v.detach() for v in last], "gradients": gradients}


def assert_alike(fused: dict[str, Any], plain: dict[str, Any]) -> None:
    assert torch.equal(fused["spikes"], plain["spikes"])
    assert 0.02 < fused["spikes"].float().mean() < 0.9
    # Sigmoids are approximations on a GPU, and sums over neurons are taken in another order.
    torch.testing.assert_close(fused["last"], plain["last"], atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(fused["gradients"], plain["gradients"], atol=4e-5, rtol=4e-5)


# 16 timesteps at most are unrolled; more are taken in chunks of 8, the last of which may be short.
@pytest.mark.parametrize("steps", [1, 5, 11, 24, 19])
@pytest.mark.parametrize("name", NEURONS)
def test_fused_is_plain(name: str, steps: int) -> None:
    kinds = list(SURROGATES.values())
    neuron = NEURONS[name](kinds[steps % len(kinds)])
    x = currents(steps, 2, 5, 9, 3)
    state = somewhere(neuron, x)
    assert_alike(outcome(gpu.run, neuron, x, state), outcome(plain_steps, neuron, x, state))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("name", ["lif", "clif", "ilif", "glif"])
def test_any_surrogate(name: str, surrogate: str) -> None:
    neuron = NEURONS[name](SURROGATES[surrogate])
    x = currents(4, 2, 5, 9, 3)
    state = somewhere(neuron, x)
    assert_alike(outcome(gpu.run, neuron, x, state), outcome(plain_steps, neuron, x, state))


@pytest.mark.parametrize("name", NEURONS)
def test_without_a_state_it_starts_as_the_neuron_does(name: str) -> None:
    neuron = NEURONS[name](Rectangle())
    x = currents(6, 2, 5, 7)
    spikes, last = gpu.run(neuron, x)
    expected, end = plain_steps(neuron, x, neuron.initial_state(x[0]))
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(last, end, atol=2e-6, rtol=2e-6)
    only, nothing = gpu.run(neuron, x, keep=False)
    assert torch.equal(only, expected)
    assert nothing is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lif", "clif", "glif"])
def test_16_bits_in_and_out_and_32_between(name: str, dtype: torch.dtype) -> None:
    neuron = NEURONS[name](Rectangle())
    x = currents(6, 2, 5, 40).to(dtype).requires_grad_()
    wide = x.detach().float().requires_grad_()
    spikes, last = gpu.run(neuron, x)
    expected, end = plain_steps(neuron, wide, neuron.initial_state(wide[0]))
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), expected)
    torch.testing.assert_close(last, end, atol=2e-6, rtol=2e-6)
    weight = like([spikes], 3)[0]
    (gradient,) = torch.autograd.grad(spikes, x, weight)
    (wide_gradient,) = torch.autograd.grad(expected, wide, weight.float())
    assert gradient.dtype == dtype
    # One rounding, at the end.
    torch.testing.assert_close(gradient, wide_gradient.to(dtype), atol=1e-5, rtol=1e-2)


def channels_last(x: Tensor) -> Tensor:
    return x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


@pytest.mark.parametrize(
    "layout",
    [channels_last, lambda x: x.transpose(2, 4), lambda x: x[:, :, ::2], lambda x: x[::2]],
    ids=["channels-last", "transposed", "sliced", "every-second-step"],
)
@pytest.mark.parametrize("name", ["clif", "glif"])
def test_any_layout_in_memory(name: str, layout: Callable[[Tensor], Tensor]) -> None:
    neuron = NEURONS[name](Rectangle())
    x = layout(currents(6, 2, 10, 7, 5))[:, :, :5]
    state = somewhere(neuron, x)
    fused = outcome(gpu.run, neuron, x, state)
    assert_alike(fused, outcome(plain_steps, neuron, x, state))
    if layout is channels_last:  # so that the next convolution need not convert
        assert fused["spikes"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["ilif", "glif"])
def test_a_current_that_stays_the_same_is_read_without_copies(name: str) -> None:
    neuron = NEURONS[name](Rectangle())
    image = currents(2, 5, 9, 4).requires_grad_()
    weight = currents(6, 2, 5, 9, 4, seed=1)
    gradients = []
    for run in (gpu.run, plain_steps):
        x = image.expand(6, *image.shape)
        spikes, _ = run(neuron, x, neuron.initial_state(x[0].detach()))
        gradients.append(torch.autograd.grad((spikes * weight).sum(), image)[0])
    torch.testing.assert_close(*gradients, atol=2e-5, rtol=2e-5)


def test_parameters_are_learned_by_the_same_sums_every_time() -> None:
    neuron = NEURONS["plif"](Arctangent())
    x = currents(4, 3, 5, 300)
    twice = [outcome(gpu.run, neuron, x, neuron.initial_state(x[0])) for _ in range(2)]
    assert torch.equal(twice[0]["gradients"][-1], twice[1]["gradients"][-1])


def test_only_the_state_or_only_the_spikes_are_asked_for() -> None:
    x = currents(5, 2, 30).requires_grad_()
    for pick in (lambda spikes, last: last.v, lambda spikes, last: spikes):
        gradients = []
        for run in (gpu.run, plain_steps):
            result = run(CLIF(), x, CLIF().initial_state(x[0].detach()))
            gradients.append(torch.autograd.grad(pick(*result).sum(), x)[0])
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_an_empty_batch() -> None:
    x = torch.zeros(4, 0, 3, requires_grad=True, device=DEVICE)
    spikes, state = gpu.run(CLIF(), x)
    spikes.sum().backward()
    assert spikes.shape == (4, 0, 3)
    assert state.v.shape == (0, 3)


def test_values_of_each_channel() -> None:
    layer = NeuronLayer(LIFConfig(reset="hard", per_channel=("threshold", "reset_value")), 5, 4)
    layer = layer.to(DEVICE)
    with torch.no_grad():
        layer.threshold.copy_(torch.linspace(0.5, 1.5, 5))
        layer.reset_value.copy_(torch.linspace(-0.5, 0.2, 5))
        for x in (currents(6, 2, 5, 9, 4), channels_last(currents(6, 2, 5, 9, 4))):
            neuron = layer.neuron()
            spikes, last = gpu.run(neuron, x)
            expected, end = plain_steps(neuron, x, neuron.initial_state(x[0]))
            assert torch.equal(spikes, expected)
            torch.testing.assert_close(last, end)
    # Nobody has written the kernel for their gradients.
    assert gpu.run(layer.neuron(), currents(6, 2, 5, 9)) is None


def test_glif_goes_on_at_the_timestep_of_its_state() -> None:
    neuron = glif(3, 6, Rectangle(strict=True))
    x = currents(8, 2, 3, 5)
    whole, end = gpu.run(neuron, x)
    first, middle = gpu.run(neuron, x[:3])
    second, last = gpu.run(neuron, x[3:], middle)
    assert torch.equal(torch.cat([first, second]), whole)
    assert last.t.tolist() == end.t.tolist() == [8, 8]
    torch.testing.assert_close(plain_steps(neuron, x, neuron.initial_state(x[0]))[0], whole)


NO_KERNEL: dict[str, Callable[[], tuple[Any, Tensor, Any]]] = {
    "float64": lambda: (LIF(), currents(4, 2, 3).double(), None),
    "glif-at-different-timesteps": lambda: (
        glif(3, 6, Rectangle()),
        currents(4, 2, 3, 5),
        glif(3, 6, Rectangle()).initial_state(currents(2, 3, 5))._replace(
            t=torch.tensor([0, 2], device=DEVICE)
        ),
    ),
    "glif-with-other-channels": lambda: (glif(3, 6, Rectangle()), currents(4, 2, 4, 5), None),
    "state-of-another-shape": lambda: (
        LIF(), currents(4, 2, 3), LIF().initial_state(currents(1, 3))
    ),
    "tau-of-each-channel": lambda: (LIF(tau=currents(3).abs() + 1.5), currents(4, 2, 3), None),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_KERNEL)
def test_what_has_no_kernel_is_left_to_the_plain_loop(case: str) -> None:
    assert gpu.run(*NO_KERNEL[case]()) is None


def test_tensors_on_a_gpu_go_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKETRAIN_KERNELS", raising=False)
    monkeypatch.setattr(kernels, "_on_gpu", lambda x: True)
    monkeypatch.setattr(kernels, "plain_steps", lambda *_: pytest.fail("ran the plain loop"))
    layer = NeuronLayer(CLIFConfig(), 3, 4).to(DEVICE)
    x = currents(4, 2, 3).bfloat16()
    calls = []
    monkeypatch.setattr(gpu, "run", lambda *arguments: calls.append(arguments) or run(*arguments))
    run = gpu.launch.run
    spikes, last = layer(x)
    assert len(calls) == 1
    assert spikes.dtype == torch.bfloat16
    assert last.v.dtype == torch.float32
    monkeypatch.setenv("SPIKETRAIN_KERNELS", "plain")
    monkeypatch.setattr(kernels, "plain_steps", plain_steps)
    assert torch.equal(run_steps(layer.neuron(), x)[0], spikes)
    assert len(calls) == 1
