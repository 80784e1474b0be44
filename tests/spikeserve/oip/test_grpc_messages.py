"""Tensors in gRPC messages as contents and raw, and what is refused of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.grpc.v2 import grpc_service_pb2 as pb
from spikeserve.grpc.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

Change = Callable[[pb.ModelInferRequest], object]


@pytest.fixture
async def stub(threaded_server: Server) -> AsyncIterator[GRPCInferenceServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{threaded_server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


def request(pictures: np.ndarray, **fields: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="pictures", **fields)
    message.inputs.add(name="image", datatype="UINT8", shape=pictures.shape)
    return message


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_contents_are_as_good_as_raw(
    stub: GRPCInferenceServiceStub, pictures: np.ndarray
) -> None:
    raw = await stub.ModelInfer(request(pictures, raw_input_contents=[pictures.tobytes()]))
    forms = []
    forms.append(request(pictures))
    forms[0].inputs[0].contents.uint_contents.extend(pictures.ravel().tolist())
    forms.append(request(pictures))
    forms[1].inputs[0].datatype = "FP32"
    forms[1].inputs[0].contents.fp32_contents.extend(pictures.ravel() / np.float32(255))
    for form in forms:
        answer = await stub.ModelInfer(form)
        assert answer.raw_output_contents[0] == raw.raw_output_contents[0]
    assert [output.name for output in raw.outputs] == ["probabilities", "firing_rates", "timesteps"]
    assert list(raw.outputs[0].shape) == [4, 10]
    assert not raw.outputs[0].HasField("contents")


async def test_events_as_contents(stub: GRPCInferenceServiceStub) -> None:
    message = pb.ModelInferRequest(model_name="moves")
    given = message.inputs.add(name="events", datatype="INT64", shape=[2, 4])
    given.contents.int64_contents.extend([0, 1, 1, 1, 15_000, 2, 2, 0])
    message.parameters["sequence_id"].uint64_param = 2**64 - 1
    for name in ("sequence_start", "sequence_end"):
        message.parameters[name].bool_param = True
    answer = await stub.ModelInfer(message)
    windows = np.frombuffer(answer.raw_output_contents[3], np.int64).reshape(-1, 4)
    assert windows[:, 3].tolist() == [1, 1]


def _contents(field: str, values: list[Any]) -> Change:
    return lambda message: getattr(message.inputs[0].contents, field).extend(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.raw_input_contents.append(b""), "784 bytes"),
        (lambda m: m.raw_input_contents.extend([bytes(784)] * 2), "2 entries for 1 inputs"),
        (_contents("uint_contents", [1]), "has 784 values, but data has 1"),
        (_contents("uint_contents", [256] * 784), "UINT8 goes from 0 to 255"),
        (_contents("int_contents", [1] * 784), "belong into uint_contents"),
        (lambda m: m.inputs[0].shape.append(-1), "shape"),
        (lambda m: m.inputs.pop(), "takes one input"),
        (lambda m: m.outputs.add(name="logits"), "'logits'"),
        (
            lambda m: (
                m.outputs.add(name="timesteps")
                .parameters["classification"]
                .CopyFrom(pb.InferParameter(int64_param=2))
            ),
            "classification is of 'probabilities' only",
        ),
        (lambda m: setattr(m.inputs[0], "datatype", "FP16"), "'FP16' is none of"),
        (lambda m: m.parameters["priority"].CopyFrom(pb.InferParameter(double_param=1)), "whole"),
        (
            lambda m: m.parameters["sequence_id"].CopyFrom(pb.InferParameter(int64_param=7)),
            "takes pictures, not sequences",
        ),
    ],
)
async def test_what_is_refused(stub: GRPCInferenceServiceStub, change: Change, said: str) -> None:
    message = request(np.zeros((1, 28, 28, 1), np.uint8))
    change(message)
    if not message.raw_input_contents and not message.inputs[:1]:
        pass
    elif not message.raw_input_contents and not message.inputs[0].HasField("contents"):
        message.raw_input_contents.append(bytes(784))
    error = await refused(stub.ModelInfer(message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in error.details()


async def test_contents_and_raw_together_are_refused(stub: GRPCInferenceServiceStub) -> None:
    message = request(np.zeros((1, 28, 28, 1), np.uint8), raw_input_contents=[bytes(784)])
    message.inputs[0].contents.uint_contents.append(1)
    assert "contents and raw" in (await refused(stub.ModelInfer(message))).details()


async def test_what_is_not_offered_says_so(running: Any) -> None:
    async with (
        running(admin="open") as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        calls = [
            stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest()),
            stub.SystemSharedMemoryRegister(pb.SystemSharedMemoryRegisterRequest()),
            stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest()),
            stub.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()),
            stub.CudaSharedMemoryRegister(pb.CudaSharedMemoryRegisterRequest()),
            stub.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest()),
            stub.TraceSetting(pb.TraceSettingRequest()),
            stub.LogSettings(pb.LogSettingsRequest()),
        ]
        for call in calls:
            assert (await refused(call)).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_deadline_of_the_call_is_kept(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running() as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        deadlines = []
        classify = server.classifier.classify

        async def noted(asked: Any) -> Any:
            deadlines.append(asked.deadline)
            return await classify(asked)

        monkeypatch.setattr(server.classifier, "classify", noted)
        message = request(np.zeros((1, 28, 28, 1), np.uint8), raw_input_contents=[bytes(784)])
        stub = GRPCInferenceServiceStub(channel)
        await stub.ModelInfer(message)
        await stub.ModelInfer(message, timeout=60)
        message.parameters["timeout"].int64_param = 10**6
        await stub.ModelInfer(message, timeout=60)
        assert deadlines[0] is None
        assert deadlines[1] > deadlines[2]
        message.parameters["timeout"].int64_param = 1
        error = await refused(stub.ModelInfer(message))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_request_beyond_the_limit_is_refused(running: Any) -> None:
    async with (
        running(max_body_bytes=2000, max_message_bytes=2000) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        message = request(np.zeros((1, 28, 28, 1), np.uint8), raw_input_contents=[bytes(1 << 17)])
        error = await refused(GRPCInferenceServiceStub(channel).ModelInfer(message))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
