from __future__ import annotations

import pytest

from spiketrain.convert import PairedChange


def test_the_exact_test_and_interval_against_figures_worked_by_hand():
    change = PairedChange(1000, gained=1, lost=5)
    assert change.points == pytest.approx(-0.4)
    # 2 (C(6,0) + C(6,1)) / 2^6
    assert change.p_value == pytest.approx(14 / 64)
    # Clopper-Pearson of 1 in 6 is 0.004211 to 0.641235.
    low, high = change.interval()
    assert low == pytest.approx((2 * 0.0042107 - 1) * 0.6, abs=1e-5)
    assert high == pytest.approx((2 * 0.6412346 - 1) * 0.6, abs=1e-5)


def test_runs_that_never_differ_are_certain():
    change = PairedChange(100, 0, 0)
    assert (change.points, change.p_value, change.interval()) == (0, 1, (0, 0))


def test_an_interval_is_open_where_all_differences_go_one_way():
    low, high = PairedChange(100, gained=0, lost=4).interval()
    assert low == pytest.approx(-4)
    # Of 0 in 4 the upper bound solves (1 - p)^4 = 0.025.
    assert high == pytest.approx((2 * (1 - 0.025**0.25) - 1) * 4)
    assert PairedChange(100, gained=4, lost=0).interval() == pytest.approx((-high, 4))


def test_many_discordant_samples_do_not_overflow():
    change = PairedChange(100_000, gained=5000, lost=5200)
    assert 0 < change.p_value < 0.06
    low, high = change.interval()
    assert low < change.points < high
    assert high - low < 0.5
