"""Files of the GLIF repository, from networks built here under the names that its state dicts have."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers import Said, import_checkpoint
from spiketrain.manifest import EventInput, ImageInput, NumberWindow

T = 2
GATES = ("alpha", "beta", "gamma", "tau", "Vth", "leak", "reVth")


class Folded(nn.Sequential):
    """Layers of one timestep over [T, N, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x.flatten(0, 1))
        return y.unflatten(0, x.shape[:2])


class Tdbn(nn.BatchNorm2d):
    def __init__(self, channels: int, alpha: float = 1.0) -> None:
        super().__init__(channels)
        self.alpha = alpha
        self.register_buffer("Vth", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            mean, var = self.running_mean, self.running_var
        else:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self.running_mean, self.running_var = mean, var
        by = (1, -1, 1, 1)
        y = self.alpha * self.Vth * (x - mean.view(by)) / (var.view(by) + 1e-5).sqrt()
        return y * self.weight.view(by) + self.bias.view(by)


class Gated(nn.Module):
    """Channel-wise, or with `channels` None layer-wise; stateless between calls."""

    def __init__(self, channels: int | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        size = () if channels is None else (channels,)
        for name in GATES:
            low, high = (-1.5, -0.5) if name in ("leak", "Vth", "reVth") else (-1.0, 1.0)
            value = torch.empty(size, dtype=dtype).uniform_(low, high)
            setattr(self, name, nn.Parameter(value))
        self.conduct = nn.Parameter(torch.empty((T, *size)).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        def value(name: str) -> Tensor:
            p = getattr(self, name).sigmoid()
            return p if p.dim() == 0 else p.view(1, -1, 1, 1)

        a, b, g, tau, threshold, leak, back = (value(name) for name in GATES)
        u = o = torch.zeros_like(x[0])
        spikes = []
        for t, current in enumerate(x):
            c = self.conduct[t].sigmoid()
            c = c if c.dim() == 0 else c.view(1, -1, 1, 1)
            decayed = (1 - a * (1 - tau)) * u * (1 - g * o)
            u = decayed - (1 - a) * leak + current * (1 - b * (1 - c)) - (1 - g) * back * o
            o = (u > threshold).to(x.dtype)
            spikes.append(o)
        return torch.stack(spikes)


Neuron = Callable[[int], Gated]
Norm = Callable[..., nn.Module]


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int, neuron: Neuron, norm: Norm, ms: bool) -> None:
        super().__init__()
        half = 1 / math.sqrt(2)
        first = Folded(conv(i, o, stride), norm(o))
        second = Folded(conv(o, o), norm(o, half))
        if ms:
            self.body = nn.Sequential(neuron(i), first, neuron(o), second)
        else:
            self.body = nn.Sequential(first, neuron(o), second)
            self.lif = neuron(o)
        shortcut = norm(o, half)
        if stride != 1 or i != o:
            shortcut = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), shortcut)
        self.downsample = Folded(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.downsample(x)
        return self.lif(y) if hasattr(self, "lif") else y


class ResNet(nn.Module):
    def __init__(
        self,
        counts: tuple[int, ...],
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        neuron: Neuron = Gated,
        norm: Norm = Tdbn,
        ms: bool = False,
        hidden: bool | None = None,
    ) -> None:
        super().__init__()
        stem = nn.Conv2d(3, widths[0], 7, 2, 1, bias=False) if ms else conv(3, widths[0])
        self.conv1 = nn.Sequential(Folded(stem, norm(widths[0])), neuron(widths[0]))
        self.features = nn.ModuleList()
        inputs = widths[0]
        for count, width, stride in zip(counts, widths, strides, strict=True):
            for i in range(count):
                self.features.append(Block(inputs, width, 1 if i else stride, neuron, norm, ms))
                inputs = width
        heads = (
            [nn.Linear(inputs, 256, bias=False), nn.Linear(256, classes, bias=False)]
            if (classes <= 50 if hidden is None else hidden)
            else [nn.Linear(inputs, classes, bias=False)]
        )
        self.lastave = Folded(*heads)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x.expand(T, *x.shape))
        for block in self.features:
            x = block(x)
        y: Tensor = self.lastave(x.mean((3, 4)))
        return y.mean(0)


class Sew(nn.Module):
    def __init__(self, width: int, neuron: Neuron) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(unit(width, width, 3, neuron) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + x


def unit(inputs: int, outputs: int, kernel: int, neuron: Neuron) -> nn.Sequential:
    layers = Folded(conv(inputs, outputs, 1, kernel), nn.BatchNorm2d(outputs))
    return nn.Sequential(layers, neuron(outputs))


class Wide(nn.Module):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        modules: list[nn.Module] = [unit(2, 64, 1, neuron)]
        modules += [Sew(64, neuron) for _ in range(4)]
        modules += [Folded(nn.AvgPool2d(2)), unit(64, 128, 1, neuron)]
        for _ in range(3):
            modules += [Sew(128, neuron), Folded(nn.AvgPool2d(2))]
        self.conv = nn.Sequential(*modules)
        self.out = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.conv(x).flatten(2).mean(0))
        return y


def mean(logits: Tensor) -> Tensor:
    return logits.mean(0)


