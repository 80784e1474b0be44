"""POST /classify/trace says what a network does, and the same as the network itself."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import torch

from spikeserve.app import Server
from spikeserve.engine.readout import probabilities
from spikeserve.images import ImageLimits, decode_image
from spiketrain.checkpoint import load_checkpoint
from spiketrain.manifest import ImageInput


async def test_a_trace_is_what_the_network_does(
    http: httpx.AsyncClient, server: Server, png: bytes
) -> None:
    reply = await http.post("/classify/trace?timesteps=6&neurons=5", content=png)
    assert reply.status_code == 200
    trace = reply.json()
    model = server.repository.get()
    checkpoint = load_checkpoint(model.path)
    assert isinstance(model.manifest.input, ImageInput)
    picture = decode_image(png, model.manifest.input, ImageLimits(1 << 20, 1 << 20))
    with torch.inference_mode():
        run = checkpoint.network().eval()(picture.unsqueeze(0), 6)
    logits = run.logits[:, 0].numpy()
    for t in range(6):
        np.testing.assert_allclose(
            trace["probabilities"][t], probabilities("mean", logits[: t + 1]), atol=1e-5
        )
    assert [layer["name"] for layer in trace["layers"]] == list(run.spikes)
    for layer in trace["layers"]:
        spikes = run.spikes[layer["name"]][:, 0].flatten(1)
        assert layer["neurons"] == spikes.shape[1]
        np.testing.assert_allclose(layer["rates"], spikes.mean(1).numpy(), atol=1e-6)
        assert layer["raster"] == sorted(set(layer["raster"]))
        assert (layer["raster"][0], layer["raster"][-1]) == (0, layer["neurons"] - 1)
        shown = [spikes[t, layer["raster"]].nonzero().flatten().tolist() for t in range(6)]
        assert layer["fired"] == shown
    assert any(any(layer["fired"]) for layer in trace["layers"])


async def test_it_agrees_with_the_answer(http: httpx.AsyncClient, png: bytes) -> None:
    answer = (await http.post("/classify?exit=off", content=png)).json()
    trace = (await http.post("/classify/trace", content=png)).json()
    last = trace["probabilities"][-1]
    for prediction in answer["predictions"]:
        assert last[prediction["index"]] == pytest.approx(prediction["probability"], abs=0.02)
    for layer in trace["layers"]:
        rate = sum(layer["rates"]) / len(layer["rates"])
        assert rate == pytest.approx(answer["firing_rates"][layer["name"]], abs=0.01)
    assert sum(trace["synaptic_operations"]) == pytest.approx(
        answer["synaptic_operations"], rel=0.02
    )


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("model=moves", 422),
        ("model=nope", 404),
        ("timesteps=33", 422),
        ("timesteps=0", 422),
        ("neurons=65", 422),
        ("top_k=3", 422),
    ],
)
async def test_what_cannot_be_is_refused(
    http: httpx.AsyncClient, png: bytes, query: str, status: int
) -> None:
    reply = await http.post(f"/classify/trace?{query}", content=png)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"not a picture", 415), (b"\x89PNG\r\n\x1a\n cut", 400)]
)
async def test_what_is_no_picture_is_refused(
    http: httpx.AsyncClient, body: bytes, status: int
) -> None:
    assert (await http.post("/classify/trace", content=body)).status_code == status


async def test_a_checkpoint_that_was_replaced_is_not_traced(
    running, tmp_path, model_folder, png: bytes
) -> None:
    place = tmp_path / "pictures.safetensors"
    place.write_bytes((model_folder / "pictures" / "1.safetensors").read_bytes())
    async with running(models=place) as server:
        place.write_bytes((model_folder / "pictures" / "2.safetensors").read_bytes())
        url = f"http://127.0.0.1:{server.http_port}/classify/trace"
        async with httpx.AsyncClient() as client:
            reply = await client.post(url, content=png)
    assert reply.status_code == 503
    assert "not the one that was loaded" in reply.json()["detail"]
