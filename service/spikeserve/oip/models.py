"""What a model is in the words of the protocol: inputs, outputs, configuration, place in the index."""

from __future__ import annotations

from typing import Any

from spikeserve.catalog import find_model
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import ModelInfo, Repository
from spiketrain.manifest import ImageInput, Manifest

PLATFORM = "spikeserve"
EXTENSIONS = (
    "classification",
    "binary_tensor_data",
    "model_configuration",
    "parameters",
    "schedule_policy",
)
"""What this server has beyond the base protocol."""

IMAGE, PROBABILITIES, RATES, TIMESTEPS = "image", "probabilities", "firing_rates", "timesteps"
OUTPUTS = (PROBABILITIES, RATES, TIMESTEPS)


def metadata(repository: Repository, name: str, version: str | None) -> dict[str, Any]:
    """Raises ServiceError: NOT_FOUND; UNAVAILABLE while it is not ready; IMPOSSIBLE for a model of event streams."""
    model = repository.get(name, version)
    spec = image_input(model.manifest, name)
    channels, height, width = spec.shape
    versions = [
        info.version for info in repository.models() if info.name == name and info.state == "ready"
    ]
    return {
        "name": name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [{"name": IMAGE, "datatype": "UINT8", "shape": [-1, height, width, channels]}],
        "outputs": [
            {
                "name": PROBABILITIES,
                "datatype": "FP32",
                "shape": [-1, len(model.manifest.classes)],
            },
            {"name": RATES, "datatype": "FP32", "shape": [-1, len(model.engine.layers)]},
            {"name": TIMESTEPS, "datatype": "INT32", "shape": [-1, 1]},
        ],
    }


def configuration(
    repository: Repository, name: str, version: str | None, batch: int
) -> dict[str, Any]:
    """As Triton's model configuration, whose dimensions are without the batch. Raises as `metadata`."""
    described = metadata(repository, name, version)
    inputs, outputs = (
        [
            {
                "name": each["name"],
                "data_type": f"TYPE_{each['datatype']}",
                "dims": each["shape"][1:],
            }
            for each in described[side]
        ]
        for side in ("inputs", "outputs")
    )
    inputs[0]["format"] = "FORMAT_NHWC"
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": batch,
        "input": inputs,
        "output": outputs,
    }


def index(repository: Repository, ready: bool) -> list[dict[str, str]]:
    """All models, or those that are ready."""
    states = {"ready": "READY", "loading": "LOADING", "failed": "UNAVAILABLE"}
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


def find(repository: Repository, name: str, version: str | None) -> ModelInfo:
    """Raises ServiceError NOT_FOUND."""
    return find_model(repository, name, version)


def image_input(manifest: Manifest, name: str) -> ImageInput:
    if not isinstance(manifest.input, ImageInput):
        raise ServiceError(
            ErrorKind.IMPOSSIBLE,
            f"model {name} takes event streams, which spikeserve.v1 serves and this protocol does not yet",
        )
    return manifest.input
