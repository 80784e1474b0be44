"""The training loop: from a recipe to a checkpoint, with exact resume."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spiketrain
from spiketrain.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from spiketrain.data import DataSet, SplitName
from spiketrain.data.augment import Pipeline
from spiketrain.data.mixing import MixDraw, mixed
from spiketrain.data.of_recipe import dataset_of
from spiketrain.evaluate import Evaluation, evaluate, merged
from spiketrain.health import measure
from spiketrain.manifest import Manifest, TrainingRecord
from spiketrain.networks import Network, build_network
from spiketrain.not_finite import culprit, looks_finite
from spiketrain.optimise import loss_of, make_optimizer, make_schedule
from spiketrain.parallel import Group, gradients, join, share_batch_norms
from spiketrain.recipe import Recipe

# Enough for a profile of firing rates, and quick enough for large networks, which the CPU runs here.
_PROFILE_SAMPLES = 1000


class TrainingError(RuntimeError):
    """Training cannot go on. The message says at which step and what to change."""


@dataclass(frozen=True)
class Progress:
    """What a caller sees while training runs. `rates` holds each layer's mean firing rate on validation; `loss` is
    None where it was not looked at."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    validation: Evaluation | None = None
    best: float = 0.0


# Steps between looks at the loss: each look waits for the device.
_LOOKS = 10

Report = Callable[[Progress], None]


