"""The training loop: from a recipe to a checkpoint, with exact resume."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import spiketrain
from spiketrain.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from spiketrain.data import DataSet, load_dataset
from spiketrain.data.augment import Pipeline
from spiketrain.evaluate import Evaluation, evaluate
from spiketrain.manifest import ImageInput, Manifest, TrainingRecord
from spiketrain.networks import Network, build_network
from spiketrain.optimise import loss_of, make_optimizer, make_schedule
from spiketrain.recipe import DataSection, Recipe


class TrainingError(RuntimeError):
    """Training cannot go on. The message says at which step and what to change."""


@dataclass(frozen=True)
class Progress:
    """What a caller sees while training runs. `rates` holds each layer's mean firing rate on validation."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    validation: Evaluation | None = None
    best: float = 0.0


Report = Callable[[Progress], None]


@dataclass
class Run:
    """One training run in a folder: `last.pt` to resume from, `best.safetensors` by validation, and logs."""

    recipe: Recipe
    folder: Path
    data_root: Path | None = None
    data: DataSet = field(init=False)
    network: Network = field(init=False)

    def __post_init__(self) -> None:
        recipe, training = self.recipe, self.recipe.training
        # The order of draws is fixed: weights first, then the order of samples and their augmentation.
        torch.manual_seed(training.seed)
        self.data = load_dataset(
            recipe.data.name,
            self.data_root,
            events=recipe.events,
            timesteps=training.timesteps,
            validation_per_class=recipe.data.validation_per_class,
            seed=recipe.data.split_seed,
            recordings=recipe.data.recordings,
        )
        self.data = _normalised_as(self.data, recipe.data)
        self.network = build_network(
            recipe.network.name, recipe.network.arguments, recipe.neuron, training.timesteps
        )
        # Convolutions with channels last run up to 1.7 times as fast on a CPU; the kernels take either layout.
        self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.network.input_shape != self.data.input.shape:
            raise TrainingError(
                f"network.arguments.input_shape is {self.network.input_shape}, "
                f"{self.data.name} has {self.data.input.shape}"
            )
        if self.network.classes != len(self.data.classes):
            raise TrainingError(
                f"network.arguments.classes is {self.network.classes}, "
                f"{self.data.name} has {len(self.data.classes)}: {', '.join(self.data.classes[:20])}"
            )
        self.steps = len(self.data.train) // training.batch_size
        if self.steps == 0:
            raise TrainingError(
                f"training.batch_size {training.batch_size} is more than the {len(self.data.train)} samples"
            )
        self.optimizer = make_optimizer(self.network, training)
        self.schedule = make_schedule(self.optimizer, training, self.steps)
        self.draws = torch.Generator().manual_seed(training.seed)
        self.epoch = 0
        self.best = -1.0

    @property
    def best_path(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def last_path(self) -> Path:
        return self.folder / "last.pt"

    def train(self, report: Report = lambda _: None) -> Manifest:
        """Train to the recipe's last epoch, from `last.pt` if it is there; then score the best epoch on test, once.

        Returns the manifest of `best.safetensors`. Raises TrainingError when the loss is no longer a number.
        """
        if self.last_path.exists():
            self._resume()
        with _tensorboard(self.folder) as board:
            while self.epoch < self.recipe.training.epochs:
                self._train_epoch(report, board)
        return self._finish()

    def _train_epoch(self, report: Report, board: Any) -> None:
        training = self.recipe.training
        augment = Pipeline(self.recipe.data.augment) if self.recipe.data.augment else None
        total = 0.0
        self.network.train()
        batches = self.data.batches(
            "train", training.batch_size, shuffle=self.draws, augment=augment
        )
        timesteps = training.timesteps_of(self.epoch) if training.timestep_schedule else None
        for step, (x, y) in enumerate(batches, 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16"):
                logits = self.network(x, timesteps).logits.float()
            loss = loss_of(logits, y, training)
            value = loss.item()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            # The loss alone does not tell: neurons whose current is not a number stay silent, and logits finite.
            culprit = "the loss" if not math.isfinite(value) else _not_finite(self.network)
            if culprit is not None:
                raise TrainingError(
                    f"epoch {self.epoch + 1}, step {step}: {culprit} is not finite; "
                    "lower training.learning_rate or set training.gradient_clip"
                )
            if training.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), training.gradient_clip)
            self.optimizer.step()
            self.schedule.step()
            total += value
            report(Progress(self.epoch + 1, training.epochs, step, self.steps, total / step))
        self.epoch += 1
        validation = evaluate(self.network, self.data.batches("validation", 256))
        if validation.accuracy > self.best:
            self.best = validation.accuracy
            self._save_best(validation)
        _log(
            board, self.epoch, total / self.steps, validation, float(self.schedule.get_last_lr()[0])
        )
        self._save_last()
        report(
            Progress(
                self.epoch,
                training.epochs,
                self.steps,
                self.steps,
                total / self.steps,
                validation,
                self.best,
            )
        )

    def _save_best(self, validation: Evaluation) -> None:
        recipe = self.recipe
        manifest = Manifest(
            name=recipe.name,
            network=recipe.network,
            neuron=recipe.neuron,
            timesteps=recipe.training.timesteps,
            input=self.data.input,
            classes=self.data.classes,
            readout=self.network.logit_readout,
            accuracy=(validation.as_accuracy(self.data.name, "validation"),),
            training=TrainingRecord(
                recipe=recipe.name,
                settings=recipe.model_dump(mode="json", exclude={"name"}),
                seed=recipe.training.seed,
                epochs=self.epoch,
                commit=_commit(),
                versions={
                    "spiketrain": spiketrain.__version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
                data=self.data.digests,
            ),
            firing_rates=validation.rate_profiles(),
        )
        save_checkpoint(self.best_path, manifest, self.network.state_dict())

    def _finish(self) -> Manifest:
        best = load_checkpoint(self.best_path)
        kept = [a for a in best.manifest.accuracy if a.split != "test"]
        test = evaluate(best.network(), self.data.batches("test", 256))
        scored = test.as_accuracy(self.data.name, "test")
        manifest = best.manifest.model_copy(update={"accuracy": (*kept, scored)})
        return save_checkpoint(self.best_path, manifest, best.tensors)

    def _save_last(self) -> None:
        buffer = BytesIO()
        torch.save(
            {
                "recipe": self.recipe.model_dump_json(),
                "epoch": self.epoch,
                "best": self.best,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "draws": self.draws.get_state(),
                "torch": torch.get_rng_state(),
            },
            buffer,
        )
        write_atomically(self.last_path, buffer.getvalue())

    def _resume(self) -> None:
        saved = torch.load(self.last_path, weights_only=True)
        if saved["recipe"] != self.recipe.model_dump_json():
            raise TrainingError(
                f"{self.last_path} was written by another recipe or other settings; "
                "use another folder, or delete it to start anew"
            )
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.draws.set_state(saved["draws"])
        torch.set_rng_state(saved["torch"])
        self.epoch, self.best = saved["epoch"], saved["best"]


def _normalised_as(data: DataSet, section: DataSection) -> DataSet:
    """The data set with the recipe's mean and standard deviation, where it has some."""
    if section.mean is None and section.std is None:
        return data
    if not isinstance(data.input, ImageInput):
        raise TrainingError(f"data.mean and data.std are for pictures; {data.name} has events")
    given = {"mean": section.mean, "std": section.std}
    changes = {name: value for name, value in given.items() if value is not None}
    try:
        normalised = ImageInput.model_validate(data.input.model_dump() | changes)
    except ValidationError as error:
        raise TrainingError(f"data.mean, data.std: {error.errors()[0]['msg']}") from error
    return replace(data, input=normalised)


def _not_finite(network: Network) -> str | None:
    """The first parameter, or gradient of one, that has a value that is no finite number."""
    for name, parameter in network.named_parameters():
        if not math.isfinite(parameter.detach().sum().item()):
            return name
        if parameter.grad is not None and not math.isfinite(parameter.grad.sum().item()):
            return f"the gradient of {name}"
    return None


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "training needs TensorBoard: pip install 'spikeserve[train]'"
        ) from error
    writer = SummaryWriter(str(folder / "tensorboard"))
    try:
        yield writer
    finally:
        writer.close()


def _log(board: Any, epoch: int, loss: float, validation: Evaluation, learning_rate: float) -> None:
    board.add_scalar("loss/train", loss, epoch)
    board.add_scalar("loss/validation", validation.loss, epoch)
    board.add_scalar("accuracy/validation", validation.accuracy, epoch)
    board.add_scalar("learning_rate", learning_rate, epoch)
    for name, rates in validation.rates.items():
        board.add_scalar(f"firing_rate/{name}", rates.mean().item(), epoch)


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=os.path.dirname(__file__),
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()
