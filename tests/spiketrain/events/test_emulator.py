"""The emulated DVS: single pixels by hand, and N-MNIST's statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spiketrain.data.nmnist import load_nmnist_small
from spiketrain.events import Events, count_frame
from spiketrain.events.digits import render_digit
from spiketrain.events.emulator import (
    SACCADES_US,
    Dvs,
    Emulator,
    saccade_movie,
    saccade_position,
    saccade_recording,
)
from spiketrain.manifest import DurationWindow, EventInput

DATA = Path(__file__).resolve().parents[3] / "../shared/data"
IDEAL = Dvs(threshold=0.5, mismatch=0, refractory_us=0, noise_hz=0)


def pixel(log_intensity: float) -> np.ndarray:
    return np.exp(np.array([[log_intensity]]))


def test_a_rise_in_log_intensity_crosses_the_threshold_at_interpolated_times():
    emulator = Emulator(IDEAL)
    assert len(emulator.look(pixel(-2.0), 1000)) == 0
    events = emulator.look(pixel(-0.4), 2600)
    assert events.t.tolist() == [1500, 2000, 2500]
    assert events.p.tolist() == [1, 1, 1]
    # The level is now -0.5: a fall to -1.1 crosses -1.0 only.
    events = emulator.look(pixel(-1.1), 9600)
    assert events.p.tolist() == [0]
    assert events.t.tolist() == [2600 + int(7000 * 0.6 / 0.7)]


def test_what_stays_gives_no_events():
    emulator = Emulator(IDEAL)
    for t in range(1, 10):
        assert len(emulator.look(pixel(-1), t)) == 0


def test_the_refractory_period_drops_events_but_not_the_level():
    emulator = Emulator(Dvs(threshold=0.5, mismatch=0, refractory_us=600, noise_hz=0))
    emulator.look(pixel(-2.0), 1000)
    assert emulator.look(pixel(-0.4), 2600).t.tolist() == [1500, 2500]
    assert emulator.look(pixel(-0.9), 9000).t.tolist() == []


def test_black_is_no_infinity():
    emulator = Emulator(IDEAL)
    emulator.look(np.ones((2, 2)), 0)
    events = emulator.look(np.zeros((2, 2)), 10)
    assert len(events) == 4 * int(np.log(100) / 0.5)
    assert not events.p.any()


def test_noise_has_its_rate_and_mismatch_its_spread():
    emulator = Emulator(Dvs(noise_hz=2, mismatch=0.2, refractory_us=0), seed=1)
    emulator.look(np.ones((50, 40)), 0)
    events = emulator.look(np.ones((50, 40)), 1_000_000)
    assert 3600 < len(events) < 4400
    assert events.is_sorted()
    assert events.x.max() == 39
    assert events.y.max() == 49
    assert 0.45 < events.p.mean() < 0.55
    counts = count_frame(
        Events.concatenate([emulator.look(np.full((50, 40), 0.05), 1_000_001)]),
        EventInput(sensor=(40, 50), shape=(2, 50, 40), window=DurationWindow(microseconds=1)),
    )[0]
    assert len(np.unique(counts)) > 3


def test_frames_that_cannot_follow_are_refused():
    emulator = Emulator(IDEAL)
    emulator.look(np.ones((2, 2)), 5)
    with pytest.raises(ValueError, match="cannot follow"):
        emulator.look(np.ones((2, 2)), 5)
    with pytest.raises(ValueError, match="cannot follow"):
        emulator.look(np.ones((3, 2)), 6)


@pytest.mark.parametrize(
    "change", [{"threshold": 0}, {"darkest": 0}, {"noise_hz": -1}, {"refractory_us": -1}]
)
def test_impossible_sensors_are_refused(change):
    with pytest.raises(ValueError, match="must be"):
        Dvs(**change)


def test_the_picture_stays_on_the_sensor_and_keeps_its_ink():
    image = render_digit(8)
    movie = saccade_movie(image)
    ink = [((1 - movie(t)) / 0.7).sum() for t in range(0, SACCADES_US, 7000)]
    np.testing.assert_allclose(ink, image.sum())
    corners = np.array([saccade_position(t) for t in range(0, SACCADES_US, 1000)])
    assert corners.min() >= 0
    assert corners.max() < 34 - 27
    assert np.abs(np.diff(corners, axis=0)).max() < 0.2, "steps of less than a pixel"


def test_a_recording_is_reproducible_and_starts_where_it_is_told():
    image = render_digit(3)
    events = saccade_recording(image, seed=4)
    assert saccade_recording(image, seed=4).equals(events)
    assert not saccade_recording(image, seed=5).equals(events)
    later = saccade_recording(image, seed=4, start_us=10_000)
    assert (later.t - 10_000 == events.t).all()
    assert (later.x == events.x).all()
    assert events.is_sorted()
    assert events.t.min() >= 0
    assert events.t.max() <= SACCADES_US


def test_wrong_pictures_and_steps_are_refused():
    with pytest.raises(ValueError, match="28x28"):
        saccade_recording(np.zeros((34, 34)))
    with pytest.raises(ValueError, match="step_us 0"):
        saccade_recording(np.zeros((28, 28)), step_us=0)


@pytest.fixture(scope="module")
def emulated() -> list[Events]:
    return [saccade_recording(render_digit(digit, s), s) for s in range(3) for digit in range(10)]


def rates(recordings: list[Events]) -> np.ndarray:
    """Events per 10 ms and recording."""
    t = np.concatenate([events.t for events in recordings])
    return np.bincount(np.minimum(t // 10_000, 31), minlength=32) / len(recordings)


def test_recordings_look_like_nmnist_in_numbers(emulated):
    """Numbers of N-MNIST's first 1,000: 4,133 events, half of them ON, 448 active pixels, 300 ms."""
    assert 3500 < np.mean([len(events) for events in emulated]) < 5000
    assert 0.47 < np.mean([events.p.mean() for events in emulated]) < 0.53
    pixels = [len(np.unique(events.y.astype(int) * 34 + events.x)) for events in emulated]
    assert 380 < np.mean(pixels) < 520
    by_time = rates(emulated)
    for saccade in (slice(2, 7), slice(12, 17), slice(23, 28)):
        assert by_time[saccade].min() > 90
    for rest in (slice(9, 10), slice(19, 21)):
        assert by_time[rest].max() < 40


def test_recordings_look_like_nmnist_side_by_side(emulated):
    if not (DATA / "n-mnist-small").is_dir():
        pytest.skip(f"no N-MNIST at {DATA}")
    _, test = load_nmnist_small(DATA)
    real = [events for events, _ in test]
    assert np.mean([len(e) for e in emulated]) / np.mean([len(e) for e in real]) == pytest.approx(
        1, abs=0.2
    )
    assert np.corrcoef(rates(emulated), rates(real))[0, 1] > 0.9
    # Where the ON events of the first saccade are, against the OFF events: the direction and the sign of the contrast.
    for low, high in ((0, 105_000), (105_000, 210_000), (210_000, 320_000)):
        assert np.allclose(shift(emulated, low, high), shift(real, low, high), atol=0.8)


def shift(recordings: list[Events], low: int, high: int) -> np.ndarray:
    """From the centre of OFF to that of ON events (x, y) between two times, in pixels."""
    events = Events.concatenate(recordings)
    events = events[(events.t >= low) & (events.t < high)]
    on, off = events[events.p == 1], events[events.p == 0]
    return np.array([on.x.mean() - off.x.mean(), on.y.mean() - off.y.mean()])
