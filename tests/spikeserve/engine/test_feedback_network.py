"""A feedback network is served as any other: its last spikes are state, in slots that are at different timesteps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from spikeserve.app import Server
from spikeserve.engine import ReferenceExecutor, Sample
from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.energy import fan_out
from spiketrain.manifest import ImageInput, Manifest, NetworkSpec
from spiketrain.networks import build_network
from spiketrain.neurons import FeedbackLIFConfig

T = 8
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module", params=["feedback-f400", "feedback-64c5s"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"feedback-f400": {"hidden": 12}, "feedback-64c5s": {"channels": 4}}
    arguments = {"input_shape": SHAPE, "classes": 3, **sizes[request.param]}
    neuron = FeedbackLIFConfig(keep=0.9, threshold=1.0)
    network = build_network(request.param, arguments, neuron, T)
    torch.nn.init.normal_(network.linear.weight, 0, 3)
    manifest = Manifest(
        name="feedback",
        network=NetworkSpec(name=request.param, arguments=arguments),
        neuron=neuron,
        timesteps=T,
        input=ImageInput(shape=SHAPE, mean=(0.5,), std=(0.25,)),
        classes=("a", "b", "c"),
        readout=network.logit_readout,
    )
    path = tmp_path_factory.mktemp("models") / "feedback.safetensors"
    save_checkpoint(path, manifest, network.state_dict())
    return path


@torch.no_grad()
def test_samples_that_join_later_and_move_give_what_the_network_gives(saved: Path) -> None:
    network = load_checkpoint(saved).network()
    executor = ReferenceExecutor(network, 3, fan_out(network), "digest")
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2
    expected = network(x, T)
    for slot, start in ((0, 0), (1, 3)):
        assert expected.logits[:, slot].std(0).max() > 0.01, start
    executor.admit(0, Sample(x[0]))
    got: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for t in range(T + 3):
        if t == 3:
            executor.admit(1, Sample(x[1]))
        if t == 6:  # in the middle of its run
            executor.load(2, executor.save(1))
        slots = {0: 0, 1: 1 if t < 6 else 2}
        active = [i for i, start in ((0, 0), (1, 3)) if start <= t < start + T]
        result = executor.step([slots[i] for i in active], None)
        for row, i in enumerate(active):
            got[i].append(result.logits[row])
    for i, logits in got.items():
        torch.testing.assert_close(torch.stack(logits), expected.logits[:, i], atol=1e-5, rtol=1e-5)


async def test_the_server_answers_as_the_network_does(
    saved: Path, running: Callable[..., AbstractAsyncContextManager[Server]], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE[1:], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    async with (
        running(models=saved) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", timeout=60) as http,
    ):
        content = (tmp_path / "x.png").read_bytes()
        headers = {"content-type": "image/png"}
        reply = await http.post("/classify", content=content, headers=headers)
    assert reply.status_code == 200, reply.text
    x = (torch.from_numpy(pixels).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        run = load_checkpoint(saved).network()(x.view(1, *SHAPE), T)
    expected = run.logits[-1, 0].softmax(0)
    answer = reply.json()
    found = {each["label"]: each["probability"] for each in answer["predictions"]}
    assert found["abc"[int(expected.argmax())]] == pytest.approx(expected.max().item(), abs=1e-4)
    assert answer["timesteps"] == {"used": T, "of": T}
    rate = run.spikes["neurons.0"].mean().item()
    assert answer["firing_rates"]["neurons.0"] == pytest.approx(rate, abs=1e-5)
