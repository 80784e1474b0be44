"""The command line: spiketrain train | evaluate | calibrate-exit | profile | convert | quantise | export | import | inspect |
data list | prepare | check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from spiketrain.convert.command import convert
from spiketrain.convert.export_command import export
from spiketrain.data_commands import app as data_app
from spiketrain.exit_command import calibrate_exit
from spiketrain.importers.command import import_model
from spiketrain.inspect import inspect_file
from spiketrain.profile_command import profile
from spiketrain.quantise_command import quantise
from spiketrain.report.command import report
from spiketrain.train import TrainingError
from spiketrain.training_commands import evaluate_checkpoint, train

messages = Console(stderr=True, emoji=False)


class _Commands(TyperGroup):
    """Commands whose expected errors end in one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, OSError, TrainingError) as error:
            messages.print(
                f"error: {_reason(error)}", markup=False, highlight=False, soft_wrap=True
            )
            raise typer.Exit(1) from error


def _reason(error: ValueError | OSError | TrainingError) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Train, convert and inspect spiking neural networks.",
)

app.command()(train)
app.command("evaluate")(evaluate_checkpoint)
app.command("calibrate-exit")(calibrate_exit)
app.command()(profile)
app.command()(convert)
app.command()(quantise)
app.command()(report)
app.command()(export)
app.command("import")(import_model)
app.add_typer(data_app, name="data")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show all that a checkpoint says of its model."""
    tables, text = inspect_file(file)
    if as_json:
        typer.echo(text)
    else:
        Console().print(tables)


def main() -> None:
    app()
