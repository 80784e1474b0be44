"""A request to a model of pictures: a batch of them in, a row of each output for every one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeserve.access import current_caller
from spikeserve.classify import Classification, Classifier, ClassifyRequest
from spikeserve.engine import Priority
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.oip.models import IMAGE, TIMESTEPS, most_pictures
from spikeserve.oip.outputs import common_output
from spikeserve.oip.request import InferRequest, WantedOutput, deadline, whole
from spikeserve.oip.tensors import NamedTensor, malformed
from spikeserve.repository import LoadedModel
from spiketrain.manifest import ImageInput


async def classify_pictures(
    classifier: Classifier, model: LoadedModel, request: InferRequest
) -> list[Classification]:
    """Raises ServiceError. The pictures are computed together; when one fails, so does the request."""
    if request.parameters.get("sequence_id") not in (None, 0, ""):
        raise ServiceError(
            ErrorKind.IMPOSSIBLE, f"sequence_id: model {model.name} takes pictures, not sequences"
        )
    options = _options(request.parameters)
    asked = [
        ClassifyRequest(
            image=picture,
            model=model.name,
            version=model.version,
            top_k=len(model.manifest.classes),
            deadline=deadline(request),
            **options,
        )
        for picture in _pictures(request.inputs, model)
    ]
    return await _all(classifier, asked)


def picture_output(
    wanted: WantedOutput, results: Sequence[Classification], model: LoadedModel
) -> NamedTensor:
    if (common := common_output(wanted, results, model)) is not None:
        return common
    used = np.array([each.timesteps_used for each in results], np.int32)
    return NamedTensor(TIMESTEPS, "INT32", used.reshape(-1, 1))


async def _all(classifier: Classifier, asked: Sequence[ClassifyRequest]) -> list[Classification]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(classifier.classify(each)) for each in asked]
    except* Exception as failed:
        first: BaseException = failed
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        failure = first
    else:
        return [task.result() for task in tasks]
    raise failure


def _pictures(inputs: Sequence[NamedTensor], model: LoadedModel) -> list[bytes | NDArray[Any]]:
    names = [each.name for each in inputs]
    if names != [IMAGE]:
        raise malformed(f"model {model.name} takes one input, {IMAGE!r}; got {names!r:.200}")
    (tensor,) = inputs
    shape = tensor.values.shape
    row = _row(tensor, model)
    if shape[1:] != row:
        raise malformed(f"input {IMAGE!r}: expected shape {[-1, *row]}, got {list(shape)}")
    if not 1 <= shape[0] <= most_pictures(model):
        raise malformed(
            f"input {IMAGE!r}: a batch of {shape[0]}; model {model.name} takes 1 to {most_pictures(model)}"
        )
    most, name = current_caller.get().whole("max_batch", most_pictures(model))
    if shape[0] > most:
        raise malformed(f"input {IMAGE!r}: a batch of {shape[0]}, the limit is {most} ({name})")
    if tensor.datatype == "BYTES":
        return list(tensor.values.reshape(-1))
    if tensor.datatype == "FP32" and not (
        (tensor.values >= 0).all() and (tensor.values <= 1).all()
    ):
        raise malformed(f"input {IMAGE!r}: FP32 pixels go from 0 to 1, before normalisation")
    return list(tensor.values)


def _row(tensor: NamedTensor, model: LoadedModel) -> tuple[int, ...]:
    """The shape of one picture: pixels, or a file as one element."""
    spec = model.manifest.input
    if not isinstance(spec, ImageInput):
        raise TypeError(f"{model.name} has no image input")
    if tensor.datatype == "BYTES":
        return (1,) if tensor.values.ndim == 2 else ()
    if tensor.datatype not in ("UINT8", "FP32"):
        raise malformed(
            f"input {IMAGE!r}: datatype {tensor.datatype}; expected UINT8 (0 to 255), FP32 (0 to 1) or BYTES (files)"
        )
    channels, height, width = spec.shape
    return height, width, channels


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What the request's parameters ask of the classifier. Raises ServiceError MALFORMED; unknown ones are ignored."""
    options: dict[str, Any] = {}
    if (name := parameters.get("exit")) is not None:
        if name not in ("off", "balanced", "fast"):
            raise malformed("parameter exit must be off, balanced or fast")
        options["exit"] = name
    if (risk := parameters.get("risk")) is not None:
        if isinstance(risk, bool) or not isinstance(risk, (int, float)) or not math.isfinite(risk):
            raise malformed("parameter risk must be a number")
        options["risk"] = float(risk)
    if (timesteps := whole(parameters, "timesteps")) is not None:
        options["timesteps"] = timesteps
    if priority := whole(parameters, "priority"):  # 0 is the model's own
        if not 1 <= priority <= len(Priority):
            raise malformed(f"parameter priority must be 1, the highest, to {len(Priority)}, or 0")
        options["priority"] = Priority(priority - 2)
    return options
