"""What is done to a stream before its windows and after its answers, as a checkpoint or a client states it.

Filters, in the order in which they are given, turn the camera's events into those that are counted; a decision rule
turns the answers to the windows into one decision. The code that does it is in spiketrain.events.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""

MAX_FILTERS = 8
MAX_PIXELS = 1 << 21
"""Of a sensor whose pixels a filter remembers one by one: a full HD camera has fewer."""

_MAX_US = 10_000_000
_MAX_SIDE = 1 << 16


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Filter(_Rule):
    def size_after(self, size: Size) -> Size:
        """The sensor as the next filter sees it. Raises ValueError where the filter does not fit it."""
        return size


class _PixelFilter(_Filter):
    """One that remembers something of every pixel."""

    def size_after(self, size: Size) -> Size:
        if size[0] * size[1] > MAX_PIXELS:
            raise ValueError(
                f"filter {type(self).__name__}: a sensor of {size[0]}x{size[1]} pixels is too large for it "
                f"(at most {MAX_PIXELS} pixels); put a region or a down-sampling before it"
            )
        return size


class HotPixels(_PixelFilter):
    """Drops a pixel's events while its running rate is above `rate_hz`.

    The rate is an exponential mean, with time constant `decay_us`, of the pixel's counts in periods of `period_us`
    (multiples of it in stream time); an event is judged by the periods before its own. Dropped events count too.
    """

    kind: Literal["hot-pixels"] = "hot-pixels"
    rate_hz: float = Field(200.0, gt=0, allow_inf_nan=False)
    period_us: int = Field(50_000, ge=1000, le=_MAX_US)
    decay_us: int = Field(500_000, ge=1000, le=1000 * _MAX_US)

    @model_validator(mode="after")
    def _decay_spans_periods(self) -> HotPixels:
        if not self.period_us <= self.decay_us <= 1000 * self.period_us:
            raise ValueError(
                f"decay_us {self.decay_us} must be 1 to 1000 times period_us, {self.period_us}"
            )
        return self


class BackgroundActivity(_PixelFilter):
    """Drops an event unless one of its pixel's 8 neighbours had an event in the `support_us` before it.

    Every event supports those that follow it, whether it was dropped or not (Delbruck, 2008).
    """

    kind: Literal["background-activity"] = "background-activity"
    support_us: int = Field(10_000, ge=1, le=_MAX_US)


class Refractory(_PixelFilter):
    """Drops an event less than `period_us` after the last one of its pixel that was kept."""

    kind: Literal["refractory"] = "refractory"
    period_us: int = Field(1000, ge=1, le=_MAX_US)


class Region(_Filter):
    """Keeps the events of a rectangle. With `crop` its corner becomes (0, 0) and the sensor as large as it is."""

    kind: Literal["region"] = "region"
    x: int = Field(0, ge=0)
    y: int = Field(0, ge=0)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    crop: bool = False

    def size_after(self, size: Size) -> Size:
        if self.x + self.width > size[0] or self.y + self.height > size[1]:
            raise ValueError(
                f"filter Region: {self.width}x{self.height} pixels at ({self.x}, {self.y}) are not all on the "
                f"sensor, which has {size[0]}x{size[1]} where the filter stands"
            )
        return (self.width, self.height) if self.crop else size


class RateLimit(_Filter):
    """Lets at most `events_per_second` pass in each period of `period_us` (multiples of it in stream time).

    Of C events in the period before, N may pass: every C/N-th event passes, until N have.
    """

    kind: Literal["rate-limit"] = "rate-limit"
    events_per_second: int = Field(gt=0, le=10**9)
    period_us: int = Field(10_000, ge=1000, le=_MAX_US)

    @property
    def events_per_period(self) -> int:
        return max(1, round(self.events_per_second * self.period_us * 1e-6))


class DownSample(_Filter):
    """Blocks of `factor` x `factor` pixels become one."""

    kind: Literal["down-sample"] = "down-sample"
    factor: int = Field(ge=1, le=1024)

    def size_after(self, size: Size) -> Size:
        if size[0] % self.factor or size[1] % self.factor:
            raise ValueError(
                f"filter DownSample: factor {self.factor} does not divide a sensor of {size[0]}x{size[1]} pixels; "
                "crop it with a region first"
            )
        return size[0] // self.factor, size[1] // self.factor


class Orient(_Filter):
    """Turns or mirrors the sensor; rotations are clockwise, as one looks at a frame. Transpose swaps x and y."""

    kind: Literal["orient"] = "orient"
    operation: Literal["flip-x", "flip-y", "transpose", "rotate-90", "rotate-180", "rotate-270"]

    def size_after(self, size: Size) -> Size:
        if self.operation in ("transpose", "rotate-90", "rotate-270"):
            return size[1], size[0]
        return size


class InvertPolarity(_Filter):
    """ON becomes OFF and OFF becomes ON."""

    kind: Literal["invert-polarity"] = "invert-polarity"


FilterRule = Annotated[
    HotPixels
    | BackgroundActivity
    | Refractory
    | Region
    | RateLimit
    | DownSample
    | Orient
    | InvertPolarity,
    Field(discriminator="kind"),
]


def size_after(filters: tuple[FilterRule, ...], sensor: Size) -> Size:
    """The sensor that is left after the filters. Raises ValueError where one does not fit."""
    if not filters:
        return sensor
    if min(sensor) < 1 or max(sensor) > _MAX_SIDE:
        raise ValueError(f"sensor {sensor[0]}x{sensor[1]}: sides are 1 to {_MAX_SIDE} pixels")
    for rule in filters:
        sensor = rule.size_after(sensor)
    return sensor


class LeakyEvidence(_Rule):
    """Evidence e for each class, driven by a window's probabilities p over its duration d:

    e <- e exp(-d / time_constant) + p (1 - exp(-d / time_constant))

    It begins at 0 and leaks in silence, so that little was seen is little evidence.
    """

    kind: Literal["leaky"] = "leaky"
    time_constant_us: int = Field(200_000, gt=0, le=3_600_000_000)


class VoteEvidence(_Rule):
    """Of the last `windows` windows, the share that had the class first. A silent or missing window votes for none."""

    kind: Literal["vote"] = "vote"
    windows: int = Field(10, gt=0, le=1000)


class DecisionRule(_Rule):
    """A class is decided when its evidence leads that of all others by `margin`.

    It stays decided until its lead falls below `release`, or another class leads by `margin`. Without either there is
    no decision, which is an answer too. Windows with fewer than `min_events` events say nothing: evidence leaks only.
    """

    evidence: Annotated[LeakyEvidence | VoteEvidence, Field(discriminator="kind")] = LeakyEvidence()
    margin: float = Field(0.3, ge=0, le=1)
    release: float | None = Field(
        None, ge=0, le=1, description="at most `margin`; half of it unless given"
    )
    min_events: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _release_below_margin(self) -> DecisionRule:
        if self.release is not None and self.release > self.margin:
            raise ValueError(
                f"release {self.release} is above margin {self.margin}: a class would be undecided at once"
            )
        return self

    @property
    def lowest_lead(self) -> float:
        return self.margin / 2 if self.release is None else self.release


def leak(duration_us: int, time_constant_us: int) -> float:
    """What is left of evidence after a time."""
    return math.exp(-max(0, duration_us) / time_constant_us)
