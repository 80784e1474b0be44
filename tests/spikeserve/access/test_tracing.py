"""Trace context in and out, and the spans of a request."""

from __future__ import annotations

import itertools
import logging
import re

import grpc
import httpx
import pytest

from spikeserve import app as app_module
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.tracing import Spans, trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


def test_a_trace_goes_on_with_a_span_of_our_own() -> None:
    context = trace_context(GIVEN)
    assert context.trace == TRACE
    assert context.parent == SPAN
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-01", context.header)
    assert context.span != SPAN
    assert trace_context(f"cc-{TRACE}-{SPAN}-00-what-comes-later").trace == TRACE
    assert trace_context(f"00-{TRACE}-{SPAN}-00").header.endswith("-00")


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
    ],
)
def test_what_is_no_trace_begins_one(given: str | None) -> None:
    context = trace_context(given)
    assert context.parent is None
    assert context.trace != TRACE
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", context.header)


async def test_http_and_grpc_pass_it_on(running, png: bytes, caplog) -> None:
    caplog.set_level(logging.INFO)
    async with running() as server:
        url = f"http://127.0.0.1:{server.http_port}"
        async with httpx.AsyncClient(base_url=url) as http:
            reply = await http.get("/models", headers={"traceparent": GIVEN})
            assert reply.headers["traceparent"].split("-")[1] == TRACE
            reply = await http.get("/nowhere", headers={"traceparent": GIVEN})
            assert reply.headers["traceparent"].split("-")[1] == TRACE
            assert (await http.get("/models")).headers["traceparent"].split("-")[1] != TRACE
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            call = SpikeServeStub(channel).ListModels(
                pb.ListModelsRequest(), metadata=(("traceparent", GIVEN),)
            )
            await call
            assert dict(await call.trailing_metadata())["traceparent"].split("-")[1] == TRACE
    lines = [r.fields for r in caplog.records if r.name == "spikeserve.request"]
    assert [each.get("trace_id") for each in lines] == [TRACE, TRACE, None, TRACE]


async def test_a_picture_has_spans_for_its_stages(running, png: bytes, monkeypatch) -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    monkeypatch.setattr(app_module, "Spans", lambda settings: Spans(settings, exporter))
    async with running() as server:
        url = f"http://127.0.0.1:{server.http_port}/classify"
        async with httpx.AsyncClient() as http:
            reply = await http.post(url, content=png, headers={"traceparent": GIVEN})
        assert reply.status_code == 200
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            await SpikeServeStub(channel).Classify(pb.ClassifyRequest(image=png))
    spans = exporter.get_finished_spans()
    requests = {span.name: span for span in spans if span.parent is None or span.parent.is_remote}
    assert set(requests) == {"POST /classify", "spikeserve.v1.SpikeServe/Classify"}
    first = requests["POST /classify"]
    assert f"{first.context.trace_id:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == SPAN
    assert first.attributes["spikeserve.model"] == "pictures"
    assert reply.headers["traceparent"] == f"00-{TRACE}-{first.context.span_id:016x}-01"
    for request in requests.values():
        stages = [span for span in spans if span.parent == request.context]
        assert [span.name for span in stages] == ["decode", "queue", "compute", "encode"]
        for earlier, later in itertools.pairwise(stages[:3]):
            assert earlier.end_time <= later.start_time + 1
        assert request.context.trace_id == stages[0].context.trace_id
