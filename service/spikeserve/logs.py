"""Logs: readable text or JSON lines, one line a request, never a payload."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from spikeserve.errors import ErrorKind, ServiceError, new_incident
from spikeserve.settings import Settings

_requests = logging.getLogger("spikeserve.request")
_audit = logging.getLogger("spikeserve.audit")
_failures = logging.getLogger("spikeserve.failure")


def configure(settings: Settings) -> None:
    """Send all logs of the process to standard error, in the format of the settings. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())


def request_line(
    *,
    route: str,
    code: str,
    seconds: float,
    model: str | None = None,
    error: str | None = None,
    **fields: object,
) -> None:
    """One request was answered. `fields` are short facts, such as an id; those that are None are left out."""
    if not _requests.isEnabledFor(logging.INFO):
        return
    facts = {
        "route": route,
        "code": code,
        "seconds": round(seconds, 6),
        "model": model,
        "error": error,
    }
    facts |= fields
    given = {name: value for name, value in facts.items() if value is not None}
    _requests.info("request", extra={"fields": given})


def audit_line(*, action: str, code: str, **fields: object) -> None:
    """Somebody managed the server, or tried to. Written whatever the level of the other logs is."""
    facts = {"action": action, "code": code} | fields
    given = {name: value for name, value in facts.items() if value is not None}
    record = _audit.makeRecord(
        _audit.name, logging.INFO, __file__, 0, "audit", (), None, extra={"fields": given}
    )
    _audit.handle(record)


def internal_error(error: BaseException, where: str) -> ServiceError:
    """Log what must not happen, and what to tell the client: an id under which the log has it."""
    incident = new_incident()
    _failures.error("%s failed, incident %s", where, incident, exc_info=error)
    return ServiceError(
        ErrorKind.INTERNAL,
        f"the server failed; its log has the details under {incident}",
        incident=incident,
    )


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        words = [record.getMessage(), *(f"{name}={value}" for name, value in fields.items())]
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {_one_line(' '.join(words))}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    """Clients choose parts of what is logged; they must not be able to write lines of their own."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
