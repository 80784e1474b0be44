"""examples/ray_serve.py on a cluster of one node, in a network of its own: python serving.py PICTURE; prints replies."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import httpx


def main() -> None:
    import ray
    from ray import serve

    picture, example = Path(sys.argv[1]).read_bytes(), sys.argv[2]
    sys.path.insert(0, str(Path(example).parent))
    # Replicas import it by its name.
    os.environ["PYTHONPATH"] = str(Path(example).parent)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        from ray_serve import app  # type: ignore[import-not-found]

        serve.run(app)
        url = f"http://127.0.0.1:{port}/"
        replies = [
            httpx.post(url, content=content, timeout=60)
            for content in (picture, b"nonsense", picture)
        ]
        replies.append(httpx.post(url, content=picture, params={"model": "nobody"}, timeout=60))
        found = [[each.status_code, each.headers["content-type"], each.json()] for each in replies]
        sys.stdout.write("replies: " + json.dumps(found))
        sys.stdout.flush()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
