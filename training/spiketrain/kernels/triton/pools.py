"""The neurons of one layer for many samples, each with its state in a slot: how serving steps them on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spiketrain.kernels.triton.plans import Plan
from spiketrain.kernels.triton.slots import slots_kernel
from spiketrain.neurons.glif import GLIFState

_BLOCK = 1024
_WARPS = 4


class Batch(NamedTuple):
    """The rows of one call: tensors on the device, of the same length.

    `slots` and `ages` int32 [rows]: where a row's state is (-1: the row is padding), and how many timesteps it has
    behind it; state of age 0 is not read. `counts` float64 [steps, rows, layers] and `operations` float64 [steps,
    rows]: spikes and synaptic operations are added to them.
    """

    slots: Tensor
    ages: Tensor
    counts: Tensor
    operations: Tensor
    steps: int = 1


class Affine(NamedTuple):
    """What is done to a current first: times `gain`, plus `shift`, float32 [C] each. A batch norm in evaluation."""

    gain: Tensor
    shift: Tensor


class SlotLayer:
    """`shape` is one sample's, [C, ...]. `fan_out` float32, of that shape: synaptic operations of one spike of each.

    `column` is the layer's place among those whose spikes are counted, None for a layer that is not.
    """

    def __init__(
        self,
        plan: Plan,
        slots: int,
        shape: tuple[int, ...],
        fan_out: Tensor | None,
        column: int | None,
        affine: Affine | None,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self.plan = plan._replace(
            parameters=None if plan.parameters is None else plan.parameters.detach().to(device)
        )
        self.column = column
        channels, positions = shape[0], torch.Size(shape[1:]).numel()
        self.neurons = channels * positions
        self.state = tuple(
            torch.zeros(slots, self.neurons, device=device) for _ in range(plan.modes.parts)
        )
        reach = torch.zeros(shape) if fan_out is None else fan_out.float().expand(shape)
        # In the order of memory, channels last.
        self._fan_out = reach.reshape(channels, positions).T.contiguous().flatten().to(device)
        self._affine = affine

    def fire(
        self,
        a: Tensor,
        b: Tensor | None,
        batch: Batch,
        dtype: torch.dtype,
        by_slot: bool = False,
        constant: bool = False,
    ) -> Tensor:
        """Currents `a` (plus `b`) to spikes [steps * rows, C, ...], channels last, for the next layer.

        Currents are [steps * rows, C, ...], or [rows, C, ...] where `constant`, or where `by_slot` [slots, C, ...]. They
        must lie in memory with channels last.
        """
        rows, steps = len(batch.slots), batch.steps
        spikes = self._empty(steps * rows, dtype, a.device)
        counted = self.column is not None
        parameters = self.plan.parameters
        scales = 0 if parameters is None else len(parameters) - 5
        with torch.cuda.device_of(a):  # type: ignore[no-untyped-call]
            slots_kernel[(-(-self.neurons // _BLOCK), rows)](
                _dense(a),
                a if b is None else _dense(b),
                spikes,
                self.state,
                batch.slots,
                batch.ages,
                batch.counts[..., self.column or 0 :] if counted else batch.counts,
                batch.operations,
                self._fan_out,
                a if self._affine is None else self._affine.gain,
                a if self._affine is None else self._affine.shift,
                a if parameters is None else parameters,
                self.plan.constants,
                rows,
                scales,
                n=self.neurons,
                channels=self.shape[0],
                layers=batch.counts.shape[-1],
                M=self.plan.modes,
                STEPS=steps,
                BY_SLOT=by_slot,
                CONSTANT=constant,
                TWO=b is not None,
                AFFINE=self._affine is not None,
                COUNT=counted,
                BLOCK=_BLOCK,
                num_warps=_WARPS,
                enable_fp_fusion=False,
            )
        return spikes

    def state_of(self, slot: int, age: int) -> tuple[Tensor, ...]:
        """As the neuron itself keeps it: [1, C, ...] on the CPU; a GLIF's with its timestep."""
        fresh = [self.plan.constants.rest, 0.0, 0.0]
        parts = tuple(
            torch.full((1, *self.shape), value) if age == 0 else self._sample(part[slot]).cpu()
            for part, value in zip(self.state, fresh, strict=False)
        )
        if self.plan.state is GLIFState:
            return (*parts, torch.tensor([age]))
        return parts

    def set_state(self, slot: int, parts: tuple[Tensor, ...]) -> None:
        for mine, part in zip(self.state, parts, strict=False):
            self._sample(mine[slot]).copy_(part)

    def _sample(self, flat: Tensor) -> Tensor:
        """A view of one slot's part as [1, C, ...]."""
        channels = self.shape[0]
        return flat.view(*self.shape[1:], channels).movedim(-1, 0).unsqueeze(0)

    def _empty(self, rows: int, dtype: torch.dtype, device: Any) -> Tensor:
        channels = self.shape[0]
        return torch.empty(rows, *self.shape[1:], channels, dtype=dtype, device=device).movedim(
            -1, 1
        )


def _dense(x: Tensor) -> Tensor:
    """The currents with channels last in memory; no copy where they are."""
    return x.movedim(1, -1).contiguous()
