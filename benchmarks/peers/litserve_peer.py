"""A runtime behind LitServe, with its batching: POST /predict with the picture in a form (it takes forms and JSON only)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import litserve
import numpy as np
from engines import ENGINES, Decoder


class Classify(litserve.LitAPI):
    def __init__(self, folder: Path, engine: str, **options: Any) -> None:
        super().__init__(**options)
        self.folder, self.engine_name = folder, engine

    def setup(self, device: str) -> None:
        self.engine = ENGINES[self.engine_name](self.folder)
        self.decoder = Decoder(self.folder)

    def decode_request(self, request) -> Any:  # type: ignore[no-untyped-def]  # a named type would be its schema
        return self.decoder(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self.engine(x) if x.ndim == 4 else self.engine(x[None])[0]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, list[float]]:
        return {"probabilities": output.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batch-ms", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    api = Classify(
        given.model,
        given.engine,
        max_batch_size=given.batch,
        batch_timeout=given.batch_ms / 1e3,
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=given.workers, timeout=120
    )
    server.run(host="127.0.0.1", port=given.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
