"""Bad input gets the design's errors, and none of it takes the server down."""

from __future__ import annotations

import random
import shutil
import struct
import zlib
from pathlib import Path

import httpx
import pytest

from spikeserve.app import Server


def png_header(width: int, height: int) -> bytes:
    """A PNG file that says it is so large, without the pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


async def assert_alive(http: httpx.AsyncClient, png: bytes) -> None:
    assert (await http.get("/health/ready")).status_code == 200
    assert (await http.post("/classify", content=png)).status_code == 200


async def test_a_text_file_is_not_an_image(http: httpx.AsyncClient, png: bytes) -> None:
    reply = await http.post("/classify", content=b"not a picture\n" * 100)
    assert reply.status_code == 415
    assert "not a picture" in reply.json()["detail"]
    await assert_alive(http, png)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
async def test_a_truncated_png_is_refused(http: httpx.AsyncClient, png: bytes, part: float) -> None:
    reply = await http.post("/classify", content=png[: int(len(png) * part)])
    assert reply.status_code in (400, 415)
    await assert_alive(http, png)


async def test_a_picture_of_30000_by_30000_is_refused(http: httpx.AsyncClient, png: bytes) -> None:
    reply = await http.post("/classify", content=png_header(30_000, 30_000))
    assert reply.status_code == 413
    assert "40000000" in reply.json()["detail"]
    await assert_alive(http, png)


async def test_an_unknown_model_is_not_found(http: httpx.AsyncClient, png: bytes) -> None:
    reply = await http.post("/classify?model=nope", content=png)
    assert reply.status_code == 404
    assert "pictures" in reply.json()["detail"]
    await assert_alive(http, png)


async def test_a_checkpoint_with_a_changed_byte_is_listed_with_the_reason(
    running, model_folder: Path, tmp_path: Path, png: bytes
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(model_folder, folder)
    broken = folder / "pictures" / "2.safetensors"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    async with running(models=folder) as server, client(server) as http:
        assert (await http.get("/health/ready")).status_code == 200
        listed = {
            (each["name"], each["version"]): each
            for each in (await http.get("/models")).json()["models"]
        }
        failed = listed["pictures", "2"]
        assert failed["state"] == "failed"
        assert "changed or damaged" in failed["reason"]
        assert (await http.post("/classify", content=png)).json()["version"] == "1"
        assert (
            await http.post("/classify?model=pictures&version=2", content=png)
        ).status_code == 404
        assert "spikeserve_models_failed 1.0" in (await http.get("/metrics")).text


async def test_a_server_without_models_is_up_but_not_ready(
    running, tmp_path: Path, png: bytes
) -> None:
    async with running(models=tmp_path) as server, client(server) as http:
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).status_code == 503
        reply = await http.post("/classify", content=png)
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) > 0
        assert (await http.get("/models")).json() == {"models": []}


def client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", timeout=60)


async def test_damaged_pictures_are_answered_or_refused(
    http: httpx.AsyncClient, png: bytes
) -> None:
    source = random.Random(0)
    for _ in range(100):
        data = bytearray(png)
        for _ in range(source.randrange(1, 8)):
            data[source.randrange(len(data))] = source.randrange(256)
        reply = await http.post("/classify", content=bytes(data))
        assert reply.status_code in (200, 400, 413, 415), bytes(data)
    await assert_alive(http, png)
