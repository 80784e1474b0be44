"""The terms of a stream: what its client asks for, and whether the model can have it."""

from __future__ import annotations

from dataclasses import dataclass

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import LoadedModel
from spikeserve.settings import Settings, SlowPolicy
from spiketrain.events.windows import Windows
from spiketrain.manifest import EventInput
from spiketrain.manifest import Window as WindowRule
from spiketrain.stream_rules import MAX_FILTERS, DecisionRule, FilterRule, size_after

MAX_LATENESS_US = 10_000_000


@dataclass(frozen=True)
class StreamOptions:
    """`sensor` is width and height, checked where it is given. Stream time starts at `start_us`, else at the first
    event; a window waits `lateness_us` for events that come out of order.

    `filters` come before the model's own, and lead from `sensor` to the one it was made for. Another `window` rule than
    the model's is refused without `force`. `decision` replaces the model's own rule, if it has one. `top_k` classes are
    answered, 5 or all that there are unless it is given. `slow` says what happens when the client does not read.
    """

    model: str | None = None
    version: str | None = None
    sensor: tuple[int, int] | None = None
    start_us: int | None = None
    lateness_us: int = 0
    rates: bool = True
    filters: tuple[FilterRule, ...] = ()
    window: WindowRule | None = None
    force: bool = False
    decision: DecisionRule | None = None
    top_k: int | None = None
    slow: SlowPolicy | None = None


def slow_policy(options: StreamOptions, settings: Settings) -> SlowPolicy:
    """Raises ServiceError IMPOSSIBLE for one that the server does not allow."""
    allowed = {settings.slow_clients, *settings.slow_clients_allowed}
    if options.slow is not None and options.slow not in allowed:
        raise impossible(
            f"slow is {options.slow}: this server allows {', '.join(sorted(allowed))} (SPIKESERVE_SLOW_CLIENTS_ALLOWED)"
        )
    return options.slow or settings.slow_clients


def input_of(model: LoadedModel, options: StreamOptions) -> EventInput:
    """The model's input, from the client's camera on. Raises ServiceError IMPOSSIBLE where the two do not fit."""
    spec = model.manifest.input
    if not isinstance(spec, EventInput):
        raise impossible(f"model {model.name} takes pictures, not events: post them to /classify")
    if model.bound_to_timesteps:
        raise impossible(
            f"model {model.name} has parameters for each of its {model.manifest.timesteps} timesteps, "
            "and a stream goes on: use a model with other neurons"
        )
    classes = len(model.manifest.classes)
    if options.top_k is not None and not 1 <= options.top_k <= classes:
        raise impossible(f"top_k is {options.top_k}: {model.name} has {classes} classes")
    sensor = options.sensor or spec.sensor
    _check_filters(model, spec, options, sensor)
    window = options.window or spec.window
    if window != spec.window and not options.force:
        raise impossible(
            f"windows by {_rule(window)} were asked for: model {model.name} was trained with windows by "
            f"{_rule(spec.window)}, and may be wrong with others; set force to have them all the same"
        )
    filters = (*options.filters, *spec.filters)
    return spec.model_copy(update={"sensor": sensor, "filters": filters, "window": window})


def windows_of(model: LoadedModel, spec: EventInput, options: StreamOptions) -> Windows:
    """Raises ServiceError IMPOSSIBLE for windows that a stream cannot have, or times out of range."""
    if not 0 <= options.lateness_us <= MAX_LATENESS_US:
        raise impossible(
            f"lateness_us is {options.lateness_us}: it must be from 0 to {MAX_LATENESS_US}"
        )
    try:
        return Windows(spec, options.lateness_us, options.start_us)
    except ValueError as error:
        raise impossible(f"model {model.name}: {error}") from error


def _check_filters(
    model: LoadedModel, spec: EventInput, options: StreamOptions, sensor: tuple[int, int]
) -> None:
    if len(options.filters) + len(spec.filters) > MAX_FILTERS:
        raise impossible(
            f"{len(options.filters)} filters and the {len(spec.filters)} of model {model.name} are more than "
            f"{MAX_FILTERS}"
        )
    try:
        left = size_after(options.filters, sensor)
    except ValueError as error:
        raise impossible(str(error)) from error
    if left != spec.sensor:
        asked, made_for = (f"{width} x {height}" for width, height in (left, spec.sensor))
        after = " after the filters" if options.filters else ""
        raise impossible(
            f"sensor is {asked}{after}: model {model.name} was made for {made_for}; "
            "filters (region, down-sample, orient) can lead from one to the other"
        )


def _rule(window: WindowRule) -> str:
    terms = ", ".join(f"{k} {v}" for k, v in window.model_dump(exclude={"kind"}).items())
    return f"{window.kind} ({terms})"


def impossible(message: str) -> ServiceError:
    return ServiceError(ErrorKind.IMPOSSIBLE, message)


def shutting_down() -> ServiceError:
    return ServiceError(ErrorKind.UNAVAILABLE, "the server is shutting down: try another one", 1.0)


def was_silent(settings: Settings) -> ServiceError:
    return ServiceError(
        ErrorKind.DEADLINE,
        f"nothing came for {settings.stream_idle_seconds:g} s, so the stream was closed",
    )
