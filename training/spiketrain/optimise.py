"""What a recipe says about learning: its loss, its optimiser and the schedule of the learning rate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from spiketrain.networks import Network
from spiketrain.recipe import TrainingSection


def loss_of(logits: Tensor, y: Tensor, training: TrainingSection) -> Tensor:
    """The recipe's loss of logits [T, N, classes] and labels, [N] or shares of the classes [N, classes].

    Per step: the mean over timesteps of the cross entropy, which makes every prefix of a run a usable classifier,
    plus `regulariser` times the mean squared distance of the logits to 1 or to the label (the CLIF repository's
    train.py). Vote: the PLIF repository's loss, of logits that are firing rates.
    """
    if training.loss == "vote":
        return functional.mse_loss(logits.mean(0), _one_hot(y, logits))
    if training.loss == "mean":
        return functional.cross_entropy(logits.mean(0), y, label_smoothing=training.label_smoothing)
    every = functional.cross_entropy(
        logits.flatten(0, 1),
        y.repeat(len(logits), *(1,) * (y.dim() - 1)),
        label_smoothing=training.label_smoothing,
    )
    if training.regulariser == 0:
        return every
    target = torch.ones_like(logits) if training.target == "ones" else _one_hot(y, logits)
    distance = functional.mse_loss(logits, target.expand_as(logits))
    return (1 - training.regulariser) * every + training.regulariser * distance


def make_optimizer(network: Network, training: TrainingSection) -> torch.optim.Optimizer:
    # Decay belongs to weights; biases, batch norms and the neurons' own parameters are left alone unless asked for.
    own = {
        id(p) for layer in network.neuron_layers().values() for p in layer.parameters(recurse=False)
    }
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for p in network.parameters():
        neuron = id(p) in own
        decayed = training.decay_all or (p.dim() > 1 and not neuron)
        groups.setdefault((decayed, neuron), []).append(p)
    described = [
        {
            "params": parameters,
            "weight_decay": training.weight_decay if decayed else 0.0,
            "lr": training.learning_rate * (training.neuron_learning_rate if neuron else 1),
        }
        for (decayed, neuron), parameters in groups.items()
    ]
    match training.optimizer:
        case "adamw":
            return torch.optim.AdamW(described, lr=training.learning_rate)
        case "adam":
            return torch.optim.Adam(described, lr=training.learning_rate)
        case "sgd":
            return torch.optim.SGD(described, lr=training.learning_rate, momentum=training.momentum)


def make_schedule(
    optimizer: torch.optim.Optimizer, training: TrainingSection, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    total = training.epochs * steps
    if training.schedule == "one-cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, highest, total, pct_start=0.2, cycle_momentum=False
        )
    if training.schedule == "cosine" and not training.warmup_steps:
        period = total if training.cosine_epochs is None else training.cosine_epochs * steps
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor_at(step, training, steps)
    )


def factor_at(step: int, training: TrainingSection, steps: int) -> float:
    """What the learning rate is times after `step` optimiser steps, of `steps` an epoch: steps, or a cosine, after a
    warm-up."""
    rising = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    if training.schedule == "steps":
        passed = sum(step >= epoch * steps for epoch in training.milestones)
        return rising * training.milestone_factor**passed
    period = (training.cosine_epochs or training.epochs) * steps
    return rising * (1 + math.cos(math.pi * step / period)) / 2


def _one_hot(y: Tensor, logits: Tensor) -> Tensor:
    if y.dim() == 2:
        return y.to(logits.dtype)
    return functional.one_hot(y, logits.shape[-1]).to(logits.dtype)