@dataclass
class Run:
    """One training run in a folder: `last.pt` to resume from, `best.safetensors` by validation, and logs."""

    recipe: Recipe
    folder: Path
    data_root: Path | None = None
    data: DataSet = field(init=False)
    network: Network = field(init=False)
    device: torch.device = field(init=False)
    group: Group = field(init=False)

    def __post_init__(self) -> None:
        recipe, training = self.recipe, self.recipe.training
        self.device = training_device(training.device)
        self.group = join(self.device.type)
        if self.device.type == "cuda" and self.group.world > 1:
            self.device = torch.device("cuda", self.group.local)
        # The order of draws is fixed: weights first, then the order of samples and their augmentation.
        torch.manual_seed(training.seed)
        self.data = dataset_of(
            recipe.data, self.data_root, events=recipe.events, timesteps=training.timesteps
        )
        network = build_network(
            recipe.network.name, recipe.network.arguments, recipe.neuron, training.timesteps
        )
        # Convolutions with channels last run up to 1.7 times as fast on a CPU; the kernels take either layout.
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._check()
        samples = min(training.samples_per_epoch or len(self.data.train), len(self.data.train))
        self.steps = samples // training.batch_size
        if self.steps == 0:
            raise TrainingError(
                f"training.batch_size {training.batch_size} is more than the {samples} samples"
            )
        if self.group.world > 1:
            share_batch_norms(self.network)
            if self.group.rank:  # dropout differs from process to process
                torch.manual_seed(training.seed + self.group.rank)
        self.optimizer = make_optimizer(self.network, training)
        self.schedule = make_schedule(self.optimizer, training, self.steps)
        self.draws = torch.Generator().manual_seed(training.seed)
        self.epoch = 0
        self.best = -1.0

    def _check(self) -> None:
        training = self.recipe.training
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
        parts = self.group.world * training.accumulate
        if training.batch_size % parts:
            raise TrainingError(
                f"training.batch_size {training.batch_size} cannot be divided among {self.group.world} processes of "
                f"{training.accumulate} parts each"
            )

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
        with _tensorboard(self.folder if self.group.first else None) as board:
            while self.epoch < self.recipe.training.epochs:
                self._train_epoch(report, board)
        return self._finish()

    def _train_epoch(self, report: Report, board: Any) -> None:
        training = self.recipe.training
        total = torch.zeros((), device=self.device)
        self.network.train()
        batches = self.data.batches(
            "train",
            training.batch_size,
            shuffle=self.draws,
            augment=Pipeline(self.recipe.data.augment) if self.recipe.data.augment else None,
            device=self.device,
            share=self.group.share,
        )
        for step, (x, y) in enumerate(islice(batches, self.steps), 1):
            total += self._step(x, y, step)
            mean = total.item() / step if step % _LOOKS == 0 or step == self.steps else None
            report(Progress(self.epoch + 1, training.epochs, step, self.steps, mean))
        self.epoch += 1
        loss = total.item() / self.steps
        validation = self._evaluate(self.network, "validation")
        if validation.accuracy > self.best:
            self.best = validation.accuracy
            if self.group.first:
                self._save_best(validation)
        _log(board, self.epoch, loss, validation, float(self.schedule.get_last_lr()[0]))
        self._save_last()
        report(
            Progress(
                self.epoch, training.epochs, self.steps, self.steps, loss, validation, self.best
            )
        )

    def _step(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """One step of the optimiser on this process's part of a batch; the loss of the whole batch."""
        training = self.recipe.training
        if self.recipe.data.mix is not None:
            drawn = self.recipe.data.mix.draw(x.shape[-2], x.shape[-1], self.draws)
            if drawn is not None:
                x, y = self._mixed(x, y, drawn)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        axis = int(self.data.input.kind == "events")
        parts = list(
            zip(x.chunk(training.accumulate, axis), y.chunk(training.accumulate), strict=True)
        )
        for part_x, part_y in parts:
            part = loss_of(self._logits(part_x), part_y, training) / len(parts)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        if self.group.world > 1:
            self.group.average([loss, *gradients(self.network.parameters())])
        if not looks_finite(self.network, loss):
            found = culprit(self.network, loss, lambda: self._logits(x))
            if found is not None:
                raise TrainingError(
                    f"epoch {self.epoch + 1}, step {step}: {found} is not finite; "
                    "lower training.learning_rate or set training.gradient_clip"
                )
        if training.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), training.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        return loss

    def _logits(self, x: Tensor) -> Tensor:
        training = self.recipe.training
        timesteps = training.timesteps_of(self.epoch) if training.timestep_schedule else None
        half = training.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits: Tensor = self.network(x, timesteps).logits
        return logits.float()

    def _mixed(self, x: Tensor, y: Tensor, drawn: MixDraw) -> tuple[Tensor, Tensor]:
        time_first = self.data.input.kind == "events"
        x, y = mixed(x.transpose(0, 1) if time_first else x, y, drawn, len(self.data.classes))
        return (x.transpose(0, 1) if time_first else x), y

    def _evaluate(self, network: Network, name: SplitName) -> Evaluation:
        """On all processes together, each with its part of the samples."""
        split = self.data.split(name)
        if self.group.world > 1:
            split = split.at(torch.arange(self.group.rank, len(split), self.group.world))
        found = evaluate(network, self.data.batches(split, 256, device=self.device))
        return merged(self.group.gather(found))

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
        self.group.wait()
        best = load_checkpoint(self.best_path)
        test = self._evaluate(best.network().to(self.device), "test")
        if not self.group.first:
            return best.manifest
        kept = [a for a in best.manifest.accuracy if a.split != "test"]
        scored = test.as_accuracy(self.data.name, "test")
        manifest = best.manifest.model_copy(update={"accuracy": (*kept, scored)})
        if len(self.data.validation) > 1:
            health = measure(
                best.network(), manifest, self.data, "validation", samples=_PROFILE_SAMPLES
            )
            manifest = manifest.model_copy(update={"health": health})
        return save_checkpoint(self.best_path, manifest, best.tensors)

    def _save_last(self) -> None:
        drawn: dict[str, Tensor] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            drawn["cuda"] = torch.cuda.get_rng_state(self.device)
        everyone = self.group.gather(drawn)
        if self.group.first:
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
                    "torch": drawn["torch"],
                    "processes": everyone,
                },
                buffer,
            )
            write_atomically(self.last_path, buffer.getvalue())
        self.group.wait()

    def _resume(self) -> None:
        saved = torch.load(self.last_path, weights_only=True, map_location="cpu")
        if saved["recipe"] != self.recipe.model_dump_json():
            raise TrainingError(
                f"{self.last_path} was written by another recipe or other settings; "
                "use another folder, or delete it to start anew"
            )
        everyone = saved.get("processes", [{"torch": saved["torch"]}])
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.draws.set_state(saved["draws"])
        self.epoch, self.best = saved["epoch"], saved["best"]
        if len(everyone) != self.group.world:
            # A machine was lost, or came back: only dropout is drawn by each process for itself, and begins anew.
            torch.manual_seed(hash((self.recipe.training.seed, self.epoch, self.group.rank)))
            return
        drawn = everyone[self.group.rank]
        torch.set_rng_state(drawn["torch"])
        if self.device.type == "cuda" and "cuda" in drawn:
            torch.cuda.set_rng_state(drawn["cuda"], self.device)


def training_device(wanted: str, said_by: str = "training.device") -> torch.device:
    """`auto` is the GPU where there is one. Raises TrainingError for a GPU where there is none, and for no device."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise TrainingError(f"{said_by} is {wanted}: expected cpu, cuda, cuda:1 or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            f"{said_by} is {wanted}, but torch sees no GPU: it needs an NVIDIA driver and a torch with CUDA "
            f"(this is torch {torch.__version__}); or take --device cpu"
        )
    return device


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Any]:
    if folder is None:
        yield None
        return
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
    if board is None:
        return
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
