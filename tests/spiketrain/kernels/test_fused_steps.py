"""The fused kernels against the plain loop: the same spikes, states and gradients."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spiketrain import kernels
from spiketrain.kernels import plain_steps, run_steps
from spiketrain.neurons import (
    CLIF,
    GLIF,
    ILIF,
    LIF,
    PLIF,
    CLIFConfig,
    CLIFState,
    LIFConfig,
    NeuronLayer,
)
from spiketrain.surrogate import Arctangent, Rectangle, Sigmoid

pytest.importorskip("numba")

SURROGATES = {
    "rectangle": Rectangle(width=1.3),
    "strict": Rectangle(strict=True),
    "arctangent": Arctangent(),
    "sigmoid": Sigmoid(),
}
NEURONS: dict[str, Callable[[Any], Any]] = {
    "lif": lambda fire: LIF(fire=fire),
    "lif-odd-tau": lambda fire: LIF(tau=3.1, threshold=0.7, subtract=1.8, fire=fire),
    "lif-rest": lambda fire: LIF(rest=-0.1, detach_reset=True, fire=fire),
    "lif-hard": lambda fire: LIF(reset="hard", reset_value=-0.06, fire=fire),
    "lif-hard-rest": lambda fire: LIF(reset="hard", reset_value=-0.06, rest=-0.06, fire=fire),
    "lif-decayed": lambda fire: LIF(tau=1.7, decay_input=True, fire=fire),
    "lif-decayed-hard": lambda fire: LIF(
        tau=1.7, decay_input=True, reset="hard", rest=0.1, detach_reset=True, fire=fire
    ),
    "plif": lambda fire: PLIF(torch.tensor(0.4, requires_grad=True), fire=fire),
    "plif-rest": lambda fire: PLIF(
        torch.tensor(-0.4, requires_grad=True), rest=0.2, detach_reset=False, fire=fire
    ),
    "plif-soft": lambda fire: PLIF(
        torch.tensor(0.1, requires_grad=True), reset="soft", decay_input=False, fire=fire
    ),
    "clif": lambda fire: CLIF(fire=fire),
    "clif-odd-tau": lambda fire: CLIF(tau=3.1, threshold=0.8, fire=fire),
    "ilif": lambda fire: ILIF(fire=fire),
    "ilif-strong": lambda fire: ILIF(3.1, 0.8, current_decay=0.6, potential_decay=0.9, fire=fire),
    "glif": lambda fire: glif(5, 11, fire),
    "glif-few-conductances": lambda fire: glif(5, 4, fire),
}


def glif(channels: int, timesteps: int, fire: Any) -> GLIF:
    generator = torch.Generator().manual_seed(5)
    shapes = [(channels,)] * 7 + [(timesteps, channels)]
    values = [0.1 + 0.8 * torch.rand(shape, generator=generator) for shape in shapes]
    return GLIF(*(value.requires_grad_() for value in values), fire=fire)


def learned(neuron: Any) -> list[Tensor]:
    return [value for value in neuron if isinstance(value, Tensor)]


def floating(state: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """The state with `make` applied to all but GLIF's count of timesteps."""
    return type(state)(*(make(value) if value.is_floating_point() else value for value in state))


def currents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.6


def like(values: Any, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(value.shape, generator=generator) for value in values]


def outcome(run: Callable[..., Any], neuron: Any, x: Tensor, state: Any) -> dict[str, Any]:
    """Spikes, last state, and the gradients of everything for random gradients of spikes and last state."""
    x = x.detach().requires_grad_()
    state = floating(state, lambda value: value.detach().requires_grad_())
    spikes, last = run(neuron, x, state)
    outputs = [value for value in (spikes, *last) if value.is_floating_point()]
    inputs = [value for value in (x, *state) if value.is_floating_point()] + learned(neuron)
    gradients = torch.autograd.grad(outputs, inputs, like(outputs, 1))
    return {"spikes": spikes.detach(), "last": [v.detach() for v in last], "gradients": gradients}


@pytest.fixture
def fused_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if the plain loop is asked for by `run_steps`."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("ran the plain loop")

    monkeypatch.delenv("SPIKETRAIN_KERNELS", raising=False)
    monkeypatch.setattr(kernels, "plain_steps", refuse)


