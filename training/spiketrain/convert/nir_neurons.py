"""NIR's neurons as layers of ours, in steps of dt."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spiketrain.convert.nir_file import Node
from spiketrain.neurons import IntegratorConfig, LIFConfig
from spiketrain.surrogate import Rectangle

Array = NDArray[Any]

NEURONS = {"LIF", "CubaLIF", "IF", "LI", "CubaLI", "I", "Threshold"}


class Feedback(NamedTuple):
    """Weights [N, N] and bias [N] over which a layer's spikes come back to it, and the node that they stand in."""

    node: Node
    weight: Tensor
    bias: Tensor | None


def neurons_of(
    node: Node, shape: tuple[int, ...], dt: float, feedback: Feedback | None
) -> tuple[LIFConfig | IntegratorConfig, dict[str, Tensor]]:
    """The neurons of a node whose values have this shape, and the tensors of their layer."""
    surrogate = Rectangle(strict=not _fires_at_threshold(node))
    values = _values(node, shape, dt)
    if node.type == "LIF" and feedback is None:
        plain = _plain_lif(node, values, dt, surrogate)
        if plain is not None:
            return plain
    return _integrator(node, values, shape, dt, surrogate, feedback)


def _fires_at_threshold(node: Node) -> bool:
    metadata = node.fields.get("metadata")
    return isinstance(metadata, dict) and bool(metadata.get("fires_at_threshold", False))


def _values(node: Node, shape: tuple[int, ...], dt: float) -> dict[str, Array]:
    """The node's fields, one value a neuron."""
    fields = {
        "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
        "LI": ("tau", "r", "v_leak"),
        "IF": ("r", "v_threshold", "v_reset"),
        "I": ("r",),
        "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
        "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
        "Threshold": ("threshold",),
    }[node.type]
    defaults = {"v_reset": 0.0, "w_in": 1.0}
    values = {}
    for field in fields:
        if field in defaults and field not in node.fields:
            value = np.asarray(defaults[field])
        else:
            value = node.array(field)
        if value.size != 1 and value.shape != shape:
            raise node.wrong(field, f"shape {value.shape}, and the node gets values of {shape}")
        if value.size == 1:
            value = value.reshape(())
        values[field] = np.broadcast_to(_decimal(value), shape)
        if field.startswith("tau") and (values[field] < dt * (1 - 1e-6)).any():
            raise node.wrong(
                field,
                f"{values[field].min():g} s is shorter than a timestep of {dt:g} s: give a smaller dt",
            )
    return values


def _decimal(value: Array) -> Array:
    """float64 of what a float32 was written for: 0.0002 rather than 0.00019999999494757503."""
    if value.dtype != np.float32:
        return value.astype(np.float64)
    unique, index = np.unique(value, return_inverse=True)
    if unique.size > 1024:  # values of their own, from training
        return value.astype(np.float64)
    exact = np.array([float(str(x)) for x in unique], dtype=np.float64)
    return exact[index].reshape(value.shape)


def _plain_lif(
    node: Node, values: dict[str, Array], dt: float, surrogate: Rectangle
) -> tuple[LIFConfig, dict[str, Tensor]] | None:
    """As `LIF`, where tau, r and v_leak are those of a layer and the others of its channels."""
    if any(_span(values[field]) for field in ("tau", "r", "v_leak")):
        return None
    tau = float(f"{_first(values['tau']) / dt:.12g}")
    r, rest = _first(values["r"]), _first(values["v_leak"])
    folded = bool(np.isclose(r, 1.0, rtol=1e-6))
    if tau <= 1 or not (folded or np.isclose(r, tau, rtol=1e-6)):
        return None
    if (values["v_threshold"] <= 0).any():
        return None
    constants: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for ours, theirs in (("threshold", "v_threshold"), ("reset_value", "v_reset")):
        value = values[theirs]
        if not _span(value):
            constants[ours] = _first(value)
            continue
        by_channel = value.reshape(len(value), -1)
        if _span(by_channel - by_channel[:, :1]):
            return None
        constants[ours] = float(value.mean())
        tensors[ours] = torch.from_numpy(by_channel[:, 0].copy()).float()
    config = LIFConfig(
        tau=tau,
        reset="hard",
        rest=rest,
        decay_input=folded,
        surrogate=surrogate,
        per_channel=tuple(tensors),
        **constants,
    )
    return config, tensors


