"""Where the tensors of the PLIF repository go: its networks for pictures and for events.

    pictures:  static_conv = (conv, batch norm);  conv = neuron, pool, conv, batch norm, neuron, pool, ...
    events:    conv = (conv, batch norm, neuron, pool) n times
    fc = flatten, dropout, linear, neuron, [dropout,] linear, neuron

Indices count modules without tensors too, so what is what is read from the tensors' axes. A neuron has one scalar, w;
LIF's have none, and their time constant is asked for. Whether poolings take the maximum or the average is in a pickled
network and not in its tensors.
"""

from __future__ import annotations

from typing import Any, Literal

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers.moving import Layout, Moving
from spiketrain.importers.said import Said, needed
from spiketrain.importers.weights import AuthorsFile
from spiketrain.neurons import LIFConfig, PLIFConfig
from spiketrain.surrogate import arctangent

_VOTERS = 10
_EVENTS = {2: "plif-nmnist", 4: "plif-cifar10-dvs", 5: "plif-dvs-gesture"}


def layout(moving: Moving, file: AuthorsFile, said: Said) -> Layout:
    """Raises ForeignModelError, naming the key or the option that is missing."""
    for key in [key for key in moving.left if key.endswith("surrogate_function.alpha")]:
        del moving.left[key]  # of the gradient only
    learned = any(key.endswith(".w") for key in moving.left)
    plan, static, units = _plan(moving)
    linear = moving.indices(r"fc\.(\d+)\.weight$")
    if len(linear) != 2:
        raise ForeignModelError(f"{moving.source}: {len(linear)} 'fc.*.weight': two are needed")
    hidden = len(moving.of_axes(f"fc.{linear[0]}.weight", 2))
    votes = len(moving.of_axes(f"fc.{linear[1]}.weight", 2))
    _move_convolutions(moving, static, units, learned)
    if learned:
        for i, theirs in enumerate(_exactly(moving, r"fc\.(\d+)\.w$", 2), 1):
            moving.move(f"fc.{theirs}.w", f"neuron{i}.w")
    for i, theirs in enumerate(linear, 1):
        moving.move(f"fc.{theirs}.weight", f"linear{i}.weight")
    if votes % _VOTERS:
        raise ForeignModelError(f"{moving.source}: 'fc.{linear[1]}.weight': {votes} voters")
    arguments: dict[str, Any] = {
        "plan": plan,
        "classes": votes // _VOTERS,
        "hidden": hidden,
        "pooling": _pooling(file, said),
    }
    network = _EVENTS.get(len(units), "plif-nmnist")
    if static:
        network = "plif-mnist" if len(units) == 2 else "plif-cifar10"
    timesteps = file.attributes.get("", {}).get("T")
    return Layout(
        network,
        arguments,
        _neuron(file, said, learned),
        timesteps if type(timesteps) is int and timesteps > 0 else None,
    )


def _exactly(moving: Moving, pattern: str, count: int) -> list[int]:
    found = moving.indices(pattern)
    if len(found) != count:
        raise ForeignModelError(
            f"{moving.source}: {len(found)} tensors {pattern.replace('(', '').replace(')', '')!r}, {count} are needed"
        )
    return found


def _plan(moving: Moving) -> tuple[list[int | str], bool, list[int]]:
    """The plan, whether its first convolution is the static one, and where its units are."""
    static = "static_conv.0.weight" in moving
    convs = [
        i
        for i in moving.indices(r"conv\.(\d+)\.weight$")
        if moving.left[f"conv.{i}.weight"].dim() == 4
    ]
    widths = [len(moving.left[f"conv.{i}.weight"]) for i in convs]
    if static:
        widths.insert(0, len(moving.of_axes("static_conv.0.weight", 4)))
        every = {2: 1, 6: 3}.get(len(widths))
    else:
        moving.of_axes("conv.0.weight", 4)
        every = 1
    if every is None:
        raise ForeignModelError(
            f"{moving.source}: {len(widths)} convolutions: the networks for pictures have 2 or 6"
        )
    plan: list[int | str] = []
    units: list[int] = []
    for i, width in enumerate(widths, 1):
        units.append(len(plan))
        plan.append(width)
        if i % every == 0:
            plan.append("P")
    return plan, static, units


def _move_convolutions(moving: Moving, static: bool, units: list[int], learned: bool) -> None:
    own = list(units)
    if static:
        moving.weights("static_conv.0", f"features.{units[0]}.conv", bias=False)
        moving.norm("static_conv.1", f"features.{units[0]}.bn")
        own = own[1:]
    if learned:
        for unit, theirs in zip(
            units, _exactly(moving, r"conv\.(\d+)\.w$", len(units)), strict=True
        ):
            moving.move(f"conv.{theirs}.w", f"features.{unit}.neuron.w")
    convs = [
        i
        for i in moving.indices(r"conv\.(\d+)\.weight$")
        if moving.left[f"conv.{i}.weight"].dim() == 4
    ]
    for unit, theirs in zip(own, convs, strict=True):
        moving.weights(f"conv.{theirs}", f"features.{unit}.conv", bias=False)
        moving.norm(f"conv.{theirs + 1}", f"features.{unit}.bn")


def _pooling(file: AuthorsFile, said: Said) -> Literal["max", "average"]:
    kinds = set(file.kinds.values()) & {"MaxPool2d", "AvgPool2d"}
    if len(kinds) == 1:
        return "max" if kinds == {"MaxPool2d"} else "average"
    return needed(said.pooling, "pooling", "max or average is needed: the tensors do not say")


def _neuron(file: AuthorsFile, said: Said, learned: bool) -> LIFConfig | PLIFConfig:
    nodes = [
        file.attributes[name]
        for name, kind in file.kinds.items()
        if kind in ("PLIFNode", "LIFNode")
    ]
    constants = [
        (float(node.get("v_threshold") or 1.0), node.get("v_reset", 0.0), node.get("tau"))
        for node in nodes
    ]
    if len(set(constants)) > 1:
        raise ForeignModelError(f"{file.path}: 'v_threshold', 'v_reset' or 'tau' differ by layer")
    threshold, v_reset, tau = constants[0] if constants else (1.0, 0.0, None)
    common: dict[str, Any] = {
        "threshold": threshold if said.threshold is None else said.threshold,
        "decay_input": True,
        "detach_reset": True,
        "surrogate": arctangent,
    }
    if v_reset is None:
        common["reset"] = "soft"
    else:  # SpikingJelly's one value is both
        common |= {"reset": "hard", "reset_value": float(v_reset), "rest": float(v_reset)}
    if learned:
        return PLIFConfig(initial_tau=2.0 if said.tau is None else said.tau, **common)
    tau = said.tau if said.tau is not None else tau
    why = "the time constant of the LIF neurons is needed: these tensors do not say"
    return LIFConfig(tau=float(needed(tau, "tau", why)), **common)