EIGHTEEN = ((2, 2, 2, 2), (64, 128, 256, 512))
SIZES: dict[str, Any] = {
    "tdbn-resnet18": (*EIGHTEEN, (1, 1, 2, 2), 10),
    "tdbn-resnet19": ((3, 3, 2), (128, 256, 512), (1, 2, 2), 60),
    "ms-resnet18": (*EIGHTEEN, (2, 2, 2, 2), 1000),
}


def picture(side: int) -> ImageInput:
    return ImageInput(shape=(3, side, side), mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "prefix", "neuron", "norm"),
    [
        ("tdbn-resnet18", "", Gated, Tdbn),
        ("tdbn-resnet18", "module.", lambda _: Gated(None), Tdbn),
        ("tdbn-resnet19", "", Gated, Tdbn),
        # Several GPUs: plain batch norms, and a prefix.
        ("ms-resnet18", "module.", Gated, lambda channels, _=1.0: nn.BatchNorm2d(channels)),
        ("ms-resnet18", "", Gated, Tdbn),
    ],
)
def test_resnets(
    settle: Any, same_logits: Any, name: str, prefix: str, neuron: Neuron, norm: Norm
) -> None:
    torch.manual_seed(1)
    ms = name.startswith("ms")
    layerwise = neuron(1).alpha.dim() == 0  # has one linear layer in "stand" ResNet-18
    network = ResNet(*SIZES[name], neuron, norm, ms, False if layerwise else None)
    side = 64 if ms else 16
    x = torch.randn(2, 3, side, side)
    settle(network, lambda: network(x))
    content = {"state_dict": {f"{prefix}{k}": v for k, v in network.state_dict().items()}}
    network.double()
    classes = [str(i) for i in range(SIZES[name][3])]
    checkpoint = same_logits(
        content,
        "glif",
        Said("glif", input=picture(side), classes=classes),
        x.double(),
        lambda: network(x.double()),
        file="resCifar18stand-CIFAR10-step2-CW.pth.tar",
        answers=mean,
    )
    assert checkpoint.manifest.network.name == name
    assert checkpoint.manifest.timesteps == T


def test_the_wide_network_with_gates_in_float64(settle: Any, same_logits: Any) -> None:
    torch.manual_seed(0)
    network = Wide(lambda channels: Gated(channels, torch.float64))
    x = torch.rand(T, 2, 2, 16, 16)
    settle(network.double(), lambda: network(x.double()))
    content = {"net": network.state_dict(), "epoch": 168, "max_test_acc": 0.781}
    # Here the file itself is in float64, and the import is not.
    network.float().double()
    seen = EventInput(sensor=(16, 16), shape=(2, 16, 16), window=NumberWindow(windows=T))
    checkpoint = same_logits(
        {**content, "net": {k: v.clone() for k, v in content["net"].items()}},
        "glif",
        Said("wide", input=seen, classes="abcdefghij"),
        x.double(),
        lambda: network(x.double()),
        answers=mean,
    )
    assert checkpoint.manifest.network.name == "sew-7b-wide"
    assert all(t.dtype != torch.float64 for t in checkpoint.tensors.values())


def test_a_run_is_bound_to_its_timesteps(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    with torch.device("meta"):
        names = ResNet(*SIZES["tdbn-resnet18"]).state_dict()
    # One number, repeated: as large as it looks only in memory.
    state = {key: torch.ones(()).expand(like.shape) for key, like in names.items()}
    said = {"data_set": "cifar10"}

    def refused(changes: dict[str, Any], **more: Any) -> str:
        torch.save(
            {"state_dict": {k: v for k, v in (state | changes).items() if v is not None}}, path
        )
        with pytest.raises(ForeignModelError) as error:
            import_checkpoint(path, "glif", Said("x", **said | more))
        return str(error.value)

    assert "was trained with 2" in refused({}, timesteps=4)
    assert "'conduct' of 2, 3 timesteps" in refused({"conv1.1.conduct": torch.zeros(3, 64)})
    assert "'features.3.lif.Vth' is missing" in refused({"features.3.lif.Vth": None})
    gate = refused({"features.3.lif.Vth": torch.zeros(7)})
    assert "'features.3.lif.Vth' has shape (7,)" in gate
    norm = refused({"conv1.0.1.Vth": torch.ones(64)})
    assert "'conv1.0.1.Vth' has shape (64,)" in norm
    wide = refused({"features.1.body.2.0.weight": torch.zeros(65, 64, 3, 3)})
    assert "blocks of 64, 65, 128" in wide
    none = {key: None for key in state if key.endswith("conduct")}
    assert "'conduct' of no timesteps" in refused(none)


def test_names_of_early_containers(tmp_path: Path) -> None:
    state = ResNet(*SIZES["tdbn-resnet18"]).state_dict()
    old = {
        k.replace("conv1.0.", "conv1.0.module.") if k.startswith("conv1.0.") else k: v
        for k, v in state.items()
    }
    torch.save({"state_dict": old}, tmp_path / "x.pth.tar")
    said = Said("x", data_set="cifar10")
    assert import_checkpoint(tmp_path / "x.pth.tar", "glif", said).manifest.timesteps == T
