"""Bodies of /v2/models/{name}/infer: JSON, and after it the tensors that are sent as bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from spikeserve.oip.models import TensorSpec
from spikeserve.oip.request import InferAnswer, InferRequest, WantedOutput
from spikeserve.oip.tensors import (
    DATATYPES,
    NamedTensor,
    checked_shape,
    from_bytes,
    from_values,
    malformed,
    to_bytes,
    to_values,
)

_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class ReplyForm:
    """`binary` has the outputs to be sent as bytes; those not in it go as `all_binary` says."""

    id: str = ""
    all_binary: bool = False
    binary: dict[str, bool] = field(default_factory=dict)


def read_request(
    model: str,
    version: str | None,
    body: bytes,
    length: str | None,
    raw_input: Callable[[], TensorSpec],
) -> tuple[InferRequest, ReplyForm]:
    """`length` is the header that says where the JSON ends. Where it is 0 there is none: the body is one sample of
    `raw_input`, and all outputs are sent as bytes. Raises ServiceError MALFORMED."""
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdecimal()) or not int(length[:20]) <= end:
            raise malformed(
                f"{_LENGTH}: inference header size should be in range (0, {end}), got: {length:.40}"
            )
        end = int(length)
    if length is not None and end == 0:
        request = InferRequest(model, version, [_raw(body, raw_input())])
        return request, ReplyForm(all_binary=True)
    content = json_object(body[:end])
    parameters = _parameters(content, "the request")
    rest = _Rest(body[end:])
    inputs = [_input(each, rest) for each in _list(content, "inputs")]
    rest.check_used()
    outputs, binary = [], {}
    for each in _list(content, "outputs") if content.get("outputs") is not None else ():
        name = _text(each, "name", "an output")
        own = _parameters(each, f"output {name!r:.60}")
        classes = own.get("classification", 0)
        if isinstance(classes, bool) or not isinstance(classes, int):
            raise malformed(f"output {name!r:.60}: classification must be a whole number")
        outputs.append(WantedOutput(name, classes))
        if "binary_data" in own:
            binary[name] = own["binary_data"] is True
    request_id = content.get("id", "")
    if not isinstance(request_id, str):
        raise malformed("id must be a string")
    form = ReplyForm(request_id, parameters.get("binary_data_output") is True, binary)
    return InferRequest(model, version, inputs, outputs, parameters), form


def encode_answer(answer: InferAnswer, form: ReplyForm) -> Response:
    outputs, raw = [], []
    for tensor in answer.outputs:
        described: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.values.shape),
        }
        if form.binary.get(tensor.name, form.all_binary):
            raw.append(to_bytes(tensor))
            described["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            described["data"] = to_values(tensor)
        outputs.append(described)
    content = {"model_name": answer.model, "model_version": answer.version, "outputs": outputs}
    if form.id:
        content["id"] = form.id
    head = json.dumps(content).encode()
    if not raw:
        return Response(head, media_type="application/json")
    return Response(
        b"".join((head, *raw)),
        media_type="application/octet-stream",
        headers={_LENGTH: str(len(head))},
    )


def json_object(body: bytes) -> dict[str, Any]:
    """Raises ServiceError MALFORMED."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise malformed(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise malformed("the body must be a JSON object")
    return content


class _Rest:
    """The bytes after the JSON, handed out in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, name: str, size: Any) -> bytes:
        left = len(self._data) - self._at
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= left:
            raise malformed(
                f"input {name!r:.60}: binary_data_size {size!r:.40} must be 0 to {left}"
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def check_used(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise malformed(f"{left} bytes after the last tensor: no binary_data_size claims them")


def _raw(body: bytes, spec: TensorSpec) -> NamedTensor:
    shape = (1, *spec.dims) if spec.batched else spec.shape
    if -1 in shape:
        row = DATATYPES[spec.datatype].itemsize * math.prod(n for n in shape if n >= 0)
        shape = tuple(len(body) // row if n == -1 else n for n in shape)
    return from_bytes(spec.name, spec.datatype, shape, body)


def _input(content: Any, rest: _Rest) -> NamedTensor:
    name = _text(content, "name", "an input")
    datatype = _text(content, "datatype", f"input {name!r:.60}")
    shape = checked_shape(name, _list(content, "shape"))
    own = _parameters(content, f"input {name!r:.60}")
    if "binary_data_size" not in own:
        return from_values(name, datatype, shape, content.get("data"))
    if "data" in content:
        raise malformed(f"input {name!r:.60}: has data and binary_data_size: give one of them")
    return from_bytes(name, datatype, shape, rest.take(name, own["binary_data_size"]))


def _list(content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise malformed(f"{key}: missing, or not a list")
    return value


def _text(content: Any, key: str, where: str) -> str:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, str):
        raise malformed(f"{where}: {key} is missing, or not a string")
    return value


def _parameters(content: dict[str, Any], where: str) -> dict[str, Any]:
    value = content.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise malformed(f"{where}: parameters must be an object")
    return value
