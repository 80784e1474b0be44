"""The reference executor against the network run alone, all timesteps at once."""

import functools

import pytest
import torch

from spikeserve.engine import Frames, ReferenceExecutor, Sample, StateError
from spiketrain.energy import fan_out, synaptic_operations
from spiketrain.networks import build_network
from spiketrain.neurons import (
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    IntegratorConfig,
    LIFConfig,
    PLIFConfig,
)

SMALL = ("small-conv", {"input_shape": (2, 13, 11), "channels": [4, 6], "hidden": 7, "classes": 5})
NEURONS = [CLIFConfig(), ILIFConfig(), LIFConfig(), PLIFConfig(), GLIFConfig()]


def network_of(neuron, name=SMALL[0], arguments=SMALL[1], timesteps=4, layers=None):
    torch.manual_seed(1)
    network = build_network(name, arguments, neuron, timesteps, layers).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            # Currents that make a fair share of the neurons fire.
            module.running_var.uniform_(0.05, 0.4)
            module.bias.data.uniform_(0.4, 1.2)
    return network


@functools.lru_cache(maxsize=1)
def reach_of(network):
    return fan_out(network)


def executor_of(network, slots=8, weights="w"):
    return ReferenceExecutor(network, slots, reach_of(network), weights)


def alone(network, inputs):
    """Per-timestep results of one sample in an executor of its own; `inputs` [T, C, H, W] or [C, H, W]."""
    executor = executor_of(network, 1)
    constant = inputs.dim() == 3
    executor.admit(0, Sample(inputs if constant else None))
    frames = [None] * network.timesteps if constant else [Frames((0,), x[None]) for x in inputs]
    return [executor.step([0], frame) for frame in frames]


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: n.kind)
def test_a_constant_input_gives_what_the_network_gives(neuron):
    network = network_of(neuron)
    x = torch.rand(3, 2, 13, 11)
    with torch.no_grad():
        run = network(x)
    executor = executor_of(network)
    for slot, picture in zip((5, 0, 2), x, strict=True):
        executor.admit(slot, Sample(picture, 4))
    spikes, operations = 0, 0
    for t in range(4):
        result = executor.step([5, 0, 2], None)
        torch.testing.assert_close(result.logits, run.logits[t], atol=1e-5, rtol=1e-5)
        spikes, operations = spikes + result.spikes, operations + result.synaptic_operations
    expected = torch.stack([s.flatten(2).sum((0, 2)) for s in run.spikes.values()], 1)
    assert executor.layers == tuple(run.spikes)
    assert expected.sum(0).min() > 0
    assert torch.equal(spikes, expected.double())
    per_step = [
        synaptic_operations({k: s[t] for k, s in run.spikes.items()}, fan_out(network))
        for t in range(4)
    ]
    assert torch.equal(operations, torch.stack(per_step).sum(0))


def test_layers_that_do_not_spike_are_run_but_not_counted():
    network = network_of(CLIFConfig(), layers={"hidden_neuron": IntegratorConfig(fires=False)})
    x = torch.rand(1, 2, 13, 11)
    with torch.no_grad():
        run = network(x)
    executor = executor_of(network)
    executor.admit(0, Sample(x[0]))
    assert executor.layers == ("stages.0.neuron", "stages.1.neuron")
    for t in range(4):
        result = executor.step([0], None)
        torch.testing.assert_close(result.logits, run.logits[t], atol=1e-5, rtol=1e-5)
        assert result.spikes.tolist() == [[s[t].sum().item() for s in run.spikes.values()]]
    silent = network_of(IntegratorConfig(fires=False))
    with pytest.raises(ValueError, match="no layer of neurons that spike"):
        ReferenceExecutor(silent, 1, {})


