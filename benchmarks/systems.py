"""What is compared, and how each system is spoken to.

A peer is one server with one runtime, each as its makers recommend and in the form that was fastest here
(`python peers/engines.py FOLDER` compares the runtimes' choices). A server that takes a request's bytes gets the PNG
file; the others get it wrapped as they want it: in a form, in base64, in a binary tensor.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".environments"

Form = Literal["spikeserve", "bytes", "form", "v2-base64", "v2-binary"]


@dataclass(frozen=True)
class System:
    """`environment` names a file in requirements/; None is the Python that runs the benchmark."""

    name: str
    label: str
    form: Form
    runtime: Literal["spikeserve", "spikingjelly", "onnxruntime", "openvino"]
    environment: str | None = None
    script: str = ""
    arguments: tuple[str, ...] = ()
    query: str = ""

    @property
    def ours(self) -> bool:
        return self.runtime == "spikeserve"

    def python(self) -> Path:
        if self.environment is None:
            return Path(sys.executable)
        return ENVIRONMENTS / self.environment / "bin" / "python"

    def command(self, folder: Path, port: int) -> list[str]:
        if self.ours:
            models = str(folder / "model.safetensors")
            ports = ["--http-port", str(port), "--grpc-port", str(port + 1)]
            serve = [sys.executable, "-m", "spikeserve", "serve", "--log-level", "warning"]
            return [*serve, "--models", models, *ports, *self.arguments]
        script = str(HERE / "peers" / self.script)
        given = ["--model", str(folder), "--port", str(port)]
        return [str(self.python()), script, *given, *self.arguments]

    def request(self, picture: bytes) -> bytes:
        """The whole HTTP request."""
        path, headers, body = _FORMS[self.form](picture)
        lines = [f"POST {path}{self.query} HTTP/1.1", "Host: 127.0.0.1", *headers]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def label_in(self, reply: bytes) -> int:
        """The likeliest class."""
        content: Any = json.loads(reply)
        if self.form == "spikeserve":
            return int(content["predictions"][0]["index"])
        chances = (
            content["outputs"][0]["data"] if self.form[:2] == "v2" else content["probabilities"]
        )
        return max(range(len(chances)), key=chances.__getitem__)


_Wrapped = tuple[str, list[str], bytes]


def _bytes(picture: bytes) -> _Wrapped:
    return "/classify", ["Content-Type: image/png"], picture


def _form(picture: bytes) -> _Wrapped:
    mark = b"a-mark-that-no-picture-has"
    head = (
        b'Content-Disposition: form-data; name="image"; filename="i.png"\r\nContent-Type: image/png'
    )
    body = b"--" + mark + b"\r\n" + head + b"\r\n\r\n" + picture + b"\r\n--" + mark + b"--\r\n"
    return "/predict", [f"Content-Type: multipart/form-data; boundary={mark.decode()}"], body


def _v2_base64(picture: bytes) -> _Wrapped:
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture).decode()],
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    return "/v2/models/classify/infer", ["Content-Type: application/json"], body


def _v2_binary(picture: bytes) -> _Wrapped:
    content = len(picture).to_bytes(4, "little") + picture
    tensor = {
        "name": "image",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(content)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = [
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
    ]
    return "/v2/models/classify/infer", headers, head + content


_FORMS: dict[str, Callable[[bytes], _Wrapped]] = {
    "spikeserve": _bytes,
    "bytes": _bytes,
    "form": _form,
    "v2-base64": _v2_base64,
    "v2-binary": _v2_binary,
}

_BATCH = "16"


def _fastapi(runtime: Any, engine: str, environment: str, batch: str = _BATCH) -> System:
    plain = " plain" if batch == "1" else ""
    return System(
        f"fastapi-{engine}{'-plain' if plain else ''}",
        f"FastAPI{plain} + {_LABELS[engine]}",
        "bytes",
        runtime,
        environment,
        "fastapi_peer.py",
        ("--engine", engine, "--batch", batch),
    )


_LABELS = {
    "spikingjelly": "SpikingJelly",
    "onnxruntime": "ONNX Runtime",
    "openvino-f32": "OpenVINO f32",
    "openvino-bf16": "OpenVINO bf16",
}


def _batching(
    server: str, label: str, form: Form, runtime: Any, engine: str, environment: str
) -> System:
    return System(
        f"{server}-{engine}",
        f"{label} + {_LABELS[engine]}",
        form,
        runtime,
        environment,
        f"{server}_peer.py",
        ("--engine", engine, "--batch", _BATCH),
    )


SYSTEMS = [
    System("spikeserve", "spikeserve", "spikeserve", "spikeserve", query="?exit=off"),
    System(
        "spikeserve-balanced",
        "spikeserve, exit=balanced",
        "spikeserve",
        "spikeserve",
        query="?exit=balanced",
    ),
    System(
        "spikeserve-fast", "spikeserve, exit=fast", "spikeserve", "spikeserve", query="?exit=fast"
    ),
    _fastapi("spikingjelly", "spikingjelly", "spikingjelly", batch="1"),
    _fastapi("spikingjelly", "spikingjelly", "spikingjelly"),
    _batching("litserve", "LitServe", "form", "spikingjelly", "spikingjelly", "spikingjelly"),
    _batching("mlserver", "MLServer", "v2-base64", "spikingjelly", "spikingjelly", "mlserver"),
    _fastapi("onnxruntime", "onnxruntime", "runtimes"),
    _fastapi("openvino", "openvino-f32", "runtimes"),
    _fastapi("openvino", "openvino-bf16", "runtimes"),
    _batching("pytriton", "PyTriton", "v2-binary", "openvino", "openvino-bf16", "pytriton"),
]


def chosen(names: list[str]) -> list[System]:
    """Systems by name, all of them for no names. Raises ValueError for one that there is not."""
    known = {system.name: system for system in SYSTEMS}
    if unknown := set(names) - known.keys():
        raise ValueError(f"{min(unknown)!r} is none of the systems {', '.join(known)}")
    return [known[name] for name in names] if names else list(SYSTEMS)


def surroundings(environment: str | None) -> dict[str, str]:
    """Our own settings come from the caller's environment; a peer's Python must not find our packages."""
    hidden = {"PYTHONPATH"} if environment is not None else set()
    return {key: value for key, value in os.environ.items() if key not in hidden}
