"""The monitor's arithmetic, with a profile whose figures are chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeserve.drift import ALLOWANCE, MOST_OF_A_SAMPLE, THRESHOLD, DriftMonitor
from spiketrain.health import Look
from spiketrain.manifest import HealthProfile, LayerHealth, Spread

NEURONS, CHANNELS, PIXELS, GROUP, TIMESTEPS = 100, 4, 50, 8, 5


def profile(samples: int = 1_000_000, silent: float = 0.1) -> HealthProfile:
    layer = LayerHealth(
        rate=Spread(mean=0.2, std=0.02),
        first=Spread(mean=0.1, std=0.01),
        silent=Spread(mean=silent, std=0.01),
        saturated=Spread(mean=0.0, std=0.0),
    )
    return HealthProfile(
        model="x",
        dataset="made",
        split="validation",
        samples=samples,
        group=GROUP,
        layers={"a": layer, "b": layer},
        channels=(Spread(mean=0.2, std=0.05),) * CHANNELS,
        hot_pixels=1,
        dark_pixels=5,
    )


def monitor(**changes) -> DriftMonitor:
    return DriftMonitor(profile(**changes), ("a", "b"))


def rates(a: float, b: float = 0.0) -> np.ndarray:
    """Of a sample whose layers are so many standard deviations off."""
    return 0.2 + 0.02 * np.array([a, b])


def samples_until_alarm(distance: float, most: int = 10_000) -> int:
    watched = monitor()
    for count in range(1, most + 1):
        watched.sample(rates(distance))
        if watched.report().state == "drifting":
            return count
    return 0


@pytest.mark.parametrize("distance", [-3.0, -1.0, 1.0, 3.0])
def test_an_alarm_comes_once_the_sum_beyond_the_allowance_reaches_the_threshold(
    distance: float,
) -> None:
    # The profile has so many samples that the error of its mean, three thousandths, counts for little.
    pull = abs(distance) - ALLOWANCE - 0.003
    assert samples_until_alarm(distance) == int(np.ceil(THRESHOLD / pull))


def test_what_is_within_the_allowance_never_adds_up() -> None:
    assert samples_until_alarm(ALLOWANCE) == samples_until_alarm(-ALLOWANCE) == 0


def test_no_few_samples_raise_an_alarm_however_far_they_are_off() -> None:
    watched = monitor()
    for _ in range(int(THRESHOLD / MOST_OF_A_SAMPLE)):
        watched.sample(rates(1e6))
    assert watched.report().state == "steady"


def test_the_profile_s_own_error_is_allowed_for() -> None:
    watched = monitor(samples=25)
    for _ in range(1000):
        watched.sample(rates(1.05))
    assert watched.report().state == "steady"


def test_an_alarm_says_which_layer_and_goes_when_all_is_well_again() -> None:
    watched = monitor()
    for _ in range(1000):
        watched.sample(rates(0.0, -2.0))
    report = watched.report()
    assert report.state == "drifting"
    assert report.layers["a"].score == 0
    assert report.layers["b"].shift == pytest.approx(-2.0)
    (reason,) = report.reasons
    assert reason == "b fires less than on held-out data: lately -2.0 standard deviations"
    # From twice the threshold, where it stops, to half of it.
    for _ in range(int(1.5 * THRESHOLD / ALLOWANCE)):
        watched.sample(rates(0.0, 0.0))
    assert watched.report().state == "steady"


def test_the_first_timestep_has_a_profile_of_its_own() -> None:
    watched = monitor()
    for _ in range(100):
        watched.sample(np.array([0.1, 0.1]), first=True)
        watched.sample(np.array([0.2, 0.2]))
    assert watched.report().scores["rates"] == 0


def test_clean_samples_of_any_shape_stay_quiet() -> None:
    draws = np.random.default_rng(0)
    watched = monitor(samples=10_000)
    for skewed in draws.exponential(1.0, (5_000, 2)) - 1.0:
        watched.sample(0.2 + 0.02 * skewed)
        assert watched.report().state == "steady"


def seen(fired: torch.Tensor, bright: int = 0, dark: int = 5, channel: float = 0.2) -> Look:
    count = len(fired)
    channels = torch.full((count, CHANNELS), 0.2, dtype=torch.double)
    channels[:, 2] = channel
    pixels = torch.zeros(count, PIXELS, dtype=torch.bool)
    on, off = pixels.clone(), pixels.clone()
    on[:, :bright] = True
    off[:, PIXELS - dark :] = True
    return Look(TIMESTEPS, {"a": fired, "b": healthy(count)}, {}, channels, on, off)


def healthy(count: int = GROUP) -> torch.Tensor:
    """A tenth of the neurons are silent, the others fire once."""
    fired = torch.ones(count, NEURONS, dtype=torch.uint8)
    fired[:, : NEURONS // 10] = 0
    return fired


def changed(neurons: int, value: int) -> torch.Tensor:
    fired = healthy()
    fired[:, -neurons:] = value
    return fired


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (seen(changed(20, 0)), "30.0% of a is silent, on held-out data 10.0%"),
        (seen(changed(6, TIMESTEPS)), "6.0% of a is saturated, on held-out data 0.0%"),
        (seen(healthy(), bright=2), "2 of 50 inputs never go off"),
        (seen(healthy(), dark=40), "40 of 50 inputs never go on"),
        (
            seen(healthy(), channel=0.4),
            "channel 2 of the first layer responds otherwise than on held-out data, by 4.0 standard deviations",
        ),
    ],
)
def test_a_group_that_is_off_is_an_alarm_and_a_healthy_one_ends_it(look: Look, why: str) -> None:
    watched = monitor()
    watched.look(look)
    assert watched.report().reasons == (why,)
    watched.look(seen(healthy()))
    report = watched.report()
    assert (report.reasons, report.probes) == ((), 2 * GROUP)
    assert report.layers["a"].silent == pytest.approx(0.1)


def test_nothing_is_said_before_the_group_is_whole() -> None:
    watched = monitor()
    for _ in range(GROUP - 1):
        watched.look(seen(changed(90, 0)[:1]))
    assert watched.report().scores == {}
    watched.look(seen(changed(90, 0)[:1]))
    assert watched.report().scores["neurons"] > 1


def test_without_a_profile_nothing_is_known() -> None:
    for watched in (DriftMonitor(None, ("a",)), DriftMonitor(profile(), ("a", "another"))):
        watched.sample(np.array([0.2]))
        watched.look(seen(healthy()))
        assert not watched.watches
        assert watched.report().state == "unknown"
