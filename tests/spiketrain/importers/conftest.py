"""Originals that fire: batch norms with statistics of the inputs, and how their logits are compared with ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint
from spiketrain.importers import Said, import_checkpoint

Compare = Callable[..., Checkpoint]


@pytest.fixture
def settle() -> Callable[[nn.Module, Callable[[], Any]], None]:
    """Draws the norms' weights, and takes their statistics from one run of the network in training mode."""

    def settled(network: nn.Module, run: Callable[[], Any]) -> None:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.8, 1.6)
                nn.init.uniform_(module.bias, 0.1, 0.5)
                module.momentum = None
        with torch.no_grad():
            network.train()
            run()
        network.eval()

    return settled


@pytest.fixture
def same_logits(tmp_path: Path) -> Compare:
    """Saves `content`, imports it, and compares the logits of T timesteps with the original's, both in float64."""

    def compare(
        content: Any,
        repository: Any,
        said: Said,
        x: Tensor,
        expected: Callable[[], Tensor],
        folder: str = "run",
        file: str = "checkpoint_max.pth",
        answers: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> Checkpoint:
        path = tmp_path / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        checkpoint = import_checkpoint(path, repository, said)
        network = checkpoint.network().double()
        with torch.no_grad():
            run = network(x, checkpoint.manifest.timesteps)
            wanted = expected()
        torch.testing.assert_close(answers(run.logits), wanted)
        assert wanted.std(-1).min() > 1e-4
        assert all(spikes.any() for spikes in run.spikes.values())
        assert not all(spikes.all() for spikes in run.spikes.values())
        assert checkpoint.manifest.input.shape == tuple(x.shape[-3:])
        return checkpoint

    return compare
