"""`spikeserve key`: make, list and revoke API keys, in the file that the server reads."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spikeserve.access.keys import (
    SCOPES,
    KeyEntry,
    KeyFile,
    KeyLimits,
    KeysError,
    digest,
    new_key,
    read_keys,
    write_keys,
)

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

File = Annotated[
    Path,
    typer.Option(
        "--file", envvar="SPIKESERVE_KEYS", help="The file of keys, SPIKESERVE_KEYS of the server."
    ),
]
Name = Annotated[str, typer.Argument(help="What logs call the key.")]


@app.command()
def create(
    name: Name,
    file: File,
    scopes: Annotated[
        str, typer.Option(help=f"What it is good for, separated by commas: {', '.join(SCOPES)}.")
    ] = "classify,stream",
    days: Annotated[float | None, typer.Option(min=0, help="How long it is valid.")] = None,
    requests_per_second: Annotated[float | None, typer.Option(help="On average.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests that may come at once.")] = None,
    events_per_second: Annotated[float | None, typer.Option(help="Of all its streams.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Requests under way at once.")] = None,
    max_streams: Annotated[int | None, typer.Option(help="Event streams at once.")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Of one request.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Of one picture.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Pictures in one request.")] = None,
    queue_seconds: Annotated[float | None, typer.Option(help="Longest wait for a slot.")] = None,
) -> None:
    """Make a key and print it: it is shown this once, and the file has only its hash."""
    limits = {
        "requests_per_second": requests_per_second,
        "burst": burst,
        "events_per_second": events_per_second,
        "max_requests": max_requests,
        "max_streams": max_streams,
        "max_body_bytes": max_body_bytes,
        "max_pixels": max_pixels,
        "max_batch": max_batch,
        "queue_seconds": queue_seconds,
    }
    key = new_key()
    try:
        entry = KeyEntry.model_validate(
            {
                "name": name,
                "sha256": digest(key),
                "scopes": [scope.strip() for scope in scopes.split(",")],
                "expires": None if days is None else datetime.now(UTC) + timedelta(days=days),
                "limits": KeyLimits.model_validate(limits).model_dump(),
            }
        )
    except ValidationError as error:
        fail("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))
    keys = _read(file) if file.exists() else KeyFile()
    if any(each.name == name for each in keys.keys):
        fail(f"there is a key {name} in {file}: revoke it first, or choose another name")
    _write(file, (*keys.keys, entry))
    typer.echo(key)


@app.command("list")
def list_keys(file: File) -> None:
    """Show names, scopes, limits and ends, never a key."""
    table = Table(box=None, pad_edge=False)
    for title in ("name", "scopes", "limits", "expires"):
        table.add_column(title)
    for each in _read(file).keys:
        limits = each.limits.model_dump(exclude_none=True)
        row = (
            each.name,
            " ".join(each.scopes),
            " ".join(f"{name}={value:g}" for name, value in limits.items()),
            "" if each.expires is None else each.expires.isoformat(timespec="minutes"),
        )
        table.add_row(*(escape(cell) for cell in row))
    Console(highlight=False, soft_wrap=True, emoji=False).print(table)


@app.command()
def revoke(name: Name, file: File) -> None:
    """Take a key out of the file. A running server knows it no longer within a second."""
    keys = _read(file)
    kept = tuple(each for each in keys.keys if each.name != name)
    if len(kept) == len(keys.keys):
        fail(f"there is no key {name} in {file}")
    _write(file, kept)


def _read(file: Path) -> KeyFile:
    try:
        return read_keys(file)
    except KeysError as error:
        fail(str(error))


def _write(file: Path, entries: tuple[KeyEntry, ...]) -> None:
    try:
        write_keys(file, KeyFile(keys=entries))
    except OSError as error:
        fail(f"{file}: {error.strerror or os.strerror(error.errno or 0)}")


def fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True, emoji=False).print(
        f"[red]error:[/red] {escape(message)}"
    )
    raise typer.Exit(1)
