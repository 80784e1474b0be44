"""Classify pictures: what the server does, free of any protocol."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray
from torch import Tensor

from spikeserve.access import current_caller
from spikeserve.engine import ExitPolicy, Priority, RunResult, Scheduler, exit_policy
from spikeserve.engine.jobs import QueueLimit, deadline_passed
from spikeserve.engine.readout import probabilities
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.images import ImageLimits, decode_image, decodes_at_once
from spikeserve.metrics import Metrics
from spikeserve.repository import LoadedModel, Repository
from spikeserve.settings import Settings
from spikeserve.tracing import Spans
from spiketrain.energy import energy_joules
from spiketrain.exit import NAMED_RISKS, ExitTable
from spiketrain.manifest import ImageInput

ExitName = Literal["off", "balanced", "fast"]


@dataclass(frozen=True)
class ClassifyRequest:
    """`image` is a file, or pixels [H, W, C] as decode_image takes them.

    `top_k` beyond the number of classes is refused, but for the default; `deadline` is one of time.monotonic().

    `exit` or `risk`, not both, says how readily the picture may leave before its last timestep: risk is the share of
    pictures that may be answered otherwise than after all timesteps. Unless given, the server's setting holds, for
    models that have exits and where no other number of timesteps is asked for. `priority` only orders those that wait.
    """

    image: bytes | NDArray[Any]
    model: str | None = None
    version: str | None = None
    top_k: int | None = None
    timesteps: int | None = None
    rates: bool = True
    deadline: float | None = None
    exit: ExitName | None = None
    risk: float | None = None
    priority: Priority | None = None


@dataclass(frozen=True)
class Prediction:
    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classification:
    """`firing_rates` is empty where the request did not want them. `timing_seconds` has decode, queue and compute.

    `exit_risk` is the bound on disagreement with all timesteps that the exit kept to, 0 where it was off.
    """

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    timesteps_used: int
    timesteps_of: int
    firing_rates: dict[str, float]
    synaptic_operations: int
    energy_joules: float
    timing_seconds: dict[str, float]
    exit_risk: float = 0.0


DEFAULT_TOP_K = 5
# Of a picture, when the executor fails. One that makes it fail itself must not do so for ever.
_TRIES = 3
# How long pictures wait for an engine that has crashed; longer, and their clients had better ask elsewhere.
_RESTART_SECONDS = 5.0
_RESTART_LOOK_SECONDS = 0.02


class Classifier:
    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        settings: Settings,
        spans: Spans | None = None,
    ) -> None:
        self.spans = spans or Spans(settings)
        self._repository = repository
        self._settings = settings
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        # Acquired on every event loop that pictures come on.
        self._undecoded = threading.Semaphore(settings.max_queue)
        self._closed = False

    async def classify(self, request: ClassifyRequest) -> Classification:
        """Raises ServiceError. When the calling task is cancelled the engine stops working on the picture."""
        model = self._repository.get(request.model, request.version)
        top_k, timesteps = self._checked(request, model)
        policy = self._exit(request, model, timesteps)
        priority = self._priority(request)
        queue_limit = QueueLimit(
            *current_caller.get().narrowed("queue_seconds", self._settings.queue_seconds)
        )

        async def computed() -> RunResult:
            future = model.engine.submit(
                picture,
                timesteps,
                request.deadline,
                priority=priority,
                exit_policy=policy,
                queue_limit=queue_limit,
            )
            return await asyncio.wrap_future(future)

        try:
            async with asyncio.timeout(_left(request.deadline)):
                await _restarted(model.engine)
                model.engine.check()  # before any work is done for a picture that would be refused
                began = time.monotonic()
                picture = await self._decode(request.image, model)
                decode = time.monotonic() - began
                for left in reversed(range(_TRIES)):
                    try:
                        result = await computed()
                        break
                    except ServiceError as error:
                        failed = error.kind is ErrorKind.INTERNAL or model.engine.restarting
                        if not failed or not left:
                            raise
                        # The executor failed, with all that it was at and all that waited: they begin anew.
                        await _restarted(model.engine)
        except TimeoutError:
            raise deadline_passed() from None
        model.watch.picture(picture, result, policy is not None)
        timing = {
            "decode": decode,
            "queue": result.queue_seconds,
            "compute": result.compute_seconds,
        }
        self.spans.stages(timing, model.name, model.version)
        return self._answer(request, model, top_k, timesteps, policy, result, timing)

    def close(self) -> None:
        """End the decoding threads, once they have decoded what waits for them. May be called again."""
        self._closed = True
        self._decoders.shutdown()

    def _checked(self, request: ClassifyRequest, model: LoadedModel) -> tuple[int, int]:
        """How many predictions and timesteps this request gets."""
        manifest = model.manifest
        classes, trained = len(manifest.classes), manifest.timesteps
        if model.kind != "image":
            raise _impossible(f"model {model.name} takes events, not pictures: stream them to it")
        top_k = min(DEFAULT_TOP_K, classes) if request.top_k is None else request.top_k
        if not 1 <= top_k <= classes:
            raise _impossible(f"top_k is {top_k}: {model.name} has {classes} classes")
        timesteps = trained if request.timesteps is None else request.timesteps
        # What the model was trained with is always allowed.
        limit = trained if model.bound_to_timesteps else max(trained, self._settings.max_timesteps)
        if not 1 <= timesteps <= limit:
            why = (
                "its neurons have parameters for each timestep" if limit == trained else "the limit"
            )
            raise _impossible(f"timesteps is {timesteps}: {model.name} runs 1 to {limit} ({why})")
        return top_k, timesteps

    def _exit(
        self, request: ClassifyRequest, model: LoadedModel, timesteps: int
    ) -> ExitPolicy | None:
        """When the picture may leave early; None where all timesteps are to be run."""
        table = model.manifest.exit
        if request.exit is not None and request.risk is not None:
            raise _impossible("exit and risk were both given: give one of them")
        if request.exit is None and request.risk is None:
            if table is None or timesteps != table.timesteps:
                return None
            return _policy(table, self._settings.exit)
        if request.exit == "off":
            return None
        if request.risk is not None and not 0 <= request.risk < 1:
            raise _impossible(f"risk is {request.risk:g}: it must be from 0 to below 1")
        if table is None:
            raise _impossible(
                f"model {model.name} has no early exit: ask with exit=off, or find its exits with "
                "spiketrain calibrate-exit, which needs held-out data"
            )
        if timesteps != table.timesteps:
            raise _impossible(
                f"timesteps is {timesteps}: the exits of {model.name} are for {table.timesteps}; leave timesteps out, "
                "or ask with exit=off"
            )
        return _policy(table, request.exit, request.risk)

    def _priority(self, request: ClassifyRequest) -> Priority:
        highest = Priority[self._settings.highest_priority.upper()]
        if request.priority is None:
            return max(Priority.NORMAL, highest)
        if request.priority < highest:
            raise _impossible(
                f"priority is {request.priority.name.lower()}: on this server {highest.name.lower()} is the highest"
            )
        return request.priority

    async def _decode(self, image: bytes | NDArray[Any], model: LoadedModel) -> Tensor:
        spec = model.manifest.input
        if not isinstance(spec, ImageInput):
            raise TypeError(f"{model.name} has no image input")
        if self._closed:
            raise ServiceError(
                ErrorKind.UNAVAILABLE, "the server is shutting down: try another one", 1.0
            )
        if decodes_at_once(image):
            return decode_image(image, spec, image_limits(self._settings))
        if not self._undecoded.acquire(blocking=False):
            raise ServiceError(ErrorKind.UNAVAILABLE, "too many pictures wait to be decoded", 1.0)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._decoders, decode_image, image, spec, image_limits(self._settings)
            )
        finally:
            self._undecoded.release()

    def _answer(
        self,
        request: ClassifyRequest,
        model: LoadedModel,
        top_k: int,
        timesteps: int,
        policy: ExitPolicy | None,
        result: RunResult,
        timing: dict[str, float],
    ) -> Classification:
        used = len(result.logits)
        rates, operations, energy = account(model, result)
        model.metrics.picture(used, "off" if policy is None else "on")
        for stage, seconds in timing.items():
            model.metrics.stages[stage].observe(seconds)
        return Classification(
            model=model.name,
            version=model.version,
            predictions=ranked(model, probabilities(model.manifest.readout, result.logits), top_k),
            timesteps_used=used,
            timesteps_of=timesteps,
            firing_rates=rates if request.rates else {},
            synaptic_operations=operations,
            energy_joules=energy,
            timing_seconds=timing,
            exit_risk=0.0 if policy is None else policy.risk,
        )


def image_limits(settings: Settings) -> ImageLimits:
    """Those that hold for the request under way."""
    caller = current_caller.get()
    most_bytes, bytes_name = caller.whole("max_body_bytes", settings.max_body_bytes)
    most_pixels, pixels_name = caller.whole("max_pixels", settings.max_pixels)
    return ImageLimits(most_bytes, most_pixels, bytes_name, pixels_name)


def account(model: LoadedModel, result: RunResult) -> tuple[dict[str, float], int, float]:
    """Firing rates, synaptic operations and energy of one picture or one window; the metrics take them in."""
    timesteps = len(result.logits)
    rates = {
        layer: float(count) / (model.neurons[layer] * timesteps)
        for layer, count in zip(model.engine.layers, result.spikes.tolist(), strict=True)
    }
    operations = round(result.synaptic_operations)
    energy = energy_joules(operations, model.macs)
    model.metrics.sample(rates, operations, energy)
    return rates, operations, energy


def ranked(model: LoadedModel, chances: NDArray[Any], top_k: int) -> tuple[Prediction, ...]:
    """The `top_k` likeliest classes; of equal ones the first in the model's order."""
    order = (-chances).argsort(kind="stable")[:top_k]
    classes = model.manifest.classes
    likeliest = zip(order.tolist(), chances[order].tolist(), strict=True)
    return tuple(Prediction(classes[i], i, chance) for i, chance in likeliest)


def _policy(
    table: ExitTable, name: ExitName | None, risk: float | None = None
) -> ExitPolicy | None:
    """Of the risk that the name stands for, unless it is given."""
    if risk is None:
        risk = NAMED_RISKS.get(name or "off", 0.0)
    return exit_policy(table, risk)


def _impossible(message: str) -> ServiceError:
    return ServiceError(ErrorKind.IMPOSSIBLE, message)


async def _restarted(engine: Scheduler) -> None:
    """Returns when a crashed engine is there again, or does not come back soon."""
    end = time.monotonic() + _RESTART_SECONDS
    while engine.restarting and time.monotonic() < end:  # noqa: ASYNC110 - seldom, and not for long
        await asyncio.sleep(_RESTART_LOOK_SECONDS)


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline, a time of time.monotonic(). Raises ServiceError where it has passed."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise deadline_passed()
    return left
