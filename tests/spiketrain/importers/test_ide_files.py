"""Files of the IDE-FSNN repository, whose tensors are there several times and whose feedback weight is in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers import Said, import_checkpoint
from spiketrain.manifest import ImageInput

T = 12


class Part(nn.Module):
    """A layer and its batch norm under the repository's names; `spectral` is the feedback."""

    def __init__(self, kind: str, layer: nn.Module, norm: nn.Module | None, spectral: bool) -> None:
        super().__init__()
        self.kind = kind
        setattr(self, kind, layer)
        if norm is not None:
            self.bn = norm
        if spectral:
            weight = layer.weight.data
            del layer._parameters["weight"]
            matrix = weight.flatten(1)
            layer.weight_g = nn.Parameter(torch.tensor(0.9))
            layer.weight_w = nn.Parameter(weight)
            u = torch.randn(len(matrix))
            for _ in range(10):
                v = normalize(matrix.T @ u, dim=0)
                u = normalize(matrix @ v, dim=0)
            layer.register_buffer("weight_u", u)
            layer.register_buffer("weight_v", v)

    def reset(self) -> None:
        """One step of the power iteration, as at the start of every batch there, in evaluation too."""
        layer: Any = getattr(self, self.kind)
        if hasattr(layer, "weight_w"):
            matrix = layer.weight_w.flatten(1)
            layer.weight_v = normalize(matrix.T @ layer.weight_u, dim=0)
            layer.weight_u = normalize(matrix @ layer.weight_v, dim=0)
            sigma = layer.weight_u @ matrix @ layer.weight_v
            layer.weight = layer.weight_g.clamp(-1, 1) * layer.weight_w / sigma

    def forward(self, x: Tensor) -> Tensor:
        layer = getattr(self, self.kind)
        x = layer(x.flatten(1) if self.kind == "fc" else x)
        return self.bn(x) if hasattr(self, "bn") else x


