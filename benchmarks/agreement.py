"""Whether executors answer alike: each against the reference executor, over whole test sets.

Every sample of a checkpoint's test set goes through the reference executor, which is plain torch in float32, and through the
CPU executor in each precision, through the calls that the scheduler makes, all timesteps. For each there is the accuracy; the
share of samples in the same class as the reference's (agreement); and by layer, how far its spike counts are from the
reference's: the sum over samples of |count - reference's count|, over the sum of the reference's counts. Speeds count the
processor's time, and their ratios hold even on a machine that did other things meanwhile.

    python benchmarks/agreement.py --model FILE --data FOLDER            all bundled models unless --model is given
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import results
import torch
from torch import Tensor

from spikeserve.engine import Executor, Frames, ReferenceExecutor, Sample
from spikeserve.engine.choose import UnsupportedError
from spikeserve.engine.cpu import CpuExecutor, Precision, faithful_precisions
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import load_checkpoint
from spiketrain.convert.source import sample_of, training_data
from spiketrain.energy import fan_out
from spiketrain.networks import Network

PRECISIONS: tuple[Precision, ...] = ("float32", "int16", "int8")
SLOTS = 32
LEAST_AGREEMENT = 0.99
MOST_ACCURACY_LOST = 0.002

Row = dict[str, Any]


class Answers:
    """What one executor said of all samples, and how long it took."""

    def __init__(self, executor: Executor, network: Network) -> None:
        self.executor, self._network = executor, network
        self._logits: list[Tensor] = []
        self._spikes: list[Tensor] = []
        self.seconds = 0.0

    def add(self, x: Tensor) -> None:
        """Samples [N, C, H, W], or frames [T, N, C, H, W]."""
        constant = x.dim() == len(self._network.input_shape) + 1
        count, steps = (len(x), self._network.timesteps) if constant else (x.shape[1], len(x))
        logits, spikes = torch.zeros(()), torch.zeros(())
        began = time.process_time()
        for slot in range(count):
            self.executor.admit(slot, Sample(x[slot], steps) if constant else Sample())
        for t in range(steps):
            frames = None if constant else Frames(tuple(range(count)), x[t])
            result = self.executor.step(range(count), frames)
            logits, spikes = logits + result.logits, spikes + result.spikes
        self.seconds += time.process_time() - began
        self._logits.append(logits)
        self._spikes.append(spikes)

    @property
    def classes(self) -> Tensor:
        return torch.cat(self._logits).argmax(1)

    @property
    def spikes(self) -> Tensor:
        return torch.cat(self._spikes)


def compare(checkpoint: Path, data: Path | None, limit: int | None) -> list[Row]:
    """A row for each executor, the reference first."""
    loaded = load_checkpoint(checkpoint)
    network, manifest = loaded.network(), loaded.manifest
    source = training_data(manifest, data)
    reach = fan_out(network)
    answers = {"reference": Answers(ReferenceExecutor(network, SLOTS, reach), network)}
    for precision in PRECISIONS:
        executor = CpuExecutor(network, SLOTS, reach, "", precision)
        answers[f"cpu, {precision}"] = Answers(executor, network)
    labels = []
    for number, (x, y) in enumerate(source.batches(sample_of(source.test, limit), SLOTS)):
        for one in answers.values():
            if number == 0:  # compiles and prepares
                Answers(one.executor, network).add(x)
            one.add(x)
        labels.append(y)
    truth, reference = torch.cat(labels), answers["reference"]
    automatic = {f"cpu, {precision}" for precision in faithful_precisions(network)}
    rows = []
    for name, one in answers.items():
        off = (one.spikes - reference.spikes).abs().sum(0) / reference.spikes.sum(0)
        rows.append(
            {
                "model": manifest.name,
                "executor": name,
                "automatic": name in automatic,
                "samples": len(truth),
                "accuracy": (one.classes == truth).double().mean().item(),
                "agreement": (one.classes == reference.classes).double().mean().item(),
                "spike_counts_off": dict(zip(one.executor.layers, off.tolist(), strict=True)),
                "samples_per_second": len(truth) / one.seconds,
            }
        )
    return rows


def ratios(rows: list[Row]) -> dict[str, float]:
    """Samples a second of each executor over the reference's, by model."""
    base = {
        row["model"]: row["samples_per_second"] for row in rows if row["executor"] == "reference"
    }
    return {
        f"{row['model']}: {row['executor']} over reference": row["samples_per_second"]
        / base[row["model"]]
        for row in rows
        if row["executor"] != "reference"
    }


def faults(rows: list[Row]) -> list[str]:
    """What an executor that is chosen by itself must not do."""
    accuracy = {row["model"]: row["accuracy"] for row in rows if row["executor"] == "reference"}
    found = []
    for row in rows:
        lost = abs(row["accuracy"] - accuracy[row["model"]])
        if row["automatic"] and (row["agreement"] < LEAST_AGREEMENT or lost > MOST_ACCURACY_LOST):
            found.append(f"{row['model']}, {row['executor']}")
    return found


def show(rows: list[Row]) -> None:
    base = rows[0]["samples_per_second"]
    for row in rows:
        off = row["spike_counts_off"].values()
        sys.stdout.write(
            f"{row['model']:<28} {row['executor']:<14} {row['samples']:>6} samples  "
            f"accuracy {100 * row['accuracy']:6.2f} %  agreement {100 * row['agreement']:6.2f} %  "
            f"spike counts off: mean {100 * sum(off) / len(off):.4f} %, worst layer {100 * max(off):.4f} %  "
            f"x{row['samples_per_second'] / base:.2f} the reference's speed\n"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, action="append", help="a checkpoint")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--limit", type=int, help="samples to compare on, all unless given")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--name", default="agreement", help="of the file in results/")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for path in given.model or sorted(BUNDLED_MODELS.glob("*.safetensors")):
        try:
            one = compare(path, given.data, given.limit)
        except (UnsupportedError, OSError, ValueError) as error:
            left_out[path.name] = str(error)
            sys.stdout.write(f"{path.name}: left out: {error}\n")
            continue
        show(one)
        rows += one
        # Written after each model, as a whole test set takes a while.
        settings = {"limit": given.limit, "threads": torch.get_num_threads()}
        results.save(given.name, __doc__ or "", settings, rows, ratios(rows), left_out=left_out)
    if broken := faults(rows):
        sys.exit(
            f"chosen by itself, and below {LEAST_AGREEMENT:.0%} agreement or more than "
            f"{100 * MOST_ACCURACY_LOST:g} points off: {'; '.join(broken)}"
        )


if __name__ == "__main__":
    main()
