"""Early exit: the bound, the fit, and what it promises on samples from the same source."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from spiketrain.exit import ExitLevel, ExitTable, exit_scores, leaving_timesteps, running_means
from spiketrain.exit_fit import clopper_pearson_upper, fit_exits


def chance_of_at_most(hits, trials, p):
    return sum(math.comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(hits + 1))


@pytest.mark.parametrize(
    ("hits", "trials"), [(0, 1), (0, 100), (1, 10), (3, 10), (9, 10), (7, 250), (40, 41)]
)
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_the_bound_solves_its_equation(hits, trials, confidence):
    bound = clopper_pearson_upper(hits, trials, confidence)
    assert chance_of_at_most(hits, trials, bound) == pytest.approx(1 - confidence, rel=1e-6)


def test_the_bound_against_the_beta_distribution():
    stats = pytest.importorskip("scipy.stats")
    for hits, trials in ((0, 3000), (6, 3000), (250, 3000), (2999, 3000)):
        expected = stats.beta.ppf(0.95, hits + 1, trials - hits)
        assert clopper_pearson_upper(hits, trials, 0.95) == pytest.approx(expected, rel=1e-8)


def test_the_bound_at_the_ends():
    assert clopper_pearson_upper(10, 10, 0.95) == 1.0
    # The rule of three.
    assert clopper_pearson_upper(0, 1000, 0.95) == pytest.approx(1 - 0.05 ** (1 / 1000))
    for hits, trials in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(ValueError, match="hits of"):
            clopper_pearson_upper(hits, trials, 0.95)


def population(count, seed, timesteps=4, classes=6):
    """Logits [T, N, classes] around one class for each sample, clearer for some samples than for others."""
    rng = np.random.default_rng(seed)
    clear = rng.gamma(1.5, 2.0, count)
    logits = rng.normal(0, 1, (timesteps, count, classes))
    logits[:, np.arange(count), rng.integers(0, classes, count)] += clear
    return logits


def test_levels_keep_their_promise_on_fresh_samples_and_save_timesteps():
    fresh = running_means(population(30_000, seed=99))
    answers = fresh.argmax(2)
    broken = checked = 0
    for seed in range(15):
        fit = fit_exits(population(3000, seed), risks=(0.005, 0.02, 0.1), seed=seed)
        assert (fit.fitted, fit.verified) == (1200, 1800)
        scores, means = exit_scores(fresh, fit.temperatures), []
        for level in fit.levels:
            left = leaving_timesteps(scores, level.thresholds)
            wrong = (answers[left - 1, np.arange(left.size)] != answers[-1]).mean()
            broken += wrong > level.risk
            checked += 1
            means.append(left.mean())
            assert left.mean() == pytest.approx(level.mean_timesteps, abs=0.15)
            assert level.disagreement <= level.upper_bound <= level.risk
        assert means == sorted(means, reverse=True)
        assert means[-1] < means[0] < 4
    # Each bound fails in at most 5 % of the fits; 9 of 45 would be a chance below one in a thousand.
    assert checked == 45
    assert broken < 9


def test_the_temperature_makes_the_score_the_chance_of_agreement():
    logits = population(20_000, seed=5)
    fit = fit_exits(logits, risks=(0.05,))
    answers, means = running_means(logits).argmax(2), running_means(logits)
    for t, temperature in enumerate(fit.temperatures):
        e = np.exp(means[t] / temperature)
        score = (e / e.sum(1, keepdims=True)).max(1)
        agree = answers[t] == answers[-1]
        assert score.mean() == pytest.approx(agree.mean(), abs=0.03)


def test_a_timestep_that_says_nothing_is_never_left():
    logits = population(4000, seed=3)
    logits[0] = np.random.default_rng(0).normal(0, 1e-3, logits[0].shape)
    fit = fit_exits(logits, risks=(0.01,))
    assert fit.levels[0].thresholds[0] is None
    assert any(each is not None for each in fit.levels[0].thresholds[1:])
    scores = exit_scores(running_means(logits), fit.temperatures)
    left = leaving_timesteps(scores, fit.levels[0].thresholds)
    assert left.min() == 2


def test_a_risk_that_cannot_be_verified_never_exits():
    fit = fit_exits(population(1000, seed=0), risks=(0.001, 0.05))
    never, some = fit.levels
    assert never.thresholds == (None, None, None)
    assert (never.disagreement, never.upper_bound, never.mean_timesteps) == (0, 0, 4)
    assert some.mean_timesteps < 4


def test_the_same_seed_gives_the_same_exits_and_risks_are_put_in_order():
    logits = population(1000, seed=0)
    assert fit_exits(logits, (0.1, 0.05, 0.1)) == fit_exits(logits, (0.05, 0.1))
    assert fit_exits(logits, (0.1,), seed=1) != fit_exits(logits, (0.1,), seed=2)


@pytest.mark.parametrize(
    ("logits", "options", "says"),
    [
        (np.zeros((1, 50, 3)), {}, "one timestep"),
        (np.zeros((3, 9, 3)), {}, "9 held-out samples"),
        (np.zeros((3, 50, 3)), {"risks": (0.0,)}, "risks and confidence"),
        (np.zeros((3, 50, 3)), {"risks": ()}, "risks and confidence"),
        (np.zeros((3, 50, 3)), {"confidence": 1.0}, "risks and confidence"),
    ],
)
def test_what_cannot_be_fitted(logits, options, says):
    with pytest.raises(ValueError, match=says):
        fit_exits(logits, **options)


LEVEL = {
    "risk": 0.01,
    "thresholds": (0.9, None),
    "disagreement": 0.004,
    "upper_bound": 0.009,
    "mean_timesteps": 1.5,
}
TABLE = {
    "model": "d",
    "temperatures": (0.5, 0.25),
    "levels": (LEVEL,),
    "confidence": 0.95,
    "dataset": "x",
    "split": "validation",
    "fitted": 10,
    "verified": 20,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temperatures": (0.5,)}, "2 thresholds"),
        ({"temperatures": (0.5, 0.0)}, "temperatures"),
        ({"temperatures": (0.5, math.nan)}, "temperatures"),
        ({"levels": (LEVEL, LEVEL)}, "in the order of their risk"),
        ({"levels": (LEVEL | {"thresholds": (0.9, 1.5)},)}, "threshold of 1.5"),
        ({"levels": (LEVEL | {"thresholds": (math.nan, 0.5)},)}, "threshold of nan"),
        ({"levels": (LEVEL | {"upper_bound": 0.02},)}, "above the risk"),
        ({"levels": ()}, "at least 1"),
    ],
)
def test_tables_that_cannot_be(changes, says):
    assert ExitTable.model_validate(TABLE).timesteps == 3
    with pytest.raises(ValidationError, match=says):
        ExitTable.model_validate(TABLE | changes)


def test_a_table_is_the_same_after_json():
    table = ExitTable.model_validate(TABLE)
    assert ExitTable.model_validate_json(table.model_dump_json()) == table
    assert table.level(0.01) == table.levels[0] == ExitLevel.model_validate(LEVEL)
    assert table.level(0.0099) is None
