"""Files of the PLIF repository: pickled networks of classes that are not here, and their bare tensors."""

from __future__ import annotations

import math
import os
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers import Said, import_checkpoint
from spiketrain.importers.weights import read_file
from spiketrain.neurons import LIFConfig, PLIFConfig

T = 4


class Node(nn.Module):
    def __init__(self, tau: float = 2.0, v_threshold: float = 1.0, v_reset: Any = 0.0) -> None:
        super().__init__()
        self.v_threshold, self.v_reset, self.detach_reset = v_threshold, v_reset, True
        self.v: Any = v_reset or 0.0

    def leak(self) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        rest = self.v_reset or 0.0
        h = self.v + (x - (self.v - rest)) * self.leak()
        s = (h >= self.v_threshold).to(x.dtype)
        self.v = h - s * self.v_threshold if self.v_reset is None else (1 - s) * h + s * rest
        return s


class PLIFNode(Node):
    def __init__(self, tau: float = 2.0, **constants: Any) -> None:
        super().__init__(tau, **constants)
        self.w = nn.Parameter(torch.tensor(-math.log(tau - 1)))

    def leak(self) -> Any:
        return self.w.sigmoid()


class LIFNode(Node):
    def __init__(self, tau: float = 2.0, **constants: Any) -> None:
        super().__init__(tau, **constants)
        self.tau = tau

    def leak(self) -> Any:
        return 1 / self.tau


class Net(nn.Module):
    """Pictures with `static_conv`, which runs once; events without."""

    def __init__(self, conv: list[nn.Module], fc: list[nn.Module], static: Any = None) -> None:
        super().__init__()
        self.T, self.epoch, self.max_test_accuracy = T, 7, 0.9
        self.static_conv = static
        self.conv, self.fc = nn.Sequential(*conv), nn.Sequential(*fc)
        self.boost = nn.AvgPool1d(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, Node):
                module.v = module.v_reset or 0.0
        static = None if self.static_conv is None else self.static_conv(x)
        votes: Any = 0.0
        for t in range(T):
            s = self.fc(self.conv(x[t] if static is None else static))
            votes = votes + self.boost(s.unsqueeze(1)).squeeze(1)
        total: Tensor = votes
        return total


def conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]


def voters(features: int, hidden: int, node: Any, second_dropout: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(features, hidden, bias=False),
    ]
    layers += [node(), *([nn.Dropout(0.5)] if second_dropout else [])]
    return [*layers, nn.Linear(hidden, 100, bias=False), node()]


def fashion(node: Any, pool: Any, c: int = 8) -> Net:
    layers = [node(), pool(2, 2), *conv(c, c), node(), pool(2, 2)]
    return Net(layers, voters(c * 49, 32, node, True), nn.Sequential(*conv(1, c)))


def cifar(node: Any, pool: Any, c: int = 6) -> Net:
    layers: list[nn.Module] = [node()]
    for count in (2, 3):
        for _ in range(count):
            layers += [*conv(c, c), node()]
        layers.append(pool(2, 2))
    return Net(layers, voters(c * 64, 40, node, False), nn.Sequential(*conv(3, c)))


