"""The executor for CPUs: products of whole numbers, and neurons updated in place behind them.

A picture that stays for a known number of timesteps is computed for all of them at once, and handed out one by one:
weights are read once, and the state never leaves the cache. Samples are shared out among threads, which meet only at the
end of a pass.

With whole-number products a sample's answer is the same, bit for bit, whichever samples are beside it and however many
timesteps are computed at once; in float32 it is as far as oneDNN's convolutions are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeserve.engine.cpu.plan import plan_of
from spikeserve.engine.cpu.products import Precision
from spikeserve.engine.cpu.program import Batch, Outcome, Program, weights_of
from spikeserve.engine.cpu.team import Team
from spikeserve.engine.executor import Frames, Sample, StateError, StepResult
from spikeserve.engine.reference import CONSTANT, independent_of_batch
from spikeserve.engine.state import pack_state, unpack_state
from spiketrain.networks import Network, with_plain_weights

Array = NDArray[Any]
_Row = tuple[Array, Array, int]  # logits, spikes and operations of one timestep of one sample

MAX_ROWS = 64
"""Samples times timesteps of one pass of a thread: enough that weights are well used, few enough for the cache."""


@dataclass
class _Slot:
    """`timesteps` is how many are promised, `done` how many have been handed out; `ahead` were computed before that.

    Unless `kept`, the state in memory is not that of the last timestep computed.
    """

    constant: Tensor | None = None  # [C, H, W]
    encoded: Tensor | None = None  # or what a loaded state has instead, [1, ...]
    raw: Tensor | None = None  # the input that has to be encoded before the next timestep
    timesteps: int | None = None
    done: int = 0
    fresh: bool = True
    kept: bool = True
    computed: int = 0

    @property
    def stays(self) -> bool:
        """Whether the input is the same at every timestep."""
        return self.constant is not None or self.encoded is not None

    ahead: deque[_Row] = field(default_factory=deque)


class CpuExecutor:
    """`fan_out` and `weights` as for `ReferenceExecutor`, whose states it can load, and the other way round.

    Uses as many threads as torch does when it is made. Raises UnsupportedError for a network that it cannot run.
    """

    def __init__(
        self,
        network: Network,
        slots: int,
        fan_out: Mapping[str, Tensor],
        weights: str = "",
        precision: Precision = "float32",
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots is {slots}: it must be at least 1")
        network = with_plain_weights(network).eval()
        plan = plan_of(network)
        if missing := {layer.name for layer in plan.layers} - fan_out.keys():
            raise ValueError(f"fan_out lacks the layer {min(missing)!r}")
        self._network = independent_of_batch(network)
        self._name = weights
        self._weights = weights_of(network, plan, precision, fan_out)
        stages = self._weights.stages
        (first,) = (stage for stage in stages if not stage.layer.products)
        self._first = first.layer
        # Taken from the system as slots are used.
        self._inputs = np.zeros((slots, first.neurons), np.float32)
        self._states = {
            stage.layer.name: np.zeros((stage.cells.parts, slots, stage.neurons), np.float32)
            for stage in stages
        }
        self._timed = any(stage.cells.timed for stage in stages)
        self._times = np.zeros(slots, np.int64)
        self._slots = [_Slot() for _ in range(slots)]
        self._fresh = network.initial_state(1)
        self._team = Team(
            torch.get_num_threads(),
            lambda crew: Program(self._weights, self._states, self._inputs, crew),
            plan.multiplications,
        )

    @property
    def slots(self) -> int:
        return len(self._slots)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(stage.layer.name for stage in self._weights.stages)

    @torch.inference_mode()
    def admit(self, slot: int, sample: Sample) -> None:
        self._slots[slot] = _Slot(
            constant=sample.constant, raw=sample.constant, timesteps=sample.timesteps
        )
        self._times[slot] = 0

    @torch.inference_mode()
    def step(self, slots: Sequence[int], frames: Frames | None) -> StepResult:
        if len(set(slots)) != len(slots):
            raise ValueError(f"slots {list(slots)}: one is named twice")
        if frames is not None:
            for row, value in zip(frames.rows, frames.values, strict=True):
                self._slots[slots[row]].raw = value
        for slot in slots:
            entry = self._slots[slot]
            if entry.raw is None and not entry.stays:
                raise ValueError(f"slot {slot} has neither a constant input nor a frame")
        self._compute([slot for slot in slots if not self._slots[slot].ahead])
        rows = [self._hand_out(slot) for slot in slots]
        return StepResult(
            torch.from_numpy(np.array([logits for logits, _, _ in rows])),
            torch.from_numpy(np.array([spikes for _, spikes, _ in rows], np.float64)),
            torch.from_numpy(np.array([operations for _, _, operations in rows], np.float64)),
        )

    def further(self, slot: int) -> tuple[Array, Array, Array] | None:
        """Hand out all timesteps of this slot that are computed already: logits, spikes, operations, [t, ...] each.

        None where there are none.
        """
        entry = self._slots[slot]
        if not entry.ahead:
            return None
        logits, spikes, operations = zip(*entry.ahead, strict=True)
        entry.done += len(logits)
        entry.ahead.clear()
        return np.array(logits), np.array(spikes, np.float64), np.array(operations, np.float64)

    @torch.inference_mode()
    def save(self, slot: int) -> bytes:
        self._keep(slot)
        entry = self._slots[slot]
        tensors: dict[str, Tensor] = {}
        for stage in self._weights.stages:
            name, shape = stage.layer.name, stage.layer.shape
            state = self._states[name][:, slot]
            if entry.fresh:
                state = np.tile(stage.cells.initial, (1, -(-stage.neurons // stage.gain.size)))
                state = state[:, : stage.neurons]
            for part, values in enumerate(state):
                tensors[f"{name}/{part}"] = _channels_first(values, shape)
            if stage.cells.timed:
                tensors[f"{name}/{len(state)}"] = torch.tensor([int(self._times[slot])])
        if entry.constant is not None:
            tensors[CONSTANT] = self._network.encode(entry.constant.unsqueeze(0))
        elif entry.encoded is not None:
            tensors[CONSTANT] = entry.encoded
        return pack_state(tensors, self._name)

    @torch.inference_mode()
    def load(self, slot: int, state: bytes) -> None:
        self._slots[slot] = _Slot()
        tensors = unpack_state(state, self._name)
        constant = tensors.pop(CONSTANT, None)
        times = 0
        for stage in self._weights.stages:
            name = stage.layer.name
            fresh = self._fresh[name]
            parts = [tensors.pop(f"{name}/{i}", None) for i in range(len(fresh))]
            for number, (part, like) in enumerate(zip(parts, fresh, strict=True)):
                if part is None or part.shape != like.shape or part.dtype != like.dtype:
                    raise StateError(
                        f"state: layer {name!r} is missing, or of another shape or type"
                    )
                if number < stage.cells.parts:
                    self._states[name][number, slot] = _channels_last(part)
                else:
                    times = int(part.item())
        if tensors:
            raise StateError(f"state: {min(tensors)!r} belongs to no layer of this model")
        self._slots[slot] = _Slot(encoded=constant, fresh=False)
        self._times[slot] = times
        if constant is not None:
            self._fill([slot], constant)

    def _encode(self, slots: Sequence[int]) -> None:
        waiting = [(slot, raw) for slot in slots if (raw := self._slots[slot].raw) is not None]
        if not waiting:
            return
        self._fill(
            [slot for slot, _ in waiting],
            self._network.encode(torch.stack([raw for _, raw in waiting])),
        )
        for slot, _ in waiting:
            self._slots[slot].raw = None

    def _fill(self, slots: Sequence[int], encoded: Tensor) -> None:
        """Put the first layer's currents, from encoded inputs [n, ...], where the loops read them."""
        gain, shift = self._first.gain, self._first.shift
        rows = encoded.movedim(1, -1)
        if gain is not None and shift is not None:
            rows = rows * gain + shift
        self._inputs[np.array(slots)] = rows.reshape(len(slots), -1).numpy()

    def _hand_out(self, slot: int) -> _Row:
        entry = self._slots[slot]
        entry.done += 1
        return entry.ahead.popleft()

    def _compute(self, slots: Sequence[int]) -> None:
        """At least one more timestep of these slots."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for slot in slots:
            entry = self._slots[slot]
            if not entry.kept:  # it stays longer than was said
                self._keep(slot)
                entry.timesteps = None
            groups.setdefault(self._span(entry), []).append(slot)
        for (steps, keep), members in groups.items():
            self._run(members, steps, keep)

    def _span(self, entry: _Slot) -> tuple[int, bool]:
        """How many timesteps to compute at once, and whether the state after them is needed."""
        if not entry.stays or entry.timesteps is None or entry.computed >= entry.timesteps:
            return 1, True
        left = entry.timesteps - entry.computed
        return min(left, MAX_ROWS // 2), left > MAX_ROWS // 2

    def _run(self, slots: Sequence[int], steps: int, keep: bool) -> None:
        def batch_of(chosen: Sequence[int]) -> Batch:
            self._encode(chosen)
            numbers = np.array(chosen, np.int64)
            fresh = np.array([self._slots[slot].fresh for slot in chosen])
            return Batch(numbers, fresh, self._times[numbers], steps, keep)

        size = max(1, MAX_ROWS // steps)
        for chosen, outcome in self._team.run(slots, size, steps, batch_of):
            self._note(chosen, steps, keep, outcome)

    def _note(self, slots: Sequence[int], steps: int, keep: bool, outcome: Outcome) -> None:
        logits, operations = outcome.logits.numpy(), outcome.operations.tolist()
        for i, slot in enumerate(slots):
            entry = self._slots[slot]
            entry.fresh, entry.kept = False, keep
            entry.computed += steps
            self._times[slot] += steps
            rows = slice(i * steps, (i + 1) * steps)
            entry.ahead.extend(
                zip(logits[rows], outcome.spikes[rows], operations[rows], strict=True)
            )

    def _keep(self, slot: int) -> None:
        """Make the state that of the last timestep handed out: all from the start again, if it was not kept."""
        entry = self._slots[slot]
        if entry.kept and entry.computed == entry.done:
            return
        done, entry.computed, entry.fresh, entry.kept = entry.done, 0, True, True
        entry.ahead.clear()
        entry.timesteps = None
        self._times[slot] = 0
        for _ in range(done):
            self._run([slot], 1, True)
        entry.ahead.clear()


def _channels_last(x: Tensor) -> Array:
    """[1, C, ...] as [... * C]."""
    array: Array = x[0].movedim(0, -1).reshape(-1).numpy()
    return array


def _channels_first(values: Array, shape: tuple[int, ...]) -> Tensor:
    """[... * C] as [1, C, ...]."""
    return torch.from_numpy(values).view(1, *shape[1:], shape[0]).movedim(-1, 1).contiguous()
