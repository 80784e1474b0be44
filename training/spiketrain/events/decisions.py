"""From the answers to the windows of a stream to one decision, or none: a small state machine, pure in its step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spiketrain.events.memory import Memory, Remembers, expect
from spiketrain.stream_rules import DecisionRule, LeakyEvidence, leak

Float64s = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Decision:
    """`index` is the class that is decided, None for no decision; `since_us` the stream time at which it came to that.

    `evidence` and `lead` are those of the decided class, else of the class that comes nearest to it; `changed` says
    whether this window changed the decision.
    """

    index: int | None
    evidence: float
    lead: float
    since_us: int
    changed: bool


@dataclass(frozen=True, slots=True, eq=False)
class DecisionState:
    """`evidence` is [classes]; `votes` are the classes of the last windows, -1 for none; `reached_us` is None at first."""

    evidence: Float64s
    votes: tuple[int, ...]
    index: int | None
    since_us: int
    reached_us: int | None
    next_window: int


def initial_state(classes: int) -> DecisionState:
    return DecisionState(np.zeros(classes), (), None, 0, None, 0)


def step(
    rule: DecisionRule,
    state: DecisionState,
    probabilities: ArrayLike,
    *,
    window: int,
    start_us: int,
    end_us: int,
    events: int,
) -> tuple[DecisionState, Decision]:
    """One more window: its number, bounds and events, and the probabilities [classes] by itself.

    Windows that were skipped since the one before are known by their numbers, and are silent.
    Raises ValueError for another number of classes.
    """
    p = np.asarray(probabilities, np.float64)
    if p.shape != state.evidence.shape:
        raise ValueError(
            f"a decision among {len(state.evidence)} classes got probabilities {list(p.shape)}"
        )
    silent = events < rule.min_events
    if isinstance(rule.evidence, LeakyEvidence):
        constant = rule.evidence.time_constant_us
        gap = 0 if state.reached_us is None else start_us - state.reached_us
        kept = leak(end_us - start_us, constant)
        evidence = state.evidence * (leak(gap, constant) * kept)
        if not silent:
            evidence = evidence + p * (1 - kept)
        votes = state.votes
    else:
        most = rule.evidence.windows
        missed = min(max(0, window - state.next_window), most)
        vote = -1 if silent else int(p.argmax())
        votes = (*state.votes, *(-1,) * missed, vote)[-most:]
        evidence = np.bincount(np.array(votes) + 1, minlength=len(p) + 1)[1:] / most
    index, since_us = _decided(rule, state, evidence), state.since_us
    changed = index != state.index
    if changed or state.reached_us is None:
        since_us = end_us
    shown = int(evidence.argmax()) if index is None else index
    decision = Decision(
        index, float(evidence[shown]), _lead(evidence, shown), since_us, bool(changed)
    )
    return DecisionState(evidence, votes, index, since_us, end_us, window + 1), decision


class Decider(Remembers):
    """The state machine of one stream."""

    def __init__(self, rule: DecisionRule, classes: int) -> None:
        self.rule = rule
        self._state = initial_state(classes)

    def memory(self) -> Memory:
        state = {field.name: getattr(self._state, field.name) for field in fields(DecisionState)}
        return state | {"votes": list(self._state.votes)}

    def remember(self, memory: Memory) -> None:
        expect(memory, (field.name for field in fields(DecisionState)))
        state = DecisionState(**memory | {"votes": tuple(memory["votes"])})
        classes = len(self._state.evidence)
        chosen = [*state.votes, -1 if state.index is None else state.index]
        if state.evidence.shape != (classes,) or not all(-1 <= each < classes for each in chosen):
            raise ValueError(f"memory: a decision among other classes than {classes}")
        self._state = state

    def add(self, probabilities: ArrayLike, **window: Any) -> Decision:
        """As `step`."""
        self._state, decision = step(self.rule, self._state, probabilities, **window)
        return decision


def _decided(rule: DecisionRule, state: DecisionState, evidence: Float64s) -> int | None:
    best = int(evidence.argmax())
    # With a margin of 0 a tie would decide for the first class, also among nothing at all.
    lead = _lead(evidence, best)
    if lead >= rule.margin and lead > 0:
        return best
    if state.index is not None and _lead(evidence, state.index) >= rule.lowest_lead:
        return state.index if evidence[state.index] > 0 else None
    return None


def _lead(evidence: Float64s, index: int) -> float:
    """How far a class is ahead of the best other one; negative where it is behind."""
    others = np.delete(evidence, index)
    return float(evidence[index] - (others.max() if len(others) else 0.0))
