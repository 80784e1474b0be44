"""Weights that give a layer the parent's currents, as nearly as its converted inputs allow, in closed form.

For one layer of weights W that sees the child's spikes a and should give the parent's current I, the change

    dW = R A' (A A' + ridge)^-1,    R = I - I_child before the batch norm, A the child's inputs, and a row of ones

is the least-squares solution: it takes out of the child's currents what can be told from its spikes of how they
differ from the parent's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from spiketrain.convert.layerwise import Knobs, currents_of
from spiketrain.networks import Network

# Of the mean of A A's diagonal: how much the weights are kept where they are.
RIDGE = 1e-3


@torch.no_grad()
def fit_weights(
    child: Network, knobs: Knobs, name: str, batches: Sequence[Tensor], wanted: Tensor
) -> bool:
    """Change the weights before the layer called `name` so that its currents come nearest `wanted` [T, N, C, ...].

    False, and nothing changed, where no single convolution or linear layer gives the currents, by itself or through
    one batch norm, or its convolution has groups.
    """
    module = knobs.weights(name)
    if module is None:
        return False
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, arguments: seen.append(arguments[0]))
    try:
        found = currents_of(child, name, batches)
    finally:
        handle.remove()
    if (
        found.stride(0) == 0
    ):  # a current that is the same at all timesteps: the input, which is the parent's
        return False
    gain = knobs.gain(name)
    steps, taken = found.shape[0], 0
    gram: Tensor | None = None
    for x in seen:
        count = x.shape[0] // steps
        residual = (wanted - found)[:, taken : taken + count].flatten(0, 1)
        taken += count
        rows, features = _rows(module, x)
        target = residual.flatten(2) if residual.dim() > 2 else residual.unsqueeze(2)
        target = target.transpose(0, 1).flatten(1) / gain.view(-1, 1)
        if gram is None:
            gram = torch.zeros(features, features, dtype=torch.float64)
            cross = torch.zeros(len(gain), features, dtype=torch.float64)
        gram += (rows @ rows.T).double()
        cross += (target @ rows.T).double()
    if gram is None:
        return False
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    change = torch.linalg.solve(gram, cross.T).T
    module.weight += change[:, :-1].view_as(module.weight).to(module.weight)
    knobs.shift(name, change[:, -1] * gain.double())
    return True


def _rows(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Inputs of every output, as columns [features + 1, N * positions], the last row ones."""
    if isinstance(module, nn.Conv2d):
        columns = functional.unfold(
            x,
            module.kernel_size,
            module.dilation,
            cast(tuple[int, ...], module.padding),
            module.stride,
        )
        columns = columns.transpose(0, 1).flatten(1)
    else:
        columns = x.T
    return torch.cat([columns, torch.ones_like(columns[:1])]), len(columns) + 1
