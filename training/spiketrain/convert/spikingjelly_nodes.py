"""Our neurons as SpikingJelly's, and theirs as ours.

Theirs fire at the threshold as ours do; a strict surrogate (GLIF's, and what NIR files bring) fires only above it,
which differs where a potential is exactly there.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spiketrain.convert.flow import ExportError
from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.neurons import (
    AnyNeuronConfig,
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    Integrator,
    IntegratorConfig,
    LIFConfig,
    NeuronLayer,
    PLIFConfig,
)
from spiketrain.neurons.base import Value
from spiketrain.surrogate import Arctangent, Rectangle, Sigmoid, Surrogate

GLIF_NAMES = {"threshold": "v_threshold", "leak": "linear_decay", "subtract": "v_subreset"}


@dataclass(frozen=True)
class Call:
    """A class of spikingjelly.activation_based with its arguments: it can be called, and written as Python."""

    module: str
    name: str
    arguments: Mapping[str, Any]

    def build(self) -> Any:
        module = importlib.import_module(f"spikingjelly.activation_based.{self.module}")
        arguments = {
            key: value.build() if isinstance(value, Call) else value
            for key, value in self.arguments.items()
        }
        return getattr(module, self.name)(**arguments)

    def source(self) -> str:
        arguments = ", ".join(
            f"{key}={value.source() if isinstance(value, Call) else repr(value)}"
            for key, value in self.arguments.items()
        )
        return f"{self.module}.{self.name}({arguments})"


def node_of(
    name: str, layer: NeuronLayer, shape: tuple[int, ...]
) -> tuple[Call, dict[str, Tensor]]:
    """SpikingJelly's neuron for the layer called `name`, and its tensors. Raises ExportError where there is none."""
    config = layer.config
    match config:
        case LIFConfig() | PLIFConfig():
            return _lif(name, config, layer)
        case CLIFConfig():
            arguments = {
                "tau": config.tau,
                "v_threshold": config.threshold,
                "surrogate_function": _surrogate(config.surrogate),
            }
            return Call("neuron", "ComplementaryLIFNode", arguments), {}
        case GLIFConfig():
            return _glif(name, config, layer, shape)
        case IntegratorConfig():
            return _integrator(name, config, layer)
        case ILIFConfig():
            raise ExportError(
                f"{name}: SpikingJelly has no temporal inhibitory LIF (its ILIFNode is the integer LIF); "
                "convert it first: spiketrain convert CHECKPOINT --to lif"
            )
        case _:
            raise ExportError(f"{name}: SpikingJelly has no {type(config).__name__}")


def _lif(
    name: str, config: LIFConfig | PLIFConfig, layer: NeuronLayer
) -> tuple[Call, dict[str, Tensor]]:
    neuron: Any = layer.neuron()
    threshold = _uniform(name, "threshold", neuron.threshold)
    v_reset = None
    if config.reset == "hard":
        v_reset = _uniform(name, "reset_value", neuron.reset_value)
        if v_reset != config.rest:
            raise ExportError(
                f"{name}: rest {config.rest:g} apart from reset value {v_reset:g}: SpikingJelly's v_reset is both; "
                "convert with --rest reset"
            )
    else:
        subtract = neuron.threshold if neuron.subtract is None else neuron.subtract
        if _uniform(name, "subtract", subtract) != threshold:
            raise ExportError(
                f"{name}: a spike subtracts {_uniform(name, 'subtract', subtract):g} and the threshold is "
                f"{threshold:g}: SpikingJelly's soft reset subtracts the threshold"
            )
        if config.rest != 0:
            raise ExportError(
                f"{name}: rest {config.rest:g} with a soft reset: SpikingJelly's then leaks to 0"
            )
    arguments = {
        "decay_input": config.decay_input,
        "v_threshold": threshold,
        "v_reset": v_reset,
        "surrogate_function": _surrogate(config.surrogate),
        "detach_reset": config.detach_reset,
    }
    if isinstance(config, PLIFConfig):
        arguments["init_tau"] = config.initial_tau
        return Call("neuron", "ParametricLIFNode", arguments), {"w": layer.get_parameter("w")}
    return Call("neuron", "LIFNode", {"tau": config.tau, **arguments}), {}


