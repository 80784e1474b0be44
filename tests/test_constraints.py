"""constraints.txt holds all that pyproject.toml brings, at the version that is installed here."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def pinned() -> dict[str, Requirement]:
    lines = (TOP / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in pins}


def brought() -> dict[str, str]:
    """Name and installed version of all that the base install and the extra `test` bring."""
    found: dict[str, str] = {}
    todo = [Requirement(each) for each in [*PROJECT["dependencies"], *EXTRAS["test"]]]
    seen = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        if name == PROJECT["name"]:  # an extra that takes in others
            todo += [Requirement(each) for extra in requirement.extras for each in EXTRAS[extra]]
            continue
        found[name] = metadata.version(name)
        for each in map(Requirement, metadata.requires(name) or []):
            extras = {"", *requirement.extras}
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras):
                each.marker = None
                todo.append(each)
    return found


@pytest.mark.skipif(
    torch.version.cuda is not None, reason="a CUDA torch brings packages of its own"
)
def test_everything_installed_is_pinned() -> None:
    pins = pinned()
    missing = {name: version for name, version in brought().items() if name not in pins}
    assert missing == {}


def test_the_pins_are_exact() -> None:
    for name, pin in pinned().items():
        assert [each.operator for each in pin.specifier] == ["=="], name


def test_the_pins_satisfy_the_ranges_of_the_project() -> None:
    pins = pinned()
    required = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    for each in map(Requirement, required):
        name = canonicalize_name(each.name)
        if name != PROJECT["name"]:
            (pin,) = pins[name].specifier
            assert each.specifier.contains(pin.version), f"{name}: {pin} is not in {each}"
