"""The command `spikeserve batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from spikeserve.client.http import Exit


def batch_command(
    input: Annotated[
        Path,
        typer.Argument(
            help="A folder of pictures, or of recordings; Parquet files; tar files (WebDataset); or one such file."
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(help="Folder for the answers, Parquet files. An interrupted run goes on."),
    ],
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--models", help="Folders of checkpoints, or files; the bundled ones unless given."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    model_version: Annotated[str | None, typer.Option(help="Its version, or a label.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one for each processor unless given.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Work on a Ray cluster: its address, auto, or local for one on this machine."
        ),
    ] = None,
    exit_: Annotated[
        Exit | None, typer.Option("--exit", help="How readily to answer before the last timestep.")
    ] = None,
    risk: Annotated[
        float | None, typer.Option(help="Instead of --exit: the share of answers that may differ.")
    ] = None,
    timesteps: Annotated[int | None, typer.Option(min=1, help="How many timesteps to run.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Samples computed together in a process.")] = 64,
    executor: Annotated[
        str, typer.Option(help="auto, cuda, cpu or reference; auto measures in each process.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, float32, bfloat16, int16 or int8.")
    ] = "auto",
    piece: Annotated[
        int, typer.Option(min=1, help="Files done together: what an interruption may cost.")
    ] = 256,
    column: Annotated[
        str | None, typer.Option(help="Of Parquet files: where the pictures or recordings are.")
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option(help="Of Parquet files: what names the rows; FILE#ROW unless given."),
    ] = None,
) -> None:
    """Classify many pictures or recordings into Parquet files, without a server.

    The same command on the same folders goes on where it was interrupted. Status 1 if a piece could not be done.
    """
    from spikeserve.batch import Batch, BatchError, Summary, run_batch
    from spikeserve.settings import SettingsError

    console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    asked = Batch(
        input=input,
        output=output,
        models=tuple(models) if models else None,
        model=model,
        version=model_version,
        workers=workers,
        ray=ray,
        exit=exit_,
        risk=risk,
        timesteps=timesteps,
        slots=slots,
        executor=executor,
        precision=precision,
        piece=piece,
        column=column,
        key_column=key_column,
    )
    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)

            def show(so_far: Summary) -> None:
                speed = so_far.items / so_far.seconds if so_far.seconds else 0.0
                bar.update(
                    task,
                    total=so_far.pieces,
                    completed=so_far.before + so_far.done + len(so_far.faults),
                    description=f"{so_far.items} items, {speed:.0f}/s",
                )

            summary = run_batch(asked, show)
    except (BatchError, SettingsError, OSError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on with what is left")
        raise typer.Exit(130) from None
    for name, reason in summary.faults.items():
        console.print(f"[red]not done:[/red] {escape(name)}: {escape(reason)}")
    said = f"{summary.items} items in {summary.seconds:.1f} s"
    if summary.failed:
        said += f", {summary.failed} of them without an answer: see the column error"
    if summary.before:
        said += f"; {summary.before} of {summary.pieces} pieces were there already"
    console.print(said)
    if summary.faults:
        raise typer.Exit(1)
