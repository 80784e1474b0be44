"""The id of a request, the same on every protocol."""

from __future__ import annotations

import os
import re
from contextvars import ContextVar

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""Of the request that is being answered."""

_FIT = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id(given: str | None) -> str:
    """The client's own id where it is fit for a log and a header, else a new one."""
    return given if given and _FIT.fullmatch(given) else os.urandom(16).hex()
