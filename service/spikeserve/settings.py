"""Settings: flags over environment (SPIKESERVE_...) over the TOML file that SPIKESERVE_CONFIG names over defaults.

Every setting is documented under its field. No name may become SPIKESERVE_PORT or SPIKESERVE_SERVICE_...: Kubernetes
sets those by itself next to a service called spikeserve.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as SourceError

SlowPolicy: TypeAlias = Literal["wait", "drop-oldest", "refuse", "close"]
SLOW_POLICIES: tuple[SlowPolicy, ...] = get_args(SlowPolicy)

PREFIX = "SPIKESERVE_"
BUNDLED_MODELS = Path(__file__).parent / "models"


class SettingsError(ValueError):
    """Settings that cannot be used. The message names each one, its value and what is expected."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    config: Path | None = None
    """TOML file with any of these settings; flags and environment go before it."""

    host: str = "127.0.0.1"
    """Address to listen on, for both ports. 0.0.0.0 is every address of the machine (what the container uses)."""

    http_port: int = Field(8000, ge=0, le=65535)
    """Port of REST, metrics and health. 0 lets the system choose one."""

    grpc_port: int = Field(8001, ge=0, le=65535)
    """Port of gRPC. 0 lets the system choose one."""

    admin_port: int | None = Field(None, ge=0, le=65535)
    """Port on which models are managed, over HTTP, and nowhere else. It has all other routes too. 0 lets the system choose
    one. Unless given, models are managed on the HTTP and gRPC ports, by those who may."""

    admin_host: str = "127.0.0.1"
    """Address of the admin port."""

    admin: Literal["keys", "open"] = "keys"
    """Who may manage models on the HTTP and gRPC ports. keys: holders of a key with the scope admin; open: everybody,
    where there are no keys."""

    keys: Path | None = None
    """File of API keys, made by `spikeserve key create`. It may be changed while the server runs. Unless given, no key
    is asked for."""

    tls_cert: Path | None = None
    """Certificate chain in PEM, for both ports. Unless given they are not encrypted."""

    tls_key: Path | None = None
    """Private key of the certificate, in PEM."""

    tls_client_ca: Path | None = None
    """Certificates, in PEM, of who signs clients' certificates. Given, clients without one are refused (mutual TLS)."""

    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages that may use the server, such as https://lab.example.org; in the environment separated by
    spaces. * is every page. Unless given, only the server's own page may."""

    models: Annotated[tuple[Path, ...], NoDecode] = (BUNDLED_MODELS,)
    """Folders of checkpoints, or single files; in the environment separated as in PATH. A folder has
    ANYTHING.safetensors (version 1, named by its manifest) or NAME/VERSION.safetensors, with NAME/settings.toml; or .onnx
    files that were exported from checkpoints."""

    watch: bool = False
    """Follow the folders of models: load what is put there or changes, unload what is taken away. Without it models
    are loaded at the start, and afterwards by POST /models/NAME/load or the Open Inference Protocol."""

    sources: Annotated[tuple[str, ...], NoDecode] = ()
    """Models elsewhere: addresses (s3://, gs://, https://, file://) of folders of models, or of single files with
    #sha256=DIGEST; in the environment separated by spaces. They are copied into a cache, verified, and served beside
    the folders in `models`, or instead of the bundled ones."""

    source_cache: Path | None = None
    """Folder for the copies of models from elsewhere. Unless given, spikeserve/models in the user's cache folder."""

    refresh_seconds: float | None = Field(None, gt=0)
    """How often the addresses in `sources` are looked at for something new. Unless given, only at the start."""

    offline: bool = False
    """Serve the copies of models from elsewhere as they are, and reach for nothing."""

    retire_seconds: float = Field(300.0, ge=0)
    """How long streams may go on with a model that was replaced or unloaded; then they are ended."""

    default_model: str | None = None
    """Model for requests that name none. Unless given, and where it takes other input, the first by name that fits."""

    slots: int = Field(32, ge=1, le=65536)
    """Samples of one model that are computed together, at most; each slot holds the state of one sample."""

    max_queue: int = Field(256, ge=1)
    """Pictures of one model that wait for a slot, at most; further ones are refused at once."""

    max_timesteps: int = Field(128, ge=1)
    """Timesteps that a request may ask for, at most."""

    exit: Literal["off", "balanced", "fast"] = "off"
    """Early exit of pictures that do not say it themselves, for models that have exits: balanced keeps the share of
    answers that differ from those after all timesteps at 0.5 % or less, fast at 2 % or less."""

    highest_priority: Literal["high", "normal", "low"] = "high"
    """The highest priority that a picture may ask for; above it is refused. Those that ask for none have normal, or
    this where it is lower."""

    priority_seconds: float = Field(10.0, gt=0, allow_inf_nan=False)
    """A picture goes before one of the next higher priority that came so much later, so that none waits for ever."""

    max_body_bytes: int = Field(16 << 20, ge=1)
    """Largest body of a request and largest picture, in bytes."""

    receive_seconds: float = Field(60.0, gt=0, allow_inf_nan=False)
    """A request whose body has not arrived after so long is refused."""

    max_message_bytes: int = Field(4 << 20, ge=1)
    """Largest message of an event stream, over gRPC or a WebSocket, in bytes."""

    max_pixels: int = Field(40_000_000, ge=1, le=89_478_485)
    """Largest picture, in pixels; read from its header before anything is decoded."""

    max_requests: int = Field(4096, ge=1)
    """Requests under way at once, at most, besides event streams; further ones are refused at once."""

    queue_seconds: float = Field(60.0, gt=0, allow_inf_nan=False)
    """A picture that has waited for a slot for so long is refused."""

    events_per_second: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Events of all streams together, on average over a second. Unless given, there is no such limit."""

    max_streams: int = Field(1024, ge=1)
    """Event streams open at once, over all models, at most."""

    max_message_events: int = Field(1 << 20, ge=1)
    """Events in one message of a stream, at most."""

    max_message_windows: int = Field(4096, ge=1)
    """Windows that one message of a stream may close, at most."""

    stream_idle_seconds: float = Field(300.0, gt=0)
    """A stream from which nothing came for so long is closed; one whose client may come back is kept for it."""

    slow_clients: SlowPolicy = "wait"
    """What happens when the client of a stream does not read its answers. wait: nothing more is read from it; drop-oldest:
    the oldest answers that wait are dropped; refuse: what it sends is refused until it reads; close: its connection is
    ended, and the stream is kept where the client may come back."""

    slow_clients_allowed: Annotated[tuple[SlowPolicy, ...], NoDecode] = SLOW_POLICIES
    """Which of these a stream may choose for itself, besides `slow_clients`; in the environment separated by spaces."""

    slow_seconds: float = Field(2.0, ge=0, allow_inf_nan=False)
    """A client counts as one that does not read when too many answers wait, and the oldest has waited for so long."""

    max_waiting_answers: int = Field(256, ge=1)
    """Answers of a stream that wait for a client that does not read, at most, besides those to its last message."""

    resume_seconds: float = Field(30.0, gt=0)
    """How long the state of a stream is kept after its connection broke, where its client asked for that."""

    max_parked_streams: int = Field(256, ge=0)
    """Streams kept for clients that may come back, at most; beyond it the one that waited longest is given up."""

    snapshots: str | None = None
    """Where the state of a stream is kept as well when its connection breaks, and when the server is told to stop, for
    another server with the same setting and the same model to go on with: a folder, or redis://HOST:PORT/NUMBER
    (rediss://, unix://), which needs the extra `redis`. Unless given, a stream ends with its server."""

    snapshot_interval_seconds: float = Field(5.0, ge=0, allow_inf_nan=False)
    """How often the state of a stream that goes on is kept there, so that it survives a server that is killed: its client
    sends again what came after. 0 leaves that out."""

    snapshot_seconds: float = Field(600.0, gt=0, allow_inf_nan=False)
    """How long such a state is kept."""

    max_snapshots: int = Field(1024, ge=1)
    """States of streams that are kept, at most, by all servers of one folder or Redis; beyond it the oldest is removed."""

    max_kept_answers: int = Field(1024, ge=1)
    """Answers of a stream kept until its client has said that they arrived, at most, to be sent again when it resumes."""

    max_recording_events: int = Field(50_000_000, ge=1)
    """Events in one recording posted to /classify/events, at most."""

    max_recording_windows: int = Field(20_000, ge=1)
    """Windows of one recording posted to /classify/events, at most."""

    decode_threads: int = Field(2, ge=1, le=256)
    """Threads that decode pictures, and as many that decode events and sort them into windows."""

    torch_threads: int | None = Field(None, ge=1)
    """Threads for one operation of a network. Unless given, the processors that this process may use."""

    executor: Literal["auto", "cuda", "cpu", "reference"] = "auto"
    """What computes. cuda: an NVIDIA GPU; cpu: fast on processors; reference: plain torch, every network; auto: the
    fastest that can run the model, by a short measurement when it is loaded. The log says which, and why."""

    precision: Literal["auto", "float32", "bfloat16", "int16", "int8"] = "auto"
    """Of the weights. On a GPU bfloat16, which auto takes there, or float32. On a processor int8 is the fastest and
    changes some answers, unless the checkpoint was quantised; int16 computes neurons near their threshold once more in
    float32, and answers as that does. auto takes the faster of those that change no answer beyond rounding: float32 and
    int16, or int8 for a quantised checkpoint."""

    stall_seconds: float = Field(60.0, gt=0)
    """A timestep that takes longer than this makes the server not ready."""

    probe_share: float = Field(0.01, ge=0, le=1)
    """Part of one processor that each model may use to run some of its samples once more and look at every neuron, for
    silent and saturated neurons and stuck pixels. 0 leaves that out; 1 looks at all samples that there is time for."""

    shutdown_delay_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    """How long the server goes on taking requests after it was told to stop, while it says that it is not ready. So long
    load balancers need to notice: a little more than the time between their checks."""

    exit_with_parent: bool = False
    """Stop, as on SIGTERM, when the process that started the server has ended. On Linux."""

    drain_seconds: float = Field(20.0, ge=0)
    """How long requests under way may take to finish once the server was told to stop."""

    log_format: Literal["text", "json"] = "text"
    """Readable lines, or one JSON object a line."""

    otel: bool = False
    """Send a trace of each request, with spans for decode, queue, compute and encode, to an OpenTelemetry collector: the
    one that OTEL_EXPORTER_OTLP_ENDPOINT names, else http://localhost:4317. Needs the extra `otel`."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are logged."""

    @field_validator("models", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        if isinstance(value, Path):
            return (value,)
        if isinstance(value, str):
            return tuple(Path(part) for part in value.split(os.pathsep) if part)
        return value

    @field_validator("cors_origins", "sources", "slow_clients_allowed", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key are needed both")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self

    @field_validator("models")
    @classmethod
    def _some_paths(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if not value:
            raise ValueError("names no folder and no file")
        return tuple(path.expanduser() for path in value)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        flags = init_settings()
        named = flags.get("config") or os.environ.get(f"{PREFIX}CONFIG")
        if not named:
            return init_settings, env_settings
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingsError(f"config: there is no file {path}")
        try:
            file = TomlConfigSettingsSource(settings_cls, path)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise SettingsError(f"config: {path}: {error}") from error
        return init_settings, env_settings, file


def load_settings(**flags: Any) -> Settings:
    """Settings from flags, environment and file; flags that are None count as not given. Raises SettingsError."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(dict(item)) for item in error.errors())) from error
    except SourceError as error:
        raise SettingsError(str(error)) from error


def _explain(item: dict[str, Any]) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    if item["type"] == "extra_forbidden":
        return f"{name}: there is no such setting; there are {', '.join(Settings.model_fields)}"
    place = ".".join(str(part) for part in item["loc"])
    return f"{place} ({PREFIX}{name.upper()}): {item['msg']}, not {item['input']!r}"
