"""NIR graphs become networks of ours with the same spikes; files that are damaged or say too much are refused."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spiketrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from spiketrain.convert.graph_builder import About, ForeignModelError
from spiketrain.energy import fan_out
from spiketrain.manifest import ImageInput
from spiketrain.neurons import IntegratorConfig, LIFConfig, PLIFConfig

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")
nir_export = pytest.importorskip("spiketrain.convert.nir_export")
nir_import = pytest.importorskip("spiketrain.convert.nir_import")

MakeModel = Callable[..., Checkpoint]

DT = 1e-4
GENERATOR = np.random.default_rng(3)


def seen(shape: tuple[int, int, int], classes: int) -> About:
    names = tuple(str(i) for i in range(classes))
    return About("imported", ImageInput(shape=shape, mean=(0.0,), std=(1.0,)), names, 5)


def values(size: int, low: float, high: float) -> Any:
    return GENERATOR.uniform(low, high, size).astype(np.float32)


def graph(*nodes: tuple[str, Any], edges: list[tuple[str, str]] | None = None) -> Any:
    """`nodes` in a row between input and output, unless `edges` are given."""
    names = ["input", *(name for name, _ in nodes), "output"]
    first, last = nodes[0][1], nodes[-1][1]
    inner = dict(nodes)
    inner["input"] = nir.Input(np.array(next(iter(first.input_type.values()))))
    inner["output"] = nir.Output(np.array(next(iter(last.output_type.values()))))
    return nir.NIRGraph(inner, edges or list(itertools.pairwise(names)))


def affine(inputs: int, outputs: int) -> Any:
    return nir.Affine(
        GENERATOR.normal(0, 1, (outputs, inputs)).astype(np.float32), values(outputs, -0.2, 0.4)
    )


def lif(size: int, **fields: Any) -> Any:
    said = {
        "tau": np.full(size, 2 * DT, np.float32),
        "r": np.full(size, 2.0, np.float32),
        "v_leak": np.zeros(size, np.float32),
        "v_threshold": np.ones(size, np.float32),
        "v_reset": np.zeros(size, np.float32),
    }
    return nir.LIF(**{**said, **fields})


def logits_of(checkpoint: Checkpoint, x: torch.Tensor) -> torch.Tensor:
    network = checkpoint.network().double()
    state, logits = network.initial_state(1), []
    with torch.no_grad():
        for frame in x:
            output = network.step(frame.view(1, *network.input_shape), state)
            state = output.state
            logits.append(output.logits[0])
    stepped = torch.stack(logits)
    with torch.no_grad():
        at_once = network(x.view(len(x), 1, *network.input_shape)).logits[:, 0]
    torch.testing.assert_close(at_once, stepped)
    return stepped


@pytest.mark.parametrize("dt", [1e-4, 1e-3])
@pytest.mark.parametrize("fold_r", [False, True])
@pytest.mark.parametrize(
    "neuron",
    [
        LIFConfig(reset="hard", tau=3.3, rest=-0.1, reset_value=-0.3),
        LIFConfig(reset="hard", decay_input=True, threshold=0.4),
        PLIFConfig(initial_tau=1.7, threshold=0.5),
        LIFConfig(reset="hard", per_channel=("threshold", "reset_value")),
    ],
    ids=["rest", "decayed", "plif", "by-channel"],
)
def test_there_and_back(
    neuron: Any,
    fold_r: bool,
    dt: float,
    make_model: MakeModel,
    run_steps: Any,
    about: Any,
    tmp_path: Path,
) -> None:
    model = make_model(neuron)
    for name, tensor in model.tensors.items():
        if name.endswith((".threshold", ".reset_value")):
            tensor.uniform_(*((0.6, 1.1) if name.endswith("threshold") else (-0.4, 0.1)))
    nir_export.export_nir(model, tmp_path / "model.nir", dt=dt, fold_r=fold_r)
    imported = nir_import.import_nir(tmp_path / "model.nir", about(model))
    manifest = save_checkpoint(tmp_path / "back.safetensors", imported.manifest, imported.tensors)
    assert manifest.conversion is not None
    assert len(manifest.conversion.parent) == 64
    back = load_checkpoint(tmp_path / "back.safetensors").network().double()
    parent = model.network().double()
    assert all(isinstance(m.config, LIFConfig) for m in back.neuron_layers().values())
    x = torch.randn(40, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    for before, after in zip(run_steps(parent, x), run_steps(back, x), strict=True):
        for spikes, others in zip(before.spikes.values(), after.spikes.values(), strict=True):
            assert torch.equal(spikes, others)
    reached, expected = fan_out(back), fan_out(parent)
    for layer, name in zip(expected, reached, strict=True):
        assert torch.equal(reached[name], expected[layer])


def test_a_residual_network_there_and_back(
    make_model: MakeModel, run_steps: Any, about: Any, tmp_path: Path
) -> None:
    model = make_model(LIFConfig(reset="hard"), "tiny-resnet", {})
    nir_export.export_nir(model, tmp_path / "model.nir")
    back = nir_import.import_nir(tmp_path / "model.nir", about(model)).network().double()
    parent = model.network().double()
    x = torch.randn(40, 2, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    for before, after in zip(run_steps(parent, x), run_steps(back, x), strict=True):
        for spikes, others in zip(before.spikes.values(), after.spikes.values(), strict=True):
            assert torch.equal(spikes, others)
    # A diagonal convolution on a shortcut is one operation a spike, as the shortcut was.
    for layer, name in zip(fan_out(parent), fan_out(back), strict=True):
        assert torch.equal(fan_out(back)[name], fan_out(parent)[layer])


def test_an_imported_graph_can_be_exported_again(
    make_model: MakeModel, about: Any, tmp_path: Path
) -> None:
    model = make_model(LIFConfig(reset="hard", tau=3.0))
    first = nir_export.nir_graph(model).graph
    imported = nir_import.import_nir(first, about(model))
    second = nir_export.nir_graph(imported).graph
    assert len(second.edges) == len(first.edges)
    assert second.nodes.keys() - {"reshape"} == first.nodes.keys() - {"flatten"}
    for name in first.nodes.keys() - {"flatten"}:
        node = first.nodes[name]
        for field, value in node.to_dict().items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, second.nodes[name].to_dict()[field])


def simulate(node: Any, currents: Any) -> Any:
    """NIR's equations, one neuron after the other in float64: what a node makes of currents [T, N]."""
    f = {k: np.asarray(v, np.float64) for k, v in vars(node).items() if isinstance(v, np.ndarray)}
    size = currents.shape[1]
    leak = {"LIF": "tau", "LI": "tau"}.get(type(node).__name__, "tau_mem")
    out = np.zeros_like(currents)
    for n in range(size):
        v = f["v_leak"][n] if "v_leak" in f else 0.0
        i = 0.0
        for t, x in enumerate(currents[:, n]):
            if "tau_syn" in f:
                i += DT / f["tau_syn"][n] * (-i + f["w_in"][n] * x)
                x = i
            if leak in f:
                v += DT / f[leak][n] * (f["v_leak"][n] - v + f["r"][n] * x)
            else:
                v += DT * f["r"][n] * x
            out[t, n] = v
            if "v_threshold" in f:
                out[t, n] = v > f["v_threshold"][n]
                v = f["v_reset"][n] if out[t, n] else v
    return out


