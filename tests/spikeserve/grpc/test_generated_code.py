from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def generate(checkout: Path) -> ModuleType:
    pytest.importorskip("grpc_tools")
    spec = importlib.util.spec_from_file_location("generate", checkout / "proto" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_code_is_what_the_proto_files_say(generate: ModuleType) -> None:
    assert generate.stale() == []


def test_stale_code_is_noticed(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = generate.generate(tmp_path)
    written[0].write_text(written[0].read_text() + "# changed\n")
    written[1].unlink()
    monkeypatch.setattr(generate, "TARGET", tmp_path)
    assert generate.stale() == ["v1/spikeserve_pb2.py", "v1/spikeserve_pb2.pyi"]


def test_every_message_field_and_call_is_explained(checkout: Path) -> None:
    """Each begins a paragraph with a comment, or continues one: lines without a blank line between them."""
    text = (checkout / "proto/spikeserve/v1/spikeserve.proto").read_text()
    paragraphs = re.split(r"\n\s*\n|\{\n", text)
    declared = [
        part
        for part in paragraphs
        if re.search(r"^ *(message|rpc|\w+ \w+ = \d)", part, re.MULTILINE)
    ]
    assert len(declared) > 60
    for part in declared:
        assert part.lstrip().startswith("//"), part