def _integrator(
    node: Node,
    values: dict[str, Array],
    shape: tuple[int, ...],
    dt: float,
    surrogate: Rectangle,
    feedback: Feedback | None,
) -> tuple[IntegratorConfig, dict[str, Tensor]]:
    zero = np.zeros(shape)
    constants = {"rest": values.get("v_leak", zero), **_constants(node, values, shape, dt)}
    threshold = values.get("v_threshold", values.get("threshold"))
    if threshold is not None:
        constants["threshold"] = threshold
        constants["reset_value"] = values.get("v_reset", zero)
    common = _common_shape(list(constants.values()), shape)
    tensors = {name: _compressed(value, common) for name, value in constants.items()}
    kind: Literal["none", "linear", "affine"] = "none"
    if feedback is not None:
        size = shape[0]
        if len(shape) != 1 or threshold is None:
            raise node.wrong(
                "edges", f"values of shape {shape}: only spikes in a row can feed back"
            )
        if feedback.weight.shape != (size, size):
            raise feedback.node.wrong(
                "weight", f"shape {tuple(feedback.weight.shape)}, and the layer has {size} neurons"
            )
        tensors["feedback_weight"] = feedback.weight
        kind = "linear"
        if feedback.bias is not None:
            if feedback.bias.shape != (size,):
                raise feedback.node.wrong(
                    "bias", f"shape {tuple(feedback.bias.shape)}, not ({size},)"
                )
            tensors["feedback_bias"] = feedback.bias
            kind = "affine"
    config = IntegratorConfig(
        shape=common,
        fires=threshold is not None,
        synapse="synapse_leak" in constants,
        feedback=kind,
        surrogate=surrogate,
    )
    return config, tensors


def _constants(
    node: Node, values: dict[str, Array], shape: tuple[int, ...], dt: float
) -> dict[str, Array]:
    """Leaks and gains of one timestep."""
    match node.type:
        case "Threshold":  # forgets all at once
            return {"leak": np.ones(shape), "gain": np.ones(shape)}
        case "IF" | "I":
            return {"leak": np.zeros(shape), "gain": values["r"] * dt}
        case "LIF" | "LI":
            leak = np.minimum(dt / values["tau"], 1.0)
            return {"leak": leak, "gain": values["r"] * leak}
        case _:
            leak = np.minimum(dt / values["tau_mem"], 1.0)
            synapse = np.minimum(dt / values["tau_syn"], 1.0)
            return {
                "leak": leak,
                "gain": values["r"] * leak,
                "synapse_leak": synapse,
                "synapse_gain": values["w_in"] * synapse,
            }


def _span(value: Array) -> bool:
    """Whether the values differ."""
    return bool((value != value.flat[0]).any())


def _first(value: Array) -> float:
    return float(value.flat[0])


def _common_shape(values: list[Array], shape: tuple[int, ...]) -> tuple[int, ...]:
    if not any(_span(value) for value in values):
        return ()
    flat = [value.reshape(shape[0], -1) for value in values]
    if any((value != value[:, :1]).any() for value in flat):
        return shape
    return (shape[0],)


def _compressed(value: Array, shape: tuple[int, ...]) -> Tensor:
    if shape == ():
        return torch.tensor(_first(value), dtype=torch.float32)
    if len(shape) == 1:
        value = value.reshape(shape[0], -1)[:, 0]
    return torch.from_numpy(np.array(value)).float()
