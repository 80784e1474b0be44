"""The methods of spikeserve.v1.SpikeServe."""

# ruff: noqa: N802 - the methods' names are the protocol's

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from spikeserve.access import Gate
from spikeserve.catalog import find_model
from spikeserve.classify import Classifier
from spikeserve.grpc import convert
from spikeserve.grpc.boundary import Context, current_call
from spikeserve.grpc.events import serve_events
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeServicer
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.settings import Settings
from spikeserve.streams import Streams


class SpikeServe(SpikeServeServicer):
    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        repository: Repository,
        classifier: Classifier,
        streams: Streams,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._settings = settings
        self._metrics = metrics
        self._repository = repository
        self._classifier = classifier
        self._streams = streams

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        result = await self._classifier.classify(
            convert.classify_request(request, context.time_remaining())
        )
        current_call.get().answered_by(result.model, result.version)
        began = time.perf_counter()
        response = convert.classify_response(result)
        took = time.perf_counter() - began
        self._metrics.stage("encode", took, result.model, result.version)
        self._classifier.spans.stages({"encode": took}, result.model, result.version)
        return response

    # A coroutine that reads and writes by itself can stop waiting for a client that does not read; the generated
    # types know only generators, where the transport waits.
    async def StreamEvents(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.EventMessage], context: Context
    ) -> None:
        await serve_events(self._streams, self._settings, self._gate, context)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[convert.model(info) for info in self._repository.models()]
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        info = find_model(self._repository, request.name, request.version or None)
        manifest = "" if info.manifest is None else info.manifest.model_dump_json()
        return pb.GetModelResponse(model=convert.model(info), manifest_json=manifest)
