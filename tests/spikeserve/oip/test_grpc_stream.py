"""ModelStreamInfer: answers in the order of requests, errors in their place, and clients that leave or do not read."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import pytest

from spikeserve.app import Server
from spikeserve.grpc.v2 import grpc_service_pb2 as pb
from spikeserve.grpc.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

pytest.importorskip("tritonclient.grpc")
import tritonclient.grpc as tgrpc
import tritonclient.grpc.aio as tgrpc_aio


@pytest.fixture
async def server(running: Any) -> AsyncIterator[Server]:
    async with running() as server:
        yield server


@pytest.fixture
async def stub(server: Server) -> AsyncIterator[GRPCInferenceServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield GRPCInferenceServiceStub(channel)


def picture(id: str, model: str = "pictures", pixels: bytes = bytes(784)) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=id, raw_input_contents=[pixels])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28, 1])
    return request


def step(id: str, values: np.ndarray, **parameters: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(
        model_name="moves", id=id, raw_input_contents=[values.astype("<i8").tobytes()]
    )
    request.inputs.add(name="events", datatype="INT64", shape=values.shape)
    request.parameters["sequence_id"].string_param = "one"
    for name, value in parameters.items():
        request.parameters[name].bool_param = value
    return request


async def replies(
    stub: GRPCInferenceServiceStub, requests: Iterable[pb.ModelInferRequest], **call: Any
) -> list[pb.ModelStreamInferResponse]:
    async with asyncio.timeout(60):
        return [reply async for reply in stub.ModelStreamInfer(iter(requests), **call)]


async def test_answers_come_in_the_order_of_requests_with_errors_in_their_place(
    stub: GRPCInferenceServiceStub,
) -> None:
    names = ["pictures", "nope", "pictures", "moves"] * 8
    got = await replies(stub, (picture(str(n), name) for n, name in enumerate(names)))
    assert [reply.infer_response.id for reply in got] == [str(n) for n in range(len(names))]
    for name, reply in zip(names, got, strict=True):
        assert bool(reply.error_message) is (name != "pictures")
        final = reply.infer_response.parameters["triton_final_response"].bool_param
        assert final is (name == "pictures")
    assert "'nope'" in got[1].error_message


async def test_a_sequence_over_one_call(
    stub: GRPCInferenceServiceStub, parts: list[np.ndarray]
) -> None:
    requests = [
        step(str(n), part, sequence_start=n == 0, sequence_end=n == len(parts) - 1)
        for n, part in enumerate(parts)
    ]
    got = await replies(stub, [*requests, step("late", parts[0])])
    windows = [
        np.frombuffer(reply.infer_response.raw_output_contents[3], np.int64).reshape(-1, 4)
        for reply in got[:-1]
    ]
    indices = np.concatenate(windows)[:, 0].tolist()
    assert indices == list(range(10))
    assert "START" in got[-1].error_message


async def test_the_first_error_ends_the_call_of_a_client_that_wants_so(
    stub: GRPCInferenceServiceStub,
) -> None:
    call = stub.ModelStreamInfer(
        iter([picture("a"), picture("b", "nope"), picture("c")]),
        metadata=(("triton_grpc_error", "true"),),
    )
    assert (await call.read()).infer_response.id == "a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_what_is_no_message_ends_the_call_after_the_answers_before(server: Server) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            iter([picture("a").SerializeToString(), b"\xff\xff"])
        )
        first = pb.ModelStreamInferResponse.FromString(await call.read())
        assert first.infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_leaves_cancels_what_is_under_way(
    server: Server, stub: GRPCInferenceServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: asyncio.Queue[None] = asyncio.Queue()
    ended: asyncio.Queue[None] = asyncio.Queue()

    async def hang(request: object) -> None:
        begun.put_nowait(None)
        try:
            await asyncio.Event().wait()
        finally:
            ended.put_nowait(None)

    monkeypatch.setattr(server.classifier, "classify", hang)
    call = stub.ModelStreamInfer(iter([picture("a"), picture("b")]))
    async with asyncio.timeout(30):
        for _ in range(2):
            await begun.get()
        call.cancel()
        for _ in range(2):
            await ended.get()


async def test_a_client_that_floods_has_a_bounded_number_under_way(
    server: Server, stub: GRPCInferenceServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 0
    go_on = asyncio.Event()
    infer = server.inference.infer

    async def slow(request: Any) -> Any:
        nonlocal begun
        begun += 1
        await go_on.wait()
        return await infer(request)

    monkeypatch.setattr(server.inference, "infer", slow)
    task = asyncio.create_task(replies(stub, (picture(str(n)) for n in range(40))))
    await asyncio.sleep(0.5)
    assert (
        begun <= 4 + 2
    )  # the setting of slots, the one waited for and the one that waits to be put
    go_on.set()
    assert [each.infer_response.id for each in await task] == [str(n) for n in range(40)]


async def test_a_server_that_leaves_answers_what_it_has_read_and_says_so(
    server: Server, stub: GRPCInferenceServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    infer = server.inference.infer

    async def slow(request: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await infer(request)

    monkeypatch.setattr(server.inference, "infer", slow)
    call = stub.ModelStreamInfer()
    await call.write(picture("a"))
    async with asyncio.timeout(30):
        await begun.wait()
        server.health.drain()
        await asyncio.sleep(0.1)
        go_on.set()
        assert (await call.read()).infer_response.id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in caught.value.details()


async def test_an_exception_of_ours_is_an_error_message_with_an_incident(
    server: Server, stub: GRPCInferenceServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(request: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(server.classifier, "classify", fail)
    (reply,) = await replies(stub, [picture("a")])
    assert "secret" not in reply.error_message
    assert "the server failed" in reply.error_message


def test_tritonclient_blocking(threaded_server: Server, parts: list[np.ndarray]) -> None:
    done: queue.Queue[Any] = queue.Queue()
    with tgrpc.InferenceServerClient(f"127.0.0.1:{threaded_server.grpc_port}") as client:
        client.start_stream(lambda result, error: done.put(error or result))
        for number, part in enumerate(parts):
            given = tgrpc.InferInput("events", list(part.shape), "INT64")
            given.set_data_from_numpy(part)
            client.async_stream_infer(
                "moves",
                [given],
                request_id=str(number),
                sequence_id="stream",
                sequence_start=number == 0,
                sequence_end=number == len(parts) - 1,
                enable_empty_final_response=True,
            )
        results = [done.get(timeout=60) for _ in parts]
        client.stop_stream()
    assert [result.get_response().id for result in results] == ["0", "1", "2", "3"]
    assert sum(len(result.as_numpy("windows")) for result in results) == 10


async def test_tritonclient_asyncio(server: Server) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for name in ("pictures", "nope", "pictures"):
            given = tgrpc_aio.InferInput("image", [1, 28, 28, 1], "UINT8")
            given.set_data_from_numpy(np.zeros((1, 28, 28, 1), np.uint8))
            yield {"model_name": name, "inputs": [given]}

    async with tgrpc_aio.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        got = [pair async for pair in client.stream_infer(requests())]
    assert [error is None for _, error in got] == [True, False, True]
    assert got[0][0].as_numpy("probabilities").shape == (1, 10)
