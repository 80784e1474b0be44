"""The parts of a calibration that look at the logits: the line search over all values, and the readout's bias."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from spiketrain.convert.layerwise import LOGITS, Knobs
from spiketrain.convert.lif_layers import config_of, value_field
from spiketrain.networks import Network
from spiketrain.neurons.lif import Reset


@torch.no_grad()
def line_search(parent: Network, child: Network, batches: Sequence[Tensor], reset: Reset) -> None:
    """All values scaled, then shifted, by whatever of a few factors and amounts brings the logits nearest."""
    expected = [parent(x).logits.mean(0).log_softmax(1) for x in batches]
    layers = child.neuron_layers().values()
    values = [layer.get_parameter(value_field(config_of(layer))) for layer in layers]
    start = [value.clone() for value in values]

    def divergence(scale: float, shift: float) -> float:
        for value, origin in zip(values, start, strict=True):
            value.copy_(origin * scale + shift)
        found = [child(x).logits.mean(0).log_softmax(1) for x in batches]
        pairs = zip(found, expected, strict=True)
        return sum(
            functional.kl_div(f, e, reduction="sum", log_target=True).item() for f, e in pairs
        )

    least, scale, shift = divergence(1.0, 0.0), 1.0, 0.0
    for factor in (0.97, 0.985, 1.015, 1.03) if reset == "soft" else (0.7, 0.85, 1.15, 1.3):
        if (found := divergence(factor, 0.0)) < least:
            least, scale = found, factor
    for amount in (-0.04, -0.02, 0.02, 0.04):
        if (found := divergence(scale, amount)) < least:
            least, shift = found, amount
    divergence(scale, shift)


@torch.no_grad()
def correct_logits(
    parent: Network, child: Network, knobs: Knobs, batches: Sequence[Tensor]
) -> None:
    drift = [parent(x).logits.double().mean(0) - child(x).logits.double().mean(0) for x in batches]
    knobs.shift(LOGITS, torch.cat(drift).mean(0))
