"""TLS and mutual TLS on both ports, with certificates made by openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import grpc
import httpx
import pytest

from spikeserve.app import Server, StartError
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.settings import SettingsError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server and client certificates that it signed; other.pem is signed by nobody else."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-x509", "-days", "2", "-subj", "/CN=test authority")
    openssl("req", *curve, *authority, "-keyout", folder / "ca.key", "-out", folder / "ca.pem")
    for name in ("server", "client"):
        request = folder / f"{name}.csr"
        key = folder / f"{name}.key"
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        names = folder / f"{name}.names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
        signer = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial")
        openssl(
            *("x509", "-req", "-in", request, *signer, "-days", "2"),
            *("-extfile", names, "-out", folder / f"{name}.pem"),
        )
    subject = ("-x509", "-days", "2", "-subj", "/CN=other")
    openssl("req", *curve, *subject, "-keyout", folder / "other.key", "-out", folder / "other.pem")
    return folder


def trusting(folder: Path, client: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if client is not None:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    return context


def channel_credentials(folder: Path, client: str | None = None) -> grpc.ChannelCredentials:
    pair = (None, None)
    if client is not None:
        pair = ((folder / f"{client}.key").read_bytes(), (folder / f"{client}.pem").read_bytes())
    return grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), *pair)


async def both_answer(server: Server, folder: Path, client: str | None = None) -> tuple[bool, bool]:
    """Whether HTTP and gRPC answer to a client with this certificate."""
    url = f"https://127.0.0.1:{server.http_port}"
    try:
        async with httpx.AsyncClient(base_url=url, verify=trusting(folder, client)) as http:
            over_http = (await http.get("/models")).status_code == 200
    except (httpx.TransportError, ssl.SSLError):
        over_http = False
    credentials = channel_credentials(folder, client)
    address = f"localhost:{server.grpc_port}"
    async with grpc.aio.secure_channel(address, credentials) as channel:
        try:
            found = await SpikeServeStub(channel).ListModels(pb.ListModelsRequest(), timeout=20)
            over_grpc = len(found.models) == 3
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            over_grpc = False
    return over_http, over_grpc


async def test_both_ports_are_encrypted(running, certificates: Path) -> None:
    files = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    async with running(**files) as server:
        assert await both_answer(server, certificates) == (True, True)
        async with httpx.AsyncClient() as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"http://127.0.0.1:{server.http_port}/health/live")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await SpikeServeStub(channel).ListModels(pb.ListModelsRequest(), timeout=20)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_clients_need_a_certificate_of_ours(running, certificates: Path) -> None:
    files = {
        "tls_cert": certificates / "server.pem",
        "tls_key": certificates / "server.key",
        "tls_client_ca": certificates / "ca.pem",
    }
    async with running(**files) as server:
        assert await both_answer(server, certificates, "client") == (True, True)
        assert await both_answer(server, certificates) == (False, False)
        assert await both_answer(server, certificates, "other") == (False, False)


async def test_a_renewed_certificate_is_taken_up(
    running, certificates: Path, tmp_path: Path, caplog
) -> None:
    cert, key = tmp_path / "now.pem", tmp_path / "now.key"

    def use(name: str) -> None:
        shutil.copy(certificates / f"{name}.key", key)
        shutil.copy(certificates / f"{name}.pem", cert)

    use("other")  # which our clients do not trust
    async with running(tls_cert=cert, tls_key=key) as server:
        assert await both_answer(server, certificates) == (False, False)
        use("server")
        assert await both_answer(server, certificates) == (True, True)
        # A key that is not the certificate's changes nothing.
        shutil.copy(certificates / "client.key", key)
        assert await both_answer(server, certificates) == (True, True)
        assert "the certificate stays as it was" in caplog.text
        cert.unlink()
        assert await both_answer(server, certificates) == (True, True)
        use("client")
        assert await both_answer(server, certificates) == (True, True)
        use("other")
        assert await both_answer(server, certificates) == (False, False)


def test_certificates_that_cannot_be_used_stop_the_start(
    make_settings, certificates: Path, tmp_path: Path
) -> None:
    server, key = certificates / "server.pem", certificates / "server.key"
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    for changes, said in (
        ({"tls_cert": tmp_path / "none.pem", "tls_key": key}, r"none\.pem"),
        ({"tls_cert": text, "tls_key": key}, r"text\.pem"),
        ({"tls_cert": server, "tls_key": certificates / "other.key"}, r"other\.key"),
        ({"tls_cert": server, "tls_key": key, "tls_client_ca": text}, r"text\.pem"),
    ):
        with pytest.raises(StartError, match=said):
            Server(make_settings(**changes))
    for changes in ({"tls_cert": server}, {"tls_client_ca": text}):
        with pytest.raises(SettingsError, match="tls_"):
            make_settings(**changes)