class Copies(nn.Module):
    """Registers what it is given once more, under other names."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class Network(nn.Module):
    def __init__(self, first: Part, rest: list[Part], features: int, lam: float | None) -> None:
        super().__init__()
        self.network_x = first
        names = ["network_s"] if len(rest) == 1 else [f"network_s{i + 1}" for i in range(len(rest))]
        for name, part in zip(names, rest, strict=True):
            setattr(self, name, part)
        parts = dict(zip(names, rest, strict=True))
        self.snn_func = Copies(network_x=first, **parts)
        inner = Copies(network_x=first, **parts)
        self.snn_ide_conv = Copies(snn_func=inner, snn_func_copy=inner)
        self.classifier = nn.Linear(features, 10)
        self.parts, self.lam = rest, lam

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            part.reset()
        encoded, feedback = self.network_x(x), self.parts[-1]
        u: list[Any] = [0.0] * len(self.parts)
        s: list[Tensor] = []
        total: Any = 0.0
        keep = 1.0 if self.lam is None else self.lam
        for t in range(T):
            current = encoded + (feedback(s[-1]) if t else 0.0)
            s = []
            for i in range(len(self.parts)):
                u[i] = u[i] + (current if i == 0 else self.parts[i - 1](s[-1]))
                s.append((u[i] >= 2).to(x.dtype))
                u[i] = (u[i] - 2 * s[-1]) * keep
            total = total * keep + s[-1]
        weight = T if self.lam is None else (1 - keep**T) / (1 - keep)
        y: Tensor = self.classifier((total / weight).flatten(1))
        return y


def f400(lam: float | None) -> Network:
    first = Part("fc", nn.Linear(784, 400), nn.BatchNorm1d(400), False)
    return Network(first, [Part("fc", nn.Linear(400, 400, bias=False), None, True)], 400, lam)


def c64(lam: float | None, inputs: int = 1, padding: int = 2, side: int = 14) -> Network:
    first = Part("conv", nn.Conv2d(inputs, 64, 5, 2, padding), nn.BatchNorm2d(64), False)
    back = Part("conv", nn.Conv2d(64, 64, 5, 1, 2, bias=False), None, True)
    return Network(first, [back], 64 * side * side, lam)


def stack(lam: float | None, widths: tuple[int, ...], side: int) -> Network:
    parts = []
    inputs = 3
    for width, stride in zip(widths, (2, 1, 2, 1, 1), strict=True):
        layer = nn.Conv2d(inputs, width, 3, stride, 1)
        parts.append(Part("conv", layer, nn.BatchNorm2d(width), False))
        inputs = width
    back = nn.ConvTranspose2d(inputs, widths[0], 3, 2, 1, 1, bias=False)
    rest = [*parts[1:], Part("convT", back, None, True)]
    return Network(parts[0], rest, widths[-1] * (side // 4) ** 2, lam)


ALEX = (96, 256, 384, 384, 256)
NETWORKS: list[tuple[str, Network, tuple[int, ...], Any, int]] = [
    ("feedback-f400", f400(None), (1, 28, 28), "fashion-mnist", 6),
    ("feedback-f400", f400(0.95), (1, 28, 28), "fashion-mnist", 6),
    ("feedback-64c5s", c64(0.95), (1, 28, 28), "mnist", 6),
    ("feedback-alexnet", stack(0.99, ALEX, 32), (3, 32, 32), "cifar10", 1),
    ("feedback-alexnet", stack(None, (4, 6, 8, 8, 6), 16), (3, 16, 16), None, 4),
]


def lively(network: Network, x: Tensor, settle: Any) -> None:
    settle(network, lambda: network(x))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.bias.data += 1.0
    with torch.no_grad():
        network(x)


@pytest.mark.parametrize(("name", "network", "shape", "data_set", "batch"), NETWORKS)
def test_networks(
    settle: Any,
    same_logits: Any,
    name: str,
    network: Network,
    shape: tuple[int, ...],
    data_set: str | None,
    batch: int,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, *shape)
    lively(network, x, settle)
    content = {
        "epoch": 100,
        "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()},
        "acc": 90.14,
        "best_acc": 90.25,
        "optimizer": torch.optim.SGD(network.parameters(), 0.05).state_dict(),
    }
    network.double()
    seen = ImageInput(shape=shape, mean=(0.0,) * shape[0], std=(1.0,) * shape[0])  # type: ignore[arg-type]
    said = Said(
        "ide",
        timesteps=T,
        keep=network.lam or 1.0,
        data_set=data_set,
        input=None if data_set else seen,
        classes=None if data_set else "abcdefghij",
    )
    checkpoint = same_logits(
        content,
        "ide",
        said,
        x.double(),
        lambda: network(x.double()),
        file="model_best.pth.tar",
        answers=lambda logits: logits[-1],
    )
    manifest = checkpoint.manifest
    assert manifest.network.name == name
    assert manifest.readout == "last"
    assert manifest.conversion.arguments["said by the file"]["best_acc"] == 90.25
    if data_set == "fashion-mnist":  # which these authors normalise as MNIST
        assert manifest.input.mean == (0.1307,)
    network.float()


@pytest.mark.parametrize(("padding", "side"), [(1, 16), (2, 17)])
def test_both_paddings_for_nmnist(tmp_path: Path, padding: int, side: int) -> None:
    state = c64(0.95, 2, padding, side).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "x.pth.tar")
    from spiketrain.manifest import DurationWindow, EventInput

    window = DurationWindow(microseconds=1000)
    seen = EventInput(sensor=(34, 34), shape=(2, 34, 34), window=window, clip=1)
    said = Said("n", timesteps=30, keep=0.95, input=seen, classes="0123456789")
    checkpoint = import_checkpoint(tmp_path / "x.pth.tar", "ide", said)
    assert checkpoint.manifest.network.arguments["padding"] == padding


def test_refusals_name_the_key_or_the_option(tmp_path: Path) -> None:
    state = {f"module.{k}": v for k, v in f400(None).state_dict().items()}

    def refused(changes: dict[str, Any], **said: Any) -> str:
        changed = {k: v for k, v in (state | changes).items() if v is not None}
        torch.save({"state_dict": changed}, tmp_path / "x.pth.tar")
        with pytest.raises(ForeignModelError) as error:
            import_checkpoint(tmp_path / "x.pth.tar", "ide", Said("x", **said))
        return str(error.value)

    said: dict[str, Any] = {"data_set": "fashion-mnist", "keep": 1.0, "timesteps": 5}
    assert "--keep: what neurons keep" in refused({}, data_set="mnist")
    assert "neuron: keep: " in refused({}, **said | {"keep": 0.0})
    assert "'network_s.fc.weight_g' is missing" in refused(
        {"module.network_s.fc.weight_g": None}, **said
    )
    assert "'network_s.fc.weight_u' has shape (3,)" in refused(
        {"module.network_s.fc.weight_u": torch.ones(3)}, **said
    )
    gain = refused({"module.network_s.fc.weight_g": torch.ones(2)}, **said)
    assert "'network_s.fc.weight_g' has shape (2,)" in gain
    flat = refused({"module.network_s.fc.weight_w": torch.ones(4)}, **said)
    assert "'network_s.fc.weight_w' has shape (4,)" in flat
    whole = refused({"module.network_x.fc.weight": torch.ones(4, 4, dtype=torch.long)}, **said)
    assert "type torch.int64: 2 axes of floating-point" in whole
    assert "'network_x.fc.weight' has shape (400, 784)" in refused(
        {}, **said | {"data_set": "cifar10"}
    )
    x = {key: None for key in state if "network_x" in key}
    assert "no network of the IDE-FSNN repository" in refused(x, **said)
