"""The table of docs/protocol.md, row by row, with Triton's own client wherever that can send such a thing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")
import tritonclient.grpc.aio as tgrpc
import tritonclient.http.aio as thttp
from tritonclient.utils import InferenceServerException

from spikeserve.app import Server
from spikeserve.grpc.v2 import grpc_service_pb2 as pb

PAGE = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"
EVENTS = np.array([[0, 1, 1, 1], [15_000, 2, 2, 0]], np.int64)


def table() -> dict[str, dict[str, str]]:
    """By case and protocol, what our columns say."""
    lines = PAGE.read_text().split("## How each case is answered")[1].splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")
    ]
    return {row[0]: {"http": row[3], "grpc": row[4]} for row in rows[2:]}


TABLE = table()


@dataclass
class Answer:
    """An HTTP status or the name of a gRPC status, and all that was said."""

    code: str
    said: str


class Case:
    """One protocol's client, for one server."""

    def __init__(self, server: Server, protocol: str) -> None:
        self.server = server
        self.protocol = protocol
        self.module = thttp if protocol == "http" else tgrpc
        port = server.http_port if protocol == "http" else server.grpc_port
        self.client = self.module.InferenceServerClient(f"127.0.0.1:{port}")
        self.fine = "200" if protocol == "http" else "OK"

    async def outcome(self, call: Awaitable[Any]) -> Answer:
        try:
            result = await call
        except InferenceServerException as error:
            return Answer(error.status().removeprefix("StatusCode."), error.message())
        if hasattr(result, "get_response"):
            result = result.get_response()
        return Answer(self.fine, str(result))

    def tensor(self, values: np.ndarray, datatype: str, name: str = "image") -> Any:
        given = self.module.InferInput(name, list(values.shape), datatype)
        given.set_data_from_numpy(values)
        return given

    async def picture(
        self, shape: tuple[int, ...] = (1, 28, 28, 1), model: str = "pictures", **given: Any
    ) -> Answer:
        image = self.tensor(np.zeros(shape, np.uint8), "UINT8", given.pop("name", "image"))
        if (output := given.pop("output", None)) is not None:
            given["outputs"] = [self.module.InferRequestedOutput(output)]
        return await self.outcome(self.client.infer(model, [image], **given))

    async def step(self, values: np.ndarray = EVENTS, **given: Any) -> Answer:
        events = self.tensor(values, "INT64", "events")
        return await self.outcome(self.client.infer("moves", [events], **given))

    async def raw(self, method: str, path: str, **given: Any) -> Answer:
        async with httpx.AsyncClient() as http:
            url = f"http://127.0.0.1:{self.server.http_port}{path}"
            reply = await http.request(method, url, **given)
        if reply.status_code != 200:
            assert reply.headers["content-type"] == "application/json"
            assert list(reply.json()) == ["error"]
        if reply.status_code == 503:
            assert int(reply.headers["retry-after"]) >= 1
        return Answer(str(reply.status_code), reply.text)

    async def message(self, method: str, request: Any = None) -> Answer:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.grpc_port}") as channel:
            try:
                call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
                reply = await call(b"" if request is None else request.SerializeToString())
            except grpc.aio.AioRpcError as error:
                return Answer(error.code().name, error.details() or "")
        return Answer("OK", repr(reply))


Run = Callable[[Case], Awaitable[Answer]]
CASES: dict[str, tuple[Run, dict[str, Any]]] = {}


def case(name: str, **settings: Any) -> Callable[[Run], Run]:
    """Of the row with this name. With settings, on a server of its own."""

    def noted(run: Run) -> Run:
        CASES[name] = (run, settings)
        return run

    return noted


@case("live and ready")
async def _(its: Case) -> Answer:
    assert await its.client.is_server_live()
    assert await its.client.is_server_ready()
    if its.protocol == "http":
        return await its.raw("GET", "/v2/health/ready")
    return Answer("OK", "")


async def model_ready(its: Case, name: str) -> Answer:
    assert not await its.client.is_model_ready(name)
    if its.protocol == "http":
        return await its.raw("GET", f"/v2/models/{name}/ready")
    return await its.message("ModelReady", pb.ModelReadyRequest(name=name))


@case("ready, of an unknown model")
async def _(its: Case) -> Answer:
    return await model_ready(its, "nope")


@case("ready, of a model that is not loaded", admin="open")
async def _(its: Case) -> Answer:
    await its.client.unload_model("pictures")
    return await model_ready(its, "pictures")


@case("metadata of an unknown model")
async def _(its: Case) -> Answer:
    return await its.outcome(its.client.get_model_metadata("nope"))


@case("inference with an unknown model")
async def _(its: Case) -> Answer:
    return await its.picture(model="nope")


@case("inference with an unknown version")
async def _(its: Case) -> Answer:
    return await its.picture(model_version="9")


@case("wrong method")
async def _(its: Case) -> Answer:
    return await its.raw("GET", "/v2/models/pictures/infer")


@case("unknown path")
async def _(its: Case) -> Answer:
    if its.protocol == "http":
        return await its.raw("GET", "/v2/nope")
    return await its.message("Nope")


@case("malformed JSON")
async def _(its: Case) -> Answer:
    return await its.raw("POST", "/v2/models/pictures/infer", content="{")


@case("JSON without `inputs`")
async def _(its: Case) -> Answer:
    return await its.raw("POST", "/v2/models/pictures/infer", content="{}")


@case("JSON data that does not match the shape")
async def _(its: Case) -> Answer:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [1, 2, 3]}
    return await its.raw("POST", "/v2/models/pictures/infer", json={"inputs": [tensor]})


