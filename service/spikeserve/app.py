"""The whole server: what starts in which order, and how it stops.

Start: ports, then models. The ports are open from the beginning, so that health can be asked for; the server is ready
when the models are warm. Stop, on SIGTERM or SIGINT: not ready any more; after `shutdown_delay_seconds` no new connections; what is under way may
finish within `drain_seconds`; streams that are still open are told to go; exit 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Generator
from typing import Any

import grpc
import uvicorn

from spikeserve import logs
from spikeserve.access import Gate
from spikeserve.access.keys import KeysError
from spikeserve.classify import Classifier
from spikeserve.grpc.server import create_server
from spikeserve.health import Health
from spikeserve.loops import LoopThread, loop_factory
from spikeserve.metrics import Metrics
from spikeserve.oip.infer import Inference
from spikeserve.refusals import Refusals
from spikeserve.repository import Repository
from spikeserve.rest import create_app
from spikeserve.rest.access import AdminPort
from spikeserve.rest.connections import ImpatientProtocol, WebSocketHost
from spikeserve.rest.front import Front
from spikeserve.settings import Settings
from spikeserve.snapshots import StoreSettingError
from spikeserve.sources import SourceError, Sources, with_sources
from spikeserve.streams import Streams
from spikeserve.tls import TlsError, context_of, credentials_of
from spikeserve.traces import Tracer
from spikeserve.tracing import Spans, TracingError

logger = logging.getLogger("spikeserve")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Time for the last answers to be sent, after what was under way has been ended.
_FAREWELL_SECONDS = 2.0
# What comes while the last balancers and clients notice is refused in so many words.
_REFUSAL_SECONDS = 0.25
_PR_SET_PDEATHSIG = 1
# Longer than the clients' and proxies' usual 60 s, so that it is not we who close a connection that they reuse.
_KEEP_ALIVE_SECONDS = 75
# How long a thread may keep the interpreter while another one waits for it. Pictures could keep it all the time, and a
# window of a stream needs it several times, on its event loop and in the engine's thread.
_SWITCH_SECONDS = 0.0005
# What a message of events over a WebSocket has before its events.
_FRAME_BYTES = 64


class StartError(RuntimeError):
    """The server cannot start. The message says why and what to do."""


class Server:
    """REST and gRPC over one set of models, in one process.

    Connections of the HTTP port, and the pictures on them, are on an event loop of their own (rest/front.py); everything
    else is on the one that is running.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings = _with_sources(settings)
        self._credentials = _credentials(settings)
        self.metrics = Metrics()
        self.repository = Repository(settings, self.metrics)
        self.sources = Sources(settings, self.repository.refresh, self.metrics.source_fetched)
        self.spans = _spans(settings)
        self.classifier = Classifier(self.repository, self.metrics, settings, self.spans)
        self.streams = _streams(self.repository, self.metrics, settings)
        self.tracer = Tracer(self.repository, settings)
        self.gate = _gate(settings)
        self.inference = Inference(self.repository, self.classifier, self.streams, self.gate)
        self.refusals = Refusals()
        self.health = Health(self.repository)
        app = create_app(
            settings,
            self.metrics,
            self.repository,
            self.classifier,
            self.streams,
            self.tracer,
            self.inference,
            self.refusals,
            self.health,
            self.gate,
        )
        self._app = app
        self._front = Front(app, settings, self.metrics, self.classifier, self.refusals, self.gate)
        self._http = _HttpServer(_http_config(settings, self._front))
        self._websockets = _HttpServer(_http_config(settings, app))
        self._pictures: LoopThread | None = None
        self._admin: _HttpServer | None = None
        if settings.admin_port is not None:
            self._admin = _HttpServer(_http_config(settings, AdminPort(app)))
        self._rpc: grpc.aio.Server | None = None
        self._running: asyncio.Future[None] | None = None
        self._running_websockets: asyncio.Task[None] | None = None
        self._running_admin: asyncio.Task[None] | None = None
        self.http_port = self.admin_port = 0
        self.grpc_port = 0

    def openapi(self) -> dict[str, Any]:
        """What the REST interface says of itself."""
        return self._app.openapi()

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
                self.inference,
                self.refusals,
                self.health,
                self.gate,
            )
            self.grpc_port = _bind_rpc(self._rpc, settings, self._credentials)
            if settings.admin_port is not None:
                admin = _listen(settings.admin_host, settings.admin_port, "admin")
                self.admin_port = admin[0].getsockname()[1]
        except BaseException:
            _close(listeners)
            raise
        self.http_port = listeners[0].getsockname()[1]
        await self._rpc.start()
        loop = asyncio.get_running_loop()
        self._running_websockets = asyncio.create_task(self._websockets.serve([]))
        self._front.live_on(loop, WebSocketHost(self._websockets, loop))
        self._pictures = LoopThread("pictures")
        self._running = self._pictures.run(self._http.serve(listeners))
        if self._admin is not None:
            self._running_admin = asyncio.create_task(self._admin.serve(admin))
            where = _in_url(settings.admin_host)
            logger.info("models are managed on %s:%d", where, self.admin_port)
        logger.info(
            "%s://%s:%d and gRPC on port %d are open",
            "http" if self._credentials is None else "https",
            _in_url(settings.host),
            self.http_port,
            self.grpc_port,
        )
        await asyncio.to_thread(self.sources.fetch)
        await asyncio.to_thread(self.repository.load_all)
        self.sources.start()

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
        if self._rpc is not None:
            await asyncio.sleep(self._settings.shutdown_delay_seconds)
            # Calls that reach gRPC in the moment in which it stops are cancelled without a word; here they are told.
            self.gate.close()
            if self.gate.busy:
                await asyncio.sleep(_REFUSAL_SECONDS)
            self.streams.drain()
        grace = self._settings.drain_seconds
        self._http.should_exit = self._websockets.should_exit = True
        if self._admin is not None:
            self._admin.should_exit = True
        serving = (self._running, self._running_websockets, self._running_admin)
        ending: set[asyncio.Future[None]] = {each for each in serving if each is not None}
        if self._rpc is not None:
            ending.add(asyncio.ensure_future(self._rpc.stop(grace + _FAREWELL_SECONDS)))
        if ending:
            _, late = await asyncio.wait(ending, timeout=grace)
            if late:
                logger.warning(
                    "some requests took longer than %g s to finish, and are ended", grace
                )
        await self.streams.close()
        await asyncio.gather(*ending, return_exceptions=True)
        await asyncio.to_thread(self._close_models)
        if self._pictures is not None:
            await asyncio.to_thread(self._pictures.stop)

    def _close_models(self) -> None:
        self.sources.stop()
        self.repository.drain(_FAREWELL_SECONDS)
        self.classifier.close()
        self.spans.close()
        self.tracer.close()
        self.repository.close()


