"""What the CLIF and ILIF repositories write about a run beside its checkpoints: `args.txt`, and the folder's name.

    train_cifar10_spiking_resnet18__T6_tau2.0_e200_bs128_SGD_lr0.1_wd5e-05_SG_rectangle_drop0.0_losslamb0.05..._CLIF_CosALR_200_amp

A name without a neuron is one of LIF; older names say LTLIF for CLIF. args.txt begins with argparse's
`Namespace(T=6, tau=2.0, ...)` and says the same more fully, so it goes first.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DATA_SETS = {
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "tiny_imagenet": "tiny-imagenet",
    "DVSCIFAR10": "cifar10-dvs",
    "DVSCIFAR10-pt": "cifar10-dvs",
    "dvsgesture": "dvs-gesture",
}
_NEURONS = {"LIF": "lif", "CLIF": "clif", "LTLIF": "clif", "ILIF": "ilif", "PLIF": "plif"}
_MAX_TEXT = 1 << 16
# Names the numbers' tokens; each is there once, and their order has changed over time.
_TOKENS = {"T": r"_T(\d+)(?=_|$)", "tau": r"_tau(\d+(?:\.\d+)?)", "drop": r"_drop(\d+(?:\.\d+)?)"}


@dataclass(frozen=True)
class RunName:
    """None for what is not said. `neuron` and `data_set` are our names; unknown ones are as the authors wrote them."""

    timesteps: int | None = None
    tau: float | None = None
    neuron: str | None = None
    data_set: str | None = None
    dropout: float | None = None


def read_run(checkpoint: Path) -> RunName:
    """From the folder that the checkpoint lies in."""
    arguments = checkpoint.parent / "args.txt"
    if arguments.is_file():
        with arguments.open(encoding="utf-8", errors="replace") as file:
            said = _namespace(file.readline(_MAX_TEXT))
        if said is not None:
            return said
    return parse_name(checkpoint.resolve().parent.name)


def parse_name(name: str) -> RunName:
    found = {key: re.search(pattern, name) for key, pattern in _TOKENS.items()}
    steps, tau, drop = found["T"], found["tau"], found["drop"]
    if steps is None or tau is None:
        return RunName()  # some other folder
    neuron = re.search(r"_(CLIF|LTLIF|ILIF|PLIF|relu)_", name[tau.end() :] + "_")
    data = re.match(
        r"(?:train_)?(cifar100|cifar10|tiny_imagenet|DVSCIFAR10-pt|DVSCIFAR10|dvsgesture)_", name
    )
    return RunName(
        timesteps=int(steps[1]),
        tau=float(tau[1]),
        neuron=_NEURONS.get(neuron[1], neuron[1]) if neuron else "lif",
        data_set=_DATA_SETS[data[1]] if data else None,
        dropout=float(drop[1]) if drop else None,
    )


def _namespace(line: str) -> RunName | None:
    """The call is parsed, not run, and its arguments are literals."""
    try:
        call = ast.parse(line.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "Namespace":
            return None
        said: dict[str, Any] = {k.arg or "": ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    neuron, data = said.get("neuron_model"), said.get("dataset")
    return RunName(
        timesteps=said["T"] if isinstance(said.get("T"), int) else None,
        tau=float(said["tau"]) if isinstance(said.get("tau"), int | float) else None,
        neuron=_NEURONS.get(neuron, neuron) if isinstance(neuron, str) else None,
        data_set=_DATA_SETS.get(data, data) if isinstance(data, str) else None,
        dropout=float(said["drop_rate"])
        if isinstance(said.get("drop_rate"), int | float)
        else None,
    )
