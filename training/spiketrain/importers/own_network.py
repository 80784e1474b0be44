"""SpikingJelly weights in a network that the user's own Python code builds.

That code is the user's and is run because the user names it; of the file with the weights only tensors are read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.graph_builder import About, ForeignModelError
from spiketrain.convert.spikingjelly_import import (
    from_spikingjelly,
    present_names,
    read_state_dict,
)


def from_own_network(weights: Path, network: str, about: About) -> Checkpoint:
    """`network` is FILE.py:NAME; NAME() must give a module that these weights fit, all of them.

    Raises ForeignModelError for a name that is not there, gives no module, or does not take the weights, naming the key.
    """
    module = _built(network)
    state = read_state_dict(weights)
    own = module.state_dict()
    expected = {new: own[old] for old, new in present_names(own).items()}
    for key in sorted(expected.keys() | state.keys()):
        if key not in state:
            raise ForeignModelError(f"{weights}: {key!r} is missing, which {network} has")
        if key not in expected:
            raise ForeignModelError(f"{weights}: {key!r} belongs to no layer of {network}")
        if expected[key].shape != state[key].shape:
            raise ForeignModelError(
                f"{weights}: {key!r} has shape {tuple(state[key].shape)}, {network} needs {tuple(expected[key].shape)}"
            )
        expected[key].copy_(state[key])
    return from_spikingjelly(module, about, str(weights))


def _built(network: str) -> nn.Module:
    place, _, name = network.rpartition(":")
    path = Path(place)
    if path.suffix != ".py" or not path.is_file() or not name.isidentifier():
        raise ForeignModelError(
            f"--network {network!r}: FILE.py:NAME is needed, with a file that is there"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ForeignModelError(f"--network {network!r}: cannot be read as Python")
    code: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    if not callable(make := getattr(code, name, None)):
        raise ForeignModelError(f"--network {network!r}: {path} has nothing to call named {name!r}")
    module = make()
    if not isinstance(module, nn.Module):
        raise ForeignModelError(f"--network {network!r}: gives {type(module).__name__}, no module")
    return module