@pytest.mark.parametrize("neuron", NEURONS[:4], ids=lambda n: n.kind)
def test_frames_continue_the_state(neuron):
    network = network_of(neuron)
    x = torch.rand(6, 1, 2, 13, 11)
    with torch.no_grad():
        run = network(x)
    executor = executor_of(network)
    executor.admit(3, Sample())
    for t in range(6):
        result = executor.step([3], Frames((0,), x[t]))
        torch.testing.assert_close(result.logits, run.logits[t], atol=1e-5, rtol=1e-5)


EVENTS = {"input_shape": (2, 34, 34), "channels": [4, 8], "hidden": 20}
NETWORKS = [
    pytest.param(*SMALL, (2, 3, 7), id="odd-sizes"),
    pytest.param("small-conv", {"channels": [16, 32, 64]}, (2, 3, 7), id="small-conv"),
    pytest.param("small-conv", EVENTS, (2, 3, 7), id="events"),
    pytest.param("spiking-resnet18", {}, (3,), id="resnet18"),
    pytest.param("spiking-vgg11", {"input_shape": (2, 32, 32)}, (3,), id="vgg11"),
]


@pytest.mark.parametrize(("name", "arguments", "sizes"), NETWORKS)
def test_answers_do_not_depend_on_the_batch_to_the_last_bit(name, arguments, sizes):
    network = network_of(CLIFConfig(), name, arguments, timesteps=2)
    pictures = torch.rand(max(sizes), *network.input_shape)
    expected = []
    for picture in pictures:
        executor = executor_of(network, 1)
        executor.admit(0, Sample(picture, 2))
        logits = [executor.step([0], None).logits[0] for _ in range(2)]
        expected.append((torch.stack(logits), executor.save(0)))
    for size in sizes:
        executor = executor_of(network)
        for slot in range(size):
            executor.admit(slot, Sample(pictures[slot], 2))
        logits = torch.stack([executor.step(range(size), None).logits for _ in range(2)], 1)
        for slot in range(size):
            assert torch.equal(logits[slot], expected[slot][0])
            # Every potential too: a difference there would flip a spike sooner or later.
            assert executor.save(slot) == expected[slot][1]


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: n.kind)
def test_samples_at_different_timesteps_share_a_batch(neuron):
    network = network_of(neuron)
    pictures, frames = torch.rand(2, 2, 13, 11), torch.rand(4, 2, 13, 11)
    expected = [alone(network, pictures[0]), alone(network, pictures[1]), alone(network, frames)]
    executor = executor_of(network)
    executor.admit(0, Sample(pictures[0], 4))
    got = [[executor.step([0], None).logits[0]], [], []]
    executor.admit(7, Sample())
    for t in range(2):
        result = executor.step([7, 0], Frames((0,), frames[t : t + 1]))
        got[2].append(result.logits[0])
        got[0].append(result.logits[1])
    executor.admit(1, Sample(pictures[1], 4))
    result = executor.step([1, 0, 7], Frames((2,), frames[2:3]))
    for sample, row in zip((1, 0, 2), result.logits, strict=True):
        got[sample].append(row)
    for sample in range(3):
        assert torch.equal(
            torch.stack(got[sample]),
            torch.cat([r.logits for r in expected[sample]])[: len(got[sample])],
        )


