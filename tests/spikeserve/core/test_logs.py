import json
import logging

import pytest

from spikeserve import logs
from spikeserve.errors import ErrorKind
from spikeserve.settings import load_settings


@pytest.fixture
def written(capsys):
    """Configures logging and returns what came out; afterwards all is as before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def configure(**options):
        logs.configure(load_settings(**options))
        return lambda: capsys.readouterr().err.splitlines()

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)


def line(**fields):
    logs.request_line(route="/classify", code="200", seconds=0.0123456789, model="alpha", **fields)


def test_a_request_is_one_readable_line(written):
    lines = written()
    line(request_id="abc", peer=None)
    (text,) = lines()
    assert text.endswith(
        "INFO    spikeserve.request: request route=/classify code=200 seconds=0.012346 model=alpha request_id=abc"
    )
    assert text[10] == "T"
    assert text.split()[0].endswith("Z")


def test_a_request_is_one_json_object(written):
    lines = written(log_format="json")
    line(error="not-found")
    (text,) = lines()
    entry = json.loads(text)
    assert entry.pop("time")
    assert entry == {
        "level": "info",
        "logger": "spikeserve.request",
        "message": "request",
        "route": "/classify",
        "code": "200",
        "seconds": 0.012346,
        "model": "alpha",
        "error": "not-found",
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_clients_cannot_write_lines_of_their_own(written, log_format):
    lines = written(log_format=log_format)
    line(request_id="x\n2026-01-01T00:00:00Z INFO forged\x1b[31m\u2028\r")
    (text,) = lines()
    assert "\x1b" not in text
    assert "forged" in text


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_internal_error_is_in_the_log_under_the_id_that_the_client_is_told(written, log_format):
    lines = written(log_format=log_format)
    try:
        raise RuntimeError("secret detail")
    except RuntimeError as caught:
        error = logs.internal_error(caught, "POST /classify")
    assert error.kind is ErrorKind.INTERNAL
    assert error.incident in error.message
    assert "secret" not in error.message
    text = "\n".join(lines())
    assert error.incident in text
    assert "secret detail" in text
    assert "Traceback" in text
    if log_format == "json":
        assert json.loads(text)["level"] == "error"


def test_the_level_is_that_of_the_settings(written):
    lines = written(log_level="warning")
    line()
    assert lines() == []
    logging.getLogger("anything").warning("careful")
    assert len(lines()) == 1


def test_configuring_twice_does_not_write_twice(written):
    written()
    lines = written()
    line()
    assert len(lines()) == 1
