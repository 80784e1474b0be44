"""The PLIF networks, whose pooling is by the maximum, are served like any other."""

from __future__ import annotations

import torch

from spikeserve.engine.choose import Chooser, Model
from spikeserve.engine.executor import Sample
from spiketrain.energy import fan_out
from spiketrain.networks import build_network
from spiketrain.neurons import PLIFConfig

TIMESTEPS = 3


def test_a_network_with_max_pooling_gives_served_what_it_gives_in_a_run() -> None:
    torch.manual_seed(0)
    arguments = {"plan": [8, "P", 8, "P"], "input_shape": [1, 12, 12], "hidden": 20}
    network = build_network("plif-mnist", arguments, PLIFConfig(), TIMESTEPS).eval()
    reach = fan_out(network)
    executor = Chooser(Model("plif", network, 4, reach, "weights", "auto"), "auto")()
    x = 4 * torch.rand(2, 1, 12, 12)
    with torch.no_grad():
        run = network(x)
    for slot in (0, 1):
        executor.admit(slot, Sample(constant=x[slot]))
    for t in range(TIMESTEPS):
        result = executor.step([0, 1], None)
        torch.testing.assert_close(result.logits, run.logits[t])
        expected = sum(
            run.spikes[name][t].flatten(1).double() @ reach[name].flatten().double()
            for name in executor.layers
        )
        torch.testing.assert_close(result.synaptic_operations.double(), expected)
    assert sum(float(spikes.sum()) for spikes in run.spikes.values()) > 0
