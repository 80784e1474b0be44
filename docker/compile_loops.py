"""Loads the bundled models once, while the image is built, so that numba compiles its loops into NUMBA_CACHE_DIR.

They are for the kind of processor that the image is built on; on another kind the server compiles them anew at its start.
"""

from __future__ import annotations

import asyncio

from spikeserve.app import Server
from spikeserve.settings import load_settings


async def main() -> None:
    server = Server(load_settings(host="127.0.0.1", http_port=0, grpc_port=0))
    await server.start()
    try:
        if not server.health.ready:
            raise SystemExit("the bundled models cannot be served; the log says why")
    finally:
        await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