@pytest.mark.usefixtures("fused_only")
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("name", NEURONS)
def test_fused_is_plain(name: str, surrogate: str) -> None:
    neuron = NEURONS[name](SURROGATES[surrogate])
    # More neurons than a block holds, and not a whole number of blocks.
    x = currents(11, 3, 5, 9, 8)
    state = neuron.initial_state(x[0])
    state = floating(state, lambda value: 0.5 * like([value], 2)[0])
    fused, plain = outcome(run_steps, neuron, x, state), outcome(plain_steps, neuron, x, state)
    assert torch.equal(fused["spikes"], plain["spikes"])
    assert 0.02 < fused["spikes"].mean() < 0.9
    # The sigmoids differ in the last bit here and there, and sums over neurons are taken in another order.
    torch.testing.assert_close(fused["last"], plain["last"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(fused["gradients"], plain["gradients"], atol=2e-5, rtol=2e-5)


@pytest.mark.usefixtures("fused_only")
@pytest.mark.parametrize("name", NEURONS)
def test_bfloat16_is_float32_rounded_where_it_is_read_and_written(name: str) -> None:
    neuron = NEURONS[name](Rectangle())
    x = currents(11, 3, 5, 9, 8).bfloat16()
    x[0, 0, 0, 0, 0], x[1, 0, 0, 0, 1] = torch.inf, torch.nan
    state = neuron.initial_state(x[0].float())
    state = floating(state, lambda value: 0.5 * like([value], 2)[0])

    def widened(neuron: Any, x: Tensor, state: Any) -> Any:
        spikes, last = run_steps(neuron, x.float(), state)
        return spikes.to(x.dtype), last

    narrow, wide = outcome(run_steps, neuron, x, state), outcome(widened, neuron, x, state)
    assert narrow["spikes"].dtype == torch.bfloat16
    assert torch.equal(narrow["spikes"], wide["spikes"])
    for part in ("last", "gradients"):
        torch.testing.assert_close(narrow[part], wide[part], atol=0, rtol=0, equal_nan=True)


@pytest.mark.usefixtures("fused_only")
@pytest.mark.parametrize("name", ["lif", "clif", "ilif", "glif"])
def test_spikes_stay_the_same_over_many_steps(name: str) -> None:
    neuron = NEURONS[name](Rectangle())
    x = currents(64, 2, 5, 3200)
    with torch.no_grad():
        spikes = run_steps(neuron, x, neuron.initial_state(x[0]))[0]
        expected = plain_steps(neuron, x, neuron.initial_state(x[0]))[0]
    assert torch.equal(spikes, expected)


def test_the_sigmoid_is_torchs_bit_for_bit() -> None:
    from spiketrain.kernels import loops

    # Eight at a time, so that torch computes all of them in its vector units.
    x = torch.cat(
        [currents(400_000), 20 * currents(400_000), torch.tensor([0.0, -0.0, 80.0, -80.0] * 4)]
    )
    ours = torch.empty_like(x)
    _sigmoids(loops)(x.numpy(), ours.numpy())
    torch.testing.assert_close(ours, torch.sigmoid(x), atol=0, rtol=2e-7)
    assert (ours != torch.sigmoid(x)).float().mean() < 1e-5


def _sigmoids(loops: Any) -> Any:
    def all_of(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = sigmoid(x[i])

    sigmoid = loops._sigmoid
    return loops.njit(error_model="numpy")(all_of)


@pytest.mark.usefixtures("fused_only")
@pytest.mark.parametrize("name", ["plif", "clif", "ilif", "glif"])
def test_threads_share_the_work(name: str) -> None:
    neuron = NEURONS[name](Rectangle())
    x = currents(8, 4, 5, 10_001)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outcome(run_steps, neuron, x, neuron.initial_state(x[0])))
    finally:
        torch.set_num_threads(before)
    # The leak's gradient is a sum over all neurons, taken in another order.
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=1e-5)
    assert torch.equal(results[0]["spikes"], results[1]["spikes"])


@pytest.mark.usefixtures("fused_only")
def test_a_current_that_stays_the_same_is_read_without_copies() -> None:
    neuron = ILIF()
    image = currents(2, 3, 20, 20).requires_grad_()
    weight = currents(6, 2, 3, 20, 20, seed=1)
    gradients = []
    for x in (image.expand(6, *image.shape), image.repeat(6, 1, 1, 1, 1)):
        spikes, _ = run_steps(neuron, x, neuron.initial_state(x[0].detach()))
        gradients.append(torch.autograd.grad((spikes * weight).sum(), image)[0])
    torch.testing.assert_close(*gradients)
    plain = plain_steps(
        neuron, image.expand(6, *image.shape), neuron.initial_state(image.detach())
    )[0]
    assert torch.equal(spikes, plain)


def channels_last(x: Tensor) -> Tensor:
    return x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


@pytest.mark.usefixtures("fused_only")
@pytest.mark.parametrize(
    "layout",
    [channels_last, lambda x: x.transpose(2, 4), lambda x: x[:, :, ::2], lambda x: x[::2]],
    ids=["channels-last", "transposed", "sliced", "every-second-step"],
)
@pytest.mark.parametrize("name", ["clif", "glif"])
def test_any_layout_in_memory(name: str, layout: Callable[[Tensor], Tensor]) -> None:
    neuron = NEURONS[name](Rectangle())
    x = layout(currents(6, 2, 10, 7, 5))
    x = x[:, :, :5]
    state = neuron.initial_state(x[0])
    state = floating(state, lambda value: like([value], 3)[0])
    fused, plain = outcome(run_steps, neuron, x, state), outcome(plain_steps, neuron, x, state)
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)
    assert fused["spikes"].shape == x.shape
    if layout is channels_last:  # so that the next convolution need not convert
        assert fused["spikes"].flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("fused_only")
