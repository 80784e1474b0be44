"""tritonclient, unchanged: HTTP and gRPC, blocking and asyncio, binary and JSON, pictures of every form."""

from __future__ import annotations

import asyncio
import io
import json
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc")
import tritonclient.grpc as tgrpc
import tritonclient.grpc.aio as tgrpc_aio
import tritonclient.http as thttp
import tritonclient.http.aio as thttp_aio
from tritonclient.utils import InferenceServerException

from spikeserve.app import Server

PROTOCOLS = {"http": thttp, "grpc": tgrpc}


def address(server: Server, protocol: str) -> str:
    return f"127.0.0.1:{server.http_port if protocol == 'http' else server.grpc_port}"


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def client(threaded_server: Server, protocol: str) -> Iterator[Any]:
    with PROTOCOLS[protocol].InferenceServerClient(address(threaded_server, protocol)) as client:
        yield client


@pytest.fixture
async def aio_client(threaded_server: Server, protocol: str) -> AsyncIterator[Any]:
    module = {"http": thttp_aio, "grpc": tgrpc_aio}[protocol]
    client = module.InferenceServerClient(address(threaded_server, protocol))
    yield client
    await client.close()


def tensor(
    protocol: str, values: np.ndarray, datatype: str = "UINT8", name: str = "image", **form: Any
) -> Any:
    given = PROTOCOLS[protocol].InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values, **form)
    return given


@pytest.fixture(scope="module")
def expected(threaded_server: Server, pictures: np.ndarray) -> np.ndarray:
    """What /classify answers to the same pictures as PNG files, alone: probabilities [N, classes]."""
    rows = np.empty((len(pictures), 10))
    base = f"http://127.0.0.1:{threaded_server.http_port}"
    for row, picture in zip(rows, pictures, strict=True):
        reply = httpx.post(f"{base}/classify?top_k=10", content=png(picture)).json()
        for each in reply["predictions"]:
            row[each["index"]] = each["probability"]
    return rows


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture[:, :, 0]).save(file, "PNG")
    return file.getvalue()


def test_the_state_of_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pictures")
    assert client.is_model_ready("pictures", "1")
    assert not client.is_model_ready("pictures", "7")
    assert not client.is_model_ready("nope")


def described(client: Any, protocol: str, what: str, *given: str) -> dict[str, Any]:
    """The same dictionary from both protocols."""
    call = getattr(client, f"get_{what}")
    return call(*given, as_json=True) if protocol == "grpc" else call(*given)


def test_metadata_and_configuration(client: Any, protocol: str) -> None:
    server = described(client, protocol, "server_metadata")
    assert server["name"] == "spikeserve"
    assert {"sequence", "statistics", "model_configuration", "binary_tensor_data"} <= set(
        server["extensions"]
    )
    model = described(client, protocol, "model_metadata", "pictures")
    assert (model["name"], model["versions"]) == ("pictures", ["1", "2"])
    (given,) = model["inputs"]
    assert (given["name"], given["datatype"]) == ("image", "UINT8")
    assert list(map(int, given["shape"])) == [-1, 28, 28, 1]
    assert [each["name"] for each in model["outputs"]] == [
        "probabilities",
        "firing_rates",
        "timesteps",
    ]
    config = described(client, protocol, "model_config", "pictures")
    config = config.get("config", config)
    assert config["max_batch_size"] == 4
    assert (config["input"][0]["data_type"], config["input"][0]["format"]) == (
        "TYPE_UINT8",
        "FORMAT_NHWC",
    )
    assert json.loads(config["parameters"]["classes"]["string_value"]) == list("abcdefghij")
    assert len(json.loads(config["parameters"]["layers"]["string_value"])) == 2
    moves = described(client, protocol, "model_config", "moves")
    assert "sequence_batching" in moves.get("config", moves)


def test_the_index(client: Any, protocol: str) -> None:
    index = described(client, protocol, "model_repository_index")
    models = index["models"] if protocol == "grpc" else index
    assert [(each["name"], each["version"], each["state"]) for each in models] == [
        ("moves", "1", "READY"),
        ("pictures", "1", "READY"),
        ("pictures", "2", "READY"),
    ]


def test_a_batch_is_answered_as_its_pictures_alone(
    client: Any, protocol: str, pictures: np.ndarray, expected: np.ndarray
) -> None:
    answer = client.infer("pictures", [tensor(protocol, pictures)], request_id="mine")
    assert np.allclose(answer.as_numpy("probabilities"), expected, atol=1e-6)
    assert answer.as_numpy("firing_rates").shape == (4, 2)
    assert answer.as_numpy("timesteps").tolist() == [[4]] * 4
    reply = answer.get_response()
    assert (reply.id if protocol == "grpc" else reply["id"]) == "mine"
    assert (reply.model_version if protocol == "grpc" else reply["model_version"]) == "2"


def test_many_batches_side_by_side_are_not_mixed_up(
    client: Any, protocol: str, pictures: np.ndarray, expected: np.ndarray
) -> None:
    orders = [np.random.default_rng(seed).permutation(4) for seed in range(24)]
    answers: list[Any]
    if protocol == "http":
        waiting = [client.async_infer("pictures", [tensor(protocol, pictures[o])]) for o in orders]
        answers = [each.get_result() for each in waiting]
    else:
        done: queue.Queue[Any] = queue.Queue()
        for number, order in enumerate(orders):
            client.async_infer(
                "pictures",
                [tensor(protocol, pictures[order])],
                callback=lambda result, error, number=number: done.put((number, error or result)),
            )
        answers = [each for _, each in sorted(done.get(timeout=60) for _ in orders)]
    for order, answer in zip(orders, answers, strict=True):
        assert np.allclose(answer.as_numpy("probabilities"), expected[order], atol=1e-6)