def test_without_onednn_answers_do_not_depend_on_the_batch_either(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    test_answers_do_not_depend_on_the_batch_to_the_last_bit(*SMALL, (2, 5))


def test_a_slot_keeps_nothing_of_its_last_sample():
    network = network_of(CLIFConfig())
    executor = executor_of(network, 1)
    executor.admit(0, Sample(torch.full((2, 13, 11), 50.0), 4))
    for _ in range(4):
        executor.step([0], None)
    picture = torch.rand(2, 13, 11)
    executor.admit(0, Sample(picture, 4))
    assert torch.equal(executor.step([0], None).logits, alone(network, picture)[0].logits)


def test_a_constant_input_is_encoded_once(monkeypatch):
    network = network_of(CLIFConfig())
    executor = executor_of(network)
    calls = []
    encode = type(network).encode
    monkeypatch.setattr(
        type(network), "encode", lambda self, x: calls.append(len(x)) or encode(self, x)
    )
    executor.admit(0, Sample(torch.rand(2, 13, 11), 4))
    for _ in range(4):
        executor.step([0], None)
    assert calls == [1]


def test_only_the_slots_asked_for_advance():
    network = network_of(CLIFConfig())
    executor = executor_of(network)
    pictures = torch.rand(2, 2, 13, 11)
    for slot in (0, 1):
        executor.admit(slot, Sample(pictures[slot], 4))
    for _ in range(3):
        executor.step([0], None)
    assert torch.equal(executor.step([1], None).logits, alone(network, pictures[1])[0].logits)


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda n: n.kind)
@pytest.mark.parametrize("constant", [True, False])
def test_a_state_continues_elsewhere_bit_by_bit(neuron, constant):
    network = network_of(neuron)
    inputs = torch.rand(2, 13, 11) if constant else torch.rand(4, 2, 13, 11)
    expected = alone(network, inputs)
    first, second = executor_of(network), executor_of(network)
    frames = [None] * 4 if constant else [Frames((0,), x[None]) for x in inputs]
    first.admit(2, Sample(inputs if constant else None))
    for t in range(2):
        first.step([2], frames[t])
    state = first.save(2)
    second.admit(5, Sample(torch.full((2, 13, 11), 9.0)))
    second.load(5, state)
    for t in (2, 3):
        assert torch.equal(second.step([5], frames[t]).logits, expected[t].logits)
    assert state == first.save(2)


def saved_state():
    executor = executor_of(network_of(CLIFConfig()))
    executor.admit(0, Sample())
    executor.step([0], Frames((0,), torch.rand(1, 2, 13, 11)))
    return executor, executor.save(0)


def test_any_changed_byte_of_a_state_is_noticed():
    executor, state = saved_state()
    for at in [*range(90), *range(90, len(state), 97), len(state) - 1]:
        damaged = bytearray(state)
        damaged[at] ^= 0x10
        with pytest.raises(StateError):
            executor.load(1, bytes(damaged))


@pytest.mark.parametrize(
    "part", [b"", b"spikeserve-state", b"text that is longer than a header" * 5]
)
def test_bytes_that_are_no_state_are_refused(part):
    executor, _ = saved_state()
    with pytest.raises(StateError, match="not a saved state"):
        executor.load(0, part)


def test_a_state_of_other_weights_or_another_network_is_refused():
    _, state = saved_state()
    with pytest.raises(StateError, match="other weights"):
        executor_of(network_of(CLIFConfig()), weights="v").load(0, state)
    with pytest.raises(StateError, match="missing"):
        executor_of(network_of(ILIFConfig())).load(0, state)
    with pytest.raises(StateError, match="belongs to no layer"):
        executor_of(network_of(LIFConfig())).load(0, state)
    other = network_of(CLIFConfig(), arguments=SMALL[1] | {"channels": [4, 7]})
    with pytest.raises(StateError, match="of another shape"):
        executor_of(other).load(0, state)


def test_a_slot_twice_or_without_input_is_a_mistake_of_the_caller():
    network = network_of(CLIFConfig())
    executor = executor_of(network)
    executor.admit(0, Sample(torch.rand(2, 13, 11)))
    executor.admit(1, Sample())
    with pytest.raises(ValueError, match="named twice"):
        executor.step([0, 0], None)
    with pytest.raises(ValueError, match="slot 1 has neither"):
        executor.step([0, 1], None)


def test_the_network_given_is_left_as_it_was():
    network = network_of(CLIFConfig())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    executor_of(network)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_arguments_that_cannot_be_are_refused():
    network = network_of(CLIFConfig())
    with pytest.raises(ValueError, match="slots is 0"):
        executor_of(network, 0)
    with pytest.raises(ValueError, match="fan_out lacks the layer 'hidden_neuron'"):
        ReferenceExecutor(
            network, 1, {k: v for k, v in fan_out(network).items() if "hidden" not in k}
        )
