"""Bodies of /v2 without a client library: JSON, tensors as bytes behind it, one raw tensor, and what is refused of them."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

INFER = "/v2/models/pictures/infer"
LENGTH = "Inference-Header-Content-Length"


def image(values: np.ndarray, **fields: Any) -> dict[str, Any]:
    given = {"name": "image", "datatype": "UINT8", "shape": list(values.shape)}
    return {"inputs": [given | {"data": values.tolist()} | fields]}


@pytest.fixture
def body(pictures: np.ndarray) -> dict[str, Any]:
    return image(pictures[:1])


def test_flat_and_nested_data_are_the_same(http: httpx.Client, pictures: np.ndarray) -> None:
    nested = http.post(INFER, json=image(pictures))
    flat = http.post(INFER, json=image(pictures, data=pictures.ravel().tolist()))
    assert nested.status_code == 200
    assert nested.headers["content-type"] == "application/json"
    assert nested.json() == flat.json()
    reply = nested.json()
    assert (reply["model_name"], reply["model_version"]) == ("pictures", "2")
    assert [output["shape"] for output in reply["outputs"]] == [[4, 10], [4, 2], [4, 1]]
    assert len(reply["outputs"][0]["data"]) == 40
    assert "id" not in reply


def test_the_content_type_does_not_matter(http: httpx.Client, body: dict[str, Any]) -> None:
    content = json.dumps(body | {"id": "a \u2713"}).encode()
    for kind in ("", "application/octet-stream", "text/plain; charset=x"):
        headers = {"content-type": kind} if kind else {}
        reply = http.post(INFER, content=content, headers=headers)
        assert reply.status_code == 200
        assert reply.json()["id"] == "a \u2713"


def test_tensors_behind_the_json(http: httpx.Client, pictures: np.ndarray) -> None:
    raw = pictures.tobytes()
    content = image(pictures, parameters={"binary_data_size": len(raw)})
    del content["inputs"][0]["data"]
    content["parameters"] = {"binary_data_output": True}
    content["outputs"] = [
        {"name": "timesteps", "parameters": {"binary_data": False}},
        {"name": "probabilities"},
    ]
    head = json.dumps(content).encode()
    reply = http.post(INFER, content=head + raw, headers={LENGTH: str(len(head))})
    assert reply.status_code == 200
    size = int(reply.headers[LENGTH])
    described = json.loads(reply.content[:size])["outputs"]
    assert [each["name"] for each in described] == ["timesteps", "probabilities"]
    assert described[0]["data"] == [4] * 4
    assert described[1]["parameters"] == {"binary_data_size": 160}
    chances = np.frombuffer(reply.content[size:], np.float32).reshape(4, 10)
    assert np.allclose(chances.sum(1), 1, atol=1e-5)


def test_one_picture_as_the_whole_body(http: httpx.Client, pictures: np.ndarray) -> None:
    reply = http.post(INFER, content=pictures[0].tobytes(), headers={LENGTH: "0"})
    size = int(reply.headers[LENGTH])
    raw = np.frombuffer(reply.content[size:][:40], np.float32)
    as_json = http.post(INFER, json=image(pictures[:1])).json()
    assert raw.tolist() == pytest.approx(as_json["outputs"][0]["data"], abs=1e-7)
    reply = http.post(INFER, content=bytes(783), headers={LENGTH: "0"})
    assert reply.status_code == 400
    reply = http.post("/v2/models/moves/infer", content=bytes(64), headers={LENGTH: "0"})
    assert "correlation ID" in reply.json()["error"]


def test_a_small_reply_is_not_compressed_and_a_large_one_only_for_who_asks(
    http: httpx.Client, pictures: np.ndarray
) -> None:
    for count, accepted, encoding in (
        (4, "gzip", "gzip"),
        (4, "br, deflate", "deflate"),
        (4, "br", None),
        (1, "gzip", None),
    ):
        headers = {"accept-encoding": accepted}
        reply = http.post(INFER, json=image(pictures[:count]), headers=headers)
        assert reply.headers.get("content-encoding") == encoding
        assert len(reply.json()["outputs"]) == 3


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_compressed_bodies_are_bounded(http: httpx.Client, pack: Any, body: dict[str, Any]) -> None:
    headers = {"content-encoding": "gzip" if pack is gzip.compress else "deflate"}
    content = pack(json.dumps(body).encode())
    assert http.post(INFER, content=content, headers=headers).status_code == 200
    bomb = pack(b" " * (1 << 25))
    assert len(bomb) < 1 << 16
    reply = http.post(INFER, content=bomb, headers=headers)
    assert reply.status_code == 413
    assert "when decompressed" in reply.json()["error"]
    for damaged in (content[:-5], b"plain", content + b"more"):
        reply = http.post(INFER, content=damaged, headers=headers)
        assert reply.status_code == 400
    assert http.post(INFER, content=b"", headers={"content-encoding": "br"}).status_code == 400


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "JSON object"),
        ("{}", "inputs"),
        ('{"inputs": {}}', "inputs"),
        ('{"inputs": [1]}', "name"),
        ('{"inputs": [{"name": "image"}]}', "datatype"),
        ('{"inputs": [], "id": 7}', "id"),
        ('{"inputs": [], "parameters": []}', "parameters"),
        ('{"inputs": [], "outputs": [{"name": "timesteps", "parameters": {"classification": "x"}}]}', "whole number"),
    ],
)  # fmt: skip
def test_json_that_is_no_request(http: httpx.Client, content: str, said: str) -> None:
    reply = http.post(INFER, content=content)
    assert reply.status_code == 400
    assert said in reply.json()["error"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data": None}, "not a list"),
        ({"data": "AAAA"}, "not a list"),
        ({"data": [1]}, "has 784 values, but data has 1"),
        ({"data": [[1, 2], [3]]}, "not of datatype UINT8"),
        ({"data": [0.5] * 784}, "not of datatype UINT8"),
        ({"data": [True] * 784}, "not of datatype UINT8"),
        ({"data": [-1] * 784}, "UINT8 goes from 0 to 255"),
        ({"data": [10**30] * 784}, "UINT8 goes from 0 to 255"),
        ({"data": [2] * 784, "datatype": "FP32"}, "from 0 to 1"),
        ({"data": [10**400] * 784, "datatype": "FP32"}, "too large"),
        ({"data": [float("nan")] * 784, "datatype": "FP32"}, "from 0 to 1"),
        ({"data": ["\ud800"], "datatype": "BYTES", "shape": [1]}, "surrogate"),
        ({"data": [1], "datatype": "BYTES", "shape": [1]}, "strings"),
        ({"data": ["no picture"], "datatype": "BYTES", "shape": [1]}, "not a picture"),
        ({"data": [], "shape": [0, 28, 28, 1]}, "a batch of 0"),
        ({"shape": [1, 28, 28, -1]}, "shape"),
        ({"shape": [1, 28, 28, "1"]}, "shape"),
        ({"shape": []}, "shape"),
        ({"shape": [1] * 9}, "shape"),
        ({"data": [], "shape": [0, 2**31 - 1, 2**31 - 1]}, "too large"),
        ({"datatype": "FP64"}, "'FP64' is none of"),
        ({"datatype": "INT32"}, "expected UINT8"),
        ({"name": "picture"}, "takes one input"),
        ({"parameters": {"binary_data_size": 784}}, "has data and binary_data_size"),
        ({"parameters": 7}, "parameters"),
    ],
)
def test_tensors_that_cannot_be(
    http: httpx.Client, pictures: np.ndarray, fields: dict[str, Any], said: str
) -> None:
    reply = http.post(INFER, content=json.dumps(image(pictures[:1], **fields)))
    assert reply.status_code == 400
    assert said in reply.json()["error"]


@pytest.mark.parametrize("length", ["99999", "-1", "x", "1.5", "9" * 30, "\u0663"])
def test_a_wrong_length_of_the_json(http: httpx.Client, body: dict[str, Any], length: str) -> None:
    headers = {LENGTH: length.encode()}
    reply = http.post(INFER, content=json.dumps(body), headers=headers)
    assert reply.status_code == 400
    assert "inference header size should be in range" in reply.json()["error"]


@pytest.mark.parametrize("size", [783, 785, -1, "784", True, 2**70])
def test_a_wrong_size_of_a_tensor(http: httpx.Client, pictures: np.ndarray, size: Any) -> None:
    content = image(pictures[:1], parameters={"binary_data_size": size})
    del content["inputs"][0]["data"]
    head = json.dumps(content).encode()
    reply = http.post(INFER, content=head + bytes(784), headers={LENGTH: str(len(head))})
    assert reply.status_code == 400
    assert "bytes" in reply.json()["error"] or "binary_data_size" in reply.json()["error"]


@pytest.mark.parametrize("raw", [b"\1", b"\5\0\0\0abc", bytes(8)])
def test_bytes_elements_that_are_cut_off(http: httpx.Client, raw: bytes) -> None:
    given = {"name": "image", "datatype": "BYTES", "shape": [1]}
    given["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [given]}).encode()
    reply = http.post(INFER, content=head + raw, headers={LENGTH: str(len(head))})
    assert reply.status_code == 400
    assert "BYTES" in reply.json()["error"] or "data has 2" in reply.json()["error"]


async def test_a_body_beyond_the_limit_is_refused(running: Any) -> None:
    async with (
        running(max_body_bytes=1000) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as http,
    ):
        reply = await http.post(INFER, content=b" " * 1001)
        assert reply.status_code == 413
        assert "1000 bytes" in reply.json()["error"]


def test_a_client_that_waits_no_longer_gets_no_answer(
    http: httpx.Client, body: dict[str, Any]
) -> None:
    reply = http.post(INFER, json=body, headers={"X-Timeout-Seconds": "0.000001"})
    assert reply.status_code == 504
    assert "deadline" in reply.json()["error"]
