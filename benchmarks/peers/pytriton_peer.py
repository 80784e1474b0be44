"""A runtime behind PyTriton, which is NVIDIA's Triton with a Python backend: the picture as BYTES in a binary tensor."""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from engines import ENGINES, Decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batch-ms", type=float, default=2.0)
    given = parser.parse_args()
    _use_own_libpython()

    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    engine, decode = ENGINES[given.engine](given.model), Decoder(given.model)

    @batch
    def classify(image: Any) -> dict[str, Any]:
        pictures = np.stack([decode(each) for each in image.reshape(-1)])
        return {"probabilities": np.asarray(engine(pictures), np.float32)}

    ports = {"http_port": given.port, "grpc_port": given.port + 1, "metrics_port": given.port + 2}
    with Triton(config=TritonConfig(http_address="127.0.0.1", **ports)) as triton:
        triton.bind(
            model_name="classify",
            infer_func=classify,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=given.batch,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(given.batch_ms * 1e3)),
            ),
            strict=False,
        )
        triton.serve()


def _use_own_libpython() -> None:
    """Triton's stub loads whatever libpython the loader finds first, which must be that of this interpreter."""
    folder = str(sysconfig.get_config_var("LIBDIR"))
    paths = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    if folder not in paths:
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([folder, *filter(None, paths)])
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    main()
