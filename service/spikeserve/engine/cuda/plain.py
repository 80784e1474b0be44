"""A layer of neurons that has no kernel, such as an integrator of NIR: its own step, on states taken from slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spiketrain.kernels.triton import Affine, Batch
from spiketrain.neurons import Neuron


class PlainLayer:
    """As `SlotLayer`, in some ten operations of torch instead of one kernel; a CUDA graph takes them as well."""

    def __init__(
        self,
        neuron: Neuron,
        slots: int,
        shape: tuple[int, ...],
        fan_out: Tensor | None,
        column: int | None,
        affine: Affine | None,
        device: torch.device,
    ) -> None:
        self._neuron = neuron
        self._shape = shape
        self._column = column
        self._affine = affine and Affine(
            *(value.to(device).view(1, -1, *(1,) * (len(shape) - 1)) for value in affine)
        )
        self._fan_out = None if fan_out is None else fan_out.double().flatten().to(device)
        self._fresh: Any = neuron.initial_state(torch.zeros(1, *shape, device=device))
        # The last row is the padding's.
        self._state = tuple(
            part.repeat(slots + 1, *(1,) * (part.dim() - 1)) for part in self._fresh
        )

    def fire(
        self,
        a: Tensor,
        b: Tensor | None,
        batch: Batch,
        dtype: torch.dtype,
        by_slot: bool = False,
        constant: bool = False,
    ) -> Tensor:
        rows = len(batch.slots)
        places = torch.where(batch.slots < 0, len(self._state[0]) - 1, batch.slots).long()
        x = a.float() if b is None else a.float() + b.float()
        if self._affine is not None:
            x = x * self._affine.gain + self._affine.shift
        state: Any = type(self._fresh)(
            *(
                torch.where(_column(batch.ages == 0, part), fresh, part[places])
                for part, fresh in zip(self._state, self._fresh, strict=True)
            )
        )
        outputs = []
        for t in range(batch.steps):
            now = x if constant else x[t * rows : (t + 1) * rows]
            spikes, state = self._neuron.step(now, state)
            outputs.append(spikes)
            if self._column is not None and self._fan_out is not None:
                flat = spikes.flatten(1).double()
                batch.counts[t, :, self._column] += flat.sum(1)
                batch.operations[t] += flat @ self._fan_out
        for part, new in zip(self._state, state, strict=True):
            part.index_copy_(0, places, new)
        return torch.cat(outputs).to(dtype)

    def state_of(self, slot: int, age: int) -> tuple[Tensor, ...]:
        if age == 0:
            return tuple(part.cpu() for part in self._fresh)
        return tuple(part[slot : slot + 1].cpu() for part in self._state)

    def set_state(self, slot: int, parts: tuple[Tensor, ...]) -> None:
        for mine, part in zip(self._state, parts, strict=True):
            mine[slot : slot + 1].copy_(part)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *(1,) * (like.dim() - 1))
