"""Runs a program for batches of a few fixed sizes, on a GPU as CUDA graphs, from and into pinned memory.

A batch is padded to the next size with rows that stand for no sample, so that every launch and every address is the
same each time: a timestep is then one launch of a graph. What changes is data: which slots, at what age. Where there
is no GPU the same code runs without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikeserve.engine.cuda.program import Program
from spiketrain.kernels.triton import Batch

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

PAD = -1


class Rows(NamedTuple):
    """What came out for some samples, on the CPU: [steps, n, ...] each."""

    logits: Tensor
    counts: Tensor
    operations: Tensor


class _Buffers:
    """One size and number of timesteps: what a graph reads and writes."""

    def __init__(self, program: Program, size: int, steps: int, classes: int) -> None:
        device = program.target.device
        pinned = device.type == "cuda"
        self.size, self.steps = size, steps
        # Slots and ages, in one copy.
        self.index = torch.full((2, size), PAD, dtype=torch.int32, device=device)
        self.batch = Batch(
            self.index[0],
            self.index[1],
            torch.zeros(steps, size, len(program.counted), dtype=torch.float64, device=device),
            torch.zeros(steps, size, dtype=torch.float64, device=device),
            steps,
        )
        self.logits = torch.zeros(steps, size, classes, device=device)
        self.host_index = torch.full((2, size), PAD, dtype=torch.int32, pin_memory=pinned)
        outputs = (self.logits, self.batch.counts, self.batch.operations)
        self.host = Rows(
            *(torch.empty_like(each, device="cpu", pin_memory=pinned) for each in outputs)
        )
        self.outputs = Rows(*outputs)

    def run(self, program: Program) -> None:
        self.batch.counts.zero_()
        self.batch.operations.zero_()
        self.logits.copy_(program.step(self.batch).view_as(self.logits))


class _Inputs:
    """Inputs of up to `size` samples on their way to `Program.encoded`."""

    def __init__(self, program: Program, size: int, shape: tuple[int, ...]) -> None:
        device = program.target.device
        pinned = device.type == "cuda"
        self.size = size
        self.values = torch.zeros(size, *shape, device=device)
        self.places = torch.full((size,), program.target.slots, device=device)
        self.host_values = torch.zeros(size, *shape, pin_memory=pinned)
        self.host_places = torch.full((size,), program.target.slots, pin_memory=pinned)

    def run(self, program: Program) -> None:
        program.encoded.index_copy_(0, self.places, program.encode(self.values))


class Runner:
    """`input_shape` is one sample's. `most` is the largest batch that will be asked for."""

    def __init__(
        self, program: Program, input_shape: tuple[int, ...], classes: int, most: int
    ) -> None:
        self._program = program
        self._shape = input_shape
        self._classes = classes
        self._graphed = program.target.device.type == "cuda"
        enough = min((size for size in SIZES if size >= most), default=SIZES[-1])
        self._sizes = (*(size for size in SIZES if size < enough), enough)
        self._buffers: dict[tuple[int, int], tuple[_Buffers, Callable[[], None]]] = {}
        self._inputs: dict[int, tuple[_Inputs, Callable[[], None]]] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if self._graphed else None

    @property
    def largest(self) -> int:
        return self._sizes[-1]

    def prepare(self, timesteps: Sequence[int]) -> None:
        """Compile and record everything for these numbers of timesteps at once, so that no request waits for it."""
        # The largest first: smaller graphs then fit into the memory that it took.
        for size in reversed(self._sizes):
            self._inputs_of(size)
            for steps in timesteps:
                self._buffers_of(size, steps)

    def encode(self, places: Sequence[int], values: Sequence[Tensor]) -> None:
        """Take in the inputs [C, H, W] of the samples in these slots."""
        for start in range(0, len(places), self.largest):
            some = places[start : start + self.largest]
            inputs, run = self._inputs_of(self._fitting(len(some)))
            count = len(some)
            inputs.host_places[:count] = torch.tensor(some)
            inputs.host_places[count:] = self._program.target.slots
            torch.stack(list(values[start : start + count]), out=inputs.host_values[:count])
            inputs.values.copy_(inputs.host_values, non_blocking=True)
            inputs.places.copy_(inputs.host_places, non_blocking=True)
            run()
            if len(places) > self.largest:
                self._wait()  # the host's buffers are used again

    def step(self, slots: Sequence[int], ages: Sequence[int], steps: int) -> Rows:
        """So many timesteps of these slots."""
        parts = []
        for start in range(0, len(slots), self.largest):
            some = slots[start : start + self.largest]
            count = len(some)
            buffers, run = self._buffers_of(self._fitting(count), steps)
            buffers.host_index[0, :count] = torch.tensor(some, dtype=torch.int32)
            buffers.host_index[1, :count] = torch.tensor(ages[start : start + count])
            buffers.host_index[:, count:] = PAD
            buffers.index.copy_(buffers.host_index, non_blocking=True)
            run()
            for host, output in zip(buffers.host, buffers.outputs, strict=True):
                host.copy_(output, non_blocking=True)
            self._wait()
            # Copied, as the buffers are used again.
            parts.append(Rows(*(host[:, :count].clone() for host in buffers.host)))
        if len(parts) == 1:
            return parts[0]
        return Rows(*(torch.cat(list(each), 1) for each in zip(*parts, strict=True)))

    def _wait(self) -> None:
        if self._graphed:
            torch.cuda.current_stream(self._program.target.device).synchronize()

    def _fitting(self, count: int) -> int:
        return next(size for size in self._sizes if size >= count)

    def _buffers_of(self, size: int, steps: int) -> tuple[_Buffers, Callable[[], None]]:
        if (size, steps) not in self._buffers:
            buffers = _Buffers(self._program, size, steps, self._classes)
            self._buffers[size, steps] = buffers, self._recorded(buffers)
        return self._buffers[size, steps]

    def _inputs_of(self, size: int) -> tuple[_Inputs, Callable[[], None]]:
        if size not in self._inputs:
            inputs = _Inputs(self._program, size, self._shape)
            self._inputs[size] = inputs, self._recorded(inputs)
        return self._inputs[size]

    def _recorded(self, work: _Buffers | _Inputs) -> Callable[[], None]:
        """Something that does this work: a graph, recorded while all rows are padding, so that no state changes."""
        if not self._graphed:
            return lambda: work.run(self._program)
        device = self._program.target.device
        with torch.cuda.device(device), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            # What is compiled or chosen at the first call must not be within the recording.
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    work.run(self._program)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                work.run(self._program)
        return graph.replay


def on(device: torch.device) -> Any:
    """A context in which this device is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
