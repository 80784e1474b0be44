"""Rendered digits: MNIST's conventions, and that they differ from each other more than from themselves."""

from __future__ import annotations

import numpy as np
import pytest

from spiketrain.events.digits import render_digit


@pytest.mark.parametrize("digit", range(10))
def test_a_digit_is_drawn_as_mnist_has_them(digit):
    y, x = np.mgrid[0:28, 0:28] + 0.5
    for seed in range(6):
        ink = render_digit(digit, seed)
        assert ink.shape == (28, 28)
        assert ink.min() == 0
        assert ink.max() == 1
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        size = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 19 <= size <= 22
        assert (ink * x).sum() / ink.sum() == pytest.approx(14, abs=0.1)
        assert (ink * y).sum() / ink.sum() == pytest.approx(14, abs=0.1)
        assert 35 < ink.sum() < 190


def test_the_seed_is_the_hand():
    assert np.array_equal(render_digit(4, 7), render_digit(4, 7))
    assert not np.array_equal(render_digit(4, 7), render_digit(4, 8))


def test_digits_are_told_apart_by_the_nearest_mean():
    means = np.array(
        [np.mean([render_digit(d, s) for s in range(8)], 0).ravel() for d in range(10)]
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    drawn = np.array([[render_digit(d, s).ravel() for s in range(100, 103)] for d in range(10)])
    named = (drawn @ means.T).argmax(2)
    assert (named == np.arange(10)[:, None]).mean() > 0.9


@pytest.mark.parametrize("digit", [-1, 10])
def test_what_is_no_digit_is_refused(digit):
    with pytest.raises(ValueError, match="is no digit"):
        render_digit(digit)
