"""Early exit: how sure a network is of its answer after some of its timesteps, and when that is enough.

The score after t timesteps is the top probability of softmax(m_t / temperature_t), where m_t is the mean of their logits
and the temperature is fitted so that the score is the chance of naming the class that all T timesteps name. A sample
leaves at the first timestep whose threshold its score reaches; at T it always leaves.

The class named is the one with the largest mean logit. That is so for the readouts mean, sum and rate; models with
another one have no early exit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

NAMED_RISKS = {"balanced": 0.005, "fast": 0.02}
"""What `exit=balanced` and `exit=fast` stand for."""

EXIT_READOUTS = ("mean", "sum", "rate")

NEVER = math.inf
"""A threshold that no score reaches."""


class ExitLevel(BaseModel):
    """Thresholds for one bound on the share of samples whose answer differs from that after all timesteps.

    `disagreement` is that share as measured on the verification samples, `upper_bound` its Clopper-Pearson bound at the
    table's confidence, at most `risk`, and `mean_timesteps` what the same samples needed. A level for which nothing
    could be verified never exits: its thresholds are None, and nothing disagrees.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    risk: float = Field(gt=0, lt=1)
    thresholds: tuple[float | None, ...] = Field(
        description="by timestep, without the last; None: no sample leaves there"
    )
    disagreement: float = Field(ge=0, le=1)
    upper_bound: float = Field(ge=0, le=1)
    mean_timesteps: float = Field(ge=1)

    @model_validator(mode="after")
    def _keeps_its_promise(self) -> ExitLevel:
        for threshold in self.thresholds:
            if threshold is not None and not 0 < threshold <= 1:
                raise ValueError(f"a threshold of {threshold}: scores are above 0 and at most 1")
        if self.upper_bound > self.risk:
            raise ValueError(f"upper_bound {self.upper_bound} is above the risk {self.risk}")
        return self


class ExitTable(BaseModel):
    """What `spiketrain calibrate-exit` found for one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="digest of the model that this was fitted for, and no other")
    temperatures: tuple[float, ...] = Field(
        min_length=1, description="by timestep, without the last"
    )
    levels: tuple[ExitLevel, ...] = Field(min_length=1, description="in the order of their risk")
    confidence: float = Field(
        gt=0, lt=1, description="with which each level's bound holds, by itself"
    )
    dataset: str
    split: str = Field(description="never test, and nothing the weights were fitted to")
    fitted: int = Field(gt=0, description="samples that temperatures and candidates come from")
    verified: int = Field(gt=0, description="other samples, on which the bounds were verified")
    seed: int = Field(description="of the cut between the two")

    @model_validator(mode="after")
    def _fits_together(self) -> ExitTable:
        if not all(0 < each < math.inf for each in self.temperatures):
            raise ValueError("temperatures must be above 0")
        for level in self.levels:
            if len(level.thresholds) != len(self.temperatures):
                raise ValueError(
                    f"{len(level.thresholds)} thresholds for risk {level.risk}, but {len(self.temperatures)} temperatures"
                )
        risks = [level.risk for level in self.levels]
        if risks != sorted(set(risks)):
            raise ValueError(f"levels must be in the order of their risk, each once, not {risks}")
        return self

    @property
    def timesteps(self) -> int:
        """Those of the model: exits are known for no other number."""
        return len(self.temperatures) + 1

    def level(self, risk: float) -> ExitLevel | None:
        """The level with the largest risk that is not above this one; None where all are."""
        return next((level for level in reversed(self.levels) if level.risk <= risk), None)


def top_probability(logits: ArrayLike, temperature: ArrayLike) -> NDArray[Any]:
    """The largest of softmax(logits / temperature): [...] for logits [..., classes] and temperatures [...]."""
    x = np.asarray(logits, np.float64) / np.asarray(temperature, np.float64)[..., None]
    return np.asarray(1.0 / np.exp(x - x.max(-1, keepdims=True)).sum(-1))


def running_means(logits: ArrayLike) -> NDArray[Any]:
    """Means of the first t timesteps, t = 1..T: [T, N, classes] of logits [T, N, classes]."""
    sums = np.cumsum(np.asarray(logits, np.float64), axis=0)
    return np.asarray(sums / np.arange(1, len(sums) + 1)[:, None, None])


def exit_scores(means: ArrayLike, temperatures: Sequence[float]) -> NDArray[Any]:
    """Scores [T-1, N] after each timestep but the last, of running means [T, N, classes]."""
    return top_probability(np.asarray(means)[:-1], np.array(temperatures)[:, None])


def leaving_timesteps(scores: NDArray[Any], thresholds: Sequence[float | None]) -> NDArray[np.intp]:
    """After how many timesteps, 1..T, each sample leaves: [N] of scores [T-1, N]."""
    limits = np.array([NEVER if each is None else each for each in thresholds])
    sure = scores >= limits[:, None]
    return np.where(sure.any(0), sure.argmax(0), len(limits)) + 1
