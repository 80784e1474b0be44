import numpy as np
import pytest

from spikeserve.engine.readout import RunningReadout, probabilities

LOGITS = np.array([[1.0, 3.0, 2.0], [0.0, 5.0, 1.0], [7.0, 1.0, 1.0]])


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


@pytest.mark.parametrize(
    ("readout", "expected"),
    [
        ("mean", softmax([8 / 3, 3, 4 / 3])),
        ("rate", softmax([8 / 3, 3, 4 / 3])),
        ("sum", softmax([8, 9, 4])),
        ("vote", [1 / 3, 2 / 3, 0]),
    ],
)
def test_readouts_by_hand(readout, expected):
    np.testing.assert_allclose(probabilities(readout, LOGITS), expected, rtol=1e-12)


@pytest.mark.parametrize("readout", ["mean", "rate", "sum", "vote"])
def test_within_the_trained_timesteps_the_running_readout_is_that_of_all_so_far(readout):
    running = RunningReadout(readout, timesteps=3)
    for t in range(1, 4):
        np.testing.assert_allclose(
            running.add(LOGITS[t - 1]), probabilities(readout, LOGITS[:t]), rtol=1e-12
        )


def test_afterwards_what_came_before_fades():
    running = RunningReadout("mean", timesteps=2)
    for x in ([4.0, 0.0], [0.0, 0.0], [0.0, 8.0]):
        chances = running.add(x)
    # 4, 0 has the mean 2, 0; then 2, 0 moves half-way to 0, 8.
    np.testing.assert_allclose(chances, softmax([1.0, 4.0]), rtol=1e-12)
    votes = RunningReadout("vote", timesteps=2)
    for x in ([4.0, 0.0], [1.0, 0.0], [0.0, 8.0]):
        chances = votes.add(x)
    assert chances.tolist() == [0.5, 0.5]
    total = RunningReadout("sum", timesteps=2)
    for x in ([4.0, 0.0], [0.0, 0.0], [0.0, 8.0]):
        chances = total.add(x)
    np.testing.assert_allclose(chances, softmax([2.0, 8.0]), rtol=1e-12)


def test_large_logits_do_not_overflow():
    np.testing.assert_allclose(probabilities("sum", [[1000.0, 0.0]]), [1, 0])
