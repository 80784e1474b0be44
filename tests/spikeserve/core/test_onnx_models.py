"""ONNX files are served as the checkpoints that they were made of, and bad ones are refused by name."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from spikeserve.app import Server
from spikeserve.engine import Frames, ReferenceExecutor, Sample, StateError
from spikeserve.engine.choose import UnsupportedError
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.settings import load_settings
from spikeserve.traces import Tracer, TraceRequest
from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.convert.onnx_file import UNSEALED, ONNXFileError, parse_step_file, sealed
from spiketrain.energy import fan_out
from spiketrain.events import write_npz
from spiketrain.events.types import Events
from spiketrain.manifest import (
    DurationWindow,
    EventInput,
    ImageInput,
    Input,
    Manifest,
    NetworkSpec,
)
from spiketrain.networks import build_network
from spiketrain.neurons import AnyNeuronConfig, GLIFConfig, ILIFConfig

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
export_onnx = pytest.importorskip("spiketrain.convert.onnx_export").export_onnx
onnx_executor = pytest.importorskip("spikeserve.engine.onnx_executor")

PICTURES = ImageInput(shape=(1, 12, 12), mean=(0.5,), std=(0.5,))
MOVES = EventInput(sensor=(12, 12), shape=(2, 12, 12), window=DurationWindow(microseconds=1000))


def write(folder: Path, name: str, spec: Input, neuron: AnyNeuronConfig) -> None:
    """NAME/1.safetensors with random weights, and the same model as NAME/2.onnx."""
    arguments = {"channels": [4], "input_shape": list(spec.shape), "classes": 3}
    torch.manual_seed(1)
    network = build_network("small-conv", arguments, neuron, 4)
    with torch.no_grad():
        network.stages[0].bn.weight.fill_(3.0)  # so that it fires
    manifest = Manifest(
        name=name,
        network=NetworkSpec(name="small-conv", arguments=arguments),
        neuron=neuron,
        timesteps=4,
        input=spec,
        classes=("a", "b", "c"),
    )
    path = folder / name / "1.safetensors"
    save_checkpoint(path, manifest, network.state_dict())
    export_onnx(load_checkpoint(path), folder / name / "2.onnx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write(
        folder, "pictures", PICTURES, GLIFConfig()
    )  # its state counts timesteps, in whole numbers
    write(folder, "moves", MOVES, ILIFConfig())
    return folder


def executors(path: Path, slots: int):
    """Ours, and the reference executor of the checkpoint beside it."""
    checkpoint = load_checkpoint(path.with_name("1.safetensors"))
    network = checkpoint.network()
    reference = ReferenceExecutor(network, slots, fan_out(network), checkpoint.manifest.digest)
    return onnx_executor.OnnxExecutor(onnx_executor.load_onnx(path, 1), slots), reference


def same(given, expected) -> None:
    torch.testing.assert_close(given.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert given.spikes.tolist() == expected.spikes.tolist()
    assert given.synaptic_operations.tolist() == expected.synaptic_operations.tolist()


def test_slots_are_at_timesteps_of_their_own(exported: Path) -> None:
    ours, reference = executors(exported / "pictures" / "2.onnx", 3)
    assert (ours.slots, ours.layers) == (3, reference.layers)
    x = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    turns = [(0,), (0, 2), (2, 0), (1, 0), (1,), (0, 1, 2)]
    spikes = 0.0
    for turn, slots in enumerate(turns):
        for executor in (ours, reference):
            if turn in (0, 1, 3):  # one newcomer each
                executor.admit((0, 2, None, 1)[turn], Sample(x[turn], 4))
            if turn == 5:  # a slot is used again, and keeps nothing
                executor.admit(0, Sample(x[2]))
        given, expected = ours.step(slots, None), reference.step(slots, None)
        same(given, expected)
        spikes += given.spikes.sum().item()
    assert spikes > 100


def test_a_stream_moves_between_slots_and_executors(exported: Path) -> None:
    ours, reference = executors(exported / "moves" / "2.onnx", 2)
    x = torch.randn(9, 1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    for executor in (ours, reference):
        executor.admit(1, Sample())
    for frame in x[:3]:
        same(ours.step((1,), Frames((0,), frame)), reference.step((1,), Frames((0,), frame)))
    mine, theirs = ours.save(1), reference.save(1)
    ours.load(0, theirs)
    reference.load(0, mine)
    for frame in x[3:]:
        both = [executor.step((0,), Frames((0,), frame)) for executor in (ours, reference)]
        same(*both)
    with pytest.raises(StateError, match="only the start"):
        ours.load(0, mine[:20])
    other, _ = executors(exported / "pictures" / "2.onnx", 1)
    with pytest.raises(StateError, match="other weights"):
        other.load(0, mine)
    with pytest.raises(ValueError, match="neither a constant input nor a frame"):
        ours.step((1,), None)


def test_a_picture_goes_on_where_it_was_saved(exported: Path) -> None:
    ours, reference = executors(exported / "pictures" / "2.onnx", 2)
    picture = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(0))
    for executor in (ours, reference):
        executor.admit(0, Sample(picture))
        executor.step((0,), None)
    ours.load(1, ours.save(0))
    same(ours.step((1,), None), reference.step((0,), None))


@pytest.fixture
def settings(exported: Path):
    return load_settings(
        models=exported,
        http_port=0,
        grpc_port=0,
        slots=4,
        torch_threads=1,
        executor="reference",
    )


async def test_replies_equal_the_checkpoints(settings) -> None:
    random = np.random.default_rng(0)
    file, recording = io.BytesIO(), io.BytesIO()
    Image.fromarray(random.integers(0, 256, (12, 12), np.uint8)).save(file, "PNG")
    x, y = random.integers(0, 12, (2, 900)).astype(np.uint16)
    times = np.sort(random.integers(0, 6000, 900))
    write_npz(recording, Events(times, x, y, random.integers(0, 2, 900).astype(np.uint8)), None)
    server = Server(settings)
    await server.start()
    try:
        url = f"http://127.0.0.1:{server.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            pictures, moves = [], []
            for version in ("1", "2"):
                ask = {"model": "pictures", "version": version, "rates": "true"}
                reply = await http.post("/classify", content=file.getvalue(), params=ask)
                assert reply.status_code == 200, reply.text
                pictures.append(reply.json())
                ask = {"model": "moves", "version": version, "rates": "true"}
                reply = await http.post(
                    "/classify/events", content=recording.getvalue(), params=ask
                )
                assert reply.status_code == 200, reply.text
                moves.append(reply.json())
    finally:
        await server.stop()
    equal(*pictures)
    for given, expected in zip(moves[1]["windows"], moves[0]["windows"], strict=True):
        equal(given, expected)
    assert pictures[1]["synaptic_operations"] > 0
    assert [each["version"] for each in pictures] == ["1", "2"]


def equal(given: dict, expected: dict) -> None:
    for name in ("synaptic_operations", "firing_rates", "energy_joules"):
        assert given.get(name) == expected.get(name)
    for one, other in zip(given["predictions"], expected["predictions"], strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_the_file_says_its_name_and_why_it_cannot_be_served(
    exported: Path, tmp_path: Path, classifier_of
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    good = (exported / "pictures" / "2.onnx").read_bytes()
    (models / "anything.onnx").write_bytes(good)
    (models / "broken.onnx").write_bytes(good[:-40])
    scan = onnx.load(exported / "moves" / "2.onnx")
    with_metadata(scan, "form", "scan")
    with_metadata(scan, "seal", UNSEALED)
    (models / "scans.onnx").write_bytes(sealed(scan.SerializeToString(), "scans"))
    repository = classifier_of(models=[models]).repository
    infos = {info.path.name: info for info in repository.models()}
    assert (infos["anything.onnx"].name, infos["anything.onnx"].state) == ("pictures", "ready")
    assert "the file is truncated" in (infos["broken.onnx"].reason or "")
    assert "metadata.form is 'scan'" in (infos["scans.onnx"].reason or "")
    (models / "anything.onnx").unlink()


Change = Callable[["onnx.ModelProto"], None]


def rename(values, old: str, new: str) -> None:
    next(value for value in values if value.name == old).name = new


def with_metadata(model, key: str, value: str) -> None:
    next(entry for entry in model.metadata_props if entry.key == key).value = value


def lose(model, key: str) -> None:
    model.metadata_props.remove(next(e for e in model.metadata_props if e.key == key))


def unknown_operator(model) -> None:
    model.graph.node[0].op_type = "Convolve"
    model.graph.node[0].name = "the_first"


def other_states(change: Callable[[list], None]) -> Change:
    def apply(model) -> None:
        states = json.loads(next(e.value for e in model.metadata_props if e.key == "states"))
        change(states)
        with_metadata(model, "states", json.dumps(states))

    return apply


def smaller_input(model) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 11


def fixed_batch(model) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2


def no_operations(model) -> None:
    model.graph.output.remove(
        next(o for o in model.graph.output if o.name == "synaptic_operations")
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: lose(model, "manifest"), r"metadata\.manifest: missing"),
        (lambda model: with_metadata(model, "manifest", "{"), r"metadata: manifest: not JSON"),
        (lambda model: with_metadata(model, "form", "loop"), r"metadata\.form is 'loop'"),
        (lambda model: lose(model, "states"), r"metadata\.states: Invalid JSON"),
        (other_states(lambda s: s[0].pop("shape")), r"metadata\.states\.0\.shape: Field required"),
        (other_states(lambda s: s[1].update(shape=[5])), r"input 'stages\.0\.neuron/s' has shape"),
        (other_states(lambda s: s[1].update(type="float16")), r"neuron/s has type 'float16'"),
        (other_states(lambda s: s[1].update(initial=[1, 2])), r"neuron/s: initial: "),
        (
            other_states(lambda s: s.pop()),
            r"input 'stages\.0\.neuron/t' is not in metadata\.states",
        ),
        (smaller_input, r"input 'x' has shape \['N', 1, 11, 12\]|graph: ONNX Runtime"),
        (fixed_batch, r"its first axis, the batch, must be free|graph: ONNX Runtime"),
        (no_operations, r"output 'synaptic_operations' is missing"),
        (unknown_operator, r"graph: ONNX Runtime cannot load it: .*(the_first|Convolve)"),
    ],
)
def test_a_wrong_file_is_refused_with_node_or_field(
    exported: Path, tmp_path: Path, change: Change, said: str
) -> None:
    model = onnx.load(exported / "pictures" / "2.onnx")
    change(model)
    lose(model, "seal")  # as a tool that rewrites the file must
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ONNXFileError, match=said) as error:
        onnx_executor.load_onnx(path, 1)
    assert str(path) in str(error.value)


def test_every_changed_or_missing_byte_is_noticed(exported: Path) -> None:
    good = (exported / "pictures" / "2.onnx").read_bytes()
    assert parse_step_file(good, "good").manifest.name == "pictures"
    random = np.random.default_rng(0)
    for at in random.integers(0, len(good), 60):
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(random.integers(8))
        with pytest.raises(ONNXFileError, match=r"^damaged: "):
            parse_step_file(bytes(damaged), "damaged")
        with pytest.raises(ONNXFileError, match=r"^short: "):
            parse_step_file(good[:at], "short")


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"not an ONNX file at all", b"\x89PNG\r\n\x1a\n" + b"\x01" * 99]
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(content)
    with pytest.raises(ONNXFileError, match=r"foreign\.onnx: .*(not an ONNX file|truncated)"):
        onnx_executor.load_onnx(path, 1)


def test_a_foreign_model_is_told_what_is_missing(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "foreign",
        [value("x", onnx.TensorProto.FLOAT, ["N", 3])],
        [value("y", onnx.TensorProto.FLOAT, ["N", 3])],
    )
    path = tmp_path / "foreign.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(ONNXFileError, match=r"metadata\.manifest: missing; only files that"):
        onnx_executor.load_onnx(path, 1)


def test_without_the_runtime_the_message_names_the_extra(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'spikeserve\[onnx\]'"):
        onnx_executor.load_onnx(exported / "pictures" / "2.onnx", 1)


def test_the_manifest_and_the_graph_must_be_of_one_network(
    exported: Path, tmp_path: Path, classifier_of
) -> None:
    model = onnx.load(exported / "pictures" / "2.onnx")
    rename(model.graph.output, "stages.0.neuron/spikes", "stages.7.neuron/spikes")
    for node in model.graph.node:
        node.output[:] = [o.replace("0.neuron/spikes", "7.neuron/spikes") for o in node.output]
    with_metadata(model, "seal", UNSEALED)
    models = tmp_path / "models"
    models.mkdir()
    (models / "x.onnx").write_bytes(sealed(model.SerializeToString(), "x"))
    (info,) = classifier_of(models=[models]).repository.models()
    assert "'stages.0.neuron/spikes': the manifest's network and the graph" in (info.reason or "")


async def test_asking_for_single_neurons_is_refused(exported: Path, tmp_path: Path, load) -> None:
    repository, _, settings = load(models=[exported / "pictures" / "2.onnx"])
    tracer = Tracer(repository, settings)
    try:
        with pytest.raises(ServiceError, match="is an ONNX file") as error:
            await tracer.trace(TraceRequest(b"", "pictures"))
    finally:
        tracer.close()
    assert error.value.kind is ErrorKind.IMPOSSIBLE
