"""Decisions: by hand, window by window."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spiketrain.events.decisions import Decider, initial_state, step
from spiketrain.stream_rules import DecisionRule, LeakyEvidence, VoteEvidence

A, B = [0.9, 0.1, 0.0], [0.2, 0.8, 0.0]
VOTE = DecisionRule(evidence=VoteEvidence(windows=4), margin=0.5, release=0.25)


def decisions(rule: DecisionRule, windows, span_us: int = 10) -> list:
    """`windows` are probabilities, or None for a silent window; numbers of windows may jump: (number, what)."""
    decider = Decider(rule, 3)
    answers = []
    number = 0
    for each in windows:
        if isinstance(each, tuple):
            number, each = each
        answers.append(
            decider.add(
                [1 / 3] * 3 if each is None else each,
                window=number,
                start_us=number * span_us,
                end_us=(number + 1) * span_us,
                events=0 if each is None else 5,
            )
        )
        number += 1
    return answers


def test_votes_decide_by_margin_and_hold_by_release():
    answers = decisions(VOTE, [A, A, A, B, B, B, B])
    # Shares of a, b: 1/4 | 2/4 | 3/4 | 3/4 1/4 | 2/4 2/4 | 1/4 3/4 | 0 4/4
    assert [each.index for each in answers] == [None, 0, 0, 0, None, 1, 1]
    assert [each.changed for each in answers] == [False, True, False, False, True, True, False]
    assert [each.since_us for each in answers] == [10, 20, 20, 20, 50, 60, 60]
    assert answers[3].evidence == 0.75
    assert answers[3].lead == 0.5
    assert answers[4].lead == 0


def test_hysteresis_keeps_what_it_would_not_decide_anew():
    rule = DecisionRule(evidence=VoteEvidence(windows=4), margin=0.75, release=0.25)
    answers = decisions(rule, [A, A, A, B, A])
    assert [each.index for each in answers] == [None, None, 0, 0, 0]
    assert answers[3].lead == 0.5, "below the margin, above the release"


def test_silence_and_missing_windows_vote_for_none():
    assert [each.index for each in decisions(VOTE, [A, A, None, None, None])] == [None, 0, 0, 0, 0]
    assert decisions(VOTE, [A, A, None, None, None, None])[-1].index is None
    assert decisions(VOTE, [A, A, A, A, (9, A)])[-1].evidence == 0.25
    assert [each.index for each in decisions(VOTE, [(7, A), A])] == [None, 0]


def test_leaky_evidence_is_its_equation():
    rule = DecisionRule(evidence=LeakyEvidence(time_constant_us=20), margin=0.3)
    answers = decisions(rule, [A, A, None, (5, B)])
    left = math.exp(-0.5)
    e1 = 0.9 * (1 - left)
    e2 = e1 * left + 0.9 * (1 - left)
    e3 = e2 * left
    assert answers[0].evidence == pytest.approx(e1)
    assert answers[1].evidence == pytest.approx(e2)
    assert answers[2].evidence == pytest.approx(e3)
    assert [each.index for each in answers] == [0, 0, 0, None]
    # Windows 3 and 4 did not come; b has 0.8 of one window, a what leaked through three, and 0.2 of one.
    a, b = e3 * left**3 + 0.2 * (1 - left), e1 / 9 * left**5 + e1 / 9 * left**4 + 0.8 * (1 - left)
    assert answers[3].lead == pytest.approx(abs(a - b))


def test_there_is_no_decision_without_evidence():
    for margin in (0.0, 0.3):
        for evidence in (VoteEvidence(windows=3), LeakyEvidence()):
            rule = DecisionRule(evidence=evidence, margin=margin)
            assert all(each.index is None for each in decisions(rule, [None, None, None]))
    rule = DecisionRule(evidence=VoteEvidence(windows=1), margin=0.0)
    assert [each.index for each in decisions(rule, [A, None, B])] == [0, None, 1]


@given(
    st.lists(st.tuples(st.sampled_from([None, A, B, [0.0, 0.1, 0.9]])).map(lambda each: each[0])),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([VoteEvidence(windows=3), LeakyEvidence(time_constant_us=30)]),
)
def test_what_is_decided_leads_by_margin_when_it_is_and_by_release_while_it_stays(
    windows, margin, release, evidence
):
    rule = DecisionRule(evidence=evidence, margin=margin, release=min(margin, release))
    before = None
    for each in decisions(rule, windows):
        if each.index is not None:
            assert each.lead >= (rule.lowest_lead if each.index == before else rule.margin)
            assert each.evidence > 0
        assert each.changed == (each.index != before)
        before = each.index


def test_a_step_changes_no_state_it_was_given():
    state = initial_state(3)
    window = {"window": 0, "start_us": 0, "end_us": 10, "events": 1}
    after, first = step(VOTE, state, A, **window)
    again, second = step(VOTE, state, A, **window)
    assert first == second
    assert after is not state
    assert np.array_equal(state.evidence, [0, 0, 0])
    assert again.votes == after.votes == (0,)


def test_wrong_rules_and_wrong_numbers_of_classes_are_refused():
    with pytest.raises(ValidationError, match="undecided at once"):
        DecisionRule(margin=0.2, release=0.3)
    with pytest.raises(ValueError, match="among 3 classes"):
        step(VOTE, initial_state(3), [0.5, 0.5], window=0, start_us=0, end_us=1, events=1)
    assert DecisionRule(margin=0.4).lowest_lead == 0.2
