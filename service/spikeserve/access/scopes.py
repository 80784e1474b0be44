"""What each route and each method asks for. What is not listed here asks for `classify`."""

from __future__ import annotations

from spikeserve.access.keys import Scope

_OPEN: tuple[Scope, ...] = ()
_ANY: tuple[Scope, ...] = ("classify", "stream", "metrics", "admin")
_ADMIN: tuple[Scope, ...] = ("admin",)
_STREAM: tuple[Scope, ...] = ("stream",)
_METRICS: tuple[Scope, ...] = ("metrics",)
_CLASSIFY: tuple[Scope, ...] = ("classify",)

_ROUTES: dict[str, tuple[Scope, ...]] = {
    "/health/live": _OPEN,
    "/health/ready": _OPEN,
    "/v2/health/live": _OPEN,
    "/v2/health/ready": _OPEN,
    "/docs": _OPEN,
    "/openapi.json": _OPEN,
    "/": _ANY,
    "/v2": _ANY,
    "/models": _ANY,
    "/models/{name}": _ANY,
    "/metrics": _METRICS,
    "/status": _METRICS,
    "/v2/models/stats": _METRICS,
    "/events": _STREAM,
    "/classify/events": ("stream", "classify"),
    "/models/{name}/load": _ADMIN,
    "/models/{name}/unload": _ADMIN,
    "/models/{name}/labels": _ADMIN,
}
# The Open Inference Protocol has routes that change the server; all below these do.
_ADMIN_ROUTES = (
    "/v2/repository/models/",
    "/v2/logging",
    "/v2/trace/",
    "/v2/systemsharedmemory",
    "/v2/cudasharedmemory",
)

_SERVICES_OPEN = ("grpc.health.v1.Health/", "grpc.reflection.")
_METHODS: dict[str, tuple[Scope, ...]] = {
    "StreamEvents": _STREAM,
    "ModelStreamInfer": ("stream", "classify"),
    "ListModels": _ANY,
    "GetModel": _ANY,
    "ServerLive": _OPEN,
    "ServerReady": _OPEN,
    "ModelReady": _ANY,
    "ServerMetadata": _ANY,
    "ModelMetadata": _ANY,
    "ModelConfig": _ANY,
    "RepositoryIndex": _ANY,
    "RepositoryModelLoad": _ADMIN,
    "RepositoryModelUnload": _ADMIN,
    "TraceSetting": _ADMIN,
    "LogSettings": _ADMIN,
}


def of_route(template: str) -> tuple[Scope, ...]:
    """`template` is a route as it is declared, such as /models/{name}."""
    if template.startswith(_ADMIN_ROUTES):
        return _ADMIN
    return _ROUTES.get(template, _CLASSIFY)


def of_method(method: str) -> tuple[Scope, ...]:
    """`method` is as in spikeserve.v1.SpikeServe/Classify."""
    if method.startswith(_SERVICES_OPEN):
        return _OPEN
    name = method.rpartition("/")[2]
    if "SharedMemory" in name:
        return _ADMIN
    return _METHODS.get(name, _CLASSIFY)