def test_only_the_state_is_asked_for() -> None:
    x = currents(5, 2, 30).requires_grad_()
    gradients = []
    for run in (run_steps, plain_steps):
        _, last = run(CLIF(), x, CLIF().initial_state(x[0].detach()))
        gradients.append(torch.autograd.grad(last.v.sum(), x)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.usefixtures("fused_only")
def test_an_empty_batch() -> None:
    x = torch.zeros(4, 0, 3, requires_grad=True)
    spikes, state = run_steps(CLIF(), x, CLIF().initial_state(x[0]))
    spikes.sum().backward()
    assert spikes.shape == (4, 0, 3)
    assert state.v.shape == (0, 3)
    assert x.grad is not None


@pytest.mark.usefixtures("fused_only")
def test_an_input_changed_before_backward_is_an_error() -> None:
    source = currents(4, 2, 30).requires_grad_()
    x = source * 1
    spikes, _ = run_steps(CLIF(), x, CLIF().initial_state(x[0].detach()))
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()


@pytest.mark.usefixtures("fused_only")
def test_several_threads_at_once() -> None:
    x = currents(6, 4, 40_000)
    expected = run_steps(CLIF(), x, CLIF().initial_state(x[0]))[0]
    results: list[bool] = []

    def work() -> None:
        results.append(torch.equal(run_steps(CLIF(), x, CLIF().initial_state(x[0]))[0], expected))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * 8


def _in_child(x: Tensor, state: Any, expected: bytes, answer: Any) -> None:
    spikes = run_steps(LIF(), x, state)[0]
    answer.put(spikes.numpy().tobytes() == expected)


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    x = currents(6, 4, 40_000)
    before = torch.get_num_threads()
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    try:
        torch.set_num_threads(2)
        # The child may not call what torch itself runs in parallel: torch's own threads do not outlive a fork.
        state = LIF().initial_state(x[0])
        expected = run_steps(LIF(), x, state)[0].numpy().tobytes()
        child = context.Process(target=_in_child, args=(x, state, expected, answer), daemon=True)
        child.start()
        assert answer.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)


def test_the_environment_turns_the_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKETRAIN_KERNELS", "plain")
    monkeypatch.setattr(kernels, "_cpu", lambda: pytest.fail("looked for a kernel"))
    x = currents(4, 2, 3)
    assert run_steps(LIF(), x, LIF().initial_state(x[0]))[0].shape == x.shape


def test_without_numba_the_plain_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    for module in ("cpu", "loops"):
        monkeypatch.delitem(sys.modules, f"spiketrain.kernels.{module}", raising=False)
        monkeypatch.delattr(kernels, module, raising=False)
    kernels._cpu.cache_clear()
    try:
        x = currents(4, 2, 3)
        assert kernels._cpu() is None
        spikes, _ = run_steps(CLIF(), x, CLIF().initial_state(x[0]))
    finally:
        kernels._cpu.cache_clear()
    assert torch.equal(spikes, plain_steps(CLIF(), x, CLIF().initial_state(x[0]))[0])