SIZE = 24


def neurons(kind: str) -> Any:
    tau, r = values(SIZE, 1.5 * DT, 6 * DT), values(SIZE, 1.0, 3.0)
    leak, threshold = values(SIZE, -0.2, 0.2), values(SIZE, 0.5, 1.5)
    reset, synapse = values(SIZE, -0.4, 0.1), values(SIZE, 1.0 * DT, 3 * DT)
    fires = {"v_threshold": threshold, "v_reset": reset}
    match kind:
        case "LIF":
            return nir.LIF(tau=tau, r=r, v_leak=leak, **fires)
        case "LI":
            return nir.LI(tau=tau, r=r, v_leak=leak)
        case "IF":
            return nir.IF(r=r / DT, **fires)
        case "I":
            return nir.I(r=r / DT)
        case "CubaLIF":
            return nir.CubaLIF(
                tau_syn=synapse, tau_mem=tau, r=r, v_leak=leak, w_in=values(SIZE, 0.5, 2), **fires
            )
        case _:
            return nir.CubaLI(
                tau_syn=synapse, tau_mem=tau, r=r, v_leak=leak, w_in=values(SIZE, 0.5, 2)
            )


@pytest.mark.parametrize("kind", ["LIF", "LI", "IF", "I", "CubaLIF", "CubaLI"])
def test_neurons_with_constants_of_their_own(kind: str) -> None:
    node = neurons(kind)
    checkpoint = nir_import.import_nir(graph(("cells", node)), seen((1, 4, 6), SIZE))
    x = torch.from_numpy(GENERATOR.normal(0.4, 1.0, (60, SIZE)))
    found = logits_of(checkpoint, x).numpy()
    expected = simulate(node, x.numpy())
    if "LIF" in kind or kind == "IF":
        assert (found == expected).all()
        assert 0.05 < found.mean() < 0.95
        assert checkpoint.manifest.readout == "rate"
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert checkpoint.manifest.readout == "mean"
        output = checkpoint.network()(x.view(60, 1, 1, 4, 6).float())
        assert output.spikes == {}  # potentials are in no count of spikes


