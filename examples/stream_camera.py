"""A live source with asyncio: python examples/stream_camera.py [--server HOST:PORT] [--seconds N]

`camera` stands for your own: it gives events as they come, and tells the time when there are none.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator

from spikeserve.client import Advance, AsyncStreamClient, Packet
from spiketrain.events.demo import demo_events


async def camera(seconds: float) -> AsyncIterator[Packet]:
    """The emulated camera, in real time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for chunk in demo_events():
        if chunk.until_us > seconds * 1e6:
            return
        await asyncio.sleep(began + chunk.until_us / 1e6 - loop.time())
        if len(chunk.events):
            yield chunk.events
        yield Advance(chunk.until_us)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", default="127.0.0.1:8001")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    async with AsyncStreamClient(options.server) as client:
        async for window in client.stream(camera(options.seconds)):
            milliseconds = window.latency_seconds * 1e3
            print(f"{window.end_us / 1e6:.3f} s  {window.best.label}  {milliseconds:.1f} ms")


if __name__ == "__main__":
    asyncio.run(main())
