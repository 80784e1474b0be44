"""Where a number that is none comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spiketrain.networks import Network


def looks_finite(network: Network, loss: Tensor) -> bool:
    """Whether loss, parameters and gradients are finite numbers, in one look at the device.

    The loss alone does not tell: neurons whose current is no number stay silent, and logits finite. Values so large
    that their squares are not finite look as if they were not.
    """
    parameters = list(network.parameters())
    tensors = [p.detach() for p in parameters] + [p.grad for p in parameters if p.grad is not None]
    total = torch.nn.utils.get_total_norm(tensors).to(loss.device) + loss.detach().abs()
    return bool(torch.isfinite(total))


def culprit(network: Network, loss: Tensor, run: Callable[[], Any]) -> str | None:
    """What is not finite: a parameter, else the first layer whose output is not as `run` computes the batch again, else
    the loss or the gradient of a parameter; None where all of it is finite after all."""
    for name, parameter in network.named_parameters():
        if not _finite(parameter):
            return name
    if not _finite(loss):
        layer = _first_layer(network, run)
        return f"the output of {layer}" if layer is not None else "the loss"
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return f"the gradient of {name}"
    return None


def _first_layer(network: Network, run: Callable[[], Any]) -> str | None:
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(first, Tensor) and not _finite(first):
                found.append(name)

        return hook

    hooks = [
        module.register_forward_hook(look(name))
        for name, module in network.named_modules()
        if not list(module.children())
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x.detach()).all())