def test_pixels_from_0_to_1_and_files_are_the_same_pictures(
    client: Any, protocol: str, pictures: np.ndarray, expected: np.ndarray
) -> None:
    forms = [
        tensor(protocol, pictures.astype(np.float32) / 255, "FP32"),
        tensor(protocol, np.array([png(each) for each in pictures], object), "BYTES"),
        tensor(protocol, np.array([[png(each)] for each in pictures], object), "BYTES"),
    ]
    for given in forms:
        answer = client.infer("pictures", [given], "2")
        assert np.allclose(answer.as_numpy("probabilities"), expected, atol=1e-6)


def test_the_likeliest_classes(
    client: Any, protocol: str, pictures: np.ndarray, expected: np.ndarray
) -> None:
    output = PROTOCOLS[protocol].InferRequestedOutput("probabilities", class_count=3)
    answer = client.infer("pictures", [tensor(protocol, pictures)], outputs=[output])
    named = answer.as_numpy("probabilities")
    assert named.shape == (4, 3)
    for row, chances in zip(named, expected, strict=True):
        values, indices, labels = zip(*(each.decode().split(":") for each in row), strict=True)
        order = np.argsort(-chances, kind="stable")[:3]
        assert list(map(int, indices)) == order.tolist()
        assert np.allclose(list(map(float, values)), chances[order], atol=2e-6)
        assert labels == tuple("abcdefghij"[index] for index in order)
    assert answer.as_numpy("timesteps") is None


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_http_tensors_as_bytes_and_as_json(
    threaded_server: Server,
    pictures: np.ndarray,
    expected: np.ndarray,
    binary_in: bool,
    binary_out: bool,
) -> None:
    outputs = [
        thttp.InferRequestedOutput("probabilities", binary_data=binary_out),
        thttp.InferRequestedOutput("timesteps", binary_data=not binary_out),
    ]
    with thttp.InferenceServerClient(address(threaded_server, "http")) as client:
        answer = client.infer(
            "pictures", [tensor("http", pictures, binary_data=binary_in)], outputs=outputs
        )
    assert np.allclose(answer.as_numpy("probabilities"), expected, atol=1e-6)
    assert answer.as_numpy("timesteps").tolist() == [[4]] * 4


@pytest.mark.parametrize("sent", [None, "gzip", "deflate"])
@pytest.mark.parametrize("wanted", [None, "gzip", "deflate"])
def test_compression_both_ways(
    client: Any,
    protocol: str,
    pictures: np.ndarray,
    expected: np.ndarray,
    sent: str | None,
    wanted: str | None,
) -> None:
    if protocol == "grpc":
        options = {"compression_algorithm": sent}
    else:
        options = {"request_compression_algorithm": sent, "response_compression_algorithm": wanted}
    answer = client.infer("pictures", [tensor(protocol, pictures)], **options)
    assert np.allclose(answer.as_numpy("probabilities"), expected, atol=1e-6)


def test_parameters_reach_the_model(client: Any, protocol: str, pictures: np.ndarray) -> None:
    given = [tensor(protocol, pictures[:1])]
    answer = client.infer("pictures", given, parameters={"timesteps": 2}, priority=1, timeout=10**8)
    assert answer.as_numpy("timesteps").tolist() == [[2]]
    for options in ({"priority": 4}, {"parameters": {"timesteps": "two"}}):
        with pytest.raises(InferenceServerException, match=r"priority|timesteps"):
            client.infer("pictures", given, **options)


async def test_asyncio(
    aio_client: Any, protocol: str, pictures: np.ndarray, expected: np.ndarray
) -> None:
    assert await aio_client.is_server_ready()
    assert await aio_client.is_model_ready("moves")
    given = [tensor(protocol, pictures)]
    answers = await asyncio.gather(*(aio_client.infer("pictures", given) for _ in range(8)))
    for answer in answers:
        assert np.allclose(answer.as_numpy("probabilities"), expected, atol=1e-6)
    with pytest.raises(InferenceServerException, match="no model 'nope'"):
        await aio_client.infer("nope", given)


def test_statistics_count_requests_and_pictures(
    client: Any, protocol: str, pictures: np.ndarray
) -> None:
    def counts() -> list[int]:
        stats = described(client, protocol, "inference_statistics", "pictures", "1")
        (own,) = stats["model_stats"]
        inference = own["inference_stats"]
        numbers = [own.get("inference_count", 0), own.get("execution_count", 0)]
        numbers += [
            inference[phase].get("count", 0)
            for phase in ("success", "fail", "queue", "compute_infer")
        ]
        return [int(number) for number in numbers]

    before = counts()
    client.infer("pictures", [tensor(protocol, pictures[:3])], "1")
    with pytest.raises(InferenceServerException):
        client.infer("pictures", [tensor(protocol, pictures[:, 1:])], "1")
    gained = [now - then for now, then in zip(counts(), before, strict=True)]
    assert gained[0] == 3
    assert 4 <= gained[1] <= 12  # four timesteps, for one to three of the pictures at once
    assert gained[2:] == [1, 1, 1, 1]