def test_a_threshold_has_no_memory() -> None:
    node = nir.Threshold(np.array([0.5, -0.5, 0.0], np.float32))
    checkpoint = nir_import.import_nir(graph(("t", node)), seen((1, 1, 3), 3))
    x = torch.tensor([[0.6, -0.6, 0.0], [0.5, -0.5, 1e-9], [-3.0, 0.2, 0.0], [0.6, 0.0, -1.0]])
    assert logits_of(checkpoint, x.double()).tolist() == [
        [1, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [1, 1, 0],
    ]


@pytest.mark.parametrize("at", [False, True])
def test_at_the_threshold(at: bool) -> None:
    """NIR fires above it only; metadata that says otherwise is believed."""
    node = lif(2)
    if at:
        node.metadata["fires_at_threshold"] = True
    one = nir.Scale(np.ones(2, np.float32))
    checkpoint = nir_import.import_nir(graph(("one", one), ("lif", node)), seen((1, 1, 2), 2))
    assert logits_of(checkpoint, torch.tensor([[1.0, 1.5]]).double()).tolist() == [[float(at), 1.0]]


@pytest.mark.parametrize("way", ["affine", "linear", "scale", "direct"])
def test_a_layer_that_feeds_itself(way: str) -> None:
    node, first = neurons("CubaLIF"), affine(6, SIZE)
    weight = GENERATOR.normal(0, 0.5, (SIZE, SIZE)).astype(np.float32)
    bias = np.zeros(SIZE, np.float32)
    edges = [("input", "first"), ("first", "cells"), ("cells", "output")]
    nodes = [("first", first), ("cells", node)]
    if way == "direct":
        weight = np.eye(SIZE, dtype=np.float32)
        edges.append(("cells", "cells"))
    else:
        if way == "scale":
            scale = values(SIZE, -1, 1)
            weight, back = np.diag(scale), nir.Scale(scale)
        elif way == "linear":
            back = nir.Linear(weight)
        else:
            bias = values(SIZE, -0.2, 0.2)
            back = nir.Affine(weight, bias)
        nodes.insert(1, ("back", back))
        edges += [("cells", "back"), ("back", "cells")]
    inner = dict(nodes)
    inner |= {"input": nir.Input(np.array([6])), "output": nir.Output(np.array([SIZE]))}
    checkpoint = nir_import.import_nir(
        nir.NIRGraph(inner, edges, type_check=False), seen((1, 1, 6), SIZE)
    )
    x = GENERATOR.normal(0, 1, (40, 6))
    found = logits_of(checkpoint, torch.from_numpy(x)).numpy()
    # One timestep at a time: what comes back is what was fired before.
    currents, spikes = np.zeros((40, SIZE)), np.zeros(SIZE)
    for t in range(40):
        outside = first.weight.astype(np.float64) @ x[t] + first.bias
        currents[t] = outside + weight.astype(np.float64) @ spikes + bias
        spikes = simulate(node, currents[: t + 1])[t]
        assert (found[t] == spikes).all()
    reach = fan_out(checkpoint.network())["cells"]
    assert (reach == SIZE + 1).all()  # the whole layer, and its own output


def test_a_recurrent_network_of_snntorch() -> None:
    """snnTorch writes a recurrent layer as a graph in the graph."""
    snn = pytest.importorskip("snntorch")
    export = pytest.importorskip("snntorch.export_nir").export_to_nir
    torch.manual_seed(3)
    network = torch.nn.Sequential(
        torch.nn.Linear(6, 9),
        snn.RLeaky(
            beta=0.7, linear_features=9, init_hidden=True, reset_mechanism="zero", reset_delay=False
        ),
        torch.nn.Linear(9, 4),
        snn.Leaky(
            beta=torch.full((4,), 0.8),
            threshold=torch.ones(4),
            init_hidden=True,
            reset_mechanism="zero",
            reset_delay=False,
            output=True,
        ),
    )
    for parameter in network.parameters():
        parameter.data.mul_(3)
    with contextlib.redirect_stdout(io.StringIO()):
        written = export(network, torch.randn(1, 6), ignore_dims=[0])
    checkpoint = nir_import.import_nir(written, seen((1, 1, 6), 4))
    layers = checkpoint.network().neuron_layers()
    assert [getattr(layer.config, "feedback", "none") for layer in layers.values()] == [
        "affine",
        "none",
    ]
    x = torch.randn(50, 6)
    network[1].reset_mem()
    network[3].reset_mem()
    with torch.no_grad():
        expected = torch.stack([network(frame[None])[0][0] for frame in x])
    found = logits_of(checkpoint, x.double())
    assert 0.02 < found.mean() < 0.9
    assert torch.equal(found.float(), expected)


def test_poolings_and_convolutions_as_torch_has_them() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    bias = torch.randn(4, generator=generator)
    one = lambda shape: nir.Scale(np.full(shape, 0.5, np.float32))  # noqa: E731
    convolution = nir.Conv2d((9, 9), weight.numpy(), 2, (1, 1), 1, 1, bias.numpy())
    pool = nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    nodes = {
        "input": nir.Input(np.array([3, 9, 9])),
        "scale": one((3, 9, 9)),
        "conv": convolution,
        "sum": pool,
        "flat": nir.Flatten(np.array([4, 2, 2]), 0, -1),
        "t": nir.Threshold(np.full(16, 0.3, np.float32)),
        "output": nir.Output(np.array([16])),
    }
    names = list(nodes)
    wired = nir.NIRGraph(nodes, list(itertools.pairwise(names)))
    about = About(
        "m", ImageInput(shape=(3, 9, 9), mean=(0,) * 3, std=(1,) * 3), tuple("abcdefghijklmnop"), 2
    )
    network = nir_import.import_nir(wired, about).network()
    x = torch.randn(2, 3, 9, 9, generator=generator)
    y = torch.nn.functional.conv2d(0.5 * x, weight, bias, 2, 1)
    y = torch.nn.functional.avg_pool2d(y, 2, 2) * 4
    found = network.step(x, network.initial_state(2)).logits
    assert torch.equal(found, (y.flatten(1) > 0.3).float())


def broken(path: Path, change: Callable[[Any], None]) -> Path:
    nir.write(path, graph(("first", affine(6, 4)), ("cells", lif(4))))
    with h5py.File(path, "r+") as file:
        change(file["node"])
    return path


def put(group: str, field: str, value: Any) -> Callable[[Any], None]:
    def change(node: Any) -> None:
        if field in node[group]:
            del node[group][field]
        if value is not None:
            node[group][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("nodes/cells", "tau", None), r"node 'cells' \(LIF\): tau: is missing"),
        (put("nodes/cells", "r", np.ones(5)), r"node 'cells' \(LIF\): r: shape \(5,\)"),
        (put("nodes/cells", "tau", np.full(4, np.nan)), "tau: has values that are not finite"),
        (put("nodes/cells", "tau", np.full(4, 1e-5)), "tau: 1e-05 s is shorter than a timestep"),
        (put("nodes/cells", "v_leak", b"zero"), "v_leak: is of type"),
        (put("nodes/cells", "type", b"Izhikevich"), "node 'cells': type: Izhikevich is not under"),
        (put("nodes/cells", "type", None), "node 'cells': type: is missing"),
        (put("nodes/first", "weight", np.ones((4, 5))), r"node 'first': input of shape \(6,\)"),
        (
            put("nodes/first", "weight", np.ones(4)),
            r"node 'first' \(Affine\): weight: shape \(4,\)",
        ),
        (put("nodes/first", "bias", np.ones(3)), r"node 'first': .*bias has shape \(3,\)"),
        (put("nodes/input", "shape", np.array([-6])), r"node 'input' \(Input\): shape"),
        (put("nodes/output", "type", b"Flatten"), "0 nodes of type Output"),
        (put("", "edges", None), "nodes or edges are missing"),
        (put("", "edges", [[b"input", b"nowhere"]]), "'nowhere', which is no node"),
        (
            put("", "edges", [[b"first", b"cells"], [b"cells", b"output"]]),
            "'first' .*no edge leads",
        ),
        (
            put("", "edges", [[b"input", b"first"], [b"first", b"cells"], [b"cells", b"first"]]),
            "edges: a loop that cannot be expressed",
        ),
        (put("nodes/cells", "tau", h5py.ExternalLink("other.h5", "/x")), "nodes/cells/tau: a link"),
        (
            put("nodes/cells", "tau", h5py.SoftLink("/node/nodes/cells/r")),
            "nodes/cells/tau: a link",
        ),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Any], None], reason: str, tmp_path: Path) -> None:
    path = broken(tmp_path / "broken.nir", lambda node: change(_At(node)))
    with pytest.raises(ForeignModelError, match=reason) as error:
        nir_import.import_nir(path, seen((1, 1, 6), 4))
    assert str(path) in str(error.value)


