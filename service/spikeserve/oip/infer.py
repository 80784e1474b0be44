"""One inference request of the protocol: a batch of pictures in, a row of each output for every one of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeserve.classify import Classification, Classifier, ClassifyRequest
from spikeserve.engine import Priority
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.oip.models import IMAGE, OUTPUTS, PROBABILITIES, RATES, TIMESTEPS, image_input
from spikeserve.oip.tensors import NamedTensor, malformed
from spikeserve.repository import LoadedModel, Repository
from spiketrain.manifest import ImageInput


@dataclass(frozen=True)
class WantedOutput:
    """With `classes` above 0, the so many likeliest as "probability:index:label" instead of the values."""

    name: str
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    model: str
    version: str | None
    inputs: Sequence[NamedTensor]
    outputs: Sequence[WantedOutput] = ()  # all where there are none
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferAnswer:
    model: str
    version: str
    outputs: list[NamedTensor]


class Inference:
    """`most` is how many pictures one request may have."""

    def __init__(self, repository: Repository, classifier: Classifier, most: int) -> None:
        self._repository = repository
        self._classifier = classifier
        self.most = most

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Raises ServiceError. The pictures are computed together; when one fails, so does the request."""
        model = self._repository.get(request.model, request.version)
        spec = image_input(model.manifest, model.name)
        wanted = _wanted(request.outputs, model)
        pictures = self._pictures(request.inputs, spec, model.name)
        options = _options(request.parameters)
        asked = [
            ClassifyRequest(
                image=picture,
                model=model.name,
                version=model.version,
                top_k=len(model.manifest.classes),
                **options,
            )
            for picture in pictures
        ]
        results = await self._all(asked)
        outputs = [_output(each, results, model) for each in wanted]
        return InferAnswer(model.name, model.version, outputs)

    async def _all(self, asked: Sequence[ClassifyRequest]) -> list[Classification]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._classifier.classify(each)) for each in asked]
        except* Exception as failed:
            first: BaseException = failed
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            failure = first
        else:
            return [task.result() for task in tasks]
        raise failure

    def _pictures(
        self, inputs: Sequence[NamedTensor], spec: ImageInput, model: str
    ) -> list[bytes | NDArray[Any]]:
        names = [each.name for each in inputs]
        if names != [IMAGE]:
            raise malformed(f"model {model} takes one input, {IMAGE!r}; got {names!r:.200}")
        (tensor,) = inputs
        channels, height, width = spec.shape
        shape = tensor.values.shape
        row: tuple[int, ...] = (height, width, channels)
        if tensor.datatype == "BYTES":
            row = (1,) if len(shape) == 2 else ()
        elif tensor.datatype not in ("UINT8", "FP32"):
            raise malformed(
                f"input {IMAGE!r}: datatype {tensor.datatype}; expected UINT8 (0 to 255), FP32 (0 to 1) or BYTES (files)"
            )
        if shape[1:] != row:
            raise malformed(f"input {IMAGE!r}: expected shape {[-1, *row]}, got {list(shape)}")
        if not 1 <= shape[0] <= self.most:
            raise malformed(
                f"input {IMAGE!r}: a batch of {shape[0]}; model {model} takes 1 to {self.most}"
            )
        if tensor.datatype == "BYTES":
            return list(tensor.values.reshape(-1))
        if tensor.datatype == "FP32" and not (
            (tensor.values >= 0).all() and (tensor.values <= 1).all()
        ):
            raise malformed(f"input {IMAGE!r}: FP32 pixels go from 0 to 1, before normalisation")
        return list(tensor.values)


def _wanted(outputs: Sequence[WantedOutput], model: LoadedModel) -> Sequence[WantedOutput]:
    classes = len(model.manifest.classes)
    for each in outputs:
        if each.name not in OUTPUTS:
            raise malformed(
                f"unexpected output {each.name!r:.60}: model {model.name} has {', '.join(OUTPUTS)}"
            )
        if each.classes and each.name != PROBABILITIES:
            raise malformed(f"output {each.name!r}: classification is of {PROBABILITIES!r} only")
        if not 0 <= each.classes <= classes:
            raise malformed(
                f"output {each.name!r}: classification is {each.classes}: there are {classes} classes"
            )
    return outputs or [WantedOutput(name) for name in OUTPUTS]


def _output(
    wanted: WantedOutput, results: Sequence[Classification], model: LoadedModel
) -> NamedTensor:
    if wanted.name == TIMESTEPS:
        return NamedTensor(
            TIMESTEPS, "INT32", np.array([[each.timesteps_used] for each in results])
        )
    if wanted.name == RATES:
        layers = model.engine.layers
        rates = [[each.firing_rates[layer] for layer in layers] for each in results]
        return NamedTensor(RATES, "FP32", np.array(rates, np.float32))
    if wanted.classes:
        named = [
            [f"{p.probability:f}:{p.index}:{p.label}".encode() for p in each.predictions]
            for each in results
        ]
        return NamedTensor(PROBABILITIES, "BYTES", np.array(named, object)[:, : wanted.classes])
    chances = np.empty((len(results), len(model.manifest.classes)), np.float32)
    for row, each in zip(chances, results, strict=True):
        for prediction in each.predictions:
            row[prediction.index] = prediction.probability
    return NamedTensor(PROBABILITIES, "FP32", chances)


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the request's parameters ask of the classifier. Raises ServiceError MALFORMED; unknown ones are ignored."""
    options: dict[str, Any] = {}
    if parameters.get("sequence_id") not in (None, 0, ""):
        raise ServiceError(
            ErrorKind.IMPOSSIBLE, "sequence_id: a model of pictures has no sequences"
        )
    if (name := parameters.get("exit")) is not None:
        if name not in ("off", "balanced", "fast"):
            raise malformed("parameter exit must be off, balanced or fast")
        options["exit"] = name
    if (risk := parameters.get("risk")) is not None:
        if isinstance(risk, bool) or not isinstance(risk, (int, float)) or not math.isfinite(risk):
            raise malformed("parameter risk must be a number")
        options["risk"] = float(risk)
    if (timesteps := _whole(parameters, "timesteps")) is not None:
        options["timesteps"] = timesteps
    if priority := _whole(parameters, "priority"):  # 0 is the model's own
        if not 1 <= priority <= len(Priority):
            raise malformed(f"parameter priority must be 1, the highest, to {len(Priority)}, or 0")
        options["priority"] = Priority(priority - 1)
    if timeout := _whole(parameters, "timeout"):  # 0 is none
        if timeout < 0:
            raise malformed("parameter timeout must be microseconds, 0 or more")
        options["deadline"] = time.monotonic() + min(timeout, 1 << 50) / 1e6
    return options


def _whole(parameters: Mapping[str, Any], name: str) -> int | None:
    value = parameters.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise malformed(f"parameter {name} must be a whole number")
    return value
