"""Short fine-tuning of a converted network towards its parent: the same logits, by the same spikes.

    loss = mean over t of KL(parent's classes at t || child's)
           + spikes / L  sum over layers of  sum (s_child - s_parent)^2 / sum s_parent

Of scope `readout`, only what the logits depend on without a spike between is changed: the loss is convex in it, and
the spikes stay as they are. Of scope `all`, everything is, through the surrogate gradient of the spikes, a rectangle of
`width`. That gradient is biased, and a calibrated network is so near its parent that it moves away as often as not:
judge before relying on it. Batch norms keep their statistics. No labels are needed, and the last weights are taken:
nothing is selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from spiketrain.networks import Network, RunOutput
from spiketrain.surrogate import Rectangle


@dataclass(frozen=True)
class FineTuning:
    """`spikes` weighs the spikes against the logits. The learning rate, Adam's, falls to 0 as a cosine."""

    scope: Literal["readout", "all"] = "readout"
    epochs: int = 10
    learning_rate: float = 1e-4
    spikes: float = 1.0
    width: float = 0.25
    batch_size: int = 64
    seed: int = 0


def distil(parent: Network, child: Network, batches: Sequence[Tensor], tuning: FineTuning) -> None:
    """Change the child's weights and neurons, on inputs [N, ...] or [T, N, ...], towards the parent's answers."""
    constant = batches[0].dim() == len(parent.input_shape) + 1
    axis = 0 if constant else 1
    samples = torch.cat(list(batches), axis)
    count = samples.shape[axis]
    size = min(tuning.batch_size, count)
    steps = tuning.epochs * (count // size)
    child.eval().requires_grad_(True)
    layers = child.neuron_layers().values()
    configs = [layer.config for layer in layers]
    for layer, config in zip(layers, configs, strict=True):
        layer.config = _narrowed(config, tuning.width)
    handles = [
        layer.register_forward_hook(lambda m, x, y: (y[0].detach(), y[1]))
        for layer in (layers if tuning.scope == "readout" else ())
    ]
    optimiser = torch.optim.Adam(child.parameters(), lr=tuning.learning_rate)
    generator = torch.Generator().manual_seed(tuning.seed)
    step = 0
    for _ in range(tuning.epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            for group in optimiser.param_groups:
                group["lr"] = tuning.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            x = samples.index_select(axis, order[start : start + size])
            with torch.no_grad():
                wanted = parent(x)
            optimiser.zero_grad()
            loss = distance(child(x), wanted, tuning.spikes)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
    child.requires_grad_(False)
    for handle in handles:
        handle.remove()
    for layer, config in zip(layers, configs, strict=True):
        layer.config = config


def _narrowed(config: Any, width: float) -> Any:
    strict = bool(getattr(config.surrogate, "strict", False))
    return config.model_copy(update={"surrogate": Rectangle(width=width, strict=strict)})


def distance(found: RunOutput, wanted: RunOutput, spikes: float) -> Tensor:
    """The loss above."""
    logits = functional.kl_div(
        found.logits.flatten(0, 1).log_softmax(1),
        wanted.logits.flatten(0, 1).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    if not spikes or not wanted.spikes:
        return logits
    parts = [
        functional.mse_loss(layer, wanted.spikes[name], reduction="sum")
        / wanted.spikes[name].sum().clamp(min=1)
        for name, layer in found.spikes.items()
    ]
    return logits + spikes * torch.stack(parts).mean()
