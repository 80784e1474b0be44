"""Accuracy by timestep and firing rates, against sums by hand."""

import pytest
import torch

from spiketrain.evaluate import evaluate, rate_profile
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig


def test_figures_equal_those_counted_by_hand_and_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    network = build_network("small-conv", {"channels": [4, 8]}, CLIFConfig(), 3).eval()
    x, y = torch.randn(20, 1, 28, 28), torch.randint(0, 10, (20,))
    with torch.no_grad():
        run = network(x)
    by_hand = [(run.logits[:t].mean(0).argmax(1) == y).double().mean().item() for t in (1, 2, 3)]
    for size in (20, 7):
        result = evaluate(network, zip(x.split(size), y.split(size), strict=True))
        assert result.samples == 20
        assert result.accuracy_by_timestep == pytest.approx(by_hand)
        assert result.accuracy == result.accuracy_by_timestep[-1]
        for name, spikes in run.spikes.items():
            expected = spikes.transpose(0, 1).flatten(1).mean(1)
            torch.testing.assert_close(result.rates[name], expected)
            torch.testing.assert_close(
                result.rates_by_timestep[name], spikes.flatten(1).mean(1), atol=1e-6, rtol=0
            )


def test_evaluation_leaves_the_network_in_the_mode_it_was_in() -> None:
    network = build_network("small-conv", {"channels": [4, 8]}, CLIFConfig(), 2).train()
    evaluate(network, [(torch.randn(2, 1, 28, 28), torch.tensor([0, 1]))])
    assert network.training


def test_nothing_to_evaluate_is_an_error() -> None:
    network = build_network("small-conv", {"channels": [4, 8]}, CLIFConfig(), 2)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(network, [])


def test_a_rate_profile_has_mean_and_percentiles() -> None:
    profile = rate_profile(torch.linspace(0, 1, 101))
    assert (profile.mean, profile.p1, profile.p50, profile.p99) == pytest.approx(
        (0.5, 0.01, 0.5, 0.99)
    )
