"""The command `spikeserve`: serve, and ask a server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spikeserve import __version__
from spikeserve.cli_batch import batch_command
from spikeserve.cli_keys import app as key_app
from spikeserve.cli_stream import stream_command
from spikeserve.client import Classification, Client, ClientError
from spikeserve.client.http import DEFAULT_URL, ClassifyTerms, Exit, Priority
from spikeserve.settings import Settings, SettingsError, load_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Server = Annotated[str, typer.Option("--server", help="URL of the server's REST interface.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line instead of text.")]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Name of the model; the server's default unless given."),
]
Version = Annotated[
    str | None,
    typer.Option("--model-version", help="Version of the model; the newest unless given."),
]


def _described(field: str) -> str:
    """The documentation of a setting, for its flag."""
    return (Settings.model_fields[field].description or "").replace("\n", " ")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spikeserve {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Serve spiking neural networks, and send them pictures and events."""


@app.command()
def serve(
    models: Annotated[
        list[Path] | None, typer.Option("--models", help=_described("models"))
    ] = None,
    watch: Annotated[bool | None, typer.Option("--watch", help=_described("watch"))] = None,
    default_model: Annotated[str | None, typer.Option(help=_described("default_model"))] = None,
    host: Annotated[str | None, typer.Option(help=_described("host"))] = None,
    http_port: Annotated[int | None, typer.Option(help=_described("http_port"))] = None,
    grpc_port: Annotated[int | None, typer.Option(help=_described("grpc_port"))] = None,
    admin_port: Annotated[int | None, typer.Option(help=_described("admin_port"))] = None,
    keys: Annotated[Path | None, typer.Option(help=_described("keys"))] = None,
    tls_cert: Annotated[Path | None, typer.Option(help=_described("tls_cert"))] = None,
    tls_key: Annotated[Path | None, typer.Option(help=_described("tls_key"))] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help=_described("tls_client_ca"))] = None,
    slots: Annotated[int | None, typer.Option(help=_described("slots"))] = None,
    drain_seconds: Annotated[float | None, typer.Option(help=_described("drain_seconds"))] = None,
    log_format: Annotated[str | None, typer.Option(help=_described("log_format"))] = None,
    log_level: Annotated[str | None, typer.Option(help=_described("log_level"))] = None,
    config: Annotated[Path | None, typer.Option(help=_described("config"))] = None,
) -> None:
    """Serve the models over REST and gRPC. Every setting is also an environment variable, SPIKESERVE_NAME."""
    # Only this command needs the server's half of the package.
    from spikeserve.app import StartError, run

    try:
        settings = load_settings(
            models=tuple(models) if models else None,
            watch=watch,
            default_model=default_model,
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            admin_port=admin_port,
            keys=keys,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            slots=slots,
            drain_seconds=drain_seconds,
            log_format=log_format,
            log_level=log_level,
            config=config,
        )
        status = run(settings)
    except (SettingsError, StartError) as error:
        fail(str(error))
    raise typer.Exit(status)


@app.command()
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
    server: Server = DEFAULT_URL,
    model: Model = None,
    model_version: Version = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many classes to show.")] = None,
    timesteps: Annotated[int | None, typer.Option(min=1, help="How many timesteps to run.")] = None,
    exit_: Annotated[
        Exit | None,
        typer.Option("--exit", help="How readily to answer before the last timestep."),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(
            help="Instead of --exit: the share of answers that may differ from those after all timesteps."
        ),
    ] = None,
    priority: Annotated[
        Priority | None, typer.Option(help="Who goes first among those that wait.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send pictures to a server and print what it sees in them. Status 1 if one of them has no answer."""
    terms: ClassifyTerms = {
        "model": model,
        "version": model_version,
        "top_k": top_k,
        "timesteps": timesteps,
        "exit": exit_,
        "risk": risk,
        "priority": priority,
    }
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    failures = 0
    with Client(server) as client:
        for image in images:
            try:
                result = client.classify(image, **terms)
            except (ClientError, OSError) as error:
                failures += 1
                complain(f"{image}: {error}")
                continue
            if as_json:
                typer.echo(json.dumps({"image": str(image), **dataclasses.asdict(result)}))
            else:
                console.print(_line(image, result))
    raise typer.Exit(1 if failures else 0)


def _line(image: Path, result: Classification) -> str:
    best, *others = result.predictions
    rest = ", ".join(f"{escape(each.label)} {each.probability:.1%}" for each in others)
    milliseconds = sum(result.timing_seconds.values()) * 1e3
    return (
        f"{escape(str(image))}: [bold]{escape(best.label)}[/bold] {best.probability:.1%}"
        + (f" [dim]({rest})[/dim]" if rest else "")
        + f"  {escape(result.model)} {escape(result.version)}, "
        f"{result.timesteps_used} of {result.timesteps_of} timesteps, {milliseconds:.1f} ms"
    )


@app.command()
def models(server: Server = DEFAULT_URL, as_json: Json = False) -> None:
    """List a server's models."""
    try:
        with Client(server) as client:
            found = client.models()
    except ClientError as error:
        fail(str(error))
    if as_json:
        for each in found:
            typer.echo(json.dumps(dataclasses.asdict(each)))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("model", "version", "state", "input", "classes", "timesteps"):
        table.add_column(title)
    for each in found:
        state = each.state if each.reason is None else f"{each.state}: {each.reason}"
        shape = "x".join(str(size) for size in each.shape)
        row = (
            each.name + (" (default)" if each.default else ""),
            each.version,
            state,
            f"{each.input} {shape}" if each.input else "",
            str(len(each.classes)),
            str(each.timesteps or ""),
        )
        table.add_row(*(escape(cell) for cell in row))
    Console(highlight=False, soft_wrap=True, emoji=False).print(table)


app.command("stream")(stream_command)
app.command("batch")(batch_command)
app.add_typer(key_app, name="key")


def complain(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True, emoji=False).print(
        f"[red]error:[/red] {escape(message)}"
    )


def fail(message: str) -> NoReturn:
    complain(message)
    raise typer.Exit(1)


def main() -> None:
    app()