def events(node: Any, pool: Any, c: int = 8, layers: int = 2, side: int = 34) -> Net:
    modules: list[nn.Module] = []
    for i in range(layers):
        modules += [*conv(c if i else 2, c), node(), pool(2, 2)]
    features = c * (side >> layers) ** 2
    return Net(modules, voters(features, features // 4, node, True))


NETS = {
    "fashion-mnist": (fashion, (1, 28, 28), "plif-mnist"),
    "cifar10": (cifar, (3, 32, 32), "plif-cifar10"),
    "nmnist": (events, (T, 2, 34, 34), "plif-nmnist"),
}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file is written the classes are those of a module `models`, as the authors' are; later it is gone."""
    module: Any = types.ModuleType("models")
    monkeypatch.setitem(sys.modules, "models", module)
    for cls in (Net, PLIFNode, LIFNode):
        monkeypatch.setattr(cls, "__module__", "models")
        setattr(module, cls.__name__, cls)


def lively(name: str, node: Any, pool: Any, settle: Any) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = NETS[name]
    x = torch.randn(2, *shape) if len(shape) == 3 else torch.rand(shape[0], 2, *shape[1:]) * 3
    network = make(node, pool)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            spread = 3 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -spread, 1.3 * spread)
        if isinstance(module, PLIFNode):
            nn.init.uniform_(module.w, -0.5, 1.5)
    settle(network, lambda: network(x))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 3
    network(x)
    return network, x


def votes(logits: Tensor) -> Tensor:
    """The authors add up the votes of the timesteps."""
    return logits.sum(0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_bare_tensors(settle: Any, same_logits: Any, name: str, pool: Any) -> None:
    network, x = lively(name, PLIFNode, pool, settle)
    content = {"net": network.state_dict(), "optimizer": {}}
    network.double()
    pooling: Any = "max" if pool is nn.MaxPool2d else "average"
    said = Said("plif", timesteps=T, data_set=name, pooling=pooling)
    checkpoint = same_logits(
        content, "plif", said, x.double(), lambda: network(x.double()), answers=votes
    )
    assert checkpoint.manifest.network.name == NETS[name][2]
    assert checkpoint.manifest.network.arguments["pooling"] == pooling
    assert checkpoint.manifest.neuron == PLIFConfig()


@pytest.mark.parametrize("node", [PLIFNode, LIFNode])
@pytest.mark.usefixtures("models")
def test_a_pickled_network_says_more_and_runs_nothing(
    settle: Any, tmp_path: Path, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Node:
        built: Node = node(1.5, v_threshold=0.75, v_reset=-0.1)
        return built

    network, x = lively("fashion-mnist", make, nn.AvgPool2d, settle)
    path = tmp_path / "check_point_max.pt"
    optimizer = torch.optim.Adam(network.parameters())
    torch.save(
        {"net": network, "optimizer": optimizer.state_dict(), "log_data_list": [1, 2.5]}, path
    )
    monkeypatch.delitem(sys.modules, "models")
    said = {"data_set": "fashion-mnist"}
    with pytest.raises(ForeignModelError, match=r"a pickled network.*--pickled-module"):
        import_checkpoint(path, "plif", Said("x", **said))
    for cls in (Net, PLIFNode, LIFNode):  # nothing of a class is called, however it is found
        monkeypatch.setattr(cls, "__init__", _never)
        monkeypatch.setattr(cls, "__setstate__", _never)
    checkpoint = import_checkpoint(path, "plif", Said("x", **said, pickled_module=True))
    assert "models" not in sys.modules
    assert checkpoint.manifest.timesteps == T
    assert checkpoint.manifest.network.arguments["pooling"] == "average"
    expected: dict[str, Any] = {"threshold": 0.75, "reset_value": -0.1, "rest": -0.1}
    if node is LIFNode:
        config: Any = LIFConfig(
            tau=1.5, reset="hard", decay_input=True, detach_reset=True, **expected
        )
        assert checkpoint.manifest.neuron == config.model_copy(
            update={"surrogate": PLIFConfig().surrogate}
        )
    else:
        assert checkpoint.manifest.neuron == PLIFConfig(**expected)
    network.double()
    with torch.no_grad():
        logits = checkpoint.network().double()(x.double(), T).logits
        torch.testing.assert_close(logits.sum(0), network(x.double()))
    assert logits.std() > 1e-3


def _never(*_: object, **__: object) -> None:
    raise AssertionError("code of the pickled network was run")


class Harmful:
    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("pickled_module", [False, True])
@pytest.mark.parametrize("function", [os.system, exec, os.mkdir])
def test_a_file_that_would_do_something_does_nothing(
    tmp_path: Path, function: Any, pickled_module: bool
) -> None:
    made = tmp_path / "made"
    text = {os.system: f"touch {made}", exec: f"open({str(made)!r}, 'w')", os.mkdir: str(made)}
    content = {"net": {"fc.2.weight": torch.ones(2, 2)}, "more": Harmful(function, text[function])}
    torch.save(content, tmp_path / "x.pt")
    refused = not pickled_module or function is not exec
    with pytest.raises(ForeignModelError, match="refused") if refused else nullcontext():
        read_file(tmp_path / "x.pt", pickled_module)
    assert not made.exists()


@pytest.mark.usefixtures("models")
def test_a_pickled_network_of_an_old_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.warns(UserWarning, match="retrieve source code"):
        torch.save(
            {"net": fashion(PLIFNode, nn.MaxPool2d)}, path, _use_new_zipfile_serialization=False
        )
    for pickled_module in (False, True):
        with pytest.raises(ForeignModelError, match=r"before 1\.6.*save net\.state_dict"):
            read_file(path, pickled_module)


def test_refusals_name_the_key_or_the_option(tmp_path: Path) -> None:
    state = fashion(PLIFNode, nn.MaxPool2d).state_dict()

    def refused(changes: dict[str, Any], **said: Any) -> str:
        changed = {k: v for k, v in (state | changes).items() if v is not None}
        torch.save({"net": changed}, tmp_path / "x.pt")
        with pytest.raises(ForeignModelError) as error:
            import_checkpoint(tmp_path / "x.pt", "plif", Said("x", **said))
        return str(error.value)

    said: dict[str, Any] = {"data_set": "fashion-mnist", "timesteps": 4, "pooling": "max"}
    assert "--pooling: max or average" in refused({}, **said | {"pooling": None})
    assert "1 tensors" in refused({"conv.0.w": None}, **said)
    assert "'conv.3.running_var' is missing" in refused({"conv.3.running_var": None}, **said)
    assert "'fc.5.weight': 95 voters" in refused({"fc.5.weight": torch.ones(95, 32)}, **said)
    shape = refused({}, **said | {"data_set": "cifar10"})
    assert "'static_conv.0.weight' has shape (8, 1, 3, 3)" in shape
    lif = {key: None for key in state if key.endswith(".w")}
    assert "--tau: the time constant of the LIF" in refused(lif, **said)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a file of torch", "refused|damaged"),
        (b"", "damaged"),
        ({}, "no state_dict"),
        ([1, 2], "no state_dict"),
        ({"net": {"a": 1.0}}, "'a': is no tensor"),
        ({"net": {}}, "no tensors"),
        ({"net": {3: torch.ones(1)}}, "3: is no tensor"),
        ({"net": {"a": torch.ones(1).expand(1 << 40)}}, "'a': more than the limit"),
        ({"net": {"a": torch.ones(2, 2).to_sparse()}}, "'a': is no plain tensor"),
        ({"net": {"a": torch.ones(2, device="meta")}}, "'a': is no plain tensor"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ForeignModelError, match=message):
        read_file(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"net": {"a": torch.arange(20.0)}}, path)
    whole = path.read_bytes()
    assert read_file(path).tensors["a"].tolist() == list(range(20))
    for size in range(0, len(whole), 37):
        path.write_bytes(whole[:size])
        with pytest.raises(ForeignModelError, match=r"x\.pt: "):
            read_file(path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none.pt")
