"""Files of the CLIF and ILIF repositories, from networks built here layer by layer under the names that those have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.convert.graph_builder import ForeignModelError
from spiketrain.importers import Said, import_checkpoint
from spiketrain.importers.run_name import parse_name, read_run
from spiketrain.neurons import CLIFConfig, ILIFConfig, LIFConfig, PLIFConfig

RUN = (
    "train_{data}_{model}__T{T}_tau2.0_e200_bs128_SGD_lr0.1_wd5e-05_SG_rectangle_drop0.0_losslamb0.05"
    "_labelsmoothing0.0{neuron}CosALR_200_amp"
)


class Node(nn.Module):
    """One neuron of these repositories, stepped once a call, with tau 2 and threshold 1."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "PLIF":
            self.w = nn.Parameter(torch.tensor(0.4))
        self.memory: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        old = self.memory or dict.fromkeys(("v", "m", "i", "x", "s"), zero)
        keep = 1 - self.w.sigmoid() if self.kind == "PLIF" else 0.5
        h = keep * old["v"] + x
        i = zero
        if self.kind == "ILIF":
            i = 0.03 * (old["i"] + old["x"] * old["s"])
            h = h - i.clamp(min=0)
        s = (h >= 1).to(x.dtype)
        v, m = h - s, old["m"]
        if self.kind == "CLIF":
            m = old["m"] * (h / 2).sigmoid() + s
            v = v - s * m.sigmoid()
        if self.kind == "ILIF":
            m = old["m"] + s * v
            v = v - s * m.sigmoid()
        self.memory = {"v": v, "m": m, "i": i, "x": x, "s": s}
        return s


class Block(nn.Module):
    def __init__(self, kind: str, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), Node(kind)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), Node(kind)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Sequential() if same else nn.Conv2d(inputs, outputs, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(x))
        y: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(x))))
        return y + self.shortcut(x)


class ResNet18(nn.Module):
    def __init__(self, kind: str, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        inputs = 64
        for stage, width in enumerate((64, 128, 256, 512), 1):
            first = Block(kind, inputs, width, 1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", nn.Sequential(first, Block(kind, width, width, 1)))
            inputs = width
        self.bn1, self.relu1 = nn.BatchNorm2d(512), Node(kind)
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        x = nn.functional.avg_pool2d(self.relu1(self.bn1(x)), 4)
        y: Tensor = self.linear(x.flatten(1))
        return y


class VGG(nn.Module):
    def __init__(self, kind: str, plan: Any, channels: int, classes: int) -> None:
        super().__init__()
        for stage, widths in enumerate(plan, 1):
            modules: list[nn.Module] = []
            for width in widths:
                modules += [nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width)]
                modules += [Node(kind), nn.Dropout(0.0)]
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*modules, nn.AvgPool2d(2)))
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512 * 49, classes))

    def forward(self, x: Tensor) -> Tensor:
        for stage in range(1, 6):
            x = getattr(self, f"layer{stage}")(x)
        y: Tensor = self.classifier(self.avgpool(x))
        return y


class Layer(nn.Module):
    def __init__(
        self, kind: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, 1)
        self.fwd = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        self.act = Node(kind)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.fwd(x))
        return y


class VGGSNN(nn.Module):
    """One pooling, which is there four times."""

    def __init__(self, kind: str, plan: Any, channels: int, classes: int) -> None:
        super().__init__()
        pool = nn.Sequential(nn.AvgPool2d(2))
        modules: list[nn.Module] = []
        for widths in plan:
            for width in widths:
                modules.append(Layer(kind, channels, width))
                channels = width
            modules.append(pool)
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


class FiveLayers(nn.Module):
    """`plan`: channels, kernel and stride, or "M" for the one pooling."""

    def __init__(self, kind: str, plan: Any, channels: int, classes: int) -> None:
        super().__init__()
        pool = nn.Sequential(nn.AvgPool2d(2))
        modules: list[nn.Module] = []
        for entry in plan:
            modules.append(pool if entry == "M" else Layer(kind, channels, *entry))
            channels = channels if entry == "M" else entry[0]
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.features(x).flatten(1))
        return y


