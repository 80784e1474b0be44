"""gRPC: messages of every method of both services with fields of any value, tensors that do not fit what is said of them,
and bytes that are no message, or no HTTP/2 at all, over a real socket."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
from typing import Any

import grpc
from fuzz_mutations import mutated, noise
from fuzz_rest import PLAIN
from fuzz_target import Tally, Target, picture, stream_of
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v2 import grpc_service_pb2 as oip

_SERVICES = (
    pb.DESCRIPTOR.services_by_name["SpikeServe"],
    oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
_A_ROUND = 40
_DEPTH = 3
_INTEGERS = st.one_of(st.integers(0, 40), st.sampled_from((127, 255, 65535, 2**31 - 1)))
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_TYPES = ("UINT8", "FP32", "INT64", "BYTES", "BOOL", "FP16", "nope", "")
_NAMES = ("image", "events", "probabilities", "firing_rates", "classification", "sequence_id")


def fuzz_rpc(target: Target, inputs: int, tally: Tally, first: int) -> None:
    methods = [
        (f"/{service.full_name}/{method.name}", method.input_type, method.client_streaming)
        for service in _SERVICES
        for method in service.methods
    ]
    strategies = {
        path: st.lists(_messages(kind, target), max_size=6 if streams else 1, min_size=1)
        for path, kind, streams in methods
    }
    strategies["/inference.GRPCInferenceService/ModelInfer"] = st.lists(
        st.one_of(_messages(oip.ModelInferRequest.DESCRIPTOR, target), _infer(target)),
        min_size=1,
        max_size=1,
    )
    # Most of what there is to say is said to these.
    rich = [each for each in methods if each[0].endswith(("Infer", "Classify", "StreamEvents"))]
    for number in itertools.count(first):
        for path, _, streams in (*methods, *rich * 6):
            left = min(inputs - tally.inputs, _A_ROUND if "Infer" in path else _A_ROUND // 2)
            if left <= 0:
                return
            _some(target, path, streams, strategies[path], left, number, tally)


def _some(
    target: Target, path: str, streams: bool, strategy: Any, count: int, number: int, tally: Tally
) -> None:
    dice = random.Random(f"{number} {path}")

    @seed(number)
    @settings(PLAIN, max_examples=count)
    @given(strategy, st.integers(0, 3))
    def ask(messages: list[Message], damage: int) -> None:
        if path.endswith("/RepositoryModelUnload"):
            messages[0].model_name = target.spare  # type: ignore[attr-defined]
        sent = [each.SerializeToString() for each in messages]
        if streams and path.endswith("/StreamEvents") and damage:
            # What follows an opening that is refused is never looked at.
            sent[:1] = [each.SerializeToString() for each in stream_of(target.events)[:2]]
        if damage == 3:
            sent[-1] = mutated(sent[-1], dice)
        tally.begin()
        tally.answered(status(target.channel, path, sent, streams), (path, sent))

    ask()


def status(channel: grpc.Channel, path: str, sent: list[bytes], streams: bool) -> str:
    """What a call with these bytes ends with."""
    try:
        if streams:
            for _ in channel.stream_stream(path)(iter(sent), timeout=60):
                pass
        else:
            channel.unary_unary(path)(sent[0], timeout=60)
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


def fuzz_wire(target: Target, inputs: int, tally: Tally, first: int) -> None:
    """Bytes to both ports that are nearly HTTP, HTTP/2 or gRPC; the server may answer or close, and lives on."""
    dice = random.Random(first)
    body = picture()
    head = f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    chunked = b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"
    upgrade = b"GET /events HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    upgrade += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    frames = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0" + b"\0\0\10\6\0\0\0\0\0" + bytes(8)
    )
    seeds = (head + body, chunked, upgrade + b'\x81\x85\0\0\0\0{"a"}', frames)
    ports = [int(each.rpartition(":")[2]) for each in (target.http_url, target.grpc_target)]
    while tally.inputs < inputs:
        chosen = dice.choice(seeds)
        said = noise(dice) if dice.random() < 0.1 else mutated(chosen, dice, seeds)
        port = ports[1] if chosen is frames else ports[0]
        tally.begin()
        tally.end(_said(port, said, tally))


def _said(port: int, said: bytes, tally: Tally) -> str:
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError as error:
        tally.wrong(f"no connection: {error}", said)
        return "no connection"
    with connection, contextlib.suppress(OSError):
        connection.sendall(said)
        connection.settimeout(0.01)
        answer = connection.recv(64)
        if answer.startswith(b"HTTP/1.1 "):
            code = answer[9:12].decode(errors="replace")
            if code.startswith("5") and code not in ("503", "504"):
                tally.wrong(code, said)
            return code
        return "answered" if answer else "closed"
    return "no answer yet"


def _messages(
    descriptor: Descriptor, target: Target, depth: int = _DEPTH
) -> st.SearchStrategy[Any]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for each in descriptor.fields:
        one = _value(each, target, depth)
        if one is not None:
            fields[each.name] = one
    kind = GetMessageClass(descriptor)

    def made(values: dict[str, Any]) -> Message:
        message = kind()
        for name, value in values.items():
            field = getattr(message, name)
            if isinstance(value, dict):
                for key, entry in value.items():
                    if isinstance(entry, Message):
                        field[key].CopyFrom(entry)
                    else:
                        field[key] = entry
            elif isinstance(value, list):
                field.extend(value)
            elif isinstance(value, Message):
                field.CopyFrom(value)
            else:
                setattr(message, name, value)
        return message

    return st.fixed_dictionaries({}, optional=fields).map(made)


def _value(field: FieldDescriptor, target: Target, depth: int) -> st.SearchStrategy[Any] | None:
    """None where it would be nested too deep."""
    kind = field.message_type
    if kind is not None and depth <= 0:
        return None
    if kind is not None and kind.GetOptions().map_entry:
        value = _value(kind.fields_by_name["value"], target, depth - 1)
        keys = st.one_of(st.sampled_from(_NAMES), st.text(max_size=5))
        return None if value is None else st.dictionaries(keys, value, max_size=2)
    one = _messages(kind, target, depth - 1) if kind is not None else _scalar(field, target)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _scalar(field: FieldDescriptor, target: Target) -> st.SearchStrategy[Any]:
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        return st.one_of(_INTEGERS, st.integers(low, high))
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, 9)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.binary(max_size=300), st.just(picture()))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        known = {"datatype": _TYPES, "name": _NAMES}.get(
            field.name, (target.pictures, target.events, "1")
        )
        return st.one_of(st.sampled_from(known), st.text(max_size=20))
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        return st.floats(width=32)
    return st.floats()


@st.composite
def _infer(draw: Any, target: Target) -> Message:
    """Nearly right: one tensor, whose shape, type and bytes do not fit together most of the time."""
    request = oip.ModelInferRequest(
        model_name=draw(st.sampled_from((target.pictures, target.events)))
    )
    tensor = request.inputs.add(name="image", datatype=draw(st.sampled_from(_TYPES)))
    shapes = st.one_of(
        st.just([1, 28, 28, 1]),
        st.lists(st.integers(-2, 40), max_size=5),
        st.just([2**62, 4, 28, 28]),
    )
    tensor.shape.extend(draw(shapes))
    if draw(st.booleans()):
        size = draw(st.sampled_from((0, 1, 783, 784, 785, 3136)))
        request.raw_input_contents.extend([bytes(size)] * draw(st.integers(0, 2)))
    else:
        tensor.contents.uint_contents.extend(
            [draw(st.integers(0, 300))] * draw(st.integers(0, 800))
        )
    return request
