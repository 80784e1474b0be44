"""Recording and alert rules: Prometheus's own tests of them, and that they name metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.core import Metric

from spikeserve.metrics import Metrics

FOLDER = Path("deploy/prometheus")


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("there is no promtool here (Debian: apt-get install prometheus)")
    return path


def run(*command: str | Path) -> None:
    done = subprocess.run(
        [str(each) for each in command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_one(promtool: str, checkout: Path) -> None:
    run(promtool, "check", "config", checkout / FOLDER / "prometheus.yml")


def test_the_rules_do_what_their_tests_say(promtool: str, checkout: Path) -> None:
    run(promtool, "test", "rules", *sorted((checkout / FOLDER / "tests").glob("*.yml")))


def test_every_rule_is_tested_and_names_metrics_of_the_server(checkout: Path) -> None:
    tests = "".join(path.read_text() for path in (checkout / FOLDER / "tests").glob("*.yml"))
    known = {name for family in Metrics().registry.collect() for name in _names(family)}
    for path in sorted((checkout / FOLDER / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    assert rule["alert"] in tests
                    assert {"summary", "description"} <= rule["annotations"].keys()
                for name in re.findall(r"(?<![:\w])spikeserve_\w+", rule["expr"]):
                    assert name in known, f"{path.name}: there is no metric {name}"


def _names(family: Metric) -> set[str]:
    ends = ("", "_total", "_bucket", "_sum", "_count")
    return {family.name + end for end in ends}
