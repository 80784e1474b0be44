"""What a model is in the words of the protocol: inputs, outputs, configuration, place in the index."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from spikeserve.catalog import find_model
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import LoadedModel, Repository
from spikeserve.settings import Settings
from spiketrain.manifest import ImageInput

PLATFORM = "spikeserve"
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""What this server has beyond the base protocol, by Triton's names."""

IMAGE, EVENTS = "image", "events"
PROBABILITIES, RATES, TIMESTEPS = "probabilities", "firing_rates", "timesteps"
WINDOWS, DECISION = "windows", "decision"


@dataclass(frozen=True)
class TensorSpec:
    """`shape` has -1 where a size varies. With `dims`, what the configuration has, without the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    batched: bool

    @property
    def dims(self) -> tuple[int, ...]:
        return self.shape[1:] if self.batched else self.shape


def input_of(model: LoadedModel) -> TensorSpec:
    """A model takes one: a batch of pictures [N, H, W, C], or events [N, 4] as rows of t, x, y and p."""
    spec = model.manifest.input
    if isinstance(spec, ImageInput):
        channels, height, width = spec.shape
        return TensorSpec(IMAGE, "UINT8", (-1, height, width, channels), True)
    return TensorSpec(EVENTS, "INT64", (-1, 4), False)


def outputs_of(model: LoadedModel) -> tuple[TensorSpec, ...]:
    """For each a row a picture, or a row for each window that the request closed."""
    batched = model.kind == "image"
    rows = (
        TensorSpec(PROBABILITIES, "FP32", (-1, len(model.manifest.classes)), batched),
        TensorSpec(RATES, "FP32", (-1, len(model.engine.layers)), batched),
        TensorSpec(TIMESTEPS, "INT32", (-1, 1), batched),
    )
    if batched:
        return rows
    return (
        *rows,
        TensorSpec(WINDOWS, "INT64", (-1, 4), False),
        TensorSpec(DECISION, "INT32", (-1, 1), False),
    )


def metadata(repository: Repository, name: str, version: str | None) -> dict[str, Any]:
    """Raises ServiceError: NOT_FOUND; UNAVAILABLE while it is not ready."""
    model = repository.get(name, version)
    versions = [
        info.version for info in repository.models() if info.name == name and info.state == "ready"
    ]
    return {
        "name": name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [_described(input_of(model))],
        "outputs": [_described(each) for each in outputs_of(model)],
    }


def configuration(
    repository: Repository, settings: Settings, name: str, version: str | None
) -> dict[str, Any]:
    """As Triton's model configuration, which proto/model_config.proto has; its parameters name classes and layers.

    Raises as `metadata`.
    """
    model = repository.get(name, version)
    given = _configured(input_of(model))
    config = {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": most_pictures(model),
        "input": [given],
        "output": [_configured(each) for each in outputs_of(model)],
        "parameters": {
            "classes": {"string_value": json.dumps(model.manifest.classes)},
            "layers": {"string_value": json.dumps(model.engine.layers)},
        },
    }
    if model.kind == "image":
        given["format"] = "FORMAT_NHWC"
    else:
        idle = round(settings.stream_idle_seconds * 1e6)
        config["sequence_batching"] = {
            "max_sequence_idle_microseconds": idle,
            "oldest": {"max_candidate_sequences": settings.max_streams},
        }
    return config


def most_pictures(model: LoadedModel) -> int:
    """In one request; 0 for a model of events, whose requests have no batch."""
    return model.engine.slots if model.kind == "image" else 0


def index(repository: Repository, ready: bool) -> list[dict[str, str]]:
    """All models, or those that are ready."""
    states = {
        "ready": "READY",
        "loading": "LOADING",
        "failed": "UNAVAILABLE",
        "unloading": "UNLOADING",
        "unloaded": "UNAVAILABLE",
    }
    return [
        {
            "name": info.name,
            "version": info.version,
            "state": states[info.state],
            "reason": info.reason or "",
        }
        for info in repository.models()
        if not ready or info.state == "ready"
    ]


def is_ready(repository: Repository, name: str, version: str | None) -> bool:
    """Raises ServiceError NOT_FOUND for what there is not even as a file."""
    try:
        return repository.get(name, version).engine.healthy
    except ServiceError as error:
        if error.kind is ErrorKind.NOT_FOUND:
            find_model(repository, name, version)
        return False


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(spec.dims)}
