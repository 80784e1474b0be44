"""Every request for an inference, over HTTP or gRPC, alone or in a stream of them, is answered here."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from spikeserve.access import Gate
from spikeserve.classify import Classifier
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.oip.events import Step, event_output, sequence_id, step_of
from spikeserve.oip.outputs import checked_outputs
from spikeserve.oip.pictures import classify_pictures, picture_output
from spikeserve.oip.request import InferAnswer, InferRequest, deadline
from spikeserve.oip.sequences import Sequences, StepAnswer
from spikeserve.oip.statistics import Seconds, Statistics
from spikeserve.oip.tensors import NamedTensor
from spikeserve.repository import LoadedModel, Repository
from spikeserve.streams import Streams


@dataclass
class _Work:
    """Who is to answer, once that is known, and how long what took."""

    began: float = field(default_factory=time.perf_counter)
    model: LoadedModel | None = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


class Inference:
    """To be used on one event loop."""

    def __init__(
        self, repository: Repository, classifier: Classifier, streams: Streams, gate: Gate
    ) -> None:
        self._repository = repository
        self._classifier = classifier
        self._sequences = Sequences(streams, gate)
        self.statistics = Statistics(repository)

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Raises ServiceError."""
        work = _Work()
        try:
            model = self._model(request)
            work.model = model
            if model.kind == "image":
                return await self._pictures(model, request, work)
            return await self._events(model, request, work)
        except BaseException:
            if work.model is not None:
                self.statistics.failed(work.model.name, work.model.version, work.seconds)
            raise

    def _model(self, request: InferRequest) -> LoadedModel:
        """A sequence stays with the model that it began with, though that may be unloaded or replaced meanwhile."""
        parameters = request.parameters
        if parameters.get("sequence_id") not in (None, 0, "") and not parameters.get(
            "sequence_start"
        ):
            known = self._sequences.model(request.model, sequence_id(parameters))
            if known is not None:
                return known
        return self._repository.get(request.model, request.version)

    async def _pictures(
        self, model: LoadedModel, request: InferRequest, work: _Work
    ) -> InferAnswer:
        wanted = checked_outputs(request.outputs, model)
        results = await classify_pictures(self._classifier, model, request)
        done = time.perf_counter()
        outputs = [picture_output(each, results, model) for each in wanted]
        decode, queue, compute = (
            max(each.timing_seconds[stage] for each in results)
            for stage in ("decode", "queue", "compute")
        )
        encode = time.perf_counter() - done
        seconds = Seconds(work.seconds, queue, decode, compute, encode)
        return self._answer(model, outputs, len(results), seconds)

    async def _events(self, model: LoadedModel, request: InferRequest, work: _Work) -> InferAnswer:
        wanted = checked_outputs(request.outputs, model)
        step = step_of(request.inputs, request.parameters, model)
        decode = work.seconds
        answer = await self._in_time(request, step)
        if answer.model is not model:  # it was being opened when this request came
            wanted = checked_outputs(request.outputs, answer.model)
        done = time.perf_counter()
        outputs = [
            event_output(each, answer.answers, answer.before, answer.model) for each in wanted
        ]
        encode = time.perf_counter() - done
        seconds = Seconds(
            work.seconds, answer.waited_seconds, decode, answer.computed_seconds, encode
        )
        return self._answer(answer.model, outputs, len(answer.answers), seconds)

    async def _in_time(self, request: InferRequest, step: Step) -> StepAnswer:
        end = deadline(request)
        left = None if end is None else end - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await self._sequences.run(request.model, request.version, step)
        except TimeoutError:
            raise ServiceError(
                ErrorKind.DEADLINE,
                "the deadline passed before the answer was ready; the events were taken in all the same",
            ) from None

    def _answer(
        self, model: LoadedModel, outputs: list[NamedTensor], count: int, seconds: Seconds
    ) -> InferAnswer:
        self.statistics.succeeded(model.name, model.version, count, seconds)
        return InferAnswer(model.name, model.version, outputs)
