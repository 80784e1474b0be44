"""Messages of the Open Inference Protocol from and to what the server works with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict

from spikeserve.grpc.convert import FOREVER
from spikeserve.grpc.v2 import grpc_service_pb2 as pb
from spikeserve.grpc.v2 import model_config_pb2 as config_pb
from spikeserve.oip.request import InferAnswer, InferRequest, WantedOutput
from spikeserve.oip.tensors import (
    DATATYPES,
    NamedTensor,
    checked_datatype,
    checked_shape,
    from_bytes,
    from_numbers,
    from_strings,
    malformed,
    to_bytes,
)

# Where the contents of a tensor have the values of a datatype.
_FIELDS = {
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}


def infer_request(message: pb.ModelInferRequest, remaining: float | None) -> InferRequest:
    """`remaining` is what is left of the call's deadline, in seconds. Raises ServiceError MALFORMED."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise malformed(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs: one for each, or none at all"
        )
    tensors = [
        _tensor(given, raw[number] if raw else None) for number, given in enumerate(message.inputs)
    ]
    return InferRequest(
        model=message.model_name,
        version=message.model_version or None,
        inputs=tensors,
        outputs=[_wanted(each) for each in message.outputs],
        parameters=parameters(message.parameters),
        deadline=None if remaining is None or remaining > FOREVER else time.monotonic() + remaining,
    )


def infer_response(answer: InferAnswer, request_id: str) -> pb.ModelInferResponse:
    """All values are raw."""
    reply = pb.ModelInferResponse(
        model_name=answer.model, model_version=answer.version, id=request_id
    )
    for tensor in answer.outputs:
        reply.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=list(tensor.values.shape)
        )
        reply.raw_output_contents.append(to_bytes(tensor))
    return reply


def model_metadata(described: Mapping[str, Any]) -> pb.ModelMetadataResponse:
    """From what oip.models says."""
    tensors = {
        side: [pb.ModelMetadataResponse.TensorMetadata(**each) for each in described[side]]
        for side in ("inputs", "outputs")
    }
    return pb.ModelMetadataResponse(
        name=described["name"],
        versions=described["versions"],
        platform=described["platform"],
        **tensors,
    )


def model_config(described: dict[str, Any]) -> pb.ModelConfigResponse:
    """From what oip.models says."""
    return pb.ModelConfigResponse(config=ParseDict(described, config_pb.ModelConfig()))


def model_statistics(described: Sequence[dict[str, Any]]) -> pb.ModelStatisticsResponse:
    return pb.ModelStatisticsResponse(
        model_stats=[ParseDict(each, pb.ModelStatistics()) for each in described]
    )


def parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Those without a value are left out."""
    values = {}
    for name, parameter in given.items():
        if (kind := parameter.WhichOneof("parameter_choice")) is not None:
            values[name] = getattr(parameter, kind)
    return values


def _wanted(message: pb.ModelInferRequest.InferRequestedOutputTensor) -> WantedOutput:
    classes = parameters(message.parameters).get("classification", 0)
    if isinstance(classes, bool) or not isinstance(classes, int):
        raise malformed(f"output {message.name!r:.60}: classification must be a whole number")
    return WantedOutput(message.name, classes)


def _tensor(message: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> NamedTensor:
    name, datatype = message.name, message.datatype
    shape = checked_shape(name, message.shape)
    if raw is not None:
        if message.HasField("contents"):
            raise malformed(f"input {name!r:.60}: has contents and raw contents: give one of them")
        return from_bytes(name, datatype, shape, raw)
    checked_datatype(name, datatype)
    field = _FIELDS[datatype]
    filled = [descriptor.name for descriptor, _ in message.contents.ListFields()]
    if others := [each for each in filled if each != field]:
        raise malformed(
            f"input {name!r:.60}: the values of {datatype} belong into {field}, not {others[0]}"
        )
    values = getattr(message.contents, field)
    if datatype == "BYTES":
        return from_strings(name, shape, list(values))
    wide = DATATYPES[datatype] if datatype != "UINT8" else np.dtype(np.uint32)
    return from_numbers(name, datatype, shape, np.array(values, wide))
