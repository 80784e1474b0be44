"""Whether a server gives the right answers, before it is measured."""

from __future__ import annotations

import asyncio

from load import connect
from pictures import Pictures
from processes import NotMeasuredError
from systems import System

_CLIENTS = 8
_IMPOSSIBLE = 422


def agreement(system: System, port: int, pictures: Pictures) -> float:
    """The share of pictures that it classifies as the network does.

    Raises ConnectionError for an answer that is not 200, as while the model is being loaded, and NotMeasuredError for
    422, which no waiting helps against.
    """
    return asyncio.run(_agreement(system, port, pictures))


async def _agreement(system: System, port: int, pictures: Pictures) -> float:
    await _label(system, port, pictures.content[0])
    left = iter(range(len(pictures.content)))
    right = 0

    async def client() -> None:
        nonlocal right
        connection = await connect(port)
        for i in left:
            status, body = await connection.ask(system.request(pictures.content[i]))
            _check(status, body)
            right += system.label_in(body) == pictures.labels[i]
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return right / len(pictures.content)


async def _label(system: System, port: int, picture: bytes) -> int:
    connection = await connect(port)
    status, body = await connection.ask(system.request(picture))
    connection.transport.close()
    _check(status, body)
    return system.label_in(body)


def _check(status: int, body: bytes) -> None:
    if status == _IMPOSSIBLE:
        raise NotMeasuredError(f"it refuses the request: {body[:300].decode(errors='replace')}")
    if status != 200:
        raise ConnectionError(f"status {status}: {body[:200]!r}")