def _glif(
    name: str, config: GLIFConfig, layer: NeuronLayer, shape: tuple[int, ...]
) -> tuple[Call, dict[str, Tensor]]:
    if len(shape) != 3:
        raise ExportError(
            f"{name}: values of shape {shape}: SpikingJelly's GatedLIFNode is for maps [C, H, W] only"
        )
    if config.gates == "hard":
        raise ExportError(f"{name}: hard gates: SpikingJelly's GatedLIFNode has soft ones only")
    tensors: dict[str, Tensor] = {
        GLIF_NAMES.get(key, key): value for key, value in layer.named_parameters()
    }
    arguments = {
        "T": len(tensors["conduct"]),
        "inplane": layer.channels,
        "surrogate_function": _surrogate(config.surrogate),
    }
    return Call("neuron", "GatedLIFNode", arguments), tensors


def _integrator(
    name: str, config: IntegratorConfig, layer: NeuronLayer
) -> tuple[Call, dict[str, Tensor]]:
    neuron = layer.neuron()
    if not isinstance(neuron, Integrator) or neuron.threshold is None:
        raise ExportError(f"{name}: a layer that gives its potential: not written for SpikingJelly")
    if neuron.feedback_weight is not None:
        raise ExportError(f"{name}: feedback: not written for SpikingJelly")
    leak, gain, rest = (
        _uniform(name, key, getattr(neuron, key)) for key in ("leak", "gain", "rest")
    )
    threshold = _uniform(name, "threshold", neuron.threshold)
    v_reset = (
        None if neuron.reset_value is None else _uniform(name, "reset_value", neuron.reset_value)
    )
    if rest != (v_reset or 0.0):
        raise ExportError(
            f"{name}: rest {rest:g} apart from reset value: SpikingJelly's v_reset is both"
        )
    arguments = {
        "v_threshold": threshold,
        "v_reset": v_reset,
        "surrogate_function": _surrogate(config.surrogate),
    }
    if neuron.synapse_leak is not None and neuron.synapse_gain is not None:
        synapse_leak = _uniform(name, "synapse_leak", neuron.synapse_leak)
        if (gain, rest, _uniform(name, "synapse_gain", neuron.synapse_gain)) != (1, 0, 1):
            raise ExportError(f"{name}: a gain or rest: SpikingJelly's CUBALIFNode has neither")
        decays = {"c_decay": 1 - synapse_leak, "v_decay": 1 - leak}
        return Call("neuron", "CUBALIFNode", {**decays, **arguments}), {}
    if leak == 0 and gain == 1:
        return Call("neuron", "IFNode", arguments), {}
    if 0 < leak < 1 and gain in (1, leak):
        plain = {"tau": 1 / leak, "decay_input": gain == leak}
        return Call("neuron", "LIFNode", {**plain, **arguments}), {}
    raise ExportError(f"{name}: leak {leak:g} with gain {gain:g}: SpikingJelly has no such neuron")


def _uniform(name: str, what: str, value: Value) -> float:
    if not isinstance(value, Tensor):
        return float(value)
    first = value.detach().flatten()[0]
    if not bool((value == first).all()):
        raise ExportError(
            f"{name}: {what} differs from channel to channel: SpikingJelly has one for a layer"
        )
    return float(first)


def _surrogate(surrogate: Surrogate) -> Call:
    match surrogate:
        case Arctangent():
            return Call("surrogate", "ATan", {"alpha": surrogate.alpha})
        case Sigmoid():
            return Call("surrogate", "Sigmoid", {"alpha": surrogate.alpha})
        case Rectangle():  # their alpha is its height, our width its width
            return Call("surrogate", "Rect", {"alpha": 1 / surrogate.width})


