"""The same spikes in SpikingJelly, both ways, and what one cannot say of the other is refused by name."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.flow import ExportError
from spiketrain.convert.graph_builder import About, ForeignModelError
from spiketrain.convert.spikingjelly_export import export_spikingjelly, to_spikingjelly
from spiketrain.convert.spikingjelly_import import from_spikingjelly, from_state_dict
from spiketrain.manifest import ImageInput
from spiketrain.neurons import (
    AnyNeuronConfig,
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    IntegratorConfig,
    LIFConfig,
    PLIFConfig,
)
from spiketrain.surrogate import Sigmoid

functional = pytest.importorskip("spikingjelly.activation_based.functional")
layer = pytest.importorskip("spikingjelly.activation_based.layer")
neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
base = pytest.importorskip("spikingjelly.activation_based.base")

MakeModel = Callable[..., Checkpoint]

STEPS = 50
MAPS = {"input_shape": [1, 8, 8], "channels": [4, 6], "strides": [2, 1], "pools": [1, 2]}
NEURONS: dict[str, AnyNeuronConfig] = {
    "lif-soft": LIFConfig(),
    "lif-hard": LIFConfig(reset="hard", rest=-0.1, reset_value=-0.1, tau=3.0),
    "lif-decayed": LIFConfig(reset="hard", decay_input=True, threshold=0.4),
    "plif": PLIFConfig(threshold=0.4),
    "plif-soft": PLIFConfig(reset="soft", decay_input=False),
    "clif": CLIFConfig(),
    "glif": GLIFConfig(surrogate=Sigmoid()),
}


def frames(*shape: int, steps: int = STEPS) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return 1.5 * torch.randn(steps, 2, *shape, dtype=torch.float64, generator=generator)


def recorded(network: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Spikes of each layer, in the order in which they fire, and logits, of a network in step mode "m"."""
    spikes: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, i, output: spikes.append(output))
        for module in network.modules()
        if isinstance(module, base.MemoryModule) and "Node" in type(module).__name__
    ]
    with torch.no_grad():
        logits = network(x)
    for hook in hooks:
        hook.remove()
    return spikes, logits


def check_same(ours: Checkpoint, theirs: nn.Module, x: Tensor) -> None:
    spikes, logits = recorded(theirs.double(), x)
    with torch.no_grad():
        output = ours.network().double()(x)
    assert len(spikes) == len(output.spikes)
    for name, found in zip(output.spikes, spikes, strict=True):
        assert torch.equal(output.spikes[name], found), name
        assert 0.005 < found.mean() < 0.95, name
    torch.testing.assert_close(logits, output.logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NEURONS)
def test_there_and_back(name: str, make_model: MakeModel, about: Any) -> None:
    arguments = {"arguments": MAPS} if name == "glif" else {}
    model = make_model(NEURONS[name], timesteps=STEPS, **arguments)
    x = frames(1, 8, 8)
    theirs = to_spikingjelly(model)
    check_same(model, theirs, x)
    functional.reset_net(theirs)
    check_same(from_spikingjelly(theirs.float(), about(model)), theirs, x)
    assert theirs.state_dict().keys() == to_spikingjelly(model).state_dict().keys()
    functional.reset_net(theirs)
    check_same(from_state_dict(theirs.float().state_dict(), model), theirs, x)


def test_one_timestep_at_a_time(make_model: MakeModel) -> None:
    model = make_model(CLIFConfig())
    theirs = to_spikingjelly(model).double()
    functional.set_step_mode(theirs, "s")
    x = frames(1, 8, 8, steps=10)
    with torch.no_grad():
        found = torch.stack([theirs(frame) for frame in x])
        expected = model.network().double()(x).logits
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_a_residual_network(make_model: MakeModel, about: Any) -> None:
    model = make_model(CLIFConfig(), "tiny-resnet", {})
    x = frames(2, 8, 8)
    theirs = to_spikingjelly(model)
    check_same(model, theirs, x)


def test_the_written_module_stands_alone(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(PLIFConfig(threshold=0.4), "tiny-resnet", {})
    weights = export_spikingjelly(model, tmp_path / "net.py")
    assert weights == tmp_path / "net.pt"
    assert "spiketrain" not in (tmp_path / "net.py").read_text()
    spec = importlib.util.spec_from_file_location("net", tmp_path / "net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check_same(model, module.load(), frames(2, 8, 8))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ILIFConfig(), "no temporal inhibitory LIF"),
        (LIFConfig(subtract=1.8), "subtracts 1.8 and the threshold is 1"),
        (LIFConfig(rest=-0.1), "rest -0.1 with a soft reset"),
        (LIFConfig(reset="hard", reset_value=-0.2), "rest 0 apart from reset value -0.2"),
        (GLIFConfig(), r"hidden_neuron: values of shape \(8,\)"),
        (GLIFConfig(gates="hard"), "hard gates"),
        (IntegratorConfig(fires=False), "gives its potential"),
        (IntegratorConfig(shape=(4,)), "leak differs from channel to channel"),
    ],
)
def test_what_spikingjelly_cannot_say(
    config: AnyNeuronConfig, reason: str, make_model: MakeModel
) -> None:
    layers = {"stages.0.neuron": config} if config.kind == "integrator" else None
    base_config = LIFConfig() if layers else config
    model = make_model(base_config, layers=layers)
    if isinstance(config, IntegratorConfig) and config.shape:
        model.tensors["stages.0.neuron.leak"].uniform_(0.1, 0.9)
    with pytest.raises(ExportError, match=reason):
        to_spikingjelly(model)


