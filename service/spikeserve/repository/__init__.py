"""Models on disk: find, verify, warm up, hand out, replace while they serve, close."""

from spikeserve.repository.labels import Labels
from spikeserve.repository.model import KINDS, Kind, LoadedModel, ModelInfo, State
from spikeserve.repository.repository import Repository
from spikeserve.repository.start import WARM_UP_BATCH, warm_up
from spikeserve.repository.watch import Watch

__all__ = [
    "KINDS",
    "WARM_UP_BATCH",
    "Kind",
    "Labels",
    "LoadedModel",
    "ModelInfo",
    "Repository",
    "State",
    "Watch",
    "warm_up",
]
