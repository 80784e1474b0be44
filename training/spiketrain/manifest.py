"""What a checkpoint says about its model: all that is needed to run it and to trust it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from spiketrain.exit import EXIT_READOUTS, ExitTable
from spiketrain.neurons import AnyNeuronConfig
from spiketrain.stream_rules import MAX_FILTERS, DecisionRule, FilterRule, size_after

FORMAT_VERSION: Literal[1] = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSpec(_Model):
    """A key of `spiketrain.networks.NETWORKS` and its keyword arguments."""

    name: str
    arguments: dict[str, Any] = {}


class ImageInput(_Model):
    """A picture, scaled to 0..1, resized to `shape`, then normalised by channel."""

    kind: Literal["image"] = "image"
    shape: tuple[int, int, int] = Field(description="channels (1 grey, 3 RGB), height, width")
    resize: Literal["squash", "fit", "crop"] = Field(
        "squash",
        description="squash: to the shape, whatever the aspect; fit: whole picture, padded with black; "
        "crop: shorter side to the shape, centre cut out",
    )
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> ImageInput:
        channels = self.shape[0]
        if channels not in (1, 3):
            raise ValueError(f"shape {self.shape}: an image has 1 or 3 channels")
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std need one value for each of the {channels} channels")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        return self


class DurationWindow(_Model):
    """A window every `microseconds` of stream time, aligned to the stream's first event; empty windows count."""

    kind: Literal["duration"] = "duration"
    microseconds: int = Field(gt=0)


class CountWindow(_Model):
    """A window closes at `events` events, or after `max_microseconds`, whichever comes first."""

    kind: Literal["count"] = "count"
    events: int = Field(gt=0)
    max_microseconds: int = Field(gt=0)


class NumberWindow(_Model):
    """A recording is cut into `windows` windows with equally many events. Needs the whole recording: no live streams."""

    kind: Literal["number"] = "number"
    windows: int = Field(gt=0)


Window = Annotated[DurationWindow | CountWindow | NumberWindow, Field(discriminator="kind")]


