"""ONNX files run in ONNX Runtime as the network does, and wrong ones are not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert.flow import ExportError
from spiketrain.neurons import (
    AnyNeuronConfig,
    CLIFConfig,
    GLIFConfig,
    ILIFConfig,
    IntegratorConfig,
    LIFConfig,
    PLIFConfig,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
onnx_export = pytest.importorskip("spiketrain.convert.onnx_export")

MakeModel = Callable[..., Checkpoint]

# torch takes seconds to export each layer, so that these networks have few.
FEW = {"input_shape": [1, 6, 6], "channels": [3], "strides": [2], "pools": [1]}

NEURONS: dict[str, AnyNeuronConfig] = {
    "lif-soft": LIFConfig(),
    "lif-hard": LIFConfig(reset="hard", rest=-0.1, reset_value=-0.3),
    "lif-by-channel": LIFConfig(subtract=1.8, per_channel=("subtract", "threshold")),
    "plif": PLIFConfig(decay_input=False),
    "clif": CLIFConfig(),
    "ilif": ILIFConfig(),
    "glif": GLIFConfig(),
    "integrator": IntegratorConfig(synapse=True),
}


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", NEURONS)
def test_ten_steps_from_a_state_that_is_not_the_first(
    name: str, make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(NEURONS[name], arguments=FEW)
    made = onnx_export.export_onnx(model, tmp_path / "model.onnx")
    assert made.different < 0.001
    session = session_of(made.path)
    network = model.network()
    names = [state["name"] for state in made.states]
    assert [value.name for value in session.get_inputs()] == ["x", *names]
    generator = torch.Generator().manual_seed(5)
    frames = 2 * torch.randn(
        12, 5, 1, 6, 6, generator=generator
    )  # a batch that it was not made with
    counted = dict.fromkeys(network.neuron_layers(), 0.0)
    with torch.no_grad():
        state = network.initial_state(5)
        for frame in frames[:2]:
            state = network.step(frame, state).state
        theirs = {
            f"{layer}/{field}": getattr(state[layer], field).numpy()
            for layer in state
            for field in state[layer]._fields
        }
        for frame in frames[2:]:
            output = network.step(frame, state)
            state = output.state
            outputs = [value.name for value in session.get_outputs()]
            found = dict(
                zip(outputs, session.run(None, {"x": frame.numpy(), **theirs}), strict=True)
            )
            theirs = {key: found[f"{key}/out"] for key in theirs}  # its own state, fed back
            torch.testing.assert_close(
                torch.from_numpy(found["logits"]), output.logits, atol=1e-4, rtol=1e-4
            )
            for layer, spikes in output.spikes.items():
                assert found[f"{layer}/spikes"].tolist() == spikes.flatten(1).sum(1).tolist()
                counted[layer] += float(spikes.sum())
    assert counted["stages.0.neuron"] > 0
    if name == "glif":
        assert theirs["stages.0.neuron/t"].tolist() == [12] * 5
        assert theirs["stages.0.neuron/t"].dtype == "int64"


@pytest.mark.parametrize("name", ["clif", "glif"])
def test_a_whole_sequence_in_one_scan(name: str, make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(NEURONS[name], arguments=FEW)
    made = onnx_export.export_onnx(model, tmp_path / "scan.onnx", form="scan")
    assert [node.op_type for node in onnx.load(made.path).graph.node] == ["Scan"]
    network = model.network()
    session = session_of(made.path)
    outputs = [value.name for value in session.get_outputs()]
    for steps in (1, 7):
        x = 2 * torch.randn(steps, 2, 1, 6, 6, generator=torch.Generator().manual_seed(steps))
        first = network.initial_state(2)
        given = {
            f"{layer}/{field}": getattr(state, field).numpy()
            for layer, state in first.items()
            for field in state._fields
        }
        found = dict(zip(outputs, session.run(None, {"x": x.numpy(), **given}), strict=True))
        with torch.no_grad():
            expected = network(x)
        torch.testing.assert_close(
            torch.from_numpy(found["logits"]), expected.logits, atol=1e-4, rtol=1e-4
        )
        spikes = expected.spikes["stages.0.neuron"].flatten(2).sum(2)
        assert found["stages.0.neuron/spikes"].tolist() == spikes.tolist()


def test_the_file_says_what_it_is(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(LIFConfig(reset="hard", rest=-0.25, reset_value=-0.5), arguments=FEW)
    made = onnx_export.export_onnx(model, tmp_path / "model.onnx", opset=17)
    said = session_of(made.path).get_modelmeta().custom_metadata_map
    assert json.loads(said["manifest"]) == json.loads(model.manifest.model_dump_json())
    assert said["form"] == "step"
    assert json.loads(said["states"])[0] == {
        "name": "stages.0.neuron/v",
        "shape": [3, 3, 3],
        "type": "float32",
        "initial": -0.25,
    }
    versions = {entry.domain: entry.version for entry in onnx.load(made.path).opset_import}
    assert versions[""] == 17


def test_rest_by_channel_is_described_by_channel(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(IntegratorConfig(shape=(3,)), arguments=FEW)
    model.tensors["stages.0.neuron.rest"].copy_(torch.tensor([0.1, 0.2, 0.3]))
    made = onnx_export.export_onnx(model, tmp_path / "model.onnx")
    initial = torch.tensor(made.states[0]["initial"])
    assert initial.shape == (3, 1, 1)
    torch.testing.assert_close(initial.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_a_file_that_lost_its_state_is_noticed(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(CLIFConfig(), arguments=FEW)
    path = onnx_export.export_onnx(model, tmp_path / "model.onnx").path
    changed = onnx.load(path)
    # The first layer's potential is read from where it is always 0.
    zero = onnx.helper.make_node("Sub", ["stages.0.neuron/v"] * 2, ["nothing"])
    for node in changed.graph.node:
        for i, name in enumerate(node.input):
            if name == "stages.0.neuron/v":
                node.input[i] = "nothing"
    changed.graph.node.insert(0, zero)
    onnx.save(changed, path)
    with pytest.raises(ExportError, match=r"does not agree with torch: of \d+ values of"):
        onnx_export.verify_onnx(model, path)


def test_a_file_of_another_model_or_a_part_of_one_is_noticed(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(LIFConfig())  # with all kinds of layers
    path = onnx_export.export_onnx(model, tmp_path / "model.onnx").path
    with pytest.raises(ExportError, match="does not agree"):
        onnx_export.verify_onnx(make_model(LIFConfig(tau=2.2)), path)
    with pytest.raises(ExportError, match=r"has no input 'hidden_neuron/m'"):
        onnx_export.verify_onnx(make_model(CLIFConfig()), path)
    data = path.read_bytes()
    for keep in (0, 10, 1000):
        path.write_bytes(data[:keep])
        with pytest.raises(ExportError, match=r"model\.onnx: ONNX Runtime cannot load it"):
            onnx_export.verify_onnx(model, path)


def test_a_file_that_does_not_agree_is_not_left_behind(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there before")

    def refuse(*args: Any) -> float:
        raise ExportError("it does not agree")

    monkeypatch.setattr(onnx_export, "verify_onnx", refuse)
    with pytest.raises(ExportError, match="it does not agree"):
        onnx_export.export_onnx(make_model(LIFConfig(), arguments=FEW), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"what was there before"


def test_an_opset_without_the_operators_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="17 is the least"):
        onnx_export.export_onnx(make_model(LIFConfig()), tmp_path / "model.onnx", opset=16)
    assert list(tmp_path.iterdir()) == []
