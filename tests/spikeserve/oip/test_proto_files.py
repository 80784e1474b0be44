"""Our interface description is Triton's, to the last name and number, so that both fit into one process."""

from __future__ import annotations

import subprocess
import sys

import pytest

OURS = "spikeserve.grpc.v2.grpc_service_pb2"
TRITONS = "tritonclient.grpc.service_pb2"
CHECK = """
import importlib, sys
first, second = (importlib.import_module(name) for name in sys.argv[1:])
assert first.DESCRIPTOR.serialized_pb == second.DESCRIPTOR.serialized_pb
assert first.ModelInferRequest is second.ModelInferRequest
assert first.ModelConfigResponse is second.ModelConfigResponse
"""


@pytest.mark.parametrize("order", [(OURS, TRITONS), (TRITONS, OURS)])
def test_one_process_can_hold_both_in_either_order(order: tuple[str, str]) -> None:
    pytest.importorskip("tritonclient.grpc")
    done = subprocess.run([sys.executable, "-c", CHECK, *order], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
