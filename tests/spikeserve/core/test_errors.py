import grpc
import pytest

from spikeserve.errors import ErrorKind, ServiceError

TABLE = {
    "MALFORMED": (400, "INVALID_ARGUMENT"),
    "UNAUTHENTICATED": (401, "UNAUTHENTICATED"),
    "FORBIDDEN": (403, "PERMISSION_DENIED"),
    "NOT_FOUND": (404, "NOT_FOUND"),
    "UNIMPLEMENTED": (404, "UNIMPLEMENTED"),
    "TOO_LARGE": (413, "RESOURCE_EXHAUSTED"),
    "UNSUPPORTED_MEDIA": (415, "INVALID_ARGUMENT"),
    "IMPOSSIBLE": (422, "INVALID_ARGUMENT"),
    "OVER_QUOTA": (429, "RESOURCE_EXHAUSTED"),
    "UNAVAILABLE": (503, "UNAVAILABLE"),
    "DEADLINE": (504, "DEADLINE_EXCEEDED"),
    "INTERNAL": (500, "INTERNAL"),
}


@pytest.mark.parametrize(("name", "statuses"), TABLE.items())
def test_the_table_of_the_design(name, statuses):
    kind = ErrorKind[name]
    assert (kind.http_status, kind.grpc_status) == statuses


def test_every_kind_is_one_of_its_own_and_its_grpc_status_exists():
    assert len({kind.slug for kind in ErrorKind}) == len(list(ErrorKind))
    assert len(ErrorKind.__members__) == len(list(ErrorKind))
    assert all(kind.grpc_status in grpc.StatusCode.__members__ for kind in ErrorKind)


def test_an_error_for_another_request_is_another_exception():
    error = ServiceError(ErrorKind.INTERNAL, "why", 2.0, "id")
    again = error.again()
    assert again is not error
    assert (again.kind, again.message, again.retry_after, again.incident) == (
        ErrorKind.INTERNAL, "why", 2.0, "id",
    )  # fmt: skip
    assert str(error) == "why"
