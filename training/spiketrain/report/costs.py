"""Energy of one answer: of arithmetic alone, and with memory; beside the same network without spikes, at equal precision.

Arithmetic: E = E_MAC (M + U) + E_AC S, where
    M  multiply-accumulates of the layer that sees analog input, once for a picture and once for each window of events
    U  multiplications of the neurons' updates: layers x neurons x timesteps x those of the neuron's equations
    S  synaptic operations: additions of a weight because of a spike, of all timesteps; the firing rate is in them already
The network without spikes takes one pass for a picture, and one for each window: E = E_MAC D, D its multiply-accumulates.

Memory: reading or writing b bits takes b/64 of what a 64-bit access of a memory of that size takes, by linear
interpolation between 10 pJ (8 KiB and less), 20 pJ (32 KiB) and 100 pJ (1 MiB and more). Nothing that was read is used
twice, on either side:
    M, D   a weight and an input each
    S      a weight, and the potential it is added to, read and written
    U      all of a neuron's state, read and written, once a timestep
    spikes an address of 32 bits, written and read; without spikes, each value written once

Energies of arithmetic and memory in 45 nm: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC
2014. What is left out on both sides: biases (batch norms are folded into them), control, leakage, and the network on chip.
"""

from __future__ import annotations

from dataclasses import dataclass

PICOJOULE = 1e-12
_MEMORY = ((8 << 10, 10.0), (32 << 10, 20.0), (1 << 20, 100.0))
_ADDRESS_BITS = 32

# Multiplications of one update; a spike selects, it does not multiply. Sigmoids are not counted.
UPDATE_MULTIPLICATIONS = {
    "lif": 1,
    "plif": 1,
    "feedback-lif": 1,
    "integrator": 2,
    "ilif": 2,  # leak, and decay of the inhibition
    "clif": 3,  # leak, h / tau, and decay of the complementary potential
    "glif": 3,  # gated input, exponential decay, gated reset
}


@dataclass(frozen=True)
class Precision:
    """Energies in picojoules."""

    name: str
    bits: int
    multiply_accumulate: float
    accumulate: float


PRECISIONS = (
    Precision("32-bit float", 32, 4.6, 0.9),
    Precision("16-bit float", 16, 1.5, 0.4),
    Precision("8-bit integer", 8, 0.23, 0.03),
)


@dataclass(frozen=True)
class Work:
    """Of one answer. `passes` is 1 for a picture, else its windows; `state` are numbers of one sample's state."""

    passes: int
    encoder_macs: int
    dense_macs: int
    operations: float
    spikes: float
    updates: float
    state: int
    timesteps: int
    neurons: int
    weights: int


@dataclass(frozen=True)
class Energy:
    """In joules."""

    arithmetic: float
    memory: float

    @property
    def total(self) -> float:
        return self.arithmetic + self.memory


def access_joules(memory_bytes: float, bits: int) -> float:
    """Energy of one access of so many bits to a memory of that size."""
    below = _MEMORY[0]
    if memory_bytes <= below[0]:
        return below[1] * PICOJOULE * bits / 64
    for above in _MEMORY[1:]:
        if memory_bytes <= above[0]:
            share = (memory_bytes - below[0]) / (above[0] - below[0])
            return (below[1] + share * (above[1] - below[1])) * PICOJOULE * bits / 64
        below = above
    return below[1] * PICOJOULE * bits / 64


def spiking_energy(work: Work, precision: Precision) -> Energy:
    bits = precision.bits
    macs = work.encoder_macs * work.passes
    arithmetic = (
        precision.multiply_accumulate * (macs + work.updates)
        + precision.accumulate * work.operations
    )
    weight = access_joules(work.weights * bits / 8, bits)
    potential = access_joules(work.state * bits / 8, bits)
    spike = access_joules(work.neurons * _ADDRESS_BITS / 8, _ADDRESS_BITS)
    inputs = access_joules(0, bits)
    memory = (
        macs * (weight + inputs)
        + work.operations * (weight + 2 * potential)
        + 2 * work.state * work.timesteps * potential
        + 2 * work.spikes * spike
    )
    return Energy(arithmetic * PICOJOULE, memory)


def analog_energy(work: Work, precision: Precision) -> Energy:
    """Of the same layers with one analog pass and no spikes."""
    bits = precision.bits
    macs = work.dense_macs * work.passes
    value = access_joules(work.neurons * bits / 8, bits)
    weight = access_joules(work.weights * bits / 8, bits)
    memory = macs * (weight + value) + work.neurons * work.passes * value
    return Energy(precision.multiply_accumulate * macs * PICOJOULE, memory)
