"""A runtime behind MLServer, with its adaptive batching: the Open Inference Protocol, the picture in base64.

With arguments this starts MLServer; MLServer then loads `Classify` from this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from engines import ENGINES, Decoder
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Classify(MLModel):
    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        folder = Path(extra["folder"])
        self.engine, self.decoder = ENGINES[extra["engine"]](folder), Decoder(folder)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        pictures = Base64Codec.decode_input(payload.inputs[0])
        # In the event loop, as MLServer's own runtimes do.
        chances = self.engine(np.stack([self.decoder(picture) for picture in pictures]))
        output = NumpyCodec.encode_output("probabilities", chances)
        return InferenceResponse(model_name=self.name, outputs=[output])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--batch-ms", type=float, default=2.0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    server = {
        "host": "127.0.0.1",
        "http_port": given.port,
        "grpc_port": given.port + 1,
        "metrics_port": given.port + 2,
        "metrics_dir": str(folder / "metrics"),
        "parallel_workers": 0,
        "debug": False,
    }
    model = {
        "name": "classify",
        "implementation": "mlserver_peer.Classify",
        "max_batch_size": given.batch,
        "max_batch_time": given.batch_ms / 1e3,
        "parameters": {"extra": {"folder": str(given.model.resolve()), "engine": given.engine}},
    }
    (folder / "metrics").mkdir()
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    command = Path(sys.executable).parent / "mlserver"
    os.execv(command, [str(command), "start", str(folder)])


if __name__ == "__main__":
    main()