def run(settings: Settings) -> int:
    """Serves until a signal comes; returns the exit status. Raises StartError."""
    logs.configure(settings)
    sys.setswitchinterval(_SWITCH_SECONDS)
    if settings.exit_with_parent:
        _end_with_parent()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(settings))


def _end_with_parent() -> None:
    """The kernel sends SIGTERM when the thread that started this process ends. Raises StartError."""
    if sys.platform != "linux":
        raise StartError("exit_with_parent: this system cannot tell that a parent has ended")
    parent = os.getppid()
    failed = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if failed:
        raise StartError(f"exit_with_parent: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it had ended before it could be watched
        raise StartError("exit_with_parent: the parent has ended already")


async def _serve(settings: Settings) -> int:
    stopping = asyncio.Event()
    with _signals(stopping):
        server = Server(settings)
        try:
            if await _started(server, stopping):
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


async def _started(server: Server, stopping: asyncio.Event) -> bool:
    """False where the server was told to stop while it started. Raises StartError."""
    starting, told = asyncio.create_task(server.start()), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        return starting.done()
    finally:
        starting.cancel()
        told.cancel()


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


def _with_sources(settings: Settings) -> Settings:
    try:
        return with_sources(settings)
    except SourceError as error:
        raise StartError(f"sources: {error}") from None


def _gate(settings: Settings) -> Gate:
    try:
        return Gate(settings)
    except KeysError as error:
        raise StartError(str(error)) from None


def _streams(repository: Repository, metrics: Metrics, settings: Settings) -> Streams:
    try:
        return Streams(repository, metrics, settings)
    except StoreSettingError as error:
        raise StartError(str(error)) from None


def _spans(settings: Settings) -> Spans:
    try:
        return Spans(settings)
    except TracingError as error:
        raise StartError(str(error)) from None


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    try:
        context_of(settings)  # which says what is wrong with a certificate
        return credentials_of(settings)
    except TlsError as error:
        raise StartError(str(error)) from None


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # Signals are for the whole process, not for HTTP alone.
        yield


def _http_config(settings: Settings, app: object) -> uvicorn.Config:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=ImpatientProtocol,
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
    config.load()
    config.ssl = context_of(settings)
    return config


def _listen(host: str, port: int, which: str = "http") -> list[socket.socket]:
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
        raise _cannot_listen(host, port, which, error) from error
    return listeners


def _close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def _bind_rpc(
    server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials | None
) -> int:
    host, port = settings.host, settings.grpc_port
    address = f"{_in_url(host)}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
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
