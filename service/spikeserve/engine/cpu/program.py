"""One pass through all layers for some samples and timesteps: the products, and the loops behind them.

A layer is done in chunks of rows that are small enough for a product's result to be still in the cache when the
loops read it. A program has working memory of its own, so each thread needs one; weights are shared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeserve.engine.cpu import loops, windows
from spikeserve.engine.cpu.cells import Cells, cells_of, tiled
from spikeserve.engine.cpu.crew import Crew, map_shares
from spikeserve.engine.cpu.exact import Exact, exact_of
from spikeserve.engine.cpu.plan import Layer, Plan, Pool, Product
from spikeserve.engine.cpu.products import Multiply, Precision, multiply
from spikeserve.engine.cpu.tiles import Tiles
from spiketrain.networks import Network

Array = NDArray[Any]
Currents = tuple[Array, Array, Array, Array]

# Neurons times timesteps, from which on a share of them is worth waking a thread for.
_WORTH_A_THREAD = 1 << 15

# Bytes of currents that are made before the loops take them: about a second-level cache.
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stage:
    """A layer of neurons, ready to run. `reach` [positions] is what one spike reaches there."""

    layer: Layer
    cells: Cells
    multiply: tuple[Multiply, ...]
    gain: Array  # [width of a block]
    reach: Array
    exact: Exact

    @property
    def neurons(self) -> int:
        return math.prod(self.layer.shape)

    def shares(self, batch: Batch, most: int) -> list[tuple[int, int]]:
        """Ranges of neurons for as many threads as are worth waking; they begin with a block."""
        blocks = -(-self.neurons // self.gain.size)
        count = max(1, min(most, blocks, self.neurons * batch.rows // _WORTH_A_THREAD))
        bounds = [min(self.neurons, blocks * i // count * self.gain.size) for i in range(count + 1)]
        return list(itertools.pairwise(bounds))

    def in_words(self, spikes: Array) -> bool:
        """Whether the loops can count eight spikes at once."""
        return spikes.dtype == np.uint8 and (self.neurons // self.reach.size) % 8 == 0


@dataclass(frozen=True)
class Weights:
    """All that programs of one network share."""

    plan: Plan
    steps: tuple[Stage | Pool, ...]
    outputs: tuple[Multiply, ...]
    dtype: Any  # of spikes in memory

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(step for step in self.steps if isinstance(step, Stage))


def weights_of(
    network: Network, plan: Plan, precision: Precision, fan_out: Mapping[str, Tensor]
) -> Weights:
    """Raises UnsupportedError for neurons that the loops do not know."""
    layers = network.neuron_layers()
    steps: list[Stage | Pool] = []
    for step in plan.steps:
        if isinstance(step, Pool):
            steps.append(step)
            continue
        channels = step.shape[0]
        gain = torch.ones(channels) if step.gain is None else step.gain
        steps.append(
            Stage(
                step,
                cells_of(step.name, layers[step.name], channels),
                tuple(multiply(one, precision, _input_shape(plan, one)) for one in step.products),
                tiled(gain.view(1, -1))[0],
                _reach(fan_out[step.name].expand(step.shape)),
                exact_of(plan, step, precision),
            )
        )
    # The readout is a small part of the work and decides the answer, so it is never less than 16 bits.
    last: Precision = "float32" if precision == "float32" else "int16"
    outputs = tuple(multiply(one, last, _input_shape(plan, one)) for one in plan.outputs)
    return Weights(plan, tuple(steps), outputs, np.float32 if precision == "float32" else np.uint8)


def _input_shape(plan: Plan, product: Product) -> tuple[int, ...]:
    shape = plan.shape_of(product.source)
    return (math.prod(shape), 1, 1) if product.flat else (*shape, 1, 1)[:3]


def _reach(fan_out: Tensor) -> Array:
    """[C, H, W] as [positions] where all channels of a position reach the same, else as [positions * C]."""
    flat = fan_out.double().reshape(len(fan_out), -1).T
    if bool((flat == flat[:, :1]).all()):
        flat = flat[:, :1]
    array: Array = flat.round().long().reshape(-1).contiguous().numpy()
    return array


@dataclass
class Batch:
    """What one pass is about: `slots` [n], `fresh` [n], `times` [n], and `steps` timesteps of each sample."""

    slots: Array
    fresh: Array
    times: Array
    steps: int
    keep: bool

    @property
    def rows(self) -> int:
        return len(self.slots) * self.steps


@dataclass(frozen=True)
class Outcome:
    """Row i * steps + t is timestep t of sample i."""

    logits: Tensor  # [rows, classes]
    spikes: Array  # int64 [rows, layers]
    operations: Array  # int64 [rows]


class Program:
    """`states` by layer [parts, slots, N], `inputs` [slots, N] the current of the first layer.

    With a crew, its threads share out the neurons of each layer.
    """

    def __init__(
        self,
        weights: Weights,
        states: Mapping[str, Array],
        inputs: Array,
        crew: Crew | None = None,
    ) -> None:
        self._weights = weights
        self._crew = crew
        self._states = states
        self._inputs = inputs
        self._values: dict[str, Array] = {}
        self._none = np.empty((0, 0), np.float32)
        self._no_words = np.empty((0, 0), np.uint64)
        self._no_weights = np.empty((0, 0, 0, 0), np.float32)
        self._no_map = np.empty((0, 0, 0, 0), weights.dtype)

    def run(self, batch: Batch) -> Outcome:
        rows = batch.rows
        counts = np.zeros((len(self._weights.stages), rows), np.int64)
        operations = np.zeros(rows, np.int64)
        number = 0
        for step in self._weights.steps:
            if isinstance(step, Pool):
                self._pool(step, rows)
            else:
                self._fire(step, batch, counts[number], operations)
                number += 1
        return Outcome(self._read_out(rows), counts.T, operations)

    def _fire(self, stage: Stage, batch: Batch, counts: Array, operations: Array) -> None:
        layer, samples = stage.layer, len(batch.slots)
        spikes = self._memory(layer.name, batch.rows, stage.neurons)
        words = spikes.view(np.uint64) if stage.in_words(spikes) else self._no_words
        size = max(1, _CHUNK_BYTES // (4 * stage.neurons * batch.steps))
        if not layer.products:
            size = samples
        for first in range(0, samples, size):
            chunk = slice(first, min(first + size, samples))
            rows = _rows(batch, chunk)
            # In a call of its own, so that the currents' memory is free again for the next chunk's.
            self._advance(
                stage, batch, chunk, (spikes[rows], words[rows]), counts[rows], operations[rows]
            )

    def _advance(
        self,
        stage: Stage,
        batch: Batch,
        chunk: slice,
        spikes: tuple[Array, Array],
        counts: Array,
        operations: Array,
    ) -> None:
        layer, cells = stage.layer, stage.cells
        currents, at, stride = self._current(stage, batch, chunk)
        residual = spikes[0][:0]
        if layer.residual is not None:
            residual = self._values[layer.residual][_rows(batch, chunk)]
        given = (
            cells.kind,
            cells.modes,
            cells.constants,
            cells.channel,
            cells.initial,
            (*currents, residual, stage.gain, at, stride),
            self._states[layer.name],
            batch.slots[chunk],
            batch.fresh[chunk],
            batch.times[chunk],
            batch.keep,
            batch.steps,
            *spikes,
            stage.reach,
        )
        exact = self._exact(stage, _rows(batch, chunk))

        def advance(first: int, last: int) -> tuple[Array, Array]:
            fired, caused = np.zeros_like(counts), np.zeros_like(operations)
            loops.advance(*given, fired, caused, exact, (first, last))
            return fired, caused

        shares = stage.shares(batch, self._crew.size if self._crew is not None else 1)
        for fired, caused in map_shares(self._crew, advance, shares):
            counts += fired
            operations += caused

    def _current(self, stage: Stage, batch: Batch, chunk: slice) -> tuple[Currents, Array, int]:
        """The currents of `loops.advance`, the first row of each sample, and the distance to the next timestep's."""
        none = self._none
        if not stage.layer.products:
            return (self._inputs, none, none, none), batch.slots[chunk], 0
        rows = _rows(batch, chunk)

        def multiply(first: int, last: int) -> tuple[Array, Array]:
            return self._products(stage, slice(first, last))

        half = (rows.start + rows.stop + 1) // 2
        shares = [(rows.start, rows.stop)]
        # In tiles, threads share out a product's weights or positions instead, so that no weight is read twice.
        tiles = any(isinstance(times, Tiles) for times in stage.multiply)
        if self._crew is not None and half < rows.stop and not tiles:
            shares = [(rows.start, half), (half, rows.stop)]
        (x, low), *others = map_shares(self._crew, multiply, shares)
        more_x, more_low = others[0] if others else (none, none)
        at = np.arange(chunk.stop - chunk.start) * batch.steps
        return (x, low, more_x, more_low), at, 1

    def _products(self, stage: Stage, rows: slice) -> tuple[Array, Array]:
        """Two currents whose sum is meant; the second may have no rows."""
        parts: list[Tensor] = []
        for product, times in zip(stage.layer.products, stage.multiply, strict=True):
            parts += self._multiplied(times, self._input(product, rows))
        for extra in parts[2:]:
            parts[0].add_(extra)
        return _flat(parts[0]), _flat(parts[1]) if len(parts) > 1 else self._none

    def _multiplied(self, times: Multiply, x: Tensor) -> tuple[Tensor, ...]:
        if self._crew is None or not isinstance(times, Tiles):
            return times(x)
        out = times.empty(x)
        shares = times.shares(out, self._crew.size)

        def fill(first: int, last: int) -> None:
            for share in shares[first:last]:
                times.fill(x, out, *share)

        map_shares(self._crew, fill, [(i, i + 1) for i in range(len(shares))])
        return (out,)

    def _exact(self, stage: Stage, rows: slice) -> Any:
        """What `loops.advance` wants under that name."""
        exact = stage.exact
        parts: list[tuple[Array, Array, Array]] = []
        for weights, geometry, source, shape in exact.products:
            values = self._values[source][rows]
            parts.append((weights, geometry, values.reshape(len(values), *shape)))
        while len(parts) < 2:
            parts.append((self._no_weights, exact.layout, self._no_map))
        return exact.margin, exact.bias, exact.layout, parts[0], parts[1]

    def _input(self, product: Product, rows: slice) -> Tensor:
        values = torch.from_numpy(self._values[product.source][rows])
        if product.flat:
            return values.view(len(values), -1, 1, 1)
        channels, height, width = (*self._weights.plan.shape_of(product.source), 1, 1)[:3]
        return values.view(-1, height, width, channels).permute(0, 3, 1, 2)

    def _pool(self, pool: Pool, rows: int) -> None:
        channels, height, width = pool.shape
        _, _, across = self._weights.plan.shape_of(pool.source)
        pooled = self._memory(pool.name, rows, channels * height * width)
        windows.sum_pool(
            self._values[pool.source][:rows],
            across,
            pool.kernel,
            pool.stride,
            pooled.reshape(rows, height, width, channels),
        )

    def _read_out(self, rows: int) -> Tensor:
        parts: list[Tensor] = []
        for product, times in zip(self._weights.plan.outputs, self._weights.outputs, strict=True):
            parts += times(self._input(product, slice(0, rows)))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.reshape(rows, -1)

    def _memory(self, name: str, rows: int, size: int) -> Array:
        """Rows for the values called `name`, which stay until it is asked for again."""
        held = self._values.get(name)
        if held is None or len(held) < rows:
            held = self._values[name] = np.empty((rows, size), self._weights.dtype)
        return held[:rows]


def _rows(batch: Batch, chunk: slice) -> slice:
    return slice(chunk.start * batch.steps, chunk.stop * batch.steps)


def _flat(x: Tensor) -> Array:
    """Currents [rows, K, h, w], channels last, as [rows, h * w * K]."""
    array: Array = x.permute(0, 2, 3, 1).reshape(len(x), -1).numpy()
    return array
