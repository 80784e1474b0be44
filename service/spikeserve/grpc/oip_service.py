"""The methods of inference.GRPCInferenceService, the Open Inference Protocol with Triton's extensions."""

# ruff: noqa: N802 - the methods' names are the protocol's

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from spikeserve import __version__
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.grpc import oip_convert as convert
from spikeserve.grpc.boundary import Context, current_call
from spikeserve.grpc.oip_stream import serve_inferences
from spikeserve.grpc.v2 import grpc_service_pb2 as pb
from spikeserve.grpc.v2.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from spikeserve.health import Health
from spikeserve.oip import control, models
from spikeserve.oip.infer import Inference
from spikeserve.oip.request import InferAnswer, InferRequest
from spikeserve.oip.tensors import malformed
from spikeserve.repository import Repository
from spikeserve.settings import Settings

# Larger requests are parsed in a thread, so that the event loop is not held up.
_INLINE_BYTES = 1 << 18


class GRPCInferenceService(GRPCInferenceServiceServicer):
    def __init__(
        self, settings: Settings, repository: Repository, inference: Inference, health: Health
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._inference = inference
        self._health = health

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._health.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> Any:
        try:
            ready = models.is_ready(self._repository, request.name, request.version or None)
        except ServiceError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> Any:
        return pb.ServerMetadataResponse(
            name="spikeserve", version=__version__, extensions=models.EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> Any:
        name, version = request.name, request.version or None
        return convert.model_metadata(models.metadata(self._repository, name, version))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> Any:
        name, version = request.name, request.version or None
        config = models.configuration(self._repository, self._settings, name, version)
        return convert.model_config(config)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Any) -> Any:
        name, version = request.name or None, request.version or None
        return convert.model_statistics(self._inference.statistics.describe(name, version))

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        answer = await self._infer(await self._parse(request, context))
        return convert.infer_response(answer, request.id)

    # A coroutine that reads and writes by itself can stop waiting for a client that does not read; the generated
    # types know only generators, where the transport waits.
    async def ModelStreamInfer(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        async def parse(request: pb.ModelInferRequest) -> InferRequest:
            return await self._parse(request, context)

        leaving = self._health.wait_for_draining()
        await serve_inferences(parse, self._infer, context, self._settings.slots, leaving)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Any) -> Any:
        _only_repository(request.repository_name)
        found = models.index(self._repository, request.ready)
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**each) for each in found]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Any
    ) -> Any:
        _only_repository(request.repository_name)
        names = list(request.parameters)
        await asyncio.to_thread(control.load, self._repository, request.model_name, names)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Any
    ) -> Any:
        _only_repository(request.repository_name)
        names = list(request.parameters)
        await asyncio.to_thread(control.unload, self._repository, request.model_name, names)
        return pb.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> NoReturn:
        raise _no_shared_memory()

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> NoReturn:
        raise _no_shared_memory()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> NoReturn:
        raise _no_shared_memory()

    async def CudaSharedMemoryStatus(self, request: Any, context: Any) -> NoReturn:
        raise _no_shared_memory()

    async def CudaSharedMemoryRegister(self, request: Any, context: Any) -> NoReturn:
        raise _no_shared_memory()

    async def CudaSharedMemoryUnregister(self, request: Any, context: Any) -> NoReturn:
        raise _no_shared_memory()

    async def TraceSetting(self, request: Any, context: Any) -> NoReturn:
        raise _set_at_the_start("traces")

    async def LogSettings(self, request: Any, context: Any) -> NoReturn:
        raise _set_at_the_start("logs")

    async def _parse(self, message: pb.ModelInferRequest, context: Context) -> InferRequest:
        remaining = context.time_remaining()
        if message.ByteSize() <= _INLINE_BYTES:
            return convert.infer_request(message, remaining)
        return await asyncio.to_thread(convert.infer_request, message, remaining)

    async def _infer(self, request: InferRequest) -> InferAnswer:
        answer = await self._inference.infer(request)
        current_call.get().answered_by(answer.model, answer.version)
        return answer


def _only_repository(name: str) -> None:
    if name:
        raise malformed(
            f"repository_name {name!r:.60}: there is one repository here, leave it empty"
        )


def _no_shared_memory() -> ServiceError:
    return ServiceError(
        ErrorKind.UNIMPLEMENTED, "shared memory is not offered: send tensors with the request"
    )


def _set_at_the_start(what: str) -> ServiceError:
    return ServiceError(
        ErrorKind.UNIMPLEMENTED, f"{what} are set where the server is started, not by clients"
    )
