"""NIR graphs run in SpikingJelly and snnTorch with the same spikes, and what NIR cannot say is refused."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert import Calibration, calibrate
from spiketrain.convert.flow import ExportError, network_flow
from spiketrain.convert.folding import without_adaptive_pools, without_batch_norms, without_idle
from spiketrain.networks import NeuronFactory, SpikingVGG
from spiketrain.neurons import (
    AnyNeuronConfig,
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    LIFConfig,
    PLIFConfig,
)

nir = pytest.importorskip("nir")
nir_export = pytest.importorskip("spiketrain.convert.nir_export")

MakeModel = Callable[..., Checkpoint]
Spikes = dict[str, Tensor]

STEPS = 60
HARD = LIFConfig(reset="hard")


def frames(*shape: int) -> Tensor:
    """Continuous values, so that no potential is ever at its threshold."""
    generator = torch.Generator().manual_seed(4)
    return 1.5 * torch.randn(STEPS, 1, *shape, generator=generator)


def in_spikingjelly(path: Path, x: Tensor) -> tuple[Spikes, Tensor]:
    pytest.importorskip("nirtorch")
    from_nir = pytest.importorskip("spikingjelly.activation_based.nir_exchange.from_nir")
    # float64: then only the weights' own rounding is left, the same on every machine.
    network = from_nir.import_from_nir(nir.read(path), dtype=torch.float64)
    kind = from_nir._NIRStatefulModule
    return _recorded(network, kind, x.double())


def in_snntorch(path: Path, x: Tensor) -> tuple[Spikes, Tensor]:
    snntorch = pytest.importorskip("snntorch")
    import_nir = pytest.importorskip("snntorch.import_nir")
    with contextlib.redirect_stdout(io.StringIO()):
        network = import_nir.import_from_nir(nir.read(path))
    return _recorded(network, snntorch.Leaky, x)


def _recorded(network: nn.Module, kind: type, x: Tensor) -> tuple[Spikes, Tensor]:
    spikes: dict[str, list[Tensor]] = {}
    logits, state = [], None

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            spikes.setdefault(name, []).append(first.detach().clone())

        return hook

    for name, module in network.named_modules():
        if isinstance(module, kind):
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        for frame in x:
            y, state = network(frame) if state is None else network(frame, state)
            logits.append(y.flatten())
    return {name: torch.stack(all_) for name, all_ in spikes.items()}, torch.stack(logits)


def check_same_spikes(
    model: Checkpoint, path: Path, simulate: Any, run_steps: Any, **options: Any
) -> None:
    exported = nir_export.export_nir(model, path, **options)
    network = model.network().double()
    x = frames(*network.input_shape)
    found, logits = simulate(path, x)
    outputs = run_steps(network, x.double())
    for layer, node in exported.nodes.items():
        expected = torch.stack([output.spikes[layer] for output in outputs])
        assert 0.02 < expected.mean() < 0.9, layer
        differ = int((expected != found[node].reshape(expected.shape)).sum())
        assert differ == 0, f"{layer}: {differ} of {expected.numel()}"
    expected = torch.stack([output.logits[0] for output in outputs])
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("simulate", [in_spikingjelly, in_snntorch])
@pytest.mark.parametrize("network", ["small-conv", "tiny-resnet"])
@pytest.mark.parametrize(
    "neuron",
    [HARD, LIFConfig(reset="hard", tau=3.3, threshold=0.7), PLIFConfig(threshold=0.4)],
    ids=["lif", "lif-slow", "plif-decayed"],
)
def test_same_spikes_in_another_simulator(
    neuron: AnyNeuronConfig,
    network: str,
    simulate: Any,
    make_model: MakeModel,
    run_steps: Any,
    tmp_path: Path,
) -> None:
    arguments = {} if network == "tiny-resnet" else None
    model = make_model(neuron, network, **({} if arguments is None else {"arguments": arguments}))
    check_same_spikes(model, tmp_path / "model.nir", simulate, run_steps)


@pytest.mark.parametrize("simulate", [in_spikingjelly, in_snntorch])
def test_a_calibrated_child_is_the_same_everywhere(
    simulate: Any, make_model: MakeModel, run_steps: Any, tmp_path: Path
) -> None:
    parent = make_model(CLIFConfig())
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    child = calibrate(parent, [1.5 * x], Calibration("portable", ("refinement", "batch-norms")))
    assert {layer.threshold for layer in child.manifest.layers.values()} != {1.0}
    check_same_spikes(child, tmp_path / "model.nir", simulate, run_steps)


def test_rest_at_the_reset_value_in_spikingjelly(
    make_model: MakeModel, run_steps: Any, tmp_path: Path
) -> None:
    model = make_model(LIFConfig(reset="hard", rest=-0.06, reset_value=-0.06))
    check_same_spikes(model, tmp_path / "model.nir", in_spikingjelly, run_steps)


@pytest.mark.parametrize("network", ["small-conv", "tiny-resnet"])
def test_r_folded_into_the_weights(
    network: str, make_model: MakeModel, run_steps: Any, tmp_path: Path
) -> None:
    arguments = {"arguments": {}} if network == "tiny-resnet" else {}
    model = make_model(HARD, network, **arguments)
    path = tmp_path / "model.nir"
    check_same_spikes(model, path, in_spikingjelly, run_steps, fold_r=True)
    nodes = nir.read(path).nodes.values()
    assert all((node.r == 1).all() for node in nodes if isinstance(node, nir.LIF))


def test_what_is_in_the_file(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(
        LIFConfig(reset="hard", tau=4.0, rest=-0.1, per_channel=("threshold", "reset_value"))
    )
    model.tensors["stages.0.neuron.threshold"].copy_(torch.tensor([1.0, 1.1, 1.2, 1.3]))
    path = tmp_path / "model.nir"
    exported = nir_export.export_nir(model, path, dt=1e-3)
    graph = nir.read(path)
    assert {"input", "output", "stages_0_conv", "stages_0_neuron"} <= graph.nodes.keys()
    assert not any("bn" in name for name in graph.nodes)
    assert exported.nodes["stages.0.neuron"] == "stages_0_neuron"
    lif = graph.nodes["stages_0_neuron"]
    for field in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
        value = getattr(lif, field)
        assert value.shape == (4, 4, 4)
        assert value.dtype == "float32"
    assert lif.tau.flat[0] == pytest.approx(4e-3)
    assert lif.r.flat[0] == pytest.approx(4.0)
    assert lif.v_leak.flat[0] == pytest.approx(-0.1)
    assert lif.v_threshold[:, 0, 0].tolist() == pytest.approx([1.0, 1.1, 1.2, 1.3])
    pool = graph.nodes["stages_1_pool"]
    assert [tuple(getattr(pool, f)) for f in ("kernel_size", "stride", "padding")] == [
        (2, 2),
        (2, 2),
        (0, 0),
    ]
    assert graph.metadata["spiketrain"]["dt"] == pytest.approx(1e-3)
    assert exported.fires_at_threshold


def test_a_sum_is_several_edges_into_one_node(make_model: MakeModel, tmp_path: Path) -> None:
    exported = nir_export.export_nir(
        make_model(HARD, "tiny-resnet", arguments={}), tmp_path / "model.nir"
    )
    into = sorted(start for start, end in exported.graph.edges if end == "block2_neuron1")
    # The identity shortcut takes the batch norm behind the sum as a diagonal convolution.
    assert into == ["block1_conv2", "block1_neuron1_scale"]
    into = sorted(start for start, end in exported.graph.edges if end == "neuron1")
    assert into == ["block2_conv2", "block2_shortcut"]


@pytest.mark.parametrize("size", [16, 48, 96])
def test_the_vgg_pooling_that_enlarges_is_folded(size: int) -> None:
    """Down to 1x1, 3x3 and 6x6 before the adaptive pooling to 7x7; 48 and 96 have windows of unequal sizes."""
    torch.manual_seed(1)
    plan = ((3, "M"), (3, "M"), (3, "M"), (4, "M"))
    network = SpikingVGG(NeuronFactory(HARD, 2), plan, (2, size, size)).double().eval()
    flow = without_adaptive_pools(without_batch_norms(without_idle(network_flow(network))))
    assert not any(isinstance(op.module, nn.AdaptiveAvgPool2d) for op in flow.ops)
    linear = flow.op("linear").module
    before = flow.shape_of("layer4.1")
    assert linear is not None
    x = torch.randn(5, *before, dtype=torch.float64)
    expected = network.linear(network.pool(x).flatten(1))
    torch.testing.assert_close(linear.double()(x.flatten(1)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("neuron", "reason"),
    [
        (LIFConfig(), "stages.0.neuron: a soft reset"),
        (CLIFConfig(), "stages.0.neuron: NIR has no CLIF neuron"),
        (ILIFConfig(), "stages.0.neuron: NIR has no ILIF neuron"),
        (GLIFConfig(), "stages.0.neuron: NIR has no GLIF neuron"),
        (PLIFConfig(reset="soft"), "stages.0.neuron: a soft reset"),
    ],
)
def test_other_neurons_are_refused_with_the_way_out(
    neuron: AnyNeuronConfig, reason: str, make_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=reason) as error:
        nir_export.export_nir(make_model(neuron), tmp_path / "model.nir")
    assert "spiketrain convert CHECKPOINT --to lif --reset hard" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dt", [0.0, -1e-4, float("nan"), float("inf")])
def test_a_timestep_has_a_length(dt: float, make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="length of a timestep"):
        nir_export.export_nir(make_model(HARD), tmp_path / "model.nir", dt=dt)


def node(op: str, name: str, *inputs: str, **fields: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "inputs": list(inputs), **fields}


def test_max_pooling_is_refused_by_name(make_model: MakeModel, tmp_path: Path) -> None:
    nodes = [
        node("neurons", "lif", "input", channels=1),
        node("max-pool", "biggest", "lif", kernel=[2, 2], stride=[2, 2]),
        node("reshape", "flat", "biggest", shape=[16]),
        node("linear", "out", "flat", in_features=16, out_features=10),
    ]
    arguments = {"input_shape": [1, 8, 8], "classes": 10, "nodes": nodes, "output": "out"}
    with pytest.raises(ExportError, match="biggest: NIR has no MaxPool2d"):
        nir_export.export_nir(make_model(HARD, "graph", arguments), tmp_path / "model.nir")
