"""The executor for an NVIDIA GPU: the state of all slots stays on it, and a timestep of a batch is one graph launch.

Weights, spikes and currents between layers are bfloat16, potentials float32. Spikes are exact in bfloat16; what it costs
is the rounding of weights and currents, by which a spike may flip that is close to the threshold.

A picture that is known to run all timesteps of its network is computed that far ahead at once, when its first timestep
is asked for: weights are read once instead of once a timestep, and potentials never leave the registers.

The answer for a sample may depend on the size that its batch is padded to, since cuDNN picks its algorithm by that, and
not on which samples are beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spikeserve.engine.cuda.program import Program, Target
from spikeserve.engine.cuda.runner import Rows, Runner, on
from spikeserve.engine.executor import Frames, Sample, StateError, StepResult
from spikeserve.engine.state import pack_state, unpack_state
from spiketrain.kernels.triton import SlotLayer
from spiketrain.networks import Network

_ENCODED = "encoded"
_AHEAD = "ahead"

# So many timesteps are computed at once at most: the kernels unroll them.
_MOST_STEPS = 16


@dataclass
class _Slot:
    """What the host knows of a slot. `age`: timesteps that its state has behind it; `ahead`: results not yet asked for."""

    age: int = 0
    input: bool = False
    timesteps: int | None = None
    waiting: Tensor | None = None  # a constant input that is not on the device yet
    ahead: list[Rows] = field(default_factory=list)


class CudaExecutor:
    """`fan_out` and `weights` as for `ReferenceExecutor`.

    `dtype` float32 computes as exactly as the reference does, but for the order of sums. On another `device` than a GPU
    the kernels need Triton's interpreter; that is for tests.
    """

    def __init__(
        self,
        network: Network,
        slots: int,
        fan_out: Mapping[str, Tensor],
        weights: str = "",
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cuda",
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}: it must be at least 1")
        self._device = torch.device(device)
        with on(self._device), torch.inference_mode():
            self._program = Program(network, fan_out, Target(self._device, dtype, slots))
            if not self._program.counted:
                raise ValueError("the network has no layer of neurons that spike")
            self._runner = Runner(self._program, network.input_shape, network.classes, slots)
            self._at_once = max(
                steps for steps in range(1, _MOST_STEPS + 1) if network.timesteps % steps == 0
            )
            if self._device.type == "cuda":
                self._runner.prepare(sorted({1, self._at_once}))
        self._weights = weights
        self._slots = [_Slot() for _ in range(slots)]

    @property
    def slots(self) -> int:
        return len(self._slots)

    @property
    def layers(self) -> tuple[str, ...]:
        return self._program.counted

    def admit(self, slot: int, sample: Sample) -> None:
        self._slots[slot] = _Slot(
            input=sample.constant is not None,
            timesteps=None if sample.constant is None else sample.timesteps,
            waiting=sample.constant,
        )

    @torch.inference_mode()
    def step(self, slots: Sequence[int], frames: Frames | None) -> StepResult:
        if not slots or len(set(slots)) != len(slots):
            raise ValueError(f"slots {list(slots)}: none, or one is named twice")
        with on(self._device):
            self._take_inputs(slots, frames)
            now = [slot for slot in slots if not self._slots[slot].ahead]
            several = [slot for slot in now if self._runs_ahead(self._slots[slot])]
            if len(now) == len(slots) and not several:
                # Nothing has to be kept for later.
                return self._one_timestep(now)
            self._run(several, self._at_once)
            self._run([slot for slot in now if slot not in set(several)], 1)
        rows = [self._slots[slot].ahead.pop(0) for slot in slots]
        return StepResult(*(torch.stack(list(each)) for each in zip(*rows, strict=True)))

    def _runs_ahead(self, slot: _Slot) -> bool:
        left = 0 if slot.timesteps is None else slot.timesteps - slot.age
        return 1 < self._at_once <= left

    def _one_timestep(self, slots: list[int]) -> StepResult:
        result = self._runner.step(slots, [self._slots[slot].age for slot in slots], 1)
        for slot in slots:
            self._slots[slot].age += 1
        return StepResult(*(each[0] for each in result))

    def _run(self, slots: list[int], steps: int) -> None:
        if not slots:
            return
        result = self._runner.step(slots, [self._slots[slot].age for slot in slots], steps)
        for i, slot in enumerate(slots):
            self._slots[slot].age += steps
            self._slots[slot].ahead += [
                Rows(*(each[t, i] for each in result)) for t in range(steps)
            ]

    def _take_inputs(self, slots: Sequence[int], frames: Frames | None) -> None:
        """Encode what came since the last step: constant inputs of new samples, and frames."""
        new: dict[int, Tensor] = {}
        for slot in slots:
            waiting = self._slots[slot].waiting
            if waiting is not None:
                new[slot], self._slots[slot].waiting = waiting, None
        if frames is not None:
            for row, value in zip(frames.rows, frames.values, strict=True):
                new[slots[row]] = value
        for slot in slots:
            if slot not in new and not self._slots[slot].input:
                raise ValueError(f"slot {slot} has neither a constant input nor a frame")
        self._runner.encode(list(new), list(new.values()))

    @torch.inference_mode()
    def save(self, slot: int) -> bytes:
        mine = self._slots[slot]
        with on(self._device):
            if mine.waiting is not None:
                self._runner.encode([slot], [mine.waiting])
                mine.waiting = None
            tensors = {
                f"{name}/{i}": part
                for name, layer in self._program.layers.items()
                for i, part in enumerate(layer.state_of(slot, mine.age))
            }
            if mine.input:
                tensors[_ENCODED] = self._program.encoded[slot : slot + 1].cpu()
        for i, rows in enumerate(mine.ahead):
            tensors |= {f"{_AHEAD}/{i}/{j}": each for j, each in enumerate(rows)}
        return pack_state(tensors, self._weights)

    @torch.inference_mode()
    def load(self, slot: int, state: bytes) -> None:
        self._slots[slot] = _Slot()
        tensors = unpack_state(state, self._weights)
        encoded = tensors.pop(_ENCODED, None)
        ahead = self._ahead_of(tensors)
        parts: dict[str, tuple[Tensor, ...]] = {}
        for name, layer in self._program.layers.items():
            fresh = layer.state_of(slot, 0)
            found = [tensors.pop(f"{name}/{i}", None) for i in range(len(fresh))]
            parts[name] = tuple(part for part in found if part is not None)
            if len(parts[name]) != len(fresh) or any(map(_differs, parts[name], fresh)):
                raise StateError(f"state: layer {name!r} is missing, or of another shape or type")
        home = self._program.encoded[slot : slot + 1]
        if encoded is not None and _differs(encoded, home):
            raise StateError("state: the encoded input is of another shape or type")
        if tensors:
            raise StateError(f"state: {min(tensors)!r} belongs to no layer of this model")
        with on(self._device):
            for name, layer in self._program.layers.items():
                layer.set_state(slot, parts[name])
            if encoded is not None:
                home.copy_(encoded)
        self._slots[slot] = _Slot(self._age_of(parts), encoded is not None, ahead=ahead)

    def _age_of(self, parts: Mapping[str, tuple[Tensor, ...]]) -> int:
        """Only a GLIF has to know; for the others it is enough that there is a state to be read."""
        for name, layer in self._program.layers.items():
            if isinstance(layer, SlotLayer) and len(parts[name]) > len(layer.state):
                return int(parts[name][-1])
        return 1

    def _ahead_of(self, tensors: dict[str, Tensor]) -> list[Rows]:
        rows: list[Rows] = []
        while f"{_AHEAD}/{len(rows)}/0" in tensors:
            found = [tensors.pop(f"{_AHEAD}/{len(rows)}/{j}", torch.empty(0)) for j in range(3)]
            if found[1].shape != (len(self.layers),) or found[2].dim():
                raise StateError("state: results computed ahead are of another shape")
            rows.append(Rows(*found))
        return rows


def _differs(part: Tensor, like: Tensor) -> bool:
    return part.shape != like.shape or part.dtype != like.dtype