def test_thresholds_by_channel_are_refused(make_model: MakeModel) -> None:
    model = make_model(LIFConfig(per_channel=("threshold",)))
    to_spikingjelly(model)  # all the same
    model.tensors["stages.1.neuron.threshold"][2] = 1.5
    with pytest.raises(ExportError, match=r"stages\.1\.neuron: threshold differs"):
        to_spikingjelly(model)


class Branches(nn.Module):
    """A module of one's own, as SpikingJelly's users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            layer.Conv2d(1, 4, 3, padding=1, bias=False),
            layer.BatchNorm2d(4),
            neuron.IFNode(v_reset=None),
        )
        self.left = layer.Conv2d(4, 4, 1)
        self.second = neuron.CUBALIFNode(c_decay=0.6, v_decay=0.8, v_threshold=0.7)
        self.flat = layer.Flatten()
        self.out = layer.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        s = self.first(x)
        return self.out(self.flat(self.second(self.left(s) + s)))


def seen(*shape: int, classes: int = 3) -> About:
    names = tuple("abcdefghij"[:classes])
    return About("theirs", ImageInput(shape=shape, mean=(0.0,), std=(1.0,)), names, 4)


def test_a_network_of_ones_own() -> None:
    torch.manual_seed(2)
    theirs = Branches().eval()
    functional.set_step_mode(theirs, "m")
    check_same(from_spikingjelly(theirs, seen(1, 4, 4)), theirs, frames(1, 4, 4))


def test_containers_poolings_and_other_neurons() -> None:
    torch.manual_seed(2)
    theirs = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)),
        neuron.ComplementaryLIFNode(tau=1.8, step_mode="m"),
        layer.MaxPool2d(2, 2, step_mode="m"),
        nn.Sequential(layer.Dropout(0.5, step_mode="m"), layer.AvgPool2d(2, 2, step_mode="m")),
        layer.Flatten(step_mode="m"),
        layer.Linear(24, 3, bias=False, step_mode="m"),
        neuron.IFNode(v_threshold=3.0, v_reset=-0.2, step_mode="m"),
    ).eval()
    theirs[5].weight.data.abs_()
    ours = from_spikingjelly(theirs, seen(1, 8, 8))
    assert ours.manifest.readout == "rate"
    check_same(ours, theirs, 2 * frames(1, 8, 8))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (neuron.ILIFNode(tau=2.0), r"layer '1': type: ILIFNode is not understood"),
        (neuron.KLIFNode(), r"layer '1': type: KLIFNode is not understood"),
        (nn.ReLU(), r"layer '1': type: ReLU is not understood"),
        (nn.GroupNorm(2, 4), r"layer '1': type: GroupNorm is not understood"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "padding_mode: circular"),
        (nn.AvgPool2d(1, ceil_mode=True), "ceil_mode: True is not understood"),
        (nn.Conv2d(3, 4, 3), r"1: input of shape \(1, 4, 4\)"),
    ],
)
def test_other_layers_are_refused_by_name(module: nn.Module, reason: str) -> None:
    theirs = nn.Sequential(
        nn.Conv2d(1, 4, 1), module, nn.Flatten(), nn.Linear(64, 3), neuron.IFNode()
    )
    with pytest.raises(ForeignModelError, match=reason):
        from_spikingjelly(theirs, seen(1, 4, 4))


def test_a_mean_over_time_is_refused() -> None:
    class Mean(Branches):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(0)

    with pytest.raises(ForeignModelError, match="call method mean: only modules, sums and resha"):
        from_spikingjelly(Mean(), seen(1, 4, 4))


def test_weights_by_order_where_the_names_are_others(make_model: MakeModel) -> None:
    model = make_model(CLIFConfig())
    state = to_spikingjelly(model).state_dict()
    renamed = {f"module.{i}": tensor for i, tensor in enumerate(state.values())}
    back = from_state_dict(renamed, model, name="renamed")
    assert back.manifest.name == "renamed"
    assert back.manifest.accuracy == ()
    for name, tensor in model.tensors.items():
        assert torch.equal(back.tensors[name], tensor)
    swapped = dict(zip(renamed, reversed(state.values()), strict=True))
    with pytest.raises(ForeignModelError, match=r"tensor 'module\.0': shape \(10,\), and"):
        from_state_dict(swapped, model)
    del renamed["module.3"]
    with pytest.raises(ForeignModelError, match="tensors, and the network has"):
        from_state_dict(renamed, model)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


def test_files_that_are_no_weights(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(CLIFConfig())
    path = tmp_path / "weights.pt"
    torch.save(to_spikingjelly(model).state_dict(), path)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(data)
        with pytest.raises(ForeignModelError, match=r"weights\.pt: "):
            from_state_dict(path, model)
    for value, reason in (
        (Evil(), "runs code when it is loaded, which is refused"),
        ([1, 2], "no state_dict"),
        ({"a": 3}, "'a': is no tensor"),
        ({"a": torch.tensor([float("nan")])}, "'a': has values that are not finite"),
    ):
        torch.save(value, path)
        with pytest.raises(ForeignModelError, match=reason):
            from_state_dict(path, model)
    assert not (tmp_path / "evil").exists()
    torch.save({"net": to_spikingjelly(model).state_dict(), "epoch": 3}, path)
    assert from_state_dict(path, model).manifest.network == model.manifest.network
