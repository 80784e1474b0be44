from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from spiketrain.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    model_digest,
    parse_checkpoint,
    save_checkpoint,
    write_atomically,
)
from spiketrain.manifest import Accuracy, ImageInput, Manifest, NetworkSpec, RateProfile
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig, LIFConfig, PLIFConfig

SPEC = NetworkSpec(
    name="small-conv", arguments={"input_shape": [1, 6, 6], "classes": 3, "channels": [2]}
)


def with_arguments(**arguments: Any) -> NetworkSpec:
    return NetworkSpec(name=SPEC.name, arguments=SPEC.arguments | arguments)


def manifest_of(**changes: Any) -> Manifest:
    return Manifest(
        **{
            "name": "tiny",
            "network": SPEC,
            "neuron": CLIFConfig(),
            "timesteps": 3,
            "input": ImageInput(shape=(1, 6, 6), mean=(0.5,), std=(0.25,)),
            "classes": ("a", "b", "c"),
            "accuracy": (
                Accuracy(dataset="d", split="test", samples=7, value=0.5, selected_on="validation"),
            ),
            "firing_rates": {"stages.0.neuron": RateProfile(mean=0.1, p1=0.0, p50=0.1, p99=0.2)},
            **changes,
        }
    )


def tensors_of(manifest: Manifest | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    manifest = manifest or manifest_of()
    network = build_network(SPEC.name, SPEC.arguments, manifest.neuron, manifest.timesteps)
    return dict(network.state_dict())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.safetensors"
    save_checkpoint(file, manifest_of(), tensors_of())
    return file


def resealed(path: Path, manifest: str) -> bytes:
    """The file with another manifest, and a seal that is right for it."""
    tensors = safetensors.torch.load(path.read_bytes())
    data = safetensors.torch.save(tensors, {"manifest": manifest, "seal": "0" * 64})
    return data.replace(
        b'"seal":"' + b"0" * 64, b'"seal":"' + hashlib.sha256(data).hexdigest().encode()
    )


def test_what_is_saved_is_loaded(path: Path):
    loaded = load_checkpoint(path)
    tensors = tensors_of()
    assert loaded.manifest == manifest_of(digest=model_digest(manifest_of(), tensors))
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in tensors.items())
    network = loaded.network()
    assert not network.training
    x = torch.randn(2, 1, 6, 6)
    expected = build_network(SPEC.name, SPEC.arguments, CLIFConfig(), 3).eval()
    expected.load_state_dict(tensors)
    assert torch.equal(network(x).logits, expected(x).logits)


def test_tensors_of_any_layout_are_saved(tmp_path: Path):
    tensors = tensors_of()
    weight = tensors["readout.weight"]
    tensors["readout.weight"] = weight.t().contiguous().t().requires_grad_()
    file = tmp_path / "strided.safetensors"
    save_checkpoint(file, manifest_of(), tensors)
    assert torch.equal(load_checkpoint(file).tensors["readout.weight"], weight)


def test_scalar_parameters_survive(tmp_path: Path):
    manifest = manifest_of(neuron=PLIFConfig())
    tensors = tensors_of(manifest)
    assert tensors["stages.0.neuron.w"].shape == ()
    tensors["stages.0.neuron.w"] += 0.625
    file = tmp_path / "plif.safetensors"
    save_checkpoint(file, manifest, tensors)
    assert load_checkpoint(file).network().get_parameter("stages.0.neuron.w").item() == 0.625


def test_the_file_is_plain_safetensors(path: Path):
    assert safetensors.torch.load_file(path).keys() == tensors_of().keys()


def test_a_changed_byte_is_refused_wherever_it_is(path: Path):
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert header < len(data)
    every = len(data) // 300
    for at in (*range(0, len(data), every), header - 1, header, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 0x01
        with pytest.raises(
            CheckpointError, match=r"^model\.safetensors: (header|seal|manifest|tensors|digest)"
        ):
            parse_checkpoint(bytes(changed), "model.safetensors")


def test_the_seal_itself_is_sealed(path: Path):
    data = path.read_bytes()
    at = data.find(b'"seal":"') + 8
    for digit in (b"0" * 64, b"f" * 64, data[at : at + 63] + b"?"):
        with pytest.raises(CheckpointError, match="seal"):
            parse_checkpoint(data[:at] + digit + data[at + 64 :], "f")


def test_a_truncated_or_longer_file_is_refused(path: Path):
    data = path.read_bytes()
    lengths = {0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1}
    for length in lengths:
        with pytest.raises(CheckpointError, match=r"^f: (header|seal)"):
            parse_checkpoint(data[:length], "f")
    with pytest.raises(CheckpointError, match="seal"):
        parse_checkpoint(data + b"\0", "f")


def test_a_foreign_safetensors_file_is_told_to_be_imported(tmp_path: Path):
    for metadata in (None, {"format": "pt"}, {"manifest": "{}"}):
        file = tmp_path / "foreign.safetensors"
        safetensors.torch.save_file({"weight": torch.zeros(2)}, file, metadata)
        with pytest.raises(
            CheckpointError, match=r"foreign\.safetensors: header: no manifest of ours"
        ):
            load_checkpoint(file)


def test_a_header_that_claims_more_than_the_file_is_refused():
    for data in (
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"{x: ",
        struct.pack("<Q", 40000) + b"{" + b'"a":' + b"[" * 39995,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    ):
        with pytest.raises(CheckpointError, match=r"^f: header"):
            parse_checkpoint(data, "f")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.pt"
    for protocol in (0, 2, 4):
        file.write_bytes(pickle.dumps(Bomb(), protocol))
        with pytest.raises(CheckpointError, match=r"model\.pt: header"):
            load_checkpoint(file)
    torch.save({"net": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"model\.pt: header"):
        load_checkpoint(file)
    assert not (tmp_path / "exploded").exists()


def test_another_version_is_named(path: Path):
    manifest = json.loads(load_checkpoint(path).manifest.model_dump_json())
    for version in (2, 0, "1", None):
        data = resealed(path, json.dumps(manifest | {"format_version": version}))
        with pytest.raises(
            CheckpointError, match=f"^f: format_version: this is {version}, this release reads 1"
        ):
            parse_checkpoint(data, "f")


def test_a_manifest_that_is_not_one_names_the_field(path: Path):
    manifest = json.loads(load_checkpoint(path).manifest.model_dump_json())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"timesteps": 0}, r"manifest\.timesteps"),
        ({"classes": ["one"]}, r"manifest\.classes"),
        ({"neuron": {"kind": "clif", "tau": 0.5}}, r"manifest\.neuron\.clif\.tau"),
        ({"neuron": {"kind": "perceptron"}}, r"manifest\.neuron"),
        ({"unheard_of": 1}, r"manifest\.unheard_of"),
        ({"name": "../escape"}, r"manifest\.name"),
    ]
    for change, field in cases:
        with pytest.raises(CheckpointError, match=f"^f: {field}: "):
            parse_checkpoint(resealed(path, json.dumps(manifest | change)), "f")
    for text in ("", "[]", "null", "not json", "[" * 100000):
        with pytest.raises(CheckpointError, match=r"^f: (manifest|format_version)"):
            parse_checkpoint(resealed(path, text), "f")


