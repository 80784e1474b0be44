"""The training job's command is one that the program takes."""

from __future__ import annotations

from pathlib import Path

import typer
import yaml

from spiketrain.cli import app
from spiketrain.recipe import bundled_recipes

JOB = Path(__file__).parents[2] / "deploy" / "training" / "pytorchjob.yaml"


def test_the_command_has_a_recipe_and_options_that_there_are() -> None:
    job = yaml.safe_load(JOB.read_text())
    (container,) = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    command = container["command"]
    arguments = command[command.index("train") + 1 :]
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    known = {name for parameter in train.params for name in parameter.opts}
    assert arguments[0] in bundled_recipes()
    assert {each.split("=")[0] for each in arguments[1:]} <= known


def test_the_batch_divides_by_each_number_of_machines() -> None:
    spec = yaml.safe_load(JOB.read_text())["spec"]
    (container,) = spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    (batch,) = (each for each in container["command"] if "batch_size" in each)
    size = int(batch.rpartition("=")[2])
    elastic = spec["elasticPolicy"]
    for machines in range(elastic["minReplicas"], elastic["maxReplicas"] + 1):
        assert size % machines == 0
