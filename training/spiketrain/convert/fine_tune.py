"""Fine-tuning of a converted network towards its parent, on the training split without its labels.

    loss = KL(parent || child) of the classes by the mean logits + mean over t of KL(parent || child) by those at t

Both see the same samples, augmented as in training. All weights and batch norms' gains and biases change, through the
neurons' own surrogate gradient; the statistics of the batch norms and the constants of the neurons stay as calibration
has left them. That gradient is biased, and a calibrated child is so near its parent that it often leads away: the result is
kept only if it is nearer to the parent on samples of the validation split, by the KL divergence of the mean logits. No label
is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from spiketrain.checkpoint import Checkpoint, model_digest
from spiketrain.convert.lif_form import ConversionError
from spiketrain.convert.samples import Unlabelled
from spiketrain.networks import Network
from spiketrain.not_finite import looks_finite
from spiketrain.optimise import make_optimizer, make_schedule
from spiketrain.recipe import TrainingSection

# Steps done and all steps.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class FineTuning:
    """The learning rate, Adam's, rises for a twentieth of the steps and falls to 0 as a cosine."""

    epochs: int = 1
    learning_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConversionError("fine-tuning needs at least one epoch and one sample a batch")
        if not self.learning_rate > 0:
            raise ConversionError("fine-tuning needs a learning rate above 0")


class FineTuned(NamedTuple):
    """What came of it. `before` and `after` are the divergences from the parent on held-out samples, in nats a sample; the
    checkpoint has the weights that were given where `after` is not less."""

    checkpoint: Checkpoint
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after < self.before


def fine_tune(
    parent: Checkpoint,
    child: Checkpoint,
    data: Unlabelled,
    tuning: FineTuning | None = None,
    report: Report = lambda done, steps: None,
) -> FineTuned:
    """The child nearer to its parent, or as it was. The same seed gives the same weights on the same machine.

    Raises ConversionError where numbers are no longer finite, or the child is no conversion.
    """
    how = tuning or FineTuning()
    teacher = parent.network().requires_grad_(False)
    # Convolutions with channels last run up to 1.7 times as fast on a CPU.
    network = child.network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    before = divergence(teacher, network, data.held_out(how.batch_size))
    _descend(
        teacher.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        network,
        data,
        how,
        report,
    )
    after = divergence(teacher, network, data.held_out(how.batch_size))
    tensors = network.state_dict() if after < before else child.tensors
    said = {
        **asdict(how),
        "trained_on": data.trained_on,
        "chosen_on": data.chosen_on,
        "divergence": [before, after],
        "kept": after < before,
    }
    return FineTuned(_recorded(child, tensors, said), before, after)


def _descend(
    parent: Network, child: Network, data: Unlabelled, how: FineTuning, report: Report
) -> None:
    steps = data.steps(how.batch_size)
    settings = TrainingSection(
        timesteps=child.timesteps,
        epochs=how.epochs,
        optimizer="adam",
        learning_rate=how.learning_rate,
        warmup_steps=max(1, how.epochs * steps // 20),
        seed=how.seed,
    )
    child.requires_grad_(True)
    for layer in child.neuron_layers().values():
        for constant in layer.parameters(recurse=False):
            constant.requires_grad_(False)
    optimiser = make_optimizer(child, settings)
    schedule = make_schedule(optimiser, settings, steps)
    draws = torch.Generator().manual_seed(how.seed)
    done = 0
    for _ in range(how.epochs):
        for x in data.epoch(how.batch_size, draws):
            with torch.autocast("cpu", torch.bfloat16, enabled=data.half):
                with torch.no_grad():
                    wanted = parent(x).logits.float()
                found = child(x).logits.float()
            loss = _distance(found.mean(0), wanted.mean(0)) + _distance(
                found.flatten(0, 1), wanted.flatten(0, 1)
            )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if not looks_finite(child, loss):
                raise ConversionError(
                    f"fine-tuning, step {done + 1}: numbers are no longer finite: a lower learning rate is needed"
                )
            optimiser.step()
            schedule.step()
            done += 1
            report(done, how.epochs * steps)
    child.requires_grad_(False)


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """KL divergence of classes, by logits [N, classes], mean over the samples."""
    return functional.kl_div(
        found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
    )


@torch.no_grad()
def divergence(parent: Network, child: Network, batches: Iterable[Tensor]) -> float:
    """KL(parent || child) of the classes by the mean logits, in nats a sample, over inputs [N, ...] or [T, N, ...].

    Raises ConversionError where there are none.
    """
    total, count = 0.0, 0
    for x in batches:
        wanted, found = parent(x).logits.mean(0), child(x).logits.mean(0)
        total += len(wanted) * _distance(found, wanted).item()
        count += len(wanted)
    if not count:
        raise ConversionError("fine-tuning needs held-out samples to tell whether it helped")
    return total / count


def _recorded(child: Checkpoint, tensors: Mapping[str, Tensor], said: dict[str, Any]) -> Checkpoint:
    record = child.manifest.conversion
    if record is None:
        raise ConversionError(f"{child.manifest.name} is not a conversion")
    changes = {
        "method": f"{record.method}, fine-tuned" if said["kept"] else record.method,
        "arguments": record.arguments | {"fine_tuning": said},
    }
    kept = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
    manifest = child.manifest.model_copy(update={"conversion": record.model_copy(update=changes)})
    digest = model_digest(manifest, kept)
    return Checkpoint(manifest.model_copy(update={"digest": digest}), kept)