class EventInput(_Model):
    """Events of a DVS, counted into frames [2, height, width]: channel 0 is OFF (polarity 0), channel 1 ON."""

    kind: Literal["events"] = "events"
    sensor: tuple[int, int] = Field(description="width, height of the camera's sensor in pixels")
    shape: tuple[int, int, int] = Field(description="2, height, width of one frame")
    window: Window
    orientation: Literal[
        "sensor", "flip-x", "flip-y", "transpose", "rotate-90", "anti-transpose"
    ] = Field(
        "sensor",
        description="how frames lie against raw sensor coordinates (x right, y down); rotate-90 is clockwise; "
        "anti-transpose mirrors at the other diagonal than transpose",
    )
    polarity: Literal["on-is-1", "on-is-0"] = Field(
        "on-is-1", description="which bit value means brighter in the events it was trained with"
    )
    clip: int | None = Field(
        None, gt=0, description="counts above this are cut to it; 1 is a binary frame"
    )
    scale: float = Field(1.0, gt=0, description="counts are multiplied by this after clipping")
    resize: Literal["whole", "bilinear", "antialiased"] = Field(
        "whole",
        description="how the sensor's pixels become those of `shape`. whole: the sensor is a whole multiple, and "
        "counts add up; bilinear, antialiased: counts are clipped, then resized as a picture is",
    )
    filters: tuple[FilterRule, ...] = Field(
        (),
        max_length=MAX_FILTERS,
        description="what is done to the events, in this order, before they are counted",
    )

    @model_validator(mode="after")
    def _filters_fit_the_sensor(self) -> EventInput:
        size_after(self.filters, self.sensor)
        return self

    @property
    def filtered_sensor(self) -> tuple[int, int]:
        """The sensor that is left after the filters, which frames are made of."""
        return size_after(self.filters, self.sensor)

    @model_serializer(mode="wrap")
    def _without_no_filters(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The digest of a checkpoint is that of its input as it is written; those without these settings keep theirs.
        content: dict[str, Any] = handler(self)
        if not self.filters:
            content.pop("filters", None)
        if self.resize == "whole":
            content.pop("resize", None)
        return content


Input = Annotated[ImageInput | EventInput, Field(discriminator="kind")]


class Accuracy(_Model):
    """Fraction of samples classified rightly. `selected_on` says which split chose this checkpoint."""

    dataset: str
    split: str
    samples: int = Field(gt=0)
    value: float = Field(ge=0, le=1)
    selected_on: str
    by_timestep: tuple[float, ...] = ()


class RateProfile(_Model):
    """Spikes per neuron per timestep of one layer, over samples of held-out data."""

    mean: float
    p1: float
    p50: float
    p99: float


class Spread(_Model):
    """Mean and standard deviation."""

    mean: float
    std: float = Field(ge=0)


class LayerHealth(_Model):
    """How a layer behaves on healthy input. Rates are of one sample, in spikes per neuron per timestep, over all
    timesteps and in the first; shares are of neurons, over a group of samples."""

    rate: Spread
    first: Spread | None = Field(None, description="none for events, whose streams go on")
    silent: Spread = Field(description="neurons that fire for no sample of a group")
    saturated: Spread = Field(description="neurons that fire at 95 % of a group's timesteps")


class HealthProfile(_Model):
    """What a server compares its traffic with, measured by `spiketrain profile` on held-out data."""

    model: str = Field(description="the digest of the model that this was measured of")
    dataset: str
    split: str
    samples: int = Field(gt=1)
    group: int = Field(gt=0, description="samples after which neurons are judged")
    layers: dict[str, LayerHealth]
    channels: tuple[Spread, ...] = Field(
        description="firing rate of each channel of the first layer, over samples"
    )
    hot_pixels: int = Field(ge=0, description="inputs on throughout a group, at most")
    dark_pixels: int = Field(ge=0, description="inputs off throughout a group, at most")


class TrainingRecord(_Model):
    recipe: str
    settings: dict[str, Any] = {}
    seed: int
    epochs: int
    commit: str = ""
    versions: dict[str, str] = {}
    data: dict[str, str] = Field({}, description="sha256 of each file of the data set")


class ConversionRecord(_Model):
    parent: str = Field(description="the digest of the checkpoint this was converted from")
    parent_name: str
    method: str
    arguments: dict[str, Any] = {}
    agreement: float | None = Field(
        None, description="share of samples classified as the parent does"
    )
    spike_mismatch: dict[str, float] = Field(
        {},
        description="by layer, share of spikes that differ from the parent's, of the parent's spikes",
    )
    judged_on: str = ""


class QuantisationRecord(_Model):
    """Weights of `layers` are stored as 8-bit codes with a scale for each output channel (`spiketrain.quantise`)."""

    parent: str = Field(description="the digest of the checkpoint whose weights were rounded")
    parent_name: str
    layers: tuple[str, ...] = Field(min_length=1)
    calibrated_on: str = Field(
        "", description="the samples of the bias correction, empty where there was none"
    )
    parent_accuracy: float | None = Field(
        None, ge=0, le=1, description="on the samples that it was judged on"
    )
    agreement: float | None = Field(
        None, description="share of samples classified as the parent does"
    )
    spike_mismatch: dict[str, float] = Field(
        {},
        description="by layer, share of spikes that differ from the parent's, of the parent's spikes",
    )
    judged_on: str = ""


class Manifest(_Model):
    format_version: Literal[1] = FORMAT_VERSION
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")
    network: NetworkSpec
    neuron: AnyNeuronConfig
    layers: dict[str, AnyNeuronConfig] = Field(
        {}, description="layers whose neuron differs from `neuron`"
    )
    timesteps: int = Field(gt=0)
    input: Input
    classes: tuple[str, ...] = Field(min_length=2)
    readout: Literal["mean", "sum", "rate", "vote", "last"] = Field(
        "mean",
        description="how the logits of the timesteps become one: mean or sum of logits; rate: mean of "
        "logits that are spikes; vote: each timestep votes for its first class; last: those of the last timestep, for a "
        "network that averages by itself",
    )
    decision: DecisionRule | None = Field(
        None, description="how the answers of a stream's windows become one decision, or none"
    )
    accuracy: tuple[Accuracy, ...] = ()
    training: TrainingRecord | None = None
    firing_rates: dict[str, RateProfile] = {}
    conversion: ConversionRecord | None = None
    quantisation: QuantisationRecord | None = None
    exit: ExitTable | None = Field(
        None,
        description="when a sample may leave before the last timestep, as `spiketrain calibrate-exit` found it",
    )
    health: HealthProfile | None = None
    digest: str = Field(
        "", description="sha256 of the tensors and of all above that decides an answer"
    )

    @model_validator(mode="after")
    def _exits_are_for_its_timesteps(self) -> Manifest:
        if self.exit is None:
            return self
        if self.exit.timesteps != self.timesteps:
            raise ValueError(
                f"exit is for {self.exit.timesteps} timesteps, the model has {self.timesteps}"
            )
        if self.readout not in EXIT_READOUTS:
            raise ValueError(f"a model whose readout is {self.readout} has no early exit")
        return self