SNN5 = ((16, 3), (64, 5), "M", (128, 5), "M", (256, 5), "M", (512, 3), "M")
NO_AP = ((16, 3), (64, 5, 2), (128, 5, 2), (256, 5, 4), (256, 3, 2))
SNN = ((64, 128), (256, 256), (512, 512), (512, 512))
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG13 = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))


def run(network: nn.Module, frames: Tensor) -> Tensor:
    for module in network.modules():
        if isinstance(module, Node):
            module.memory = {}
    return torch.stack([network(frame) for frame in frames])


def saved(network: nn.Module) -> dict[str, Any]:
    """As train.py writes it, with the states of optimiser and scheduler."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    return {
        "net": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 187,
        "max_test_acc": 0.9541,
    }


@pytest.mark.parametrize(
    ("kind", "token", "config"),
    [
        ("CLIF", "_CLIF_", CLIFConfig()),
        ("ILIF", "_ILIF_", ILIFConfig()),
        ("LIF", "", LIFConfig()),
        ("PLIF", "_PLIF_", None),
    ],
)
def test_a_resnet_with_what_its_folder_says(
    settle: Any, same_logits: Any, kind: str, token: str, config: Any
) -> None:
    torch.manual_seed(0)
    network = ResNet18(kind)
    x = torch.randn(3, 1, 3, 32, 32)
    settle(network, lambda: run(network, x))
    content = saved(network)
    network.double()
    folder = RUN.format(data="cifar10", model="spiking_resnet18", T=3, neuron=token)
    checkpoint = same_logits(
        content,
        "ilif" if kind == "ILIF" else "clif",
        Said("resnet"),
        x.double(),
        lambda: run(network, x.double()),
        folder,
    )
    manifest = checkpoint.manifest
    assert manifest.network.name == "spiking-resnet18"
    assert manifest.timesteps == 3
    assert manifest.classes[0] == "airplane"
    assert manifest.input.std == (0.2023, 0.1994, 0.2010)
    assert manifest.neuron == config or isinstance(manifest.neuron, PLIFConfig)
    assert manifest.conversion.arguments["said by the file"] == {
        "epoch": 187,
        "max_test_acc": 0.9541,
    }


@pytest.mark.parametrize(
    ("make", "plan", "name", "shape"),
    [
        (VGG, VGG11, "spiking-vgg11", (2, 48, 48)),
        (VGG, VGG13, "spiking-vgg13", (3, 32, 32)),
        (VGGSNN, SNN, "vggsnn", (2, 16, 16)),
        (FiveLayers, SNN5, "snn5", (3, 32, 32)),
        (FiveLayers, NO_AP, "snn5-strided", (3, 32, 32)),
    ],
)
def test_a_vgg_with_what_the_caller_says(
    settle: Any, same_logits: Any, make: Any, plan: Any, name: str, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = make("CLIF", plan, shape[0], 20)
    x = torch.randn(2, 2, *shape)
    settle(network, lambda: run(network, x))
    content = {"net": network.state_dict(), "epoch": 0, "max_test_acc": 0.0}
    network.double()
    from spiketrain.manifest import EventInput, ImageInput, NumberWindow

    side = shape[1]
    seen = (
        EventInput(sensor=(side, side), shape=shape, window=NumberWindow(windows=2), clip=1)
        if shape[0] == 2
        else ImageInput(shape=shape, mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    said = Said(
        "vgg", timesteps=2, neuron="clif", tau=2.0, input=seen, classes=[str(i) for i in range(20)]
    )
    checkpoint = same_logits(content, "clif", said, x.double(), lambda: run(network, x.double()))
    assert checkpoint.manifest.network.name == name


def light_state() -> dict[str, Tensor]:
    """One number, repeated: as large as it looks only in memory."""
    with torch.device("meta"):
        names = ResNet18("CLIF").state_dict()
    return {key: torch.ones(()).expand(like.shape) for key, like in names.items()}


def test_what_is_not_said_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_max.pth"
    torch.save({"net": light_state()}, path)

    def refused(**said: Any) -> str:
        with pytest.raises(ForeignModelError) as error:
            import_checkpoint(path, "clif", Said("x", **said))
        return str(error.value)

    assert "--data-set: the data set" in refused()
    assert "--data-set 'imagenet': known for clif are cifar10" in refused(data_set="imagenet")
    assert "--neuron: lif, clif, ilif or plif" in refused(data_set="cifar10")
    assert "--tau: the leak's" in refused(data_set="cifar10", neuron="lif")
    assert "has no PLIF's w" in refused(data_set="cifar10", neuron="plif")
    said = {"data_set": "cifar10", "neuron": "lif", "tau": 2.0}
    assert "--timesteps: how many" in refused(**said)
    assert "--classes: 2 names" in refused(**said, timesteps=4, classes=("a", "b"))
    assert "neuron: tau: Input should be greater than 1" in refused(**said | {"tau": 0.5})


def test_another_size_is_named_with_the_files_own_key(tmp_path: Path) -> None:
    state = light_state()
    said = Said("x", timesteps=4, neuron="clif", tau=2.0, data_set="cifar10")

    def refused(**changes: Any) -> str:
        changed = {k: v for k, v in (state | changes).items() if v is not None}
        torch.save({"net": changed}, tmp_path / "x.pth")
        with pytest.raises(ForeignModelError) as error:
            import_checkpoint(tmp_path / "x.pth", "clif", said)
        return str(error.value)

    assert "'layer2.0.shortcut.weight' is missing" in refused(**{"layer2.0.shortcut.weight": None})
    wrong = refused(**{"layer1.0.bn1.weight": torch.ones(3)})
    assert "'layer1.0.bn1.weight' has shape (3,)" in wrong
    assert "needs (64,)" in wrong
    assert "'extra' belongs to no layer of spiking-resnet18" in refused(extra=torch.ones(1))
    assert "layer1 to layer4 have 3, 2, 2, 2 blocks" in refused(
        **{"layer1.2.bn1.weight": torch.ones(64)}
    )
    nan = torch.full((10, 512), float("nan"))
    assert "'linear.weight': has values that are not finite" in refused(**{"linear.weight": nan})
    # Names as DataParallel writes them.
    torch.save({"net": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "p.pth")
    assert import_checkpoint(tmp_path / "p.pth", "clif", said).manifest.neuron == CLIFConfig()


def test_names_of_runs() -> None:
    said = parse_name(
        RUN.format(data="DVSCIFAR10-pt", model="spiking_vgg11_bn", T=10, neuron="_CLIF_")
    )
    assert (said.timesteps, said.tau, said.neuron) == (10, 2.0, "clif")
    assert (said.data_set, said.dropout) == ("cifar10-dvs", 0.0)
    # Older names have neither a scheduler nor `train_`.
    old = parse_name(
        "cifar100_spiking_resnet18_LTLIF_T6_tau1.5_e200_bs128_drop0.3_LTLIF_losslamb0.05"
    )
    assert (old.timesteps, old.tau, old.neuron, old.data_set) == (6, 1.5, "clif", "cifar100")
    assert old.dropout == 0.3
    assert parse_name("downloads").timesteps is None


def test_args_txt_goes_before_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / RUN.format(data="cifar10", model="spiking_resnet18", T=6, neuron="_CLIF_")
    folder.mkdir()
    text = (
        "Namespace(T=8, tau=2.5, neuron_model='ILIF', dataset='dvsgesture', drop_rate=0.4)\nepoch=0"
    )
    (folder / "args.txt").write_text(text)
    said = read_run(folder / "checkpoint_max.pth")
    assert (said.timesteps, said.tau, said.neuron) == (8, 2.5, "ilif")
    assert (said.data_set, said.dropout) == ("dvs-gesture", 0.4)
    for nonsense in ("Namespace(T=__import__('os').system('true'))", "(" * 5000, "print(1)", ""):
        (folder / "args.txt").write_text(nonsense)
        assert read_run(folder / "checkpoint_max.pth").neuron == "clif"
