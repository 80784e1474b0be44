"""Losses by hand, and which parameters decay and learn at which rate."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from spiketrain.networks import build_network
from spiketrain.neurons import GLIFConfig, PLIFConfig
from spiketrain.optimise import loss_of, make_optimizer, make_schedule
from spiketrain.recipe import TrainingSection

T, N, CLASSES = 3, 4, 5


def training(**settings: object) -> TrainingSection:
    return TrainingSection.model_validate({"timesteps": T, "epochs": 4, **settings})


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(T, N, CLASSES, generator=generator), torch.tensor([0, 4, 2, 2])


def test_the_vote_is_the_squared_distance_of_the_rates_to_the_label() -> None:
    logits, y = logits_and_labels()
    by_hand = sum(
        (logits[:, n, c].mean() - (1.0 if y[n] == c else 0.0)) ** 2
        for n in range(N)
        for c in range(CLASSES)
    ) / (N * CLASSES)
    torch.testing.assert_close(loss_of(logits, y, training(loss="vote")), by_hand)


@pytest.mark.parametrize("target", ["ones", "one-hot"])
def test_the_regulariser_draws_every_logit_to_its_target(target: str) -> None:
    logits, y = logits_and_labels()
    entropy = torch.stack([functional.cross_entropy(step, y) for step in logits]).mean()
    goal = torch.ones(N, CLASSES) if target == "ones" else torch.eye(CLASSES)[y]
    distance = torch.stack([functional.mse_loss(step, goal) for step in logits]).mean()
    loss = loss_of(logits, y, training(regulariser=0.05, target=target))
    torch.testing.assert_close(loss, 0.95 * entropy + 0.05 * distance)


@pytest.mark.parametrize("neuron", [PLIFConfig(), GLIFConfig()])
def test_neurons_parameters_learn_at_their_own_rate_and_do_not_decay(
    neuron: PLIFConfig | GLIFConfig,
) -> None:
    network = build_network("small-conv", {}, neuron, T)
    settings = training(learning_rate=0.1, weight_decay=0.01, neuron_learning_rate=0.1)
    optimizer = make_optimizer(network, settings)
    seen = {
        id(p): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    layers = network.neuron_layers()
    own = [id(p) for layer in layers.values() for p in layer.parameters()]
    assert own
    assert all(seen[p] == (0.0, pytest.approx(0.01)) for p in own)
    assert seen[id(network.get_parameter("stages.1.conv.weight"))] == (0.01, 0.1)
    assert seen[id(network.get_parameter("stages.1.bn.weight"))] == (0.0, 0.1)
    assert len(seen) == len(list(network.parameters()))


def test_everything_decays_where_the_recipe_says_so() -> None:
    network = build_network("small-conv", {}, PLIFConfig(), T)
    optimizer = make_optimizer(network, training(weight_decay=0.01, decay_all=True))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}


def test_a_cosine_shorter_than_the_run_comes_back() -> None:
    network = build_network("small-conv", {}, PLIFConfig(), T)
    settings = training(learning_rate=0.1, cosine_epochs=2)
    optimizer = make_optimizer(network, settings)
    schedule = make_schedule(optimizer, settings, steps=5)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert min(rates) == pytest.approx(rates[10]) == pytest.approx(0, abs=1e-9)
    assert schedule.get_last_lr()[0] == pytest.approx(0.1)


def test_steps_of_the_learning_rate_come_after_a_warm_up() -> None:
    network = build_network("small-conv", {}, PLIFConfig(), T)
    settings = training(
        learning_rate=0.1, epochs=6, schedule="steps", milestones=(2, 4), warmup_steps=4
    )
    optimizer = make_optimizer(network, settings)
    schedule = make_schedule(optimizer, settings, steps=5)
    rates = []
    for _ in range(30):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    expected = [0.025, 0.05, 0.075, *[0.1] * 7, *[0.01] * 10, *[0.001] * 10]
    assert rates == pytest.approx(expected)


def test_labels_may_be_shares_of_classes() -> None:
    logits, y = logits_and_labels()
    shares = torch.eye(CLASSES)[y]
    for settings in (
        training(label_smoothing=0.1, regulariser=0.05, target="one-hot"),
        training(loss="mean"),
        training(loss="vote"),
    ):
        torch.testing.assert_close(loss_of(logits, shares, settings), loss_of(logits, y, settings))