@case("no inputs")
async def _(its: Case) -> Answer:
    return await its.outcome(its.client.infer("pictures", []))


@case("tensor of another length than its shape")
async def _(its: Case) -> Answer:
    image = its.tensor(np.zeros((1, 28, 28, 1), np.uint8), "UINT8")
    image._raw_data = image._raw_content = bytes(783)
    if its.protocol == "http":
        image._parameters["binary_data_size"] = 783
    return await its.outcome(its.client.infer("pictures", [image]))


@case("wrong shape")
async def _(its: Case) -> Answer:
    return await its.picture((1, 28, 27, 1))


@case("wrong datatype")
async def _(its: Case) -> Answer:
    image = its.tensor(np.zeros((1, 28, 28, 1), np.int32), "INT32")
    return await its.outcome(its.client.infer("pictures", [image]))


@case("wrong name of an input")
async def _(its: Case) -> Answer:
    return await its.picture(name="picture")


@case("wrong name of an output")
async def _(its: Case) -> Answer:
    return await its.picture(output="logits")


@case("batch too large")
async def _(its: Case) -> Answer:
    return await its.picture((5, 28, 28, 1))


@case("wrong Inference-Header-Content-Length")
async def _(its: Case) -> Answer:
    headers = {"Inference-Header-Content-Length": "99"}
    return await its.raw("POST", "/v2/models/pictures/infer", content="{}", headers=headers)


@case("body beyond the limit", max_body_bytes=2000, max_message_bytes=2000)
async def _(its: Case) -> Answer:
    return await its.picture((100, 28, 28, 1))


@case("sequence without an id")
async def _(its: Case) -> Answer:
    return await its.step()


@case("continuation without start")
async def _(its: Case) -> Answer:
    return await its.step(sequence_id=404)


@case("continuation after the end")
async def _(its: Case) -> Answer:
    await its.step(sequence_id=1, sequence_start=True, sequence_end=True)
    return await its.step(sequence_id=1)


@case("continuation after the idle time", stream_idle_seconds=0.1)
async def _(its: Case) -> Answer:
    await its.step(sequence_id=1, sequence_start=True)
    for _ in range(1000):
        if not len(its.server.streams):
            break
        await asyncio.sleep(0.02)
    return await its.step(sequence_id=1)


@case("start on a live id")
async def _(its: Case) -> Answer:
    await its.step(sequence_id=2, sequence_start=True)
    again = await its.step(sequence_id=2, sequence_start=True)
    await its.step(EVENTS[:0], sequence_id=2, sequence_end=True)
    return again


@case("start and end in one")
async def _(its: Case) -> Answer:
    return await its.step(sequence_id=3, sequence_start=True, sequence_end=True)


@case("batch of two in a sequence")
async def _(its: Case) -> Answer:
    return await its.step(np.stack([EVENTS] * 2), sequence_id=4, sequence_start=True)


@case("queue full", max_queue=1, slots=1)
async def _(its: Case) -> Answer:
    many = await asyncio.gather(*(its.picture(parameters={"timesteps": 100}) for _ in range(24)))
    refused = [answer for answer in many if answer.code != its.fine]
    assert 0 < len(refused) < 24
    assert len({answer.code for answer in refused}) == 1
    return refused[0]


@case("timeout passed")
async def _(its: Case) -> Answer:
    return await its.picture(timeout=1)


@case("error within a stream")
async def _(its: Case) -> Answer:
    image = its.tensor(np.zeros((1, 28, 28, 1), np.uint8), "UINT8")

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for model in ("nope", "pictures"):
            yield {"model_name": model, "inputs": [image]}

    got = [pair async for pair in its.client.stream_infer(requests())]
    assert got[1][1] is None
    return Answer("OK", got[0][1].message())


@case("unload of an unknown model", admin="open")
async def _(its: Case) -> Answer:
    return await its.outcome(its.client.unload_model("nope"))


@case("load of an unknown model", admin="open")
async def _(its: Case) -> Answer:
    return await its.outcome(its.client.load_model("nope"))


@case("load by somebody who may not")
async def _(its: Case) -> Answer:
    return await its.outcome(its.client.load_model("pictures"))


@case("inference after unload", admin="open")
async def _(its: Case) -> Answer:
    await its.client.unload_model("pictures")
    refused = await its.picture()
    await its.client.load_model("pictures")
    assert (await its.picture()).code == its.fine
    return refused


@case("server ready after unload of one of several models", admin="open")
async def _(its: Case) -> Answer:
    await its.client.unload_model("pictures")
    assert await its.client.is_server_ready()
    return Answer(its.fine, "")


@case("index after unload", admin="open")
async def _(its: Case) -> Answer:
    await its.client.unload_model("pictures")
    return await its.outcome(its.client.get_model_repository_index())


@case("shared memory", admin="open")
async def _(its: Case) -> Answer:
    return await its.outcome(its.client.get_system_shared_memory_status())


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    assert set(TABLE) == set(CASES)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", TABLE)
async def test_row(name: str, protocol: str, threaded_server: Server, running: Any) -> None:
    cell = TABLE[name][protocol]
    if not cell:
        pytest.skip("there is no such case in this protocol")
    run, settings = CASES[name]
    if not settings:
        answer = await answered(run, threaded_server, protocol)
    else:
        async with running(**settings) as server:
            answer = await answered(run, server, protocol)
    assert answer.code == re.split(r"[ ,]", cell)[0]
    for quoted in re.findall(r'"(.*?)"', cell):
        assert quoted in answer.said


async def answered(run: Run, server: Server, protocol: str) -> Answer:
    its = Case(server, protocol)
    try:
        async with asyncio.timeout(60):
            return await run(its)
    finally:
        await its.client.close()
