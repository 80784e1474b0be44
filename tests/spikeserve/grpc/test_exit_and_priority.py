"""`exit`, `risk` and `priority` of Classify; what they mean is tested without a protocol, in core."""

from __future__ import annotations

import grpc
import pytest

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exit": pb.EXIT_BALANCED}, "calibrate-exit"),
        ({"exit": pb.EXIT_FAST}, "calibrate-exit"),
        ({"risk": 0.005}, "calibrate-exit"),
        ({"exit": pb.EXIT_OFF, "risk": 0.0}, "exit and risk"),
        ({"risk": -1.0}, "risk is -1"),
        ({"exit": 9}, "exit: 9"),
        ({"priority": 9}, "priority: 9"),
    ],
)
async def test_what_cannot_be_is_refused(
    stub: SpikeServeStub, png: bytes, fields: dict[str, object], said: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Classify(pb.ClassifyRequest(image=png, **fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in (caught.value.details() or "")


@pytest.mark.parametrize("priority", pb.Priority.values())
async def test_every_priority_is_answered(
    stub: SpikeServeStub, png: bytes, priority: pb.Priority.ValueType
) -> None:
    answer = await stub.Classify(pb.ClassifyRequest(image=png, priority=priority, exit=pb.EXIT_OFF))
    assert (answer.timesteps_used, answer.exit_risk) == (4, 0.0)
