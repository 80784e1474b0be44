"""grpc.health.v1, which answers what /health/ready answers."""

# ruff: noqa: N802 - the methods' names are the protocol's

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthServicer

from spikeserve.health import Health

# A client that watches is told of a change within this time: nothing announces that an engine has come to a halt.
_WATCH_SECONDS = 1.0

_Status = health_pb2.HealthCheckResponse


class HealthService(HealthServicer):
    """The health of `services`, and of "", which is the server; all are ready together."""

    def __init__(self, health: Health, services: tuple[str, ...]) -> None:
        self._health = health
        self._services = ("", *services)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> _Status:
        if request.service not in self._services:
            known = ", ".join(repr(name) for name in self._services)
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"there is no service {request.service!r} here; there are {known}",
            )
        return self._status(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                await context.write(status)
                told = status
            # A stopping server has nothing more to say, and would otherwise wait for its watchers.
            if self._health.draining or await self._health.draining_within(_WATCH_SECONDS):
                if told != self._status(request.service):
                    await context.write(self._status(request.service))
                return

    def _status(self, service: str) -> _Status:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.SERVING if self._health.ready else _Status.NOT_SERVING)
