from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spiketrain.evaluate import evaluate
from spiketrain.networks import Network, build_network
from spiketrain.neurons import CLIFConfig, LIFConfig, NeuronConfig
from spiketrain.rates import MismatchMeter, RateMeter, each_step, firing_rates, spike_mismatch


def tiny(neuron: NeuronConfig, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    arguments = {"input_shape": [1, 8, 8], "classes": 3, "channels": [3, 4], "strides": [1, 2]}
    network = build_network("small-conv", arguments, neuron, 4).double()
    for name, parameter in network.named_parameters():
        if name.endswith("bn.weight"):
            parameter.data.fill_(2)
        elif name.endswith("bn.bias"):
            parameter.data.fill_(0.3)
    return network.eval()


def images(batches: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(5, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(batches)
    ]


def test_steps_are_the_run_at_once():
    network = tiny(CLIFConfig())
    (x,) = images(1)
    at_once = network(x)
    for t, output in enumerate(each_step(network, x)):
        torch.testing.assert_close(output.logits, at_once.logits[t])
        assert all(
            torch.equal(output.spikes[name], at_once.spikes[name][t]) for name in output.spikes
        )
    frames = torch.stack(images(3))
    at_once = network(frames)
    steps = list(each_step(network, frames))
    assert len(steps) == 3
    assert all(
        torch.equal(s.spikes[n], at_once.spikes[n][t])
        for t, s in enumerate(steps)
        for n in s.spikes
    )


def test_steps_of_an_input_with_the_wrong_axes_are_refused():
    with pytest.raises(ValueError, match="expected"):
        list(each_step(tiny(LIFConfig()), torch.zeros(8, 8, dtype=torch.float64)))


def test_rates_over_batches_are_those_of_all_spikes_together():
    network = tiny(CLIFConfig())
    batches = images()
    found = firing_rates(network, batches)
    with torch.no_grad():
        runs = [network(x).spikes for x in batches]
    for name, rates in found.items():
        spikes = torch.cat([run[name] for run in runs], 1)
        by_sample = spikes.flatten(2).mean((0, 2))
        by_neuron = spikes.flatten(2).mean((0, 1))
        assert rates.mean == pytest.approx(spikes.mean().item())
        assert 0 < rates.mean < 1
        assert rates.profile.p50 == pytest.approx(by_sample.median().item(), abs=0.02)
        assert rates.profile.p99 == pytest.approx(by_sample.quantile(0.99).item())
        assert rates.by_timestep == pytest.approx(spikes.flatten(1).mean(1).tolist())
        assert rates.silent == pytest.approx((by_neuron == 0).double().mean().item())
        assert rates.saturated == pytest.approx((by_neuron >= 0.95).double().mean().item())
        assert (rates.samples, rates.neurons) == (10, spikes[0, 0].numel())


def test_profiles_are_those_of_evaluation():
    network = tiny(CLIFConfig())
    labelled = [(x, torch.zeros(5, dtype=torch.long)) for x in images()]
    expected = evaluate(network, labelled).rate_profiles()
    for name, rates in firing_rates(network, images()).items():
        assert rates.profile.model_dump() == pytest.approx(expected[name].model_dump())


def test_silent_and_saturated_neurons():
    meter = RateMeter()
    for t in range(4):
        meter.add(t, {"layer": torch.tensor([[1.0, 0.0, float(t == 0)], [1.0, 0.0, 0.0]])})
    rates = meter.rates()["layer"]
    assert rates.silent == pytest.approx(1 / 3)
    assert rates.saturated == pytest.approx(1 / 3)
    assert rates.by_timestep == pytest.approx((0.5, 1 / 3, 1 / 3, 1 / 3))
    assert rates.profile.mean == pytest.approx(9 / 24)


def test_batches_of_different_lengths_count_by_their_own_timesteps():
    meter = RateMeter()
    for t in range(2):
        meter.add(t, {"layer": torch.ones(1, 2)})
    meter.add(0, {"layer": torch.zeros(3, 2)})
    rates = meter.rates()["layer"]
    assert rates.profile.mean == pytest.approx(1 / 4)
    assert rates.by_timestep == pytest.approx((1 / 4, 1.0))


def test_a_timestep_out_of_order_is_refused():
    meter = RateMeter()
    with pytest.raises(ValueError, match="timestep 1"):
        meter.add(1, {"layer": torch.ones(1, 2)})
    with pytest.raises(ValueError, match="no batches"):
        RateMeter().rates()


def test_mismatch_is_relative_to_the_parents_spikes():
    meter = MismatchMeter()
    meter.add(
        {"a": torch.tensor([[1.0, 1.0, 0.0, 1.0]]), "b": torch.zeros(1, 2)},
        {"a": torch.tensor([[1.0, 0.0, 1.0, 1.0]]), "b": torch.zeros(1, 2)},
    )
    meter.add(
        {"a": torch.ones(1, 4), "b": torch.zeros(1, 2)},
        {"a": torch.ones(1, 4), "b": torch.ones(1, 2)},
    )
    assert meter.by_layer() == {"a": pytest.approx(2 / 7), "b": 2.0}
    assert meter.total() == pytest.approx(4 / 7)


def test_mismatch_of_runs_that_do_not_compare_is_refused():
    meter = MismatchMeter()
    with pytest.raises(ValueError, match="not two runs of one network"):
        meter.add({"a": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(ValueError, match="shape"):
        meter.add({"a": torch.ones(1, 2)}, {"a": torch.ones(1, 3)})


def test_a_network_does_not_differ_from_itself_but_from_another_neuron():
    clif, lif = tiny(CLIFConfig()), tiny(LIFConfig())
    assert set(spike_mismatch(clif, clif, images()).values()) == {0.0}
    assert all(value > 0 for value in spike_mismatch(clif, lif, images()).values())
