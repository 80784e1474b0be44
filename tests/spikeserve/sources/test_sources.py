"""Models from elsewhere: copied, verified, refreshed; what cannot be reached or is wrong leaves what there was."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from spikeserve.app import Server, StartError
from spikeserve.settings import Settings
from spikeserve.sources import SourceError, Sources, parse_address, with_sources

pytest.importorskip("fsspec")
LONG = 30


@pytest.fixture
def store(model_folder: Path, tmp_path: Path) -> Path:
    """A folder of models that is elsewhere."""
    return shutil.copytree(model_folder, tmp_path / "store")


@pytest.fixture
def settings(make_settings: Callable[..., Settings], tmp_path: Path) -> Callable[..., Settings]:
    def make(*addresses: str, **changes: Any) -> Settings:
        made = make_settings(source_cache=tmp_path / "cache", sources=addresses, **changes)
        # As if no folders had been named.
        made.model_fields_set.discard("models")
        return made

    return make


@pytest.fixture
def web(store: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(store)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def files(settings: Settings) -> set[str]:
    (folder,) = with_sources(settings).models
    return {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(settings: Settings) -> bool:
    return Sources(settings, lambda: None).fetch()


ALL = {"pictures/1.safetensors", "pictures/2.safetensors", "moves.safetensors"}


def test_a_folder_is_copied_once_and_followed(settings: Any, store: Path) -> None:
    given = settings(f"file://{store}")
    assert fetch(given)
    assert files(given) == ALL
    assert not fetch(given)
    (store / "pictures" / "2.safetensors").unlink()
    (store / "pictures" / "settings.toml").write_text("slots = 2\n")
    assert fetch(given)
    assert files(given) == ALL - {"pictures/2.safetensors"}
    (folder,) = with_sources(given).models
    assert (folder / "pictures" / "settings.toml").read_text() == "slots = 2\n"


def test_only_what_is_a_model_is_copied(settings: Any, store: Path) -> None:
    (store / "notes.txt").write_text("no model")
    (store / "a" / "b").mkdir(parents=True)
    shutil.copy(store / "moves.safetensors", store / "a" / "b" / "deep.safetensors")
    shutil.copy(store / "moves.safetensors", store / ".hidden.safetensors")
    given = settings(f"file://{store}")
    fetch(given)
    assert files(given) == ALL


async def test_a_server_serves_what_a_store_of_objects_has(
    settings: Any, store: Path, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="models")
        bucket.upload_file(
            str(store / "pictures/1.safetensors"), "models", "all/pictures/1.safetensors"
        )
        given = settings("s3://models/all", refresh_seconds=0.05)
        running = Server(given)
        await running.start()
        try:
            assert [(m.name, m.version) for m in running.repository.models()] == [("pictures", "1")]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.http_port}") as http:
                assert (await http.post("/classify", content=png)).json()["version"] == "1"
                bucket.upload_file(
                    str(store / "pictures/2.safetensors"), "models", "all/pictures/2.safetensors"
                )
                for _ in range(LONG * 50):
                    version = (await http.post("/classify", content=png)).json()["version"]
                    if version == "2":
                        break
                    await asyncio.sleep(0.02)
                assert version == "2"
        finally:
            await running.stop()
    finally:
        server.stop()


def test_one_file_from_the_web_with_its_digest(settings: Any, store: Path, web: str) -> None:
    right = digest(store / "moves.safetensors")
    given = settings(f"{web}/moves.safetensors#sha256={right}")
    assert fetch(given)
    assert files(given) == {"moves.safetensors"}
    (folder,) = with_sources(given).models
    assert digest(folder / "moves.safetensors") == right


def test_what_is_not_what_its_digest_says_is_not_used(
    settings: Any, store: Path, web: str, caplog: pytest.LogCaptureFixture
) -> None:
    right = digest(store / "moves.safetensors")
    given = settings(f"{web}/moves.safetensors#sha256={right}")
    fetch(given)
    (store / "moves.safetensors").write_bytes(b"something else")
    seen: list[str] = []
    assert not Sources(given, lambda: None, seen.append).fetch()
    (folder,) = with_sources(given).models
    assert digest(folder / "moves.safetensors") == right
    assert seen == ["failed"]
    assert "not used" in caplog.text
    assert "its copy is used" in caplog.text
    assert not list(folder.glob(".moves*"))


def test_a_folder_may_state_its_digests(
    settings: Any, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sums = "".join(f"{digest(store / name)}  ./{name}\n" for name in sorted(ALL))
    (store / "SHA256SUMS").write_text(sums)
    given = settings(f"file://{store}")
    assert fetch(given)
    assert files(given) == ALL
    (store / "moves.safetensors").write_bytes(b"changed by somebody")
    assert not fetch(given)
    assert "moves.safetensors has the SHA-256" in caplog.text
    (store / "SHA256SUMS").write_text(sums.replace("moves", "other"))
    assert not fetch(given)
    assert "does not have moves.safetensors" in caplog.text


def test_offline_and_out_of_reach(
    settings: Any, store: Path, web: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"{web}/moves.safetensors"
    assert fetch(settings(address))
    (store / "moves.safetensors").rename(store / "gone")
    assert not fetch(settings(address))
    assert "its copy is used" in caplog.text
    caplog.clear()
    assert not fetch(settings(address, offline=True))
    assert not caplog.text
    assert files(settings(address)) == {"moves.safetensors"}
    assert not fetch(settings(f"file://{store}/nothing/here"))
    assert "there is no copy of it" in caplog.text


async def test_a_server_starts_without_its_source(settings: Any, store: Path, png: bytes) -> None:
    address = f"file://{store}/pictures/1.safetensors"
    fetch(settings(address))
    shutil.rmtree(store)
    server = Server(settings(address))
    await server.start()
    try:
        assert server.health.ready
    finally:
        await server.stop()


def test_folders_that_were_named_stay(make_settings: Any, model_folder: Path, store: Path) -> None:
    given = with_sources(make_settings(sources=(f"file://{store}",)))
    assert given.models[0] == model_folder
    assert len(given.models) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ftp://host/a.safetensors", "s3"),
        ("models/a.safetensors", "expected an address"),
        ("https://host/folder", "does not list folders"),
        ("https://user:secret@host/a.safetensors", "credentials come from the environment"),
        ("https://host/a.safetensors#sha256=123", "64 digits"),
        ("s3://bucket/folder#sha256=" + "0" * 64, "SHA256SUMS"),
        ("file://", "no path"),
    ],
)
def test_addresses_that_cannot_be_used(text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


def test_a_wrong_address_stops_the_start(settings: Any) -> None:
    with pytest.raises(StartError, match="sources: ftp"):
        Server(settings("ftp://host/a.safetensors"))


def test_copies_of_two_addresses_are_two(settings: Any) -> None:
    given = with_sources(settings("s3://a/models", "s3://b/models"))
    assert len(set(given.models)) == 2
