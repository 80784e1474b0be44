"""The section of synaptic operations and energy, with the formula beside the figures."""

from __future__ import annotations

import torch

from spiketrain.report.costs import PRECISIONS, Work, analog_energy, spiking_energy
from spiketrain.report.html import note, section, table
from spiketrain.report.measure import Measured


def operations_and_energy(measured: Measured) -> str:
    by = "spikes of" if measured.operations_by == "from" else "spikes into"
    total = sum(measured.operations.values())
    rows = [
        (f"{by} {name}", f"{value:,.0f}", f"{100 * value / total:.1f} %" if total else "")
        for name, value in measured.operations.items()
    ]
    operations = table(
        ("", "synaptic operations a sample", "share"), [*rows, ("all", f"{total:,.0f}", "")], "sum"
    )
    samples = measured.operations_of_samples
    low, middle, high = torch.quantile(
        samples, torch.tensor([0.01, 0.5, 0.99], dtype=samples.dtype)
    ).tolist()
    spread = note(
        f"By sample: median {middle:,.0f}; 1 % of the samples are below {low:,.0f}, 1 % above {high:,.0f}."
    )
    return section(
        "Synaptic operations and energy",
        operations
        + spread
        + "<h3>Energy of one answer</h3>"
        + _table(measured.work)
        + _formula(measured.work),
    )


def _table(work: Work) -> str:
    rows = []
    for precision in PRECISIONS:
        ours, theirs = spiking_energy(work, precision), analog_energy(work, precision)
        cells = (
            joules(ours.arithmetic),
            joules(theirs.arithmetic),
            f"{ours.arithmetic / theirs.arithmetic:.2f}",
            joules(ours.total),
            joules(theirs.total),
            f"{ours.total / theirs.total:.2f}",
        )
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        constants = f"{precision.multiply_accumulate} and {precision.accumulate} pJ"
        rows.append(f"<tr><td>{precision.name}<small>{constants}</small></td>{numbers}</tr>")
    head = (
        "<tr><th rowspan=2>both at<small>E<sub>MAC</sub> and E<sub>AC</sub></small></th>"
        "<th colspan=3>arithmetic</th><th colspan=3>with memory</th></tr>"
        + "<tr>"
        + "<th>spiking</th><th>analog</th><th>ratio</th>" * 2
        + "</tr>"
    )
    return f'<table class="energy">{head}{"".join(rows)}</table>'


def _formula(work: Work) -> str:
    once = "once" if work.passes == 1 else f"for each of {work.passes} windows"
    return (
        "<p><b>Arithmetic:</b> E = E<sub>MAC</sub> (M + U) + E<sub>AC</sub> S, with "
        f"M = {work.encoder_macs * work.passes:,} multiply-accumulates of the layer that sees analog input ({once}), "
        f"U = {work.updates:,.0f} multiplications in the neurons' updates, "
        f"S = {work.operations:,.0f} synaptic operations of all timesteps. "
        f"<i>Analog</i> is the same layers of weights without spikes: E = E<sub>MAC</sub> D, D = {work.dense_macs * work.passes:,} "
        f"multiply-accumulates ({once}).</p>"
        "<p><b>With memory:</b> a multiply-accumulate also reads a weight and an input; a synaptic operation reads a weight "
        "and reads and writes a potential; an update reads and writes the neuron's state; a spike is an address of 32 bits, "
        "written and read; an analog value is written once. Nothing that was read is used twice, on either side. There are "
        f"{work.weights:,} weights, {work.state:,} numbers of state and {work.spikes:,.0f} spikes. 64 bits of a memory cost 10 pJ "
        "up to 8 KiB, 20 pJ at 32 KiB and 100 pJ from 1 MiB on, linear between; fewer bits cost their share.</p>"
        + note(
            "Energies in 45 nm: Horowitz, ISSCC 2014. An analog network of another shape may be as accurate with less. "
            "Left out: sigmoids, control and transport between cores; dense hardware, which does not skip zeros, "
            "saves nothing by spikes."
        )
    )


def joules(value: float) -> str:
    for unit, name in ((1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e-12:.3g} pJ"
