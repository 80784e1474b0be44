"""A server follows the code of one network while others compute."""

from __future__ import annotations

import threading

import torch

from spiketrain.convert.flow import network_flow
from spiketrain.networks import build_network
from spiketrain.neurons import LIFConfig


def small() -> torch.nn.Module:
    arguments = {"channels": [4], "input_shape": [1, 8, 8], "classes": 3}
    return build_network("small-conv", arguments, LIFConfig(), 2)


def test_networks_are_followed_while_others_compute_and_are_followed() -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def compute() -> None:
        network = small().eval()
        picture = torch.zeros(1, 1, 8, 8)
        try:
            while not done.is_set():
                assert isinstance(network.encode(picture), torch.Tensor)
        except BaseException as error:
            failures.append(error)

    def follow() -> None:
        try:
            for _ in range(5):
                assert len(network_flow(small()).ops) > 3
        except BaseException as error:
            failures.append(error)

    computing = threading.Thread(target=compute)
    following = [threading.Thread(target=follow) for _ in range(2)]
    before = torch.nn.Module.__call__
    for thread in (computing, *following):
        thread.start()
    for thread in following:
        thread.join()
    done.set()
    computing.join()
    assert failures == []
    assert torch.nn.Module.__call__ is before