def test_where_the_compiler_can_keep_nothing_it_compiles_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from numba.core.caching import CacheImpl

    from spiketrain.kernels import loops

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    def double(a: float) -> float:
        return 2 * a

    with pytest.raises(RuntimeError, match="cannot cache"):
        loops.njit(cache=True)(double)
    assert loops.compiled(double)(2.0) == 4.0


PLAIN_CASES = {
    "float64": lambda: (LIF(), currents(4, 2, 3).double()),
    "one-step": lambda: (LIF(), currents(1, 2, 3)),
    "per-channel": lambda: (
        NeuronLayer(LIFConfig(per_channel=("threshold",)), 3, 4).neuron(),
        currents(4, 2, 3),
    ),
}


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_what_has_no_kernel_runs_plain(case: str) -> None:
    neuron, x = PLAIN_CASES[case]()
    spikes, _ = run_steps(neuron, x, neuron.initial_state(x[0]))
    assert torch.equal(spikes, plain_steps(neuron, x, neuron.initial_state(x[0]))[0])


def test_glif_with_samples_at_different_timesteps_runs_plain() -> None:
    neuron = glif(3, 6, Rectangle(strict=True))
    x = currents(4, 2, 3, 5)
    state = neuron.initial_state(x[0])._replace(t=torch.tensor([0, 2]))
    spikes, last = run_steps(neuron, x, state)
    assert torch.equal(spikes, plain_steps(neuron, x, state)[0])
    assert last.t.tolist() == [4, 6]


@pytest.mark.usefixtures("fused_only")
def test_glif_goes_on_at_the_timestep_of_its_state() -> None:
    neuron = glif(3, 6, Rectangle(strict=True))
    x = currents(8, 2, 3, 5)
    whole, end = run_steps(neuron, x, neuron.initial_state(x[0]))
    first, middle = run_steps(neuron, x[:3], neuron.initial_state(x[0]))
    second, last = run_steps(neuron, x[3:], middle)
    assert torch.equal(torch.cat([first, second]), whole)
    assert last.t.tolist() == end.t.tolist() == [8, 8]


@pytest.mark.parametrize(
    "state",
    [
        CLIFState(torch.zeros(2, 4), torch.zeros(2, 4)),
        CLIFState(torch.zeros(3, 3), torch.zeros(3, 3)),
    ],
)
def test_a_state_of_another_shape_is_refused(state: CLIFState) -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        run_steps(CLIF(), currents(4, 2, 3), state)


def test_a_state_of_another_dtype_runs_plain() -> None:
    state = CLIF().initial_state(torch.zeros(2, 3, dtype=torch.float64))
    assert run_steps(CLIF(), currents(4, 2, 3), state)[0].dtype == torch.float64


def test_glif_with_other_channels_is_refused() -> None:
    x = currents(4, 2, 4, 5)
    neuron = glif(3, 6, Rectangle(strict=True))
    with pytest.raises(RuntimeError, match="size of tensor"):
        run_steps(neuron, x, neuron.initial_state(x[0]))


def test_export_compile_and_vmap_see_the_step() -> None:
    layer = NeuronLayer(CLIFConfig(), 3, 4)
    x = currents(4, 2, 3)
    expected = layer(x)[0]
    exported = torch.export.export(layer, (x,))
    assert sum("sigmoid" in str(node.target) for node in exported.graph.nodes) == 8
    assert torch.equal(exported.module()(x)[0], expected)
    several = torch.vmap(lambda one: layer(one)[0])(torch.stack([x, -x]))
    assert torch.equal(several[0], expected)


def test_narrow_currents_give_the_same_spikes_in_their_type_and_a_wide_state() -> None:
    layer = NeuronLayer(CLIFConfig(), 3, 4)
    x = torch.randn(4, 2, 3, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide, expected = layer(x.float())
    spikes, state = layer(x)
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), wide)
    assert all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))
    constant = x[:1].expand(4, -1, -1, -1, -1)
    assert torch.equal(layer(constant)[0].float(), layer(constant.float())[0])
