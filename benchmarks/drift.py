"""Does the server notice when its input goes wrong, and how soon? And does it stay quiet when nothing is wrong?

Held-out test samples go through the network; what each did is told to the monitor that the server has (spikeserve.drift),
sample by sample. A trial begins with clean samples, 100 to 163 of them in random order; then the input goes wrong, and
the samples are counted until an alarm is raised, by firing rates alone (which every answer is told to) and by the probes
(as if every sample were probed). Faults with a place, such as a hot pixel, are somewhere else in each trial.

False alarms are counted over clean samples drawn from the test set again and again.

    python benchmarks/drift.py MODEL.safetensors ... --data FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from results import save
from rich.console import Console
from rich.table import Table
from torch import Tensor

from spikeserve.drift import DriftMonitor
from spiketrain.checkpoint import Checkpoint, load_checkpoint
from spiketrain.convert.source import training_data
from spiketrain.data import DataSet
from spiketrain.health import Look, look
from spiketrain.manifest import ImageInput

MOST = 640
PER_SECOND = 100

Fault = Callable[[Tensor, torch.Generator], Tensor]
output = Console()


@dataclass(frozen=True)
class Traffic:
    """Samples of one kind, what they did."""

    looks: list[Look]
    layers: tuple[str, ...]

    def rates(self) -> np.ndarray:
        return np.array([[float(each.rates(name)) for name in self.layers] for each in self.looks])


def picture_faults(spec: ImageInput) -> dict[str, Fault]:
    """Of normalised pictures [N, C, H, W]."""
    shape = (-1, 1, 1)
    mean, std = (torch.tensor(each).view(shape) for each in (spec.mean, spec.std))

    def on_light(change: Fault) -> Fault:
        """Of intensities 0 to 1."""
        return lambda x, draws: (change(x * std + mean, draws) - mean) / std

    def hot(light: Tensor, draws: torch.Generator) -> Tensor:
        row, column = (int(torch.randint(size, (), generator=draws)) for size in light.shape[-2:])
        light = light.clone()
        light[..., row, column] = 1.0
        return light

    def noise(size: float) -> Fault:
        def add(light: Tensor, draws: torch.Generator) -> Tensor:
            return (light + size * torch.randn(light.shape, generator=draws)).clamp(0, 1)

        return on_light(add)

    return {
        "wrong normalisation: none": lambda x, _: x * std + mean,
        "wrong normalisation: mean 0.5, std 0.5": lambda x, _: (x * std + mean - 0.5) / 0.5,
        "wrong normalisation: 0 to 255": on_light(lambda light, _: light * 255),
        "inverted": on_light(lambda light, _: 1 - light),
        "noise, standard deviation 0.3": noise(0.3),
        "noise, standard deviation 0.1": noise(0.1),
        "half as bright": on_light(lambda light, _: light / 2),
        "a hot pixel": on_light(hot),
        "a dead camera": on_light(lambda light, _: light * 0),
    }


def event_faults() -> dict[str, Fault]:
    """Of frames of counts [T, N, 2, H, W], scaled."""

    def hot(x: Tensor, draws: torch.Generator) -> Tensor:
        row, column = (int(torch.randint(size, (), generator=draws)) for size in x.shape[-2:])
        x = x.clone()
        x[..., 1, row, column] = float(x.max())
        return x

    def noise(rate: float) -> Fault:
        def add(x: Tensor, draws: torch.Generator) -> Tensor:
            one, most = float(x[x > 0].min()), float(x.max())
            more = torch.poisson(torch.full(x.shape, rate), generator=draws)
            return (x + one * more).clamp(max=most)

        return add

    def lost(x: Tensor, draws: torch.Generator) -> Tensor:
        one = float(x[x > 0].min())
        counts = (x / one).round()
        return one * torch.binomial(counts, torch.full(x.shape, 0.5), generator=draws)

    return {
        "flipped polarity": lambda x, _: x.flip(-3),
        "noise, 0.05 events per pixel and window": noise(0.05),
        "noise, 0.2 events per pixel and window": noise(0.2),
        "half of the events lost": lost,
        "a hot pixel": hot,
        "a dead camera": lambda x, _: x * 0,
    }


def traffic(
    checkpoint: Checkpoint, data: DataSet, fault: Fault | None, seed: int, limit: int
) -> Traffic:
    network, draws = checkpoint.network(), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.test), generator=draws)[:limit]
    looks: list[Look] = []
    for x, _ in data.batches(data.test.at(chosen), len(chosen) if fault is not None else 100):
        seen = look(network, x if fault is None else fault(x, draws), checkpoint.manifest.input)
        looks += [_one(seen, i) for i in range(len(seen.channels))]
    return Traffic(looks, tuple(seen.fired))


def _one(seen: Look, i: int) -> Look:
    def cut(each: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[i : i + 1] for name, values in each.items()}

    row = slice(i, i + 1)
    return Look(
        seen.timesteps,
        cut(seen.fired),
        cut(seen.first),
        seen.channels[row],
        seen.bright[row],
        seen.dark[row],
    )


def delays(
    checkpoint: Checkpoint, clean: Traffic, wrong: Traffic, draws: np.random.Generator
) -> tuple[int | None, int | None, list[str]]:
    """Samples until an alarm by rates, by probes, and what was said; None where none came within MOST."""
    by_rates = DriftMonitor(checkpoint.manifest.health, clean.layers)
    by_probes = DriftMonitor(checkpoint.manifest.health, clean.layers)
    before, after = clean.rates(), wrong.rates()
    first: int | None = None
    for i in draws.integers(0, len(clean.looks), 100 + draws.integers(0, 64)):
        by_rates.sample(before[i])
        by_probes.look(clean.looks[i])
    seen: dict[str, int] = {}
    for count, i in enumerate(draws.integers(0, len(wrong.looks), MOST), 1):
        if "rates" not in seen:
            by_rates.sample(after[i])
            if by_rates.report().state == "drifting":
                seen["rates"] = count
        if "probes" not in seen:
            by_probes.look(wrong.looks[i])
            if by_probes.report().reasons:
                seen["probes"] = count
        if len(seen) == 2:
            break
    first = seen.get("rates")
    return first, seen.get("probes"), [*by_rates.report().reasons, *by_probes.report().reasons]


def false_alarms(
    checkpoint: Checkpoint, clean: Traffic, samples: int, groups: int
) -> dict[str, Any]:
    """Alarms raised by so many clean samples, and by so many groups of clean samples."""
    draws = np.random.default_rng(0)
    monitor = DriftMonitor(checkpoint.manifest.health, clean.layers)
    rates = clean.rates()
    by_rates, highest, drifting = 0, 0.0, False
    for i in draws.integers(0, len(rates), samples):
        monitor.sample(rates[i])
        highest = max(highest, monitor._scores["rates"])
        by_rates += bool(monitor._alarms) and not drifting
        drifting = bool(monitor._alarms)
    by_probes, highest_group = 0, 0.0
    size = checkpoint.manifest.health.group if checkpoint.manifest.health else 1
    for _ in range(groups):
        probed = DriftMonitor(checkpoint.manifest.health, clean.layers)
        for i in draws.choice(len(clean.looks), size, replace=False):
            probed.look(clean.looks[i])
        report = probed.report()
        by_probes += bool(report.reasons)
        highest_group = max(highest_group, *report.scores.values())
    return {
        "samples": samples,
        "alarms": by_rates,
        "per_hour": by_rates / samples * PER_SECOND * 3600,
        "highest_score": highest,
        "groups": groups,
        "group_alarms": by_probes,
        "highest_group_score": highest_group,
    }


def run(
    path: Path, data: Path | None, trials: int, samples: int, groups: int
) -> list[dict[str, Any]]:
    checkpoint = load_checkpoint(path)
    manifest = checkpoint.manifest
    if manifest.health is None:
        raise typer.BadParameter(f"{path} has no profile: spiketrain profile {path}")
    dataset = training_data(manifest, data)
    clean = traffic(checkpoint, dataset, None, 0, len(dataset.test))
    quiet = false_alarms(checkpoint, clean, samples, groups)
    rows = [{"model": manifest.name, "input": "clean", **quiet}]
    spec = manifest.input
    faults = picture_faults(spec) if isinstance(spec, ImageInput) else event_faults()
    for name, fault in faults.items():
        draws, found, words = np.random.default_rng(1), [], []
        for trial in range(trials):
            wrong = traffic(checkpoint, dataset, fault, trial, 200)
            rates, probes, reasons = delays(checkpoint, clean, wrong, draws)
            found.append((rates, probes))
            words = words or reasons
        rows.append(
            {
                "model": manifest.name,
                "input": name,
                "trials": trials,
                "by_rates": [each for each, _ in found],
                "by_probes": [each for _, each in found],
                "says": words[0] if words else "",
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "input", "alarms by rates", "delay", "alarms by probes", "delay", "says")
    for row in rows:
        if "trials" not in row:
            clean = f"{row['alarms']} in {row['samples']:,} samples"
            table.add_row(
                row["model"],
                row["input"],
                clean,
                "",
                f"{row['group_alarms']} in {row['groups']} groups",
            )
            continue
        cells = []
        for which in ("by_rates", "by_probes"):
            came = [each for each in row[which] if each is not None]
            cells += [
                f"{len(came)}/{row['trials']}",
                f"{median(came):.0f} ({max(came)})" if came else "",
            ]
        table.add_row(row["model"], row["input"], *cells, row["says"])
    output.print(table)


def main(
    models: Annotated[list[Path], typer.Argument(help="Checkpoints with a profile.")],
    data: Annotated[Path | None, typer.Option()] = None,
    trials: int = 10,
    samples: int = 360_000,
    groups: int = 500,
) -> None:
    torch.set_num_threads(1)
    rows = [row for path in models for row in run(path, data, trials, samples, groups)]
    settings = {"trials": trials, "samples": samples, "groups": groups, "most": MOST}
    output.print(f"written: {save('drift', __doc__ or '', settings, rows, {})}")
    show(rows)


if __name__ == "__main__":
    typer.run(main)
