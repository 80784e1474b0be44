"""T timesteps of a neuron at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run_steps(neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Currents [T, N, C, ...] and a state in; spikes of the same shape and the last state out."""
    spikes = []
    for current in x:
        s, state = neuron.step(current, state)
        spikes.append(s)
    return torch.stack(spikes), state
