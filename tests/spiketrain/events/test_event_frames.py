"""Frames: orientation, polarity, down-sampling, clip and scale, against a loop over the events."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spiketrain.events import Events, count_frame
from spiketrain.manifest import DurationWindow, EventInput

WINDOW = DurationWindow(microseconds=1000)


def spec_for(sensor, shape, **changes) -> EventInput:
    return EventInput(sensor=sensor, shape=shape, window=WINDOW, **changes)


def random_events(n: int, width: int, height: int, seed: int = 0) -> Events:
    random = np.random.default_rng(seed)
    return Events(
        random.integers(0, 10_000, n),
        random.integers(0, width, n, dtype=np.uint16),
        random.integers(0, height, n, dtype=np.uint16),
        random.integers(0, 2, n, dtype=np.uint8),
    )


def oriented(frame: np.ndarray, orientation: str) -> np.ndarray:
    """What NumPy calls the same turn of a picture [C, H, W]."""
    return {
        "sensor": lambda f: f,
        "flip-x": lambda f: f[:, :, ::-1],
        "flip-y": lambda f: f[:, ::-1],
        "transpose": lambda f: f.transpose(0, 2, 1),
        "rotate-90": lambda f: np.rot90(f, k=-1, axes=(1, 2)),
        "anti-transpose": lambda f: np.rot90(f[:, :, ::-1], k=-1, axes=(1, 2)),
    }[orientation](frame)


@pytest.mark.parametrize("polarity", ["on-is-1", "on-is-0"])
@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize(
    "orientation", ["sensor", "flip-x", "flip-y", "transpose", "rotate-90", "anti-transpose"]
)
def test_frame_equals_a_loop_over_the_events(orientation, factor, polarity):
    width, height = 12, 6
    events = random_events(500, width, height)
    raw = np.zeros((2, height, width))
    for x, y, p in zip(events.x, events.y, events.p, strict=True):
        raw[p if polarity == "on-is-1" else 1 - p, y, x] += 1
    expected = oriented(raw, orientation)
    rows, columns = (side // factor for side in expected.shape[1:])
    expected = expected.reshape(2, rows, factor, columns, factor).sum((2, 4))

    shape = (2, rows, columns)
    frame = count_frame(
        events, spec_for((width, height), shape, orientation=orientation, polarity=polarity)
    )
    assert frame.dtype == np.float32
    np.testing.assert_array_equal(frame, expected)


def test_counts_are_clipped_and_then_scaled():
    events = random_events(200, 2, 2)
    counts = count_frame(events, spec_for((2, 2), (2, 2, 2)))
    assert counts.max() > 3
    frame = count_frame(events, spec_for((2, 2), (2, 2, 2), clip=3, scale=0.5))
    np.testing.assert_array_equal(frame, np.minimum(counts, 3) * 0.5)


def test_no_events_are_a_zero_frame():
    frame = count_frame(Events.empty(), spec_for((34, 34), (2, 34, 34)))
    assert frame.shape == (2, 34, 34)
    assert not frame.any()


def test_a_sensor_of_65536_columns_is_not_folded():
    events = Events(
        np.array([0]),
        np.array([65535], np.uint16),
        np.array([1], np.uint16),
        np.array([1], np.uint8),
    )
    frame = count_frame(events, spec_for((65536, 2), (2, 2, 65536)))
    assert np.argwhere(frame).tolist() == [[1, 1, 65535]]


@pytest.mark.parametrize(("x", "y"), [(34, 0), (0, 34), (65535, 65535)])
def test_an_event_outside_the_sensor_is_refused(x, y):
    events = Events(
        np.zeros(2, np.int64),
        np.array([1, x], np.uint16),
        np.array([1, y], np.uint16),
        np.zeros(2, np.uint8),
    )
    with pytest.raises(
        ValueError, match=rf"event 1 at \({x}, {y}\) is outside the sensor of 34x34"
    ):
        count_frame(events, spec_for((34, 34), (2, 34, 34)))


@pytest.mark.parametrize(
    ("sensor", "shape", "orientation", "message"),
    [
        ((34, 34), (2, 32, 32), "sensor", "no whole multiple of the frame of 32x32"),
        ((32, 32), (2, 64, 64), "sensor", "no whole multiple"),
        ((64, 32), (2, 32, 32), "sensor", "no whole multiple"),
        ((64, 32), (2, 32, 64), "rotate-90", "is 32x64"),
        ((34, 34), (3, 34, 34), "sensor", "2 channels"),
        ((34, 34), (2, 0, 34), "sensor", "1 to 65536"),
        ((70000, 34), (2, 34, 70000), "sensor", "1 to 65536"),
    ],
)
def test_a_sensor_that_does_not_fit_the_frame_is_refused(sensor, shape, orientation, message):
    with pytest.raises(ValueError, match=message):
        count_frame(Events.empty(), spec_for(sensor, shape, orientation=orientation))


@pytest.mark.parametrize("sides", [(128, 48), (128, 64), (34, 50)])
@pytest.mark.parametrize("resize", ["bilinear", "antialiased"])
def test_a_resized_frame_is_that_of_torch(sides, resize):
    before, after = sides
    events = random_events(4000, before, before)
    counts = count_frame(events, spec_for((before, before), (2, before, before), clip=3))
    spec = spec_for((before, before), (2, after, after), clip=3, resize=resize, scale=0.5)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(counts).unsqueeze(0),
        (after, after),
        mode="bilinear",
        antialias=resize == "antialiased",
    )[0]
    np.testing.assert_allclose(count_frame(events, spec), 0.5 * expected.numpy(), atol=1e-5)


def test_only_a_resize_that_is_asked_for_is_written():
    spec = spec_for((8, 8), (2, 4, 4))
    assert "resize" not in spec.model_dump()
    assert spec_for((8, 8), (2, 5, 5), resize="bilinear").model_dump()["resize"] == "bilinear"
