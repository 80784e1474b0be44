"""Requests that are sent once more: none of ours changes anything, so that doing it twice does no harm."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import httpx

from spikeserve.client.errors import seconds

DEFAULT_RETRIES = 3

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
# A server that refuses for now, and what a gateway says of one that is gone.
_AGAIN = (502, 503)

RETRY_OPTIONS: list[tuple[str, Any]] = [
    (
        "grpc.service_config",
        json.dumps(
            {
                "methodConfig": [
                    {
                        "name": [
                            {"service": "spikeserve.v1.SpikeServe", "method": "Classify"},
                            {"service": "inference.GRPCInferenceService", "method": "ModelInfer"},
                        ],
                        "retryPolicy": {
                            "maxAttempts": 1 + DEFAULT_RETRIES,
                            "initialBackoff": f"{_FIRST_PAUSE}s",
                            "maxBackoff": f"{_LONGEST_PAUSE}s",
                            "backoffMultiplier": 2,
                            "retryableStatusCodes": ["UNAVAILABLE"],
                        },
                    }
                ]
            }
        ),
    )
]
"""For a gRPC channel of your own: pictures that met a server that was ending, or none, are sent once more."""


class Attempts:
    """Those of one request, `retries` after the first, as long as `timeout` seconds have not passed since that began."""

    def __init__(self, retries: int, timeout: float) -> None:
        self._left = retries
        self._pause = _FIRST_PAUSE
        self._deadline = time.monotonic() + timeout

    def pause(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """How long to wait before the next one, in seconds; None where there is none, and the outcome stands."""
        if isinstance(outcome, httpx.TimeoutException | httpx.UnsupportedProtocol):
            return None
        told: float | None = None
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _AGAIN:
                return None
            told = seconds(outcome.headers.get("retry-after"))
        # Not the same for all clients of a server that has just gone.
        pause = self._pause * random.uniform(0.5, 1.5) if told is None else told
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._left -= 1
        return pause if self._left >= 0 and time.monotonic() + pause < self._deadline else None