def config_of(source: str, name: str, node: nn.Module) -> tuple[AnyNeuronConfig, dict[str, Tensor]]:
    """Our neuron for one of theirs, and the tensors of its layer. Raises ForeignModelError where there is none."""
    kind = type(node).__name__
    if not type(node).__module__.startswith("spikingjelly.") or kind not in _CONFIGS:
        raise ForeignModelError(
            f"{source}: layer {name!r}: type: {kind} is not understood; known are {', '.join(_CONFIGS)}"
        )
    make: Any = _CONFIGS[kind]
    try:
        return make(node)  # type: ignore[no-any-return]
    except (ValueError, AttributeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ForeignModelError(f"{source}: layer {name!r} ({kind}): {reason}") from error


def _reset(node: Any) -> dict[str, Any]:
    if node.v_reset is None:
        return {"reset": "soft"}
    return {"reset": "hard", "reset_value": float(node.v_reset), "rest": float(node.v_reset)}


def _common(node: Any) -> dict[str, Any]:
    return {
        "threshold": float(node.v_threshold),
        "surrogate": _our_surrogate(node.surrogate_function),
    }


def _our_surrogate(function: Any) -> Surrogate:
    """Ours where there is the same; else the rectangle, since no surrogate changes a spike."""
    match type(function).__name__:
        case "ATan":
            return Arctangent(alpha=float(function.alpha))
        case "Sigmoid":
            return Sigmoid(alpha=float(function.alpha))
        case "Rect":
            return Rectangle(width=1 / float(function.alpha))
        case _:
            return Rectangle()


def _from_lif(node: Any) -> tuple[LIFConfig, dict[str, Tensor]]:
    config = LIFConfig(
        tau=float(node.tau),
        decay_input=node.decay_input,
        detach_reset=node.detach_reset,
        **_common(node),
        **_reset(node),
    )
    return config, {}


def _from_plif(node: Any) -> tuple[PLIFConfig, dict[str, Tensor]]:
    w = node.w.detach()
    config = PLIFConfig(
        initial_tau=1 + float(torch.exp(-w.double())),
        decay_input=node.decay_input,
        detach_reset=node.detach_reset,
        **_common(node),
        **_reset(node),
    )
    return config, {"w": w}


def _from_clif(node: Any) -> tuple[CLIFConfig, dict[str, Tensor]]:
    return CLIFConfig(tau=float(node.tau), **_common(node)), {}


def _from_glif(node: Any) -> tuple[GLIFConfig, dict[str, Tensor]]:
    if node.alpha.dim() != 1:
        raise ValueError("inplane: parameters for a layer instead of its channels")
    theirs = {name: parameter.detach() for name, parameter in node.named_parameters()}
    ours = {value: key for key, value in GLIF_NAMES.items()}
    # Theirs fires at the threshold too.
    config = GLIFConfig(surrogate=_our_surrogate(node.surrogate_function))
    return config, {ours.get(name, name): tensor for name, tensor in theirs.items()}


def _from_if(node: Any) -> tuple[IntegratorConfig, dict[str, Tensor]]:
    return _to_integrator(node, {"leak": 0.0})


def _from_cuba(node: Any) -> tuple[IntegratorConfig, dict[str, Tensor]]:
    if node.v_reset not in (None, 0.0):
        raise ValueError(f"v_reset is {node.v_reset}: with a leak to 0, 0 is needed")
    constants = {
        "leak": 1 - float(node.v_decay),
        "synapse_leak": 1 - float(node.c_decay),
        "synapse_gain": 1.0,
    }
    return _to_integrator(node, constants)


def _to_integrator(
    node: Any, constants: dict[str, float]
) -> tuple[IntegratorConfig, dict[str, Tensor]]:
    soft = node.v_reset is None
    rest = 0.0 if soft else float(node.v_reset)
    values = {"gain": 1.0, "rest": rest, "threshold": float(node.v_threshold), **constants}
    if not soft:
        values["reset_value"] = rest
    config = IntegratorConfig(
        reset="soft" if soft else "hard",
        synapse="synapse_leak" in constants,
        surrogate=_our_surrogate(node.surrogate_function),
    )
    return config, {name: torch.tensor(value) for name, value in values.items()}


_CONFIGS = {
    "IFNode": _from_if,
    "LIFNode": _from_lif,
    "ParametricLIFNode": _from_plif,
    "ComplementaryLIFNode": _from_clif,
    "GatedLIFNode": _from_glif,
    "CUBALIFNode": _from_cuba,
}
