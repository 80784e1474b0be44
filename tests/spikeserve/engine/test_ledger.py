"""Exits decided for a whole batch at once, against the definition for one sample."""

import numpy as np
import pytest

from spikeserve.engine import ExitPolicy, exit_policy
from spikeserve.engine.ledger import Ledger
from spiketrain.exit import (
    ExitLevel,
    ExitTable,
    exit_scores,
    leaving_timesteps,
    running_means,
    top_probability,
)


def table(levels, timesteps=3):
    return ExitTable(
        model="m",
        temperatures=tuple(1.0 + t for t in range(timesteps - 1)),
        levels=tuple(
            ExitLevel(
                risk=risk, thresholds=thresholds, disagreement=0, upper_bound=0, mean_timesteps=2
            )
            for risk, thresholds in levels
        ),
        confidence=0.95,
        dataset="d",
        split="validation",
        fitted=10,
        verified=10,
        seed=0,
    )


def run_alone(logits, timesteps, policy):
    """Which rows of logits [T, classes] a picture has had when it leaves."""
    if policy is None:
        return logits[:timesteps]
    scores = exit_scores(running_means(logits[:timesteps, None]), policy.temperatures)
    left = leaving_timesteps(scores, policy.thresholds)
    return logits[: left[0]]


def test_pictures_in_one_batch_leave_as_each_would_alone():
    """Newcomers take the slots of those that left, in other timesteps and with other policies."""
    rng = np.random.default_rng(0)
    count, slots, classes, timesteps = 200, 7, 5, 4
    logits = rng.normal(0, 2, (count, timesteps, classes)).astype(np.float32)
    spikes = rng.integers(0, 50, (count, timesteps, 3)).astype(np.float64)
    policies = [
        None if i % 3 == 0 else ExitPolicy(0.1, tuple(rng.uniform(0.3, 0.9, 3)), (0.7, 1.1, 1.6))
        for i in range(count)
    ]
    ledger, waiting, placed, lengths = Ledger(slots), list(range(count)), {}, []
    while waiting or placed:
        for slot in set(range(slots)) - placed.keys():
            if waiting:
                placed[slot] = [waiting.pop(0), 0]
                one = placed[slot][0]
                ledger.begin(slot, timesteps, policies[one])
        # Not always all of them.
        batch = [slot for slot in placed if rng.random() < 0.8]
        if not batch:
            continue
        at = [tuple(placed[slot]) for slot in batch]
        done = ledger.add(
            batch,
            np.stack([logits[i, t] for i, t in at]),
            np.stack([spikes[i, t] for i, t in at]),
            np.array([float(i) for i, _ in at]),
        )
        for slot, (i, t), over in zip(batch, at, done, strict=True):
            placed[slot][1] = t + 1
            expected = run_alone(logits[i], timesteps, policies[i])
            assert over == (len(expected) == t + 1)
            if over:
                rows, fired, first, operations = ledger.take(slot)
                assert rows.dtype == np.float32
                assert np.array_equal(rows, expected)
                assert np.array_equal(fired, spikes[i, : t + 1].sum(0))
                assert np.array_equal(first, spikes[i, 0])
                assert operations == i * (t + 1)
                lengths.append(t + 1)
                del placed[slot]
    assert len(set(lengths)) == timesteps  # otherwise this said little


def test_what_was_taken_does_not_change_when_the_slot_is_used_again():
    ledger = Ledger(1)
    taken = []
    for value in (1.0, 2.0):
        ledger.begin(0, 1, None)
        assert ledger.add([0], np.full((1, 2), value), np.full((1, 1), value), np.array([value]))[0]
        taken.append(ledger.take(0))
    assert [float(rows[0, 0]) for rows, _, _, _ in taken] == [1, 2]
    assert [float(fired[0]) for _, fired, _, _ in taken] == [1, 2]
    assert [operations for _, _, _, operations in taken] == [1, 2]


def test_a_longer_picture_beside_a_shorter_one():
    ledger = Ledger(2)
    ledger.begin(0, 1, ExitPolicy(0.1, (), ()))
    assert ledger.add([0], np.ones((1, 2)), np.ones((1, 1)), np.ones(1)).tolist() == [True]
    ledger.begin(0, 2, None)
    ledger.add([0], np.full((1, 2), 5.0), np.ones((1, 1)), np.ones(1))
    ledger.begin(1, 50, None)
    assert ledger.add([0, 1], np.full((2, 2), 6.0), np.ones((2, 1)), np.ones(2)).tolist() == [1, 0]
    assert ledger.take(0)[0][:, 0].tolist() == [5, 6]


def test_a_score_equal_to_the_threshold_is_enough_and_never_is_never():
    logits = np.array([[0.0, 3.0]])
    score = float(top_probability(logits, np.array([2.0]))[0])
    for threshold, leaves in ((score, True), (np.nextafter(score, 1), False), (np.inf, False)):
        ledger = Ledger(1)
        ledger.begin(0, 2, ExitPolicy(0.1, (threshold,), (2.0,)))
        assert ledger.add([0], logits, np.ones((1, 1)), np.ones(1)).tolist() == [leaves]


@pytest.mark.parametrize(
    ("risk", "found"), [(0.001, None), (0.005, 0.005), (0.01, 0.005), (0.02, 0.02), (0.9, 0.02)]
)
def test_the_largest_level_that_is_not_above_the_risk(risk, found):
    exits = table([(0.005, (0.9, None)), (0.02, (0.7, 0.8))])
    policy = exit_policy(exits, risk)
    assert (None if policy is None else policy.risk) == found
    if found == 0.005:
        assert policy.thresholds == (0.9, np.inf)
        assert policy.temperatures == exits.temperatures


def test_a_level_that_never_exits_is_no_policy():
    assert exit_policy(table([(0.005, (None, None))]), 0.005) is None


def test_scores_are_those_of_the_running_mean():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (4, 20, 6))
    means = running_means(logits)
    for t in range(4):
        np.testing.assert_allclose(means[t], logits[: t + 1].mean(0))
    e = np.exp(means[1] / 1.7)
    np.testing.assert_allclose(
        top_probability(means[1], np.full(20, 1.7)), (e / e.sum(1, keepdims=True)).max(1)
    )


def test_timesteps_added_together_are_those_added_one_by_one():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (2, 4, 5)).astype(np.float32)
    spikes = rng.integers(0, 50, (2, 4, 3)).astype(np.float64)
    operations = rng.integers(0, 900, (2, 4)).astype(np.float64)
    one, other = Ledger(3), Ledger(3)
    for ledger in (one, other):
        for slot in (2, 0):
            ledger.begin(slot, 4, None)
        assert not ledger.add([2, 0], logits[:, 0], spikes[:, 0], operations[:, 0]).any()
    for t in (1, 2, 3):
        done = one.add([2, 0], logits[:, t], spikes[:, t], operations[:, t])
    assert done.all()
    assert not other.add_further(2, logits[0, 1:3], spikes[0, 1:3], operations[0, 1:3])
    assert other.add_further(2, logits[0, 3:], spikes[0, 3:], operations[0, 3:])
    assert other.add_further(0, logits[1, 1:], spikes[1, 1:], operations[1, 1:])
    for slot in (2, 0):
        for mine, theirs in zip(one.take(slot), other.take(slot), strict=True):
            np.testing.assert_array_equal(mine, theirs)
