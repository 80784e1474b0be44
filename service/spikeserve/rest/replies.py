"""The JSON of replies, as it is sent and as /docs describes it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from pydantic_core import to_json

from spikeserve.classify import Classification
from spikeserve.repository import ModelInfo


class PredictionReply(BaseModel):
    label: str
    index: int = Field(description="position among the model's classes, from 0")
    probability: float


class TimestepsReply(BaseModel):
    used: int = Field(description="how many were run")
    of: int = Field(description="how many there are at most")
    risk: float | None = Field(
        None,
        description="with early exit, and left out else: at most this share of such answers differs from that after all "
        "timesteps",
    )


class TimingReply(BaseModel):
    decode: float = Field(0.0, description="picture file to tensor")
    queue: float = Field(0.0, description="waiting for a slot")
    compute: float = Field(0.0, description="in a slot, from the first timestep to the last")


class ClassifyReply(BaseModel):
    model: str
    version: str
    predictions: list[PredictionReply] = Field(description="the likeliest classes, likeliest first")
    timesteps: TimestepsReply
    firing_rates: dict[str, float] = Field(
        description="by layer, spikes per neuron per timestep, 0 to 1"
    )
    synaptic_operations: int = Field(description="weights added because of a spike")
    energy_joules: float = Field(description="estimate for a chip that does only those additions")
    timing_seconds: TimingReply


def classify_json(result: Classification) -> bytes:
    """A ClassifyReply. It is written from plain values: making the model takes three times as long."""
    timesteps: dict[str, Any] = {"used": result.timesteps_used, "of": result.timesteps_of}
    if result.exit_risk:
        timesteps["risk"] = result.exit_risk
    return to_json(
        {
            "model": result.model,
            "version": result.version,
            "predictions": [
                {"label": one.label, "index": one.index, "probability": one.probability}
                for one in result.predictions
            ],
            "timesteps": timesteps,
            "firing_rates": result.firing_rates,
            "synaptic_operations": result.synaptic_operations,
            "energy_joules": result.energy_joules,
            "timing_seconds": result.timing_seconds,
        }
    )


class ModelReply(BaseModel):
    name: str
    version: str
    state: str = Field(description="loading, ready, failed, unloading or unloaded")
    reason: str | None = Field(
        None,
        description="why it failed; of a model that is ready, why its file as it is now cannot take its place",
    )
    labels: list[str] = []
    default: bool = Field(description="whether it answers requests that name no model")
    input: str | None = Field(None, description="image or events")
    shape: list[int] | None = Field(
        None, description="of one timestep's input: channels, height, width"
    )
    classes: list[str] | None = None
    timesteps: int | None = None


class ModelsReply(BaseModel):
    models: list[ModelReply]


class ModelDetailReply(ModelReply):
    versions: list[str] = Field(description="all versions of this model, oldest first")
    manifest: dict[str, Any] | None = Field(
        None, description="all that the checkpoint says about the model"
    )


def model_reply(info: ModelInfo) -> ModelReply:
    reply = ModelReply(
        name=info.name,
        version=info.version,
        state=info.state,
        reason=info.reason,
        labels=list(info.labels),
        default=info.default,
    )
    if info.manifest is None:
        return reply
    return reply.model_copy(
        update={
            "input": info.manifest.input.kind,
            "shape": list(info.manifest.input.shape),
            "classes": list(info.manifest.classes),
            "timesteps": info.manifest.timesteps,
        }
    )


class HealthReply(BaseModel):
    status: str
    progress: str | None = Field(None, description="while the models are loaded for the first time")
