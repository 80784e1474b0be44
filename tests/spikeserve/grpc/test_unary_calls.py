"""Classify, ListModels and GetModel."""

from __future__ import annotations

import asyncio
import json
import logging

import grpc
import httpx
import pytest

from spikeserve.app import Server
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub


async def refused(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_picture_gets_the_answer_that_rest_gives(
    server: Server, stub: SpikeServeStub, png: bytes
) -> None:
    answer = await stub.Classify(pb.ClassifyRequest(image=png))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as http:
        reply = (await http.post("/classify", content=png)).json()
    assert (answer.model, answer.version) == (reply["model"], reply["version"])
    assert [(each.label, each.index, each.probability) for each in answer.predictions] == [
        (each["label"], each["index"], each["probability"]) for each in reply["predictions"]
    ]
    assert {each.layer: each.rate for each in answer.firing_rates} == reply["firing_rates"]
    assert (answer.timesteps_used, answer.timesteps_of) == (4, 4)
    assert answer.synaptic_operations == reply["synaptic_operations"]
    assert answer.energy_joules == reply["energy_joules"]
    assert answer.timing.compute_seconds > 0


async def test_options_are_kept(stub: SpikeServeStub, png: bytes) -> None:
    answer = await stub.Classify(
        pb.ClassifyRequest(
            image=png, model="pictures", version="1", top_k=2, timesteps=3, rates=False
        )
    )
    assert answer.version == "1"
    assert len(answer.predictions) == 2
    assert answer.timesteps_used == 3
    assert not answer.firing_rates


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"image": b""}, "INVALID_ARGUMENT", "image"),
        ({"image": b"text"}, "INVALID_ARGUMENT", "not a picture"),
        ({"model": "nope"}, "NOT_FOUND", "'nope'"),
        ({"model": "moves"}, "INVALID_ARGUMENT", "takes events"),
        ({"top_k": 0}, "INVALID_ARGUMENT", "top_k"),
        ({"timesteps": 100_000}, "INVALID_ARGUMENT", "timesteps"),
    ],
)
async def test_bad_requests_are_refused_with_the_reason(
    stub: SpikeServeStub, png: bytes, fields: dict[str, object], code: str, said: str
) -> None:
    error = await refused(stub.Classify(pb.ClassifyRequest(**{"image": png} | fields)))
    assert error.code().name == code
    assert said in error.details()


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_each_kind_of_error_has_its_status(
    server: Server,
    stub: SpikeServeStub,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    kind: ErrorKind,
) -> None:
    async def refuse(request: object) -> None:
        raise ServiceError(kind, "no \u2713", retry_after=1.2)

    monkeypatch.setattr(server.classifier, "classify", refuse)
    error = await refused(
        stub.Classify(pb.ClassifyRequest(image=png), metadata=(("x-request-id", "mine-1"),))
    )
    assert error.code().name == kind.grpc_status
    assert error.details() == "no \u2713"
    trailing = dict(error.trailing_metadata())
    assert trailing["error-type"] == kind.slug
    assert trailing["x-request-id"] == "mine-1"
    assert trailing["retry-after"] == "2"


async def test_what_must_not_happen_is_in_the_log_under_the_id_that_the_client_gets(
    server: Server,
    stub: SpikeServeStub,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: object) -> None:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(server.classifier, "classify", fail)
    with caplog.at_level(logging.ERROR):
        error = await refused(stub.Classify(pb.ClassifyRequest(image=png)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    incident = error.details().split()[-1]
    assert any(incident in record.getMessage() and record.exc_info for record in caplog.records)


async def test_a_message_that_is_not_protobuf_is_an_invalid_argument(
    channel: grpc.aio.Channel,
) -> None:
    call = channel.unary_unary("/spikeserve.v1.SpikeServe/Classify")
    error = await refused(call(b"\xff\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "spikeserve.v1" in error.details()


async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel) -> None:
    for method in ("/spikeserve.v1.SpikeServe/Nope", "/nope.Nope/Nope"):
        error = await refused(channel.unary_unary(method)(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_message_beyond_the_limit_is_refused(running, png: bytes) -> None:
    async with (
        running(max_body_bytes=2000, max_message_bytes=2000) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = SpikeServeStub(channel)
        for size in (3000, 1 << 20):
            error = await refused(stub.Classify(pb.ClassifyRequest(image=png.ljust(size, b"\0"))))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Classify(pb.ClassifyRequest(image=png))).model == "pictures"


async def test_the_deadline_of_the_call_is_passed_on_and_its_end_cancels(
    server: Server, stub: SpikeServeStub, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: asyncio.Queue[float | None] = asyncio.Queue()
    cancelled = asyncio.Event()

    async def hang(request: object) -> None:
        deadlines.put_nowait(request.deadline)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(server.classifier, "classify", hang)
    error = await refused(stub.Classify(pb.ClassifyRequest(image=png), timeout=0.5))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(30):
        await cancelled.wait()
    assert await deadlines.get() is not None

    cancelled.clear()
    call = stub.Classify(pb.ClassifyRequest(image=png))
    async with asyncio.timeout(30):
        assert await deadlines.get() is None
        call.cancel()
        await cancelled.wait()


async def test_models_are_listed(stub: SpikeServeStub) -> None:
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(each.name, each.version, each.ready, each.input) for each in models] == [
        ("moves", "1", True, "events"),
        ("pictures", "1", True, "image"),
        ("pictures", "2", True, "image"),
    ]
    assert list(models[0].shape) == [2, 34, 34]
    assert list(models[0].classes) == list("abcdefghij")


async def test_a_model_comes_with_its_manifest(stub: SpikeServeStub) -> None:
    reply = await stub.GetModel(pb.GetModelRequest(name="pictures"))
    assert reply.model.version == "2"
    assert json.loads(reply.manifest_json)["network"]["name"] == "small-conv"
    error = await refused(stub.GetModel(pb.GetModelRequest(name="nope")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_calls_are_counted_by_method_and_status(
    server: Server, stub: SpikeServeStub, png: bytes
) -> None:
    await stub.Classify(pb.ClassifyRequest(image=png))
    await refused(stub.Classify(pb.ClassifyRequest(image=b"text")))
    labels = {
        "route": "spikeserve.v1.SpikeServe/Classify",
        "code": "OK",
        "model": "pictures",
        "version": "2",
    }
    value = server.metrics.registry.get_sample_value
    assert value("spikeserve_requests_total", labels) == 1
    labels |= {"code": "INVALID_ARGUMENT", "model": "", "version": ""}
    assert value("spikeserve_requests_total", labels) == 1