class _At:
    """A group in which "" is the group itself."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __getitem__(self, name: str) -> Any:
        return self.group[name] if name else self.group


def test_delays_are_refused_by_name() -> None:
    with pytest.raises(ForeignModelError, match="node 'later': type: Delay is not understood"):
        nir_import.import_nir(
            graph(("later", nir.Delay(np.ones(4, np.float32))), ("cells", lif(4))),
            seen((1, 1, 4), 4),
        )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files(share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.nir"
    nir.write(path, graph(("first", affine(6, 4)), ("cells", lif(4))))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ForeignModelError, match=r"cut\.nir: not an HDF5 file, or a damaged"):
        nir_import.import_nir(path, seen((1, 1, 6), 4))


def test_foreign_files(tmp_path: Path) -> None:
    text = tmp_path / "text.nir"
    text.write_text("no graph")
    with pytest.raises(ForeignModelError, match=r"text\.nir: not an HDF5 file"):
        nir_import.import_nir(text, seen((1, 1, 6), 4))
    other = tmp_path / "other.nir"
    with h5py.File(other, "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(ForeignModelError, match=r"other\.nir: node: an HDF5 file, but"):
        nir_import.import_nir(other, seen((1, 1, 6), 4))
    with pytest.raises(FileNotFoundError):
        nir_import.import_nir(tmp_path / "none.nir", seen((1, 1, 6), 4))


def test_classes_and_outputs_must_agree() -> None:
    with pytest.raises(ForeignModelError, match=r"shape \(4,\) for 3 classes"):
        nir_import.import_nir(graph(("cells", lif(4))), seen((1, 1, 4), 3))


def test_an_input_of_another_size_is_refused() -> None:
    with pytest.raises(ForeignModelError, match="input_shape"):
        nir_import.import_nir(graph(("cells", lif(4))), seen((1, 1, 5), 4))


def test_names_that_are_no_names_of_ours() -> None:
    nodes = [
        ("1.step", affine(4, 4)),
        ("forward", lif(4)),
        ("for", affine(4, 4)),
        ("1-step", lif(4)),
    ]
    checkpoint = nir_import.import_nir(graph(*nodes), seen((1, 1, 4), 4))
    assert list(checkpoint.network().neuron_layers()) == ["node_forward", "node_1_step_2"]


def test_an_integrator_config_is_in_the_manifest(tmp_path: Path) -> None:
    checkpoint = nir_import.import_nir(graph(("cells", neurons("IF"))), seen((1, 4, 6), SIZE))
    save_checkpoint(tmp_path / "m.safetensors", checkpoint.manifest, checkpoint.tensors)
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    assert loaded.manifest.neuron == IntegratorConfig(shape=(SIZE,))
