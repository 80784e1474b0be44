"""Fit early exits to the logits of held-out samples, and verify what they promise.

What is promised, for each level by itself: with the stated confidence over the draw of the verification samples, at most
the share `risk` of samples from the same source is answered otherwise than after all T timesteps. It says nothing of
samples from elsewhere, and labels are not used.

1. The samples are cut in two. Temperatures come from the first part: for each timestep the one with which the score
   predicts best, by cross-entropy, the class that all T timesteps name.
2. A candidate is one threshold on that score for all timesteps; a timestep at which it would let fewer than one sample in
   a thousand of the first part go never exits. Candidates are tried on the second part from the most cautious one on, and
   only while the Clopper-Pearson bound on the disagreement is within the risk. The last one that passed is taken. As the
   order is fixed beforehand and the first failure ends it, no correction for their number is needed (fixed-sequence
   testing, as in Learn then Test, Angelopoulos et al. 2021, arXiv:2110.01052).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spiketrain.exit import ExitLevel, exit_scores, leaving_timesteps, running_means

RISKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
CONFIDENCE = 0.95

_FIRST_PART = 0.4  # temperatures need fewer samples than bounds do
_RARELY = 0.001
_TEMPERATURES = (0.01, 100.0)
_CANDIDATES = 1.0 - np.geomspace(1e-6, 1.0, 400)[:-1]  # most cautious first

Array = NDArray[Any]


@dataclass(frozen=True)
class ExitFit:
    """Temperatures by timestep without the last, levels by risk, and how many samples each part had."""

    temperatures: tuple[float, ...]
    levels: tuple[ExitLevel, ...]
    fitted: int
    verified: int


def fit_exits(
    logits: ArrayLike,
    risks: Sequence[float] = RISKS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> ExitFit:
    """Exits from the logits of each timestep of held-out samples, [T, N, classes]. `seed` cuts the samples in two.

    A level for which no candidate passes never exits. Raises ValueError for a single timestep, for risks or a
    confidence that are not between 0 and 1, and for fewer than 10 samples.
    """
    raw = np.asarray(logits, np.float64)
    timesteps, samples, _ = raw.shape
    if timesteps < 2:
        raise ValueError("a model with one timestep has no earlier one to exit at")
    if samples < 10:
        raise ValueError(f"{samples} held-out samples are too few to fit exits to")
    if not (0 < confidence < 1 and risks and all(0 < risk < 1 for risk in risks)):
        raise ValueError("risks and confidence must be above 0 and below 1")
    order = np.random.default_rng(seed).permutation(samples)
    cut = round(_FIRST_PART * samples)
    means = running_means(raw)
    first, second = means[:, order[:cut]], means[:, order[cut:]]
    named = first[-1].argmax(1)
    temperatures = tuple(_temperature(each, named) for each in first[:-1])
    candidates = _candidates(exit_scores(first, temperatures))
    scores, answers = exit_scores(second, temperatures), second.argmax(2)
    levels = (
        _verified(candidates, scores, answers, risk, confidence) for risk in sorted(set(risks))
    )
    return ExitFit(temperatures, tuple(levels), cut, samples - cut)


@lru_cache(maxsize=4096)
def clopper_pearson_upper(hits: int, trials: int, confidence: float) -> float:
    """The share p for which so few hits or fewer have a chance of 1 - confidence: the exact one-sided upper bound.

    Solves sum_{i <= hits} C(trials, i) p^i (1 - p)^(trials - i) = 1 - confidence (Clopper and Pearson, 1934).
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(f"{hits} hits of {trials}")
    if hits == trials:
        return 1.0
    i = np.arange(hits + 1)
    ways = np.array(
        [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in i]
    )
    low, high = hits / trials, 1.0
    while high - low > 1e-12:
        p = (low + high) / 2
        chance = np.exp(ways + i * math.log(p) + (trials - i) * math.log1p(-p)).sum()
        low, high = (p, high) if chance > 1 - confidence else (low, p)
    return high


def _temperature(means: Array, named: Array) -> float:
    """With the least cross-entropy, which has one minimum only: it is convex in 1 / temperature. By golden section."""
    shrink = (math.sqrt(5) - 1) / 2
    low, high = map(math.log, _TEMPERATURES)
    while high - low > 1e-4:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if _cross_entropy(means / math.exp(left), named) < _cross_entropy(
            means / math.exp(right), named
        ):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def _cross_entropy(x: Array, named: Array) -> float:
    x = x - x.max(1, keepdims=True)
    return float((np.log(np.exp(x).sum(1)) - x[np.arange(len(x)), named]).mean())


def _candidates(scores: Array) -> list[tuple[float | None, ...]]:
    """Thresholds by timestep, most cautious first, from the scores [T-1, N] of the first part."""
    return [
        tuple(float(one) if share >= _RARELY else None for share in (scores >= one).mean(1))
        for one in _CANDIDATES
    ]


def _verified(
    candidates: Sequence[tuple[float | None, ...]],
    scores: Array,
    answers: Array,
    risk: float,
    confidence: float,
) -> ExitLevel:
    """By the scores [T-1, N] and the answers [T, N] of the second part."""
    timesteps, samples = answers.shape
    found = ExitLevel(
        risk=risk,
        thresholds=(None,) * (timesteps - 1),
        disagreement=0.0,
        upper_bound=0.0,
        mean_timesteps=float(timesteps),
    )
    for thresholds in candidates:
        if all(each is None for each in thresholds):
            continue
        left = leaving_timesteps(scores, thresholds)
        wrong = int((answers[left - 1, np.arange(samples)] != answers[-1]).sum())
        bound = clopper_pearson_upper(wrong, samples, confidence)
        if bound > risk:
            break
        found = ExitLevel(
            risk=risk,
            thresholds=thresholds,
            disagreement=wrong / samples,
            upper_bound=bound,
            mean_timesteps=float(left.mean()),
        )
    return found
