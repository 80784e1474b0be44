"""Checkpoints and .onnx files that are nearly valid. Some are sealed anew, so that what lies behind the seal is reached:
a seal tells damage and not malice."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

import safetensors.torch
from fuzz_mutations import mutated, noise, odd_json
from fuzz_target import Tally, Target

from spikeserve.engine.onnx_executor import load_onnx
from spiketrain.checkpoint import model_digest, parse_checkpoint, parse_manifest
from spiketrain.convert.onnx_file import ONNXFileError, parse_step_file

_SEAL = re.compile(rb'"seal":"([0-9a-f]{64})"')


def fuzz_checkpoints(good: Path, inputs: int, tally: Tally, first: int) -> None:
    """The loader promises ValueError."""
    dice = random.Random(first)
    content = good.read_bytes()
    while tally.inputs < inputs:
        data = _damaged(content, dice)
        tally.begin()
        try:
            parse_checkpoint(data, "fuzzed").network()
        except ValueError as error:
            tally.end(type(error).__name__)
        except Exception as error:
            tally.end(type(error).__name__)
            tally.wrong(repr(error), data)
        else:
            tally.end("loaded")


def fuzz_onnx(good: Path, inputs: int, tally: Tally, first: int, folder: Path) -> None:
    """So does the reader of .onnx files; those that it takes go on to ONNX Runtime."""
    dice = random.Random(first)
    content = good.read_bytes()
    path = folder / "fuzzed.onnx"
    while tally.inputs < inputs:
        data = noise(dice) if dice.random() < 0.05 else mutated(content, dice)
        if dice.random() < 0.5:
            data = _resealed(data, rb"seal\x12\x40([0-9a-f]{64})")
        tally.begin()
        try:
            parse_step_file(data, "fuzzed")
            path.write_bytes(data)
            load_onnx(path, 1)
        except ONNXFileError:
            tally.end("refused")
        except Exception as error:
            tally.end(type(error).__name__)
            tally.wrong(repr(error), data)
        else:
            tally.end("loaded")


def fuzz_models_served(target: Target, inputs: int, tally: Tally, first: int) -> None:
    """Put into the server's folder and loaded by request: the model goes on as it was, and the server says why."""
    dice = random.Random(first)
    path = next(target.folder.rglob(f"{target.spare}.safetensors"))
    content = path.read_bytes()
    try:
        while tally.inputs < inputs:
            data = _damaged(content, dice)
            path.write_bytes(data)
            tally.begin()
            reply = target.http.post(f"/models/{target.spare}/load")
            tally.answered(str(reply.status_code), data)
    finally:
        path.write_bytes(content)
        target.http.post(f"/models/{target.spare}/load")


def _damaged(content: bytes, dice: random.Random) -> bytes:
    chance = dice.random()
    if chance < 0.05:
        return noise(dice)
    if chance < 0.3:
        return mutated(content, dice)
    if chance < 0.6:
        return _resealed(mutated(content, dice))
    return _with_manifest(content, dice)


def _with_manifest(content: bytes, dice: random.Random) -> bytes:
    """Another manifest, digest and seal: all that a writer with bad intentions can do."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    manifest = odd_json(json.loads(header["__metadata__"]["manifest"]), dice)
    tensors = safetensors.torch.load(content)
    if dice.random() < 0.2:
        tensors.pop(dice.choice(list(tensors)))
    if isinstance(manifest, dict):
        try:
            digest = model_digest(parse_manifest(json.dumps(manifest), "fuzzed"), tensors)
        except ValueError:
            pass
        else:
            manifest["digest"] = digest
    metadata = {"manifest": json.dumps(manifest), "seal": "0" * 64}
    return _resealed(safetensors.torch.save(tensors, metadata))


def _resealed(data: bytes, pattern: bytes | None = None) -> bytes:
    found = (re.compile(pattern) if pattern else _SEAL).search(data)
    if found is None:
        return data
    at = found.start(1)
    blank = data[:at] + b"0" * 64 + data[at + 64 :]
    return data[:at] + hashlib.sha256(blank).hexdigest().encode() + data[at + 64 :]
