"""Requests made up at random: whatever comes, the answer is an error of the client's, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spikeserve.app import Server
from spikeserve.grpc.v2 import grpc_service_pb2 as pb

# A longer run on demand.
EXAMPLES = int(os.environ.get("SPIKESERVE_TEST_EXAMPLES", "25"))
RUN = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CLIENTS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.OK,
}

PARAMETERS = [
    *("sequence_id", "sequence_start", "sequence_end", "advance_us", "sensor", "start_us"),
    *("lateness_us", "filter", "window", "force", "decision", "priority", "timeout", "timesteps"),
    *("exit", "risk", "binary_data_output", "binary_data", "binary_data_size", "classification"),
]

names = st.sampled_from(["image", "events", "", "x"]) | st.text(max_size=5)
datatypes = st.sampled_from(["UINT8", "FP32", "INT64", "BYTES", "INT32", "BOOL", "FP16", ""])
sizes = st.integers(-2, 40) | st.sampled_from([28, 4, 1, 0, 2**31, 2**63 - 1])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, "\ud800", 0, 1, ""])
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
parameters = st.dictionaries(
    st.sampled_from(PARAMETERS),
    anything
    | st.sampled_from(["10ms", "34x34", "leaky", "hot-pixels", "count:events=1", "x" * 300]),
    max_size=5,
)
shapes = st.lists(sizes, max_size=5) | st.sampled_from([[1, 28, 28, 1], [0, 4], [2, 4], [1, 2, 4]])
models = st.sampled_from(["pictures", "moves"])
inputs = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "name": names | anything,
            "datatype": datatypes | anything,
            "shape": shapes | anything,
            "data": st.lists(scalars, max_size=8) | st.just([1] * 8) | st.just([0] * 784) | anything,
            "parameters": parameters | anything,
        },
    )
    | anything,
    max_size=2,
)  # fmt: skip
outputs = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["probabilities", "windows", "timesteps", "x"])},
        optional={"parameters": parameters | anything},
    )
    | anything,
    max_size=3,
)
bodies = st.fixed_dictionaries(
    {"inputs": inputs},
    optional={"id": anything, "parameters": parameters | anything, "outputs": outputs | anything},
)


def good(changes: dict[str, Any]) -> dict[str, Any]:
    """A request for pictures that is right but for the changes."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
    return {"inputs": [tensor]} | changes


@RUN
@given(
    models, bodies, st.binary(max_size=40), st.none() | st.integers(-1, 400) | st.text(max_size=4)
)
@example("pictures", good({"parameters": {"priority": 3}}), b"", None)
@example("pictures", good({"parameters": {"exit": []}}), b"", None)
@example("pictures", good({"parameters": {"timesteps": 2**64}}), b"", None)
@example("pictures", good({"id": "\ud800"}), b"", None)
@example("moves", good({"parameters": {"sequence_id": {}}}), b"", None)
def test_json(
    http: httpx.Client, model: str, body: dict[str, Any], tail: bytes, length: int | str | None
) -> None:
    head = json.dumps(body).encode()
    headers = {}
    if length is not None:
        said = len(head) if isinstance(length, int) and length > 200 else length
        headers["Inference-Header-Content-Length"] = str(said).encode()
    try:
        reply = http.post(f"/v2/models/{model}/infer", content=head + tail, headers=headers)
    except httpx.LocalProtocolError:
        return  # the client refuses to send such a header
    check(reply)


@RUN
@given(models, st.binary(max_size=200))
def test_bytes(http: httpx.Client, model: str, body: bytes) -> None:
    check(http.post(f"/v2/models/{model}/infer", content=body))
    check(http.post("/v2/repository/index", content=body))
    head = {"content-encoding": "gzip"}
    check(http.post(f"/v2/models/{model}/infer", content=body, headers=head))


def check(reply: httpx.Response) -> None:
    assert reply.status_code in (200, 400, 404, 408, 413, 429, 503, 504), reply.text
    if reply.status_code != 200 and reply.headers.get("content-type") == "application/json":
        assert isinstance(reply.json()["error"], str)


messages = st.builds(
    lambda **fields: fields,
    name=names,
    datatype=datatypes,
    shape=shapes,
    raw=st.lists(st.binary(max_size=70) | st.just(bytes(784)) | st.just(bytes(64)), max_size=2),
    contents=st.lists(st.integers(0, 2**31 - 1), max_size=9) | st.just([1] * 8) | st.just([0] * 784),
    field=st.sampled_from(["uint_contents", "int64_contents", "int_contents", "fp32_contents"]),
    outputs=st.lists(st.sampled_from(["probabilities", "windows", "x"]), max_size=2),
    parameters=st.dictionaries(
        st.sampled_from(["sequence_id", "sequence_start", "priority", "timeout", "advance_us", "x"]),
        st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=4),
        max_size=4,
    ),
)  # fmt: skip


