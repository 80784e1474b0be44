"""One timestep of a network as a function of tensors only, and what these tensors are called in an ONNX file."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spiketrain.energy import fan_out, synaptic_operations
from spiketrain.networks import Network, NetworkState, StepOutput

OPERATIONS = "synaptic_operations"


class StepFunction(nn.Module):
    """State tensors are called LAYER/FIELD, their new values LAYER/FIELD/out, and spike counts LAYER/spikes.

    `reach` is the network's `fan_out`, None where it has none; then there are no synaptic operations.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.initial: NetworkState = network.initial_state(1)
        self.state_names = [
            f"{layer}/{field}" for layer, state in self.initial.items() for field in state._fields
        ]
        layers = network.neuron_layers()
        self.spiking = [name for name in self.initial if layers[name].config.spiking]
        try:
            self.reach: dict[str, Tensor] | None = fan_out(network)
        except ValueError:
            self.reach = None
        self.output_names = [
            "logits",
            *(f"{name}/out" for name in self.state_names),
            *(f"{layer}/spikes" for layer in self.spiking),
            *([] if self.reach is None else [OPERATIONS]),
        ]

    def forward(self, x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        parts = iter(flat)
        state = {
            layer: type(like)(*(next(parts) for _ in like)) for layer, like in self.initial.items()
        }
        return tuple(self.results(self.network.step(x, state)).values())

    def flat(self, state: NetworkState) -> dict[str, Tensor]:
        tensors = (tensor for layer in self.initial for tensor in state[layer])
        return dict(zip(self.state_names, tensors, strict=True))

    def results(self, output: StepOutput) -> dict[str, Tensor]:
        counts = [output.spikes[layer].flatten(1).sum(1) for layer in self.spiking]
        if self.reach is not None:
            counts.append(synaptic_operations(output.spikes, self.reach))
        tensors = (output.logits, *self.flat(output.state).values(), *counts)
        return dict(zip(self.output_names, tensors, strict=True))

    def described(self) -> list[dict[str, Any]]:
        described = []
        for name, tensor in self.flat(self.initial).items():
            first = tensor[0]
            uniform = first.numel() == 0 or bool((first == first.flatten()[0]).all())
            by_channel = first.flatten(1)[:, 0] if first.dim() > 1 else first
            initial = first.flatten()[0].item() if uniform else first.tolist()
            if not uniform and first.dim() > 1 and bool((by_channel == first.flatten(1).T).all()):
                initial = by_channel.view(-1, *(1,) * (first.dim() - 1)).tolist()
            described.append(
                {
                    "name": name,
                    "shape": list(first.shape),
                    "type": str(tensor.dtype).removeprefix("torch."),
                    "initial": initial,
                }
            )
        return described
