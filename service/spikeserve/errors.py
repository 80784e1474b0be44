"""The one error type of the service, and the one table that says what each kind is on each protocol."""

from __future__ import annotations

import secrets
from enum import Enum


class ErrorKind(Enum):
    """What went wrong: slug, title, HTTP status, name of the gRPC status. Protocols translate, they never decide."""

    MALFORMED = ("malformed-request", "Malformed request", 400, "INVALID_ARGUMENT")
    UNAUTHENTICATED = ("unauthenticated", "No or wrong credentials", 401, "UNAUTHENTICATED")
    FORBIDDEN = ("forbidden", "Not allowed", 403, "PERMISSION_DENIED")
    NOT_FOUND = ("not-found", "Unknown model or version", 404, "NOT_FOUND")
    UNKNOWN_STREAM = ("unknown-stream", "Unknown or expired stream", 404, "NOT_FOUND")
    UNIMPLEMENTED = ("unknown-route", "Unknown route", 404, "UNIMPLEMENTED")
    METHOD_NOT_ALLOWED = ("method-not-allowed", "Method not allowed", 405, "UNIMPLEMENTED")
    TOO_LARGE = ("too-large", "Body or picture too large", 413, "RESOURCE_EXHAUSTED")
    UNSUPPORTED_MEDIA = ("unsupported-media", "Unsupported content", 415, "INVALID_ARGUMENT")
    IMPOSSIBLE = ("impossible-request", "Well-formed but impossible", 422, "INVALID_ARGUMENT")
    OVER_QUOTA = ("over-quota", "Over quota", 429, "RESOURCE_EXHAUSTED")
    CANCELLED = ("cancelled", "Cancelled by the client", 499, "CANCELLED")
    INTERNAL = ("internal-error", "Internal error", 500, "INTERNAL")
    UNAVAILABLE = ("unavailable", "Not available now", 503, "UNAVAILABLE")
    DEADLINE = ("deadline-exceeded", "Deadline passed", 504, "DEADLINE_EXCEEDED")

    def __init__(self, slug: str, title: str, http_status: int, grpc_status: str) -> None:
        self.slug = slug
        self.title = title
        self.http_status = http_status
        self.grpc_status = grpc_status


class ServiceError(Exception):
    """A request that cannot be answered, and why.

    `message` is for the client: what was wrong, where, what to do. `retry_after` is in seconds, where trying again
    may help. `incident` is the id under which the log has the details; only INTERNAL errors have one.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        retry_after: float | None = None,
        incident: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
        self.incident = incident

    def again(self) -> ServiceError:
        """The same error to raise for another request: an exception that is raised twice mixes up its tracebacks."""
        return ServiceError(self.kind, self.message, self.retry_after, self.incident)


def new_incident() -> str:
    """An id for the client and the log, too long to be guessed."""
    return secrets.token_hex(8)
