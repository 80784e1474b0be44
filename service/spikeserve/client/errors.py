"""What a client raises."""

from __future__ import annotations

from typing import Any

import grpc

from spikeserve.errors import ErrorKind


class ClientError(Exception):
    """No answer. The message says what was wrong and what to do."""


class UnreachableError(ClientError):
    """Nobody answers there, or not in time, or what answers is not a spikeserve server."""


class ServerError(ClientError):
    """The server refused, or failed.

    `status` is the HTTP status, on gRPC that of the same kind of error; `title` the kind of error in words; `detail`
    what was wrong in this request; `kind` the name of the kind; `retry_after` seconds after which to try again, where
    that can help; `request_id` what the server's log calls the request.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        kind: str = "",
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status = status
        self.title = title
        self.detail = detail
        self.kind = kind
        self.retry_after = retry_after
        self.request_id = request_id


def seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; None where there is none, or a date."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def refused_for_now(error: grpc.RpcError) -> bool:
    """Whether the server itself says that trying again later can help."""
    metadata: Any = error.trailing_metadata() or ()
    return dict(metadata).get("error-type") == ErrorKind.UNAVAILABLE.slug


def from_rpc(error: grpc.RpcError, target: str) -> ClientError:
    """The exception for a call that ended with a status other than OK."""
    code, detail = error.code(), error.details() or ""
    metadata: Any = error.trailing_metadata() or ()
    trailing = {key: value for key, value in metadata if isinstance(value, str)}
    slug = trailing.get("error-type")
    if slug is None and code is grpc.StatusCode.UNAVAILABLE:
        return UnreachableError(f"no spikeserve server answers at {target} (gRPC): {detail}")
    if slug is None and code is grpc.StatusCode.INTERNAL:
        # The server names each of its errors: this one is from the transport, in the middle of a message.
        return UnreachableError(f"the connection to {target} (gRPC) broke: {detail}")
    kind = _kind(slug, code)
    return ServerError(
        kind.http_status,
        kind.title,
        detail,
        kind.slug,
        seconds(trailing.get("retry-after")),
        trailing.get("x-request-id"),
    )


def _kind(slug: str | None, code: grpc.StatusCode) -> ErrorKind:
    """By its name; else, for what gRPC itself has refused, the first kind with this status."""
    for kind in ErrorKind:
        if kind.slug == slug:
            return kind
    for kind in ErrorKind:
        if kind.grpc_status == code.name:
            return kind
    return ErrorKind.INTERNAL
