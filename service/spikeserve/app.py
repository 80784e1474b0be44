"""The whole server: what starts in which order, and how it stops.

Start: ports, then models. The ports are open from the beginning, so that health can be asked for; the server is ready
when the models are warm. Stop, on SIGTERM or SIGINT: not ready any more; no new connections; what is under way may
finish within `drain_seconds`; streams that are still open are told to go; exit 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any

import grpc
import uvicorn

from spikeserve import logs
from spikeserve.classify import Classifier
from spikeserve.grpc.server import create_server
from spikeserve.health import Health
from spikeserve.metrics import Metrics
from spikeserve.refusals import Refusals
from spikeserve.repository import Repository
from spikeserve.rest import create_app
from spikeserve.settings import Settings
from spikeserve.streams import Streams
from spikeserve.traces import Tracer

logger = logging.getLogger("spikeserve")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Time for the last answers to be sent, after what was under way has been ended.
_FAREWELL_SECONDS = 2.0
# Longer than the clients' and proxies' usual 60 s, so that it is not we who close a connection that they reuse.
_KEEP_ALIVE_SECONDS = 75
# What a message of events over a WebSocket has before its events.
_FRAME_BYTES = 64


class StartError(RuntimeError):
    """The server cannot start. The message says why and what to do."""


class Server:
    """REST and gRPC over one set of models, in one process and on the event loop that is running."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.metrics = Metrics()
        self.repository = Repository(settings, self.metrics)
        self.classifier = Classifier(self.repository, self.metrics, settings)
        self.streams = Streams(self.repository, self.metrics, settings)
        self.tracer = Tracer(self.repository, settings)
        self.refusals = Refusals()
        self.health = Health(self.repository)
        app = create_app(
            settings,
            self.metrics,
            self.repository,
            self.classifier,
            self.streams,
            self.tracer,
            self.refusals,
            self.health,
        )
        self._http = _HttpServer(_http_config(settings, app))
        self._rpc: grpc.aio.Server | None = None
        self._running: asyncio.Task[None] | None = None
        self.http_port = 0
        self.grpc_port = 0

    async def start(self) -> None:
        """Opens both ports, then loads the models. Raises StartError for a port that cannot be had."""
        settings = self._settings
        listeners = _listen(settings.host, settings.http_port)
        try:
            self._rpc = create_server(
                settings,
                self.metrics,
                self.repository,
                self.classifier,
                self.streams,
                self.refusals,
                self.health,
            )
            self.grpc_port = _bind_rpc(self._rpc, settings.host, settings.grpc_port)
        except BaseException:
            _close(listeners)
            raise
        self.http_port = listeners[0].getsockname()[1]
        await self._rpc.start()
        self._running = asyncio.create_task(self._http.serve(listeners))
        where = _in_url(settings.host)
        logger.info(
            "http://%s:%d and gRPC on port %d are open", where, self.http_port, self.grpc_port
        )
        await asyncio.to_thread(self.repository.load)

    async def until(self, stopping: asyncio.Event) -> bool:
        """Returns when `stopping` is set: True; or when the HTTP server has ended by itself: False."""
        stop = asyncio.create_task(stopping.wait())
        waiting: set[asyncio.Future[Any]] = {stop} | ({self._running} if self._running else set())
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        return stopping.is_set()

    async def stop(self) -> None:
        """Finishes what is under way, for `drain_seconds` at most, and closes everything."""
        self.health.drain()
        grace = self._settings.drain_seconds
        self._http.should_exit = True
        ending: set[asyncio.Future[None]] = set()
        if self._rpc is not None:
            ending.add(asyncio.ensure_future(self._rpc.stop(grace + _FAREWELL_SECONDS)))
        if self._running is not None:
            ending.add(self._running)
        if ending:
            _, late = await asyncio.wait(ending, timeout=grace)
            if late:
                logger.warning(
                    "some requests took longer than %g s to finish, and are ended", grace
                )
        await self.streams.close()
        await asyncio.gather(*ending, return_exceptions=True)
        await asyncio.to_thread(self._close_models)

    def _close_models(self) -> None:
        self.repository.drain(_FAREWELL_SECONDS)
        self.classifier.close()
        self.tracer.close()
        self.repository.close()


def run(settings: Settings) -> int:
    """Serves until a signal comes; returns the exit status. Raises StartError."""
    logs.configure(settings)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    stopping = asyncio.Event()
    with _signals(stopping):
        server = Server(settings)
        try:
            await server.start()
            if server.health.ready:
                logger.info("ready")
            else:
                logger.warning("no model is ready: the messages above say why")
            told = await server.until(stopping)
        finally:
            await server.stop()
    if not told:
        logger.error("the HTTP server ended by itself")
        return 1
    logger.info("stopped")
    return 0


@contextlib.contextmanager
def _signals(stopping: asyncio.Event) -> Generator[None]:
    """The first signal sets `stopping`, a second ends the process on the spot."""
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stopping.is_set():
            logger.warning("second signal: ending at once")
            os._exit(128 + number)
        logger.info("%s received", number.name)
        stopping.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, received, number)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # Signals are for the whole process, not for HTTP alone.
        yield


def _http_config(settings: Settings, app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=settings.max_message_bytes + _FRAME_BYTES,
        ws_max_queue=2,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
    )


def _listen(host: str, port: int) -> list[socket.socket]:
    """One listener for each address that `host` stands for, all on one port."""
    listeners: list[socket.socket] = []
    try:
        for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            listener = socket.create_server(
                (str(address[0]), port),
                family=family,
                dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
            )
            listeners.append(listener)
            port = listener.getsockname()[1]
    except OSError as error:
        _close(listeners)
        raise _cannot_listen(host, port, "http", error) from error
    return listeners


def _close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def _bind_rpc(server: grpc.aio.Server, host: str, port: int) -> int:
    try:
        return server.add_insecure_port(f"{_in_url(host)}:{port}")
    except RuntimeError as error:
        raise _cannot_listen(host, port, "grpc", error) from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _cannot_listen(host: str, port: int, which: str, error: Exception) -> StartError:
    reason = error.strerror if isinstance(error, OSError) else "it is in use, or not ours to use"
    return StartError(
        f"cannot listen on {host}, port {port}: {reason}; "
        f"stop what uses it, or choose another with --{which}-port or SPIKESERVE_{which.upper()}_PORT"
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.new_event_loop
    return uvloop.new_event_loop
