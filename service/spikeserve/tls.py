"""Certificates for both ports."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from spikeserve.settings import Settings


class TlsError(ValueError):
    """Certificates that cannot be used. The message names the file and the setting."""


def context_of(settings: Settings) -> ssl.SSLContext | None:
    """For HTTP: TLS 1.2 or newer; None where the settings want none. Raises TlsError."""
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
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


def credentials_of(settings: Settings) -> grpc.ServerCredentials | None:
    """For gRPC. Raises TlsError where a file cannot be read; `context_of` says what else may be wrong."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    chain, key = _read(settings.tls_cert), _read(settings.tls_key)
    signers = None if settings.tls_client_ca is None else _read(settings.tls_client_ca)
    return grpc.ssl_server_credentials(
        [(key, chain)], root_certificates=signers, require_client_auth=signers is not None
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: {_why(error)}") from None


def _why(error: OSError) -> str:
    return error.strerror or str(error)