def test_resealing_without_a_change_is_accepted(path: Path):
    """So that the refusals above are of what was changed, not of how it was sealed."""
    data = resealed(path, load_checkpoint(path).manifest.model_dump_json())
    assert parse_checkpoint(data, "f").manifest == load_checkpoint(path).manifest


def test_tensors_of_another_manifest_are_refused(path: Path):
    manifest = load_checkpoint(path).manifest.model_copy(update={"digest": "0" * 64})
    with pytest.raises(CheckpointError, match=r"^f: digest: "):
        parse_checkpoint(resealed(path, manifest.model_dump_json()), "f")


def misfit(tmp_path: Path, tensors: dict[str, Tensor], **changes: Any) -> Checkpoint:
    """Through a file whose seal and digest are right, so that only the network can object."""
    file = tmp_path / "misfit.safetensors"
    save_checkpoint(file, manifest_of(**changes), tensors)
    return load_checkpoint(file)


def test_a_missing_extra_or_misshapen_tensor_is_named(tmp_path: Path):
    tensors = tensors_of()
    without = {name: tensor for name, tensor in tensors.items() if name != "readout.bias"}
    with pytest.raises(CheckpointError, match=r"^tiny: tensor 'readout\.bias' is missing"):
        misfit(tmp_path, without).network()
    with pytest.raises(CheckpointError, match=r"^tiny: tensor 'more' belongs to no layer"):
        misfit(tmp_path, tensors | {"more": torch.zeros(1)}).network()
    with pytest.raises(
        CheckpointError, match=r"'readout\.bias' has shape \(4,\), the network needs \(3,\)"
    ):
        misfit(tmp_path, tensors | {"readout.bias": torch.zeros(4)}).network()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b")}, "classes: 2 names for a network with 3 outputs"),
        ({"input": ImageInput(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))}, "input.shape is"),
        ({"network": NetworkSpec(name="gigantic")}, "network: unknown network 'gigantic'"),
        ({"network": NetworkSpec(name="small-conv", arguments={"wings": 2})}, "network: .*wings"),
        ({"network": with_arguments(channels=[-1])}, "network: "),
        ({"network": with_arguments(channels=[])}, "network: "),
        ({"network": with_arguments(strides=[0])}, "network: "),
        ({"network": with_arguments(pools=[100])}, "network: "),
        ({"network": with_arguments(channels=[10**12])}, "tensor .* the network needs"),
        ({"layers": {"nowhere": CLIFConfig()}}, "network: .*no layer nowhere"),
    ],
)
def test_a_manifest_that_does_not_fit_its_network_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(CheckpointError, match=f"^tiny: {message}"):
        misfit(tmp_path, tensors_of(), **changes).network()


def test_a_missing_file_is_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "missing.safetensors")


def test_a_file_over_the_limit_is_not_read(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("spiketrain.checkpoint.MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="more than the limit of 100"):
        load_checkpoint(path)


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spiketrain.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"half")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_digest_tells_names_types_shapes_and_values_apart():
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    digests = {
        model_digest(manifest_of(), tensors)
        for tensors in (
            base,
            {"a": torch.zeros(4), "c": torch.ones(2)},
            {"a": torch.zeros(2, 2), "b": torch.ones(2)},
            {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
            {"a": torch.zeros(4), "b": torch.full((2,), 2.0)},
        )
    }
    assert len(digests) == 5
    assert model_digest(manifest_of(), dict(reversed(base.items()))) in digests


def test_the_digest_follows_what_decides_an_answer_and_nothing_else():
    tensors, manifest = tensors_of(), manifest_of()
    digest = model_digest(manifest, tensors)
    for changes in ({"timesteps": 9}, {"neuron": LIFConfig()}, {"readout": "sum"}):
        assert model_digest(manifest.model_copy(update=changes), tensors) != digest
    accuracy = Accuracy(dataset="d", split="test", samples=1, value=1.0, selected_on="validation")
    for changes in ({"name": "other"}, {"accuracy": (accuracy,)}):
        assert model_digest(manifest.model_copy(update=changes), tensors) == digest
