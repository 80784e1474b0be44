"""Pictures and recordings, over REST."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack
from urllib.parse import quote

import httpx

from spikeserve.client.answers import Classification, ModelSummary, Prediction
from spikeserve.client.connection import api_key
from spikeserve.client.errors import ClientError, ServerError, UnreachableError, seconds
from spikeserve.client.retries import DEFAULT_RETRIES, Attempts
from spikeserve.client.timeline import RecordingTerms, Timeline, recording_query

DEFAULT_URL = "http://127.0.0.1:8000"

Image = bytes | str | Path
"""The bytes of a file, or its path."""

Exit = Literal["off", "balanced", "fast"]
Priority = Literal["high", "normal", "low"]


class ClassifyTerms(TypedDict, total=False):
    """What is left out, or None, is the server's, or the model's, default.

    `exit` or `risk`, not both, says how readily the picture may leave before its last timestep, with a model that has
    exits: risk is the share of answers that may differ from those after all timesteps, balanced stands for 0.005 and
    fast for 0.02. `priority` orders the pictures that wait. `rates` says whether with the firing rates of the layers.
    """

    model: str | None
    version: str | None
    top_k: int | None
    timesteps: int | None
    rates: bool | None
    exit: Exit | None
    risk: float | None
    priority: Priority | None


class Client:
    """A server's REST interface at `url`. Raises ClientError; `timeout` is in seconds, for one request.

    `key` is an API key, unless given that of the environment, SPIKESERVE_API_KEY; `verify` is as httpx has it, for TLS.
    Where the connection breaks, or the server refuses for now (503), a request is sent again, `retries` times at most.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        verify: ssl.SSLContext | bool = True,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.Client(timeout=timeout, headers=dict(api_key(key)), verify=verify)

    def classify(self, image: Image, **terms: Unpack[ClassifyTerms]) -> Classification:
        """Raises OSError for a path that cannot be read."""
        content = image if isinstance(image, bytes) else Path(image).read_bytes()
        headers = _classify_headers(self._timeout)
        reply = self._send("POST", "/classify", _query(**terms), content, headers)
        return _classification(reply)

    def classify_events(self, recording: Image, **terms: Unpack[RecordingTerms]) -> Timeline:
        """The timeline of a recording, window by window. Raises OSError for a path that cannot be read."""
        content = recording if isinstance(recording, bytes) else Path(recording).read_bytes()
        headers = _classify_headers(self._timeout)
        reply = self._send("POST", "/classify/events", recording_query(terms), content, headers)
        return Timeline.from_json(reply)

    def models(self) -> list[ModelSummary]:
        return _models(self._send("GET", "/models"))

    def model(self, name: str, version: str | None = None) -> dict[str, Any]:
        """All that is known of one model, as the server's JSON."""
        return self._send("GET", f"/models/{quote(name, safe='')}", _query(version=version))

    def ready(self) -> bool:
        with _transport_errors(self._url):
            return self._http.get(f"{self._url}/health/ready").is_success

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | list[str]] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        attempts = Attempts(self._retries, self._timeout)
        with _transport_errors(self._url):
            while True:
                try:
                    response = self._http.request(
                        method, self._url + path, params=query, content=content, headers=headers
                    )
                    pause = attempts.pause(response)
                except httpx.TransportError as error:
                    pause = attempts.pause(error)
                    if pause is None:
                        raise
                if pause is None:
                    return _checked(response, self._url)
                time.sleep(pause)


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        verify: ssl.SSLContext | bool = True,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._http = httpx.AsyncClient(timeout=timeout, headers=dict(api_key(key)), verify=verify)

    async def classify(self, image: bytes, **terms: Unpack[ClassifyTerms]) -> Classification:
        """Takes the bytes of an image file: reading files is left to the caller, whose event loop it would hold up."""
        headers = _classify_headers(self._timeout)
        reply = await self._send("POST", "/classify", _query(**terms), image, headers)
        return _classification(reply)

    async def classify_events(self, recording: bytes, **terms: Unpack[RecordingTerms]) -> Timeline:
        """Takes the bytes of a recording's file."""
        headers = _classify_headers(self._timeout)
        reply = await self._send(
            "POST", "/classify/events", recording_query(terms), recording, headers
        )
        return Timeline.from_json(reply)

    async def models(self) -> list[ModelSummary]:
        return _models(await self._send("GET", "/models"))

    async def model(self, name: str, version: str | None = None) -> dict[str, Any]:
        """All that is known of one model, as the server's JSON."""
        return await self._send("GET", f"/models/{quote(name, safe='')}", _query(version=version))

    async def ready(self) -> bool:
        with _transport_errors(self._url):
            return (await self._http.get(f"{self._url}/health/ready")).is_success

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | list[str]] | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        attempts = Attempts(self._retries, self._timeout)
        with _transport_errors(self._url):
            while True:
                try:
                    response = await self._http.request(
                        method, self._url + path, params=query, content=content, headers=headers
                    )
                    pause = attempts.pause(response)
                except httpx.TransportError as error:
                    pause = attempts.pause(error)
                    if pause is None:
                        raise
                if pause is None:
                    return _checked(response, self._url)
                await asyncio.sleep(pause)


class _transport_errors:  # noqa: N801 - reads as a statement
    """Turns what the transport raises into ClientError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, httpx.TimeoutException):
            raise UnreachableError(f"{self._url} did not answer in time") from error
        if isinstance(error, httpx.TransportError):
            raise UnreachableError(
                f"no spikeserve server answers at {self._url}: {error}"
            ) from error
        if isinstance(error, httpx.InvalidURL):
            raise ClientError(f"{self._url!r} is not the URL of a server: {error}") from error


def _query(**options: Any) -> dict[str, str]:
    given = {name: value for name, value in options.items() if value is not None}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in given.items()
    }


def _classify_headers(timeout: float) -> dict[str, str]:
    # The server need not compute what nobody waits for any more.
    return {"Content-Type": "application/octet-stream", "X-Timeout-Seconds": f"{timeout:g}"}


def _checked(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        reply = response.json()
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise UnreachableError(
            f"{url} answers {response.status_code} but not as a spikeserve server does; is the URL right?"
        )
    if response.is_success:
        return reply
    raise ServerError(
        response.status_code,
        str(reply.get("title", response.reason_phrase)),
        str(reply.get("detail", "")),
        str(reply.get("type", "")).rpartition(":")[2],
        seconds(response.headers.get("retry-after")),
        response.headers.get("x-request-id"),
    )


def _classification(reply: dict[str, Any]) -> Classification:
    return Classification(
        model=reply["model"],
        version=reply["version"],
        predictions=tuple(Prediction(**one) for one in reply["predictions"]),
        timesteps_used=reply["timesteps"]["used"],
        timesteps_of=reply["timesteps"]["of"],
        exit_risk=reply["timesteps"].get("risk", 0.0),
        firing_rates=reply["firing_rates"],
        synaptic_operations=reply["synaptic_operations"],
        energy_joules=reply["energy_joules"],
        timing_seconds=reply["timing_seconds"],
    )


def _models(reply: dict[str, Any]) -> list[ModelSummary]:
    return [ModelSummary.from_json(each) for each in reply["models"]]
