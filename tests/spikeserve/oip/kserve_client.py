"""Uses a server as KServe's own client does; run by test_kserve.py with the Python that has it. Arguments: both ports."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def request(pixels: np.ndarray, binary: bool, **given: object) -> InferRequest:
    image = InferInput("image", list(pixels.shape), "UINT8")
    image.set_data_from_numpy(pixels, binary_data=binary)
    return InferRequest("pictures", [image], request_id="mine", **given)


def checked(answer: object) -> np.ndarray:
    """Probabilities [N, classes]."""
    assert answer.id == "mine"
    assert answer.model_name == "pictures"
    chances = answer.get_output_by_name("probabilities").as_numpy()
    assert chances.shape == (3, 10)
    assert np.allclose(chances.sum(1), 1, atol=1e-5)
    assert answer.get_output_by_name("timesteps").as_numpy().ravel().tolist() == [4] * 3
    return chances


async def main(http_port: int, grpc_port: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    answers = []
    base = f"http://127.0.0.1:{http_port}"
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await rest.is_server_live(base) is True
    assert await rest.is_server_ready(base) is True
    assert await rest.is_model_ready(base, "pictures") is True
    assert await rest.is_model_ready(base, "nope") is False
    for binary in (False, True):
        for outputs in (None, ["probabilities", "timesteps"]):
            wanted = outputs and [
                RequestedOutput(name, parameters={"binary_data": binary}) for name in outputs
            ]
            asked = request(pixels, binary, request_outputs=wanted)
            answers.append(checked(await rest.infer(base, asked, model_name="pictures")))
    await rest.close()

    async with InferenceGRPCClient(f"127.0.0.1:{grpc_port}") as rpc:
        assert await rpc.is_server_live() is True
        assert await rpc.is_server_ready() is True
        assert await rpc.is_model_ready("pictures") is True
        answers += [checked(await rpc.infer(request(pixels, binary))) for binary in (False, True)]
    assert all(np.allclose(each, answers[0], atol=1e-6) for each in answers)
    print(len(answers), "answers")  # noqa: T201


asyncio.run(main(*map(int, sys.argv[1:])))