def built(model: str, fields: dict[str, Any]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=fields["raw"])
    shape = [max(-(2**63), min(size, 2**63 - 1)) for size in fields["shape"]]
    tensor = request.inputs.add(name=fields["name"], datatype=fields["datatype"], shape=shape)
    if not fields["raw"]:
        getattr(tensor.contents, fields["field"]).extend(fields["contents"])
    for name in fields["outputs"]:
        request.outputs.add(name=name)
    for name, value in fields["parameters"].items():
        parameter = request.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            field = "int64_param" if value < 2**63 else "uint64_param"
            setattr(parameter, field, value)
        elif isinstance(value, float):
            parameter.double_param = value
        else:
            parameter.string_param = value
    return request


@pytest.fixture(scope="module")
def channel(threaded_server: Server) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{threaded_server.grpc_port}") as channel:
        yield channel


METHOD = "/inference.GRPCInferenceService/"


def code(call: Any, content: bytes) -> grpc.StatusCode:
    try:
        call(content, timeout=60)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@RUN
@given(models, messages)
def test_messages(channel: Any, model: str, fields: dict[str, Any]) -> None:
    infer = channel.unary_unary(f"{METHOD}ModelInfer")
    assert code(infer, built(model, fields).SerializeToString()) in CLIENTS_FAULT


@RUN
@given(
    st.sampled_from(
        [method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
    ),
    st.binary(max_size=60),
)
def test_bytes_as_messages(channel: Any, method: str, content: bytes) -> None:
    if method == "ModelStreamInfer":
        call = channel.stream_stream(f"{METHOD}{method}")
        assert code(lambda data, timeout: list(call(iter([data]), timeout=timeout)), content) in CLIENTS_FAULT  # fmt: skip
    else:
        assert code(channel.unary_unary(f"{METHOD}{method}"), content) in CLIENTS_FAULT


@RUN
@given(st.lists(st.tuples(models, messages), max_size=6))
def test_streams_of_messages(channel: Any, requests: list[tuple[str, dict[str, Any]]]) -> None:
    call = channel.stream_stream(f"{METHOD}ModelStreamInfer")
    sent = [built(*each).SerializeToString() for each in requests]
    answers = [
        pb.ModelStreamInferResponse.FromString(reply) for reply in call(iter(sent), timeout=60)
    ]
    assert len(answers) == len(sent)
    assert not any("the server failed" in each.error_message for each in answers)


@RUN
@given(
    st.lists(
        st.tuples(
            st.integers(1, 2),
            st.booleans(),
            st.booleans(),
            st.lists(st.tuples(*[st.integers(-3, 40)] * 3, st.integers(0, 1)), max_size=4),
            st.integers(-(2**63), 2**63 - 1),
        ),
        max_size=6,
    )
)
def test_events(threaded_server: Server, channel: Any, steps: list[Any]) -> None:
    infer = channel.unary_unary(f"{METHOD}ModelInfer")
    for id, start, end, events, time in steps:
        rows = np.array(events, np.int64).reshape(-1, 4)
        rows[:, 0] += time % 1000 * 1000
        if len(rows):
            rows[0, 0] = time
        request = pb.ModelInferRequest(model_name="moves", raw_input_contents=[rows.tobytes()])
        request.inputs.add(name="events", datatype="INT64", shape=rows.shape)
        request.parameters["sequence_id"].int64_param = id
        request.parameters["sequence_start"].bool_param = start
        request.parameters["sequence_end"].bool_param = end
        assert code(infer, request.SerializeToString()) in CLIENTS_FAULT
    for id in (1, 2):
        request = pb.ModelInferRequest(model_name="moves", raw_input_contents=[b""])
        request.inputs.add(name="events", datatype="INT64", shape=[0, 4])
        request.parameters["sequence_id"].int64_param = id
        for flag in ("sequence_start", "sequence_end"):
            request.parameters[flag].bool_param = True
        assert code(infer, request.SerializeToString()) is grpc.StatusCode.OK


async def test_bytes_elements_by_the_million_do_not_hold_up_others(threaded_server: Server) -> None:
    """Each is four bytes of nothing; the shape asks for as many as there are."""
    count = 1 << 21
    given = {"name": "image", "datatype": "BYTES", "shape": [count]}
    given["parameters"] = {"binary_data_size": 4 * count}
    head = json.dumps({"inputs": [given]}).encode()
    base = f"http://127.0.0.1:{threaded_server.http_port}"
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        sending = asyncio.create_task(
            http.post(
                "/v2/models/pictures/infer",
                content=head + struct.pack("<I", 0) * count,
                headers={"Inference-Header-Content-Length": str(len(head))},
            )
        )
        while not sending.done():
            assert (await http.get("/health/live")).status_code == 200
        reply = await sending
    assert reply.status_code == 400
    assert "takes 1 to 4" in reply.json()["error"]
