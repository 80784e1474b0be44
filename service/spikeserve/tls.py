"""Certificates for both ports. Renewed files are taken up by new connections; those that are open keep theirs."""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path
from typing import Any

import grpc

from spikeserve.settings import Settings

logger = logging.getLogger(__name__)


class TlsError(ValueError):
    """Certificates that cannot be used. The message names the file and the setting."""


class _Files:
    """Of the settings, as they are now. They are looked at when somebody connects: idle, this costs nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stamp = self._stamps()
        self._lock = threading.Lock()
        self._refused: object = None

    def renewed(self) -> ssl.SSLContext | None:
        """Where the files have changed and can be used. Those that cannot are tried again when the next one connects:
        a certificate may have been written and its key not yet."""
        with self._lock:
            stamp = self._stamps()
            if stamp == self._stamp:
                return None
            try:
                context = _context(self._settings)
            except TlsError as error:
                if stamp != self._refused:
                    logger.error("the certificate stays as it was: %s", error)
                self._refused = stamp
                return None
            self._stamp = stamp
            logger.info("the certificate was read again from %s", self._settings.tls_cert)
            return context

    def _stamps(self) -> tuple[object, ...]:
        given = self._settings
        return tuple(map(_stamp, (given.tls_cert, given.tls_key, given.tls_client_ca)))


class _RenewedContext(ssl.SSLContext):
    """Begins each connection with the files that are there then."""

    files: _Files
    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **named: Any) -> ssl.SSLObject:
        # asyncio and uvloop begin each connection with this.
        self.current = self.files.renewed() or self.current
        return self.current.wrap_bio(*args, **named)


def context_of(settings: Settings) -> ssl.SSLContext | None:
    """For HTTP: TLS 1.2 or newer; None where the settings want none. Raises TlsError."""
    if settings.tls_cert is None:
        return None
    context = _RenewedContext(ssl.PROTOCOL_TLS_SERVER)
    context.files = _Files(settings)
    context.current = _context(settings)
    return context


def credentials_of(settings: Settings) -> grpc.ServerCredentials | None:
    """For gRPC. Raises TlsError where a file cannot be read; `context_of` says what else may be wrong."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    files = _Files(settings)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        if files.renewed() is None:
            return None
        try:
            return _configuration(settings)
        except TlsError as error:  # changed again meanwhile
            logger.error("the certificate stays as it was: %s", error)
            return None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(settings),
        renewed,  # type: ignore[arg-type]  # None is no change, which the stubs do not know
        require_client_authentication=settings.tls_client_ca is not None,
    )


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(str(settings.tls_cert), settings.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise TlsError(
            f"tls_cert {settings.tls_cert}, tls_key {settings.tls_key}: {_why(error)}"
        ) from None
    if settings.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except OSError as error:
            raise TlsError(f"tls_client_ca {settings.tls_client_ca}: {_why(error)}") from None
    return context


def _configuration(settings: Settings) -> grpc.ServerCertificateConfiguration:
    if settings.tls_cert is None or settings.tls_key is None:
        raise TypeError("there is no certificate")
    chain, key = _read(settings.tls_cert), _read(settings.tls_key)
    signers = None if settings.tls_client_ca is None else _read(settings.tls_client_ca)
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=signers)


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    try:
        status = None if path is None else path.stat()
    except OSError:
        return None
    return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: {_why(error)}") from None


def _why(error: OSError) -> str:
    return error.strerror or str(error)
