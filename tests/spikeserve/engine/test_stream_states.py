"""Streams on the reference executor: many more than slots, and states that go elsewhere, all to the bit."""

import numpy as np
import pytest
import torch

from spikeserve.engine import Frames, ReferenceExecutor, Sample, Scheduler, StateError
from spikeserve.engine.state import StateForm, pack_state
from spikeserve.errors import ErrorKind, ServiceError
from spiketrain.energy import fan_out
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig, LIFConfig

LONG = 120


def network_of(neuron=None, channels=(2, 3), seed=1):
    torch.manual_seed(seed)
    arguments = {"input_shape": (2, 6, 5), "channels": channels, "hidden": 4, "classes": 3}
    network = build_network("small-conv", arguments, neuron or CLIFConfig(), 4).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            # Currents that make a fair share of the neurons fire.
            module.running_var.uniform_(0.05, 0.4)
            module.bias.data.uniform_(0.4, 1.2)
    return network


def frames_of(stream, windows):
    return torch.from_numpy(
        np.random.default_rng(stream).poisson(0.7, (windows, 2, 6, 5)).astype(np.float32)
    )


@pytest.fixture
def engine():
    started = []

    def start(network, slots=4, weights="w"):
        reach = fan_out(network)
        scheduler = Scheduler(
            lambda: ReferenceExecutor(network, slots, reach, weights), name="m", max_queue=8
        )
        scheduler.start()
        started.append(scheduler)
        return scheduler

    yield start
    for scheduler in started:
        scheduler.stop()


def test_two_thousand_streams_over_sixteen_slots_get_what_each_gets_alone(engine):
    network, count, windows = network_of(), 2000, 2
    scheduler = engine(network, slots=16)
    streams = [scheduler.open_stream() for _ in range(count)]
    frames = [frames_of(i, windows) for i in range(count)]
    futures = [[] for _ in range(count)]
    rng = np.random.default_rng(0)
    # Each stream's windows in order, the streams in another order every time.
    for window in range(windows):
        for i in rng.permutation(count):
            futures[i].append(streams[i].submit(frames[i][window]))
    answers = [[future.result(LONG) for future in each] for each in futures]
    assert scheduler.slots_in_use == 16
    executor = ReferenceExecutor(network, 1, fan_out(network), "w")
    some_spikes = 0
    for i in range(count):
        executor.admit(0, Sample())
        for frame, answer in zip(frames[i], answers[i], strict=True):
            alone = executor.step([0], Frames((0,), frame[None]))
            assert np.array_equal(alone.logits.numpy(), answer.logits)
            assert np.array_equal(alone.spikes[0].numpy(), answer.spikes)
            some_spikes += alone.spikes.sum().item() > 0
    assert some_spikes > count


@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_stream_goes_on_elsewhere_to_the_bit(engine, before):
    network, frames = network_of(), frames_of(0, 9)
    stream = engine(network).open_stream()
    whole = [stream.submit(frame).result(LONG) for frame in frames]
    first = engine(network).open_stream()
    for frame in frames[:before]:
        first.submit(frame)
    second = engine(network, slots=2).open_stream(first.save().result(LONG))
    for frame, expected in zip(frames[before:], whole[before:], strict=True):
        assert np.array_equal(second.submit(frame).result(LONG).logits, expected.logits)
    # The first one goes on, too.
    following = first.submit(frames[before]).result(LONG)
    assert np.array_equal(following.logits, whole[before].logits)


def damaged(state):
    return state[:-1] + bytes([state[-1] ^ 1])


def later_version(state):
    return state[:16] + b"\2" + state[17:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damaged, "changed or damaged"),
        (later_version, "version 2, this release reads 1"),
        (lambda state: state[:60], "not a saved state"),
        (lambda state: b"", "not a saved state"),
        (lambda state: b"x" * len(state), "not a saved state"),
        (lambda state: state + b"\0", "changed or damaged"),
    ],
)
def test_bytes_that_are_no_state_are_refused_when_the_stream_is_opened(engine, change, says):
    scheduler = engine(network_of())
    stream = scheduler.open_stream()
    stream.submit(frames_of(0, 1)[0])
    state = stream.save().result(LONG)
    assert scheduler.open_stream(state)
    with pytest.raises(ServiceError, match=says) as error:
        scheduler.open_stream(change(state))
    assert error.value.kind is ErrorKind.IMPOSSIBLE
    assert scheduler.healthy


def test_a_state_of_another_model_is_refused_when_the_stream_is_opened(engine):
    state = engine(network_of(), weights="these").open_stream().save().result(LONG)
    with pytest.raises(ServiceError, match="other weights"):
        engine(network_of(), weights="those").open_stream(state)


def test_a_state_of_other_shapes_under_the_same_weights_is_refused(engine):
    """As an executor might have that keeps its state otherwise."""
    state = engine(network_of(channels=(3, 3))).open_stream().save().result(LONG)
    with pytest.raises(ServiceError, match="keeps it otherwise"):
        engine(network_of()).open_stream(state)
    one_tensor = engine(network_of(LIFConfig())).open_stream().save().result(LONG)
    with pytest.raises(ServiceError, match="keeps it otherwise"):
        engine(network_of()).open_stream(one_tensor)


def test_the_form_of_a_state_is_its_names_types_and_shapes_not_its_values():
    form = StateForm(pack_state({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, "w"))
    form.check(pack_state({"b": torch.rand(4), "a": torch.rand(2, 3)}, "w"))
    for other in (
        {"a": torch.zeros(3, 2), "b": torch.zeros(4)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(4).half()},
        {"a": torch.zeros(2, 3), "c": torch.zeros(4)},
        {"a": torch.zeros(2, 3)},
    ):
        with pytest.raises(StateError, match="keeps it otherwise"):
            form.check(pack_state(other, "w"))
