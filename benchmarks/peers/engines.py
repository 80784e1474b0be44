"""The models of the peers: pictures [N, C, H, W] in, class probabilities [N, classes] out, each runtime at its best.

A runtime's choices are arguments here, and `python engines.py MODEL` measures them against each other, so that the
benchmark's list of systems (systems.py) can name the fastest. Needs nothing of spikeserve: FOLDER is what workload.py
has written.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = Any
Engine = Callable[[Array], Array]


class Decoder:
    """An encoded picture to a normalised float32 [C, H, W], as our server does it."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "model.json").read_text())
        self.channels, self.height, self.width = about["shape"]
        self.mean = np.asarray(about["mean"], np.float32)
        self.std = np.asarray(about["std"], np.float32)

    def __call__(self, data: bytes) -> Array:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("L" if self.channels == 1 else "RGB")
        if picture.size != (self.width, self.height):
            picture = picture.resize((self.width, self.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, np.float32).reshape(self.height, self.width, self.channels)
        scaled = (pixels / np.float32(255) - self.mean) / self.std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class SpikingJelly:
    """SpikingJelly's own layers and neurons, eager, all timesteps of a layer at once (step mode "m")."""

    def __init__(self, folder: Path, threads: int = 0, channels_last: bool = False) -> None:
        import torch
        from spikingjelly.activation_based import functional

        self.torch, self.functional = torch, functional
        if threads:
            torch.set_num_threads(threads)
        spec = importlib.util.spec_from_file_location("model", folder / "spikingjelly_model.py")
        if spec is None or spec.loader is None:
            raise FileNotFoundError(folder)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.network = module.load()
        if channels_last:
            for part in self.network.modules():
                if isinstance(part, torch.nn.Conv2d):
                    part.to(memory_format=torch.channels_last)
        about = json.loads((folder / "model.json").read_text())
        self.timesteps, self.times = about["timesteps"], about["logits_times"]

    def __call__(self, batch: Array) -> Array:
        with self.torch.inference_mode():
            x = self.torch.from_numpy(batch)
            logits = self.network(x.expand(self.timesteps, *x.shape))
            self.functional.reset_net(self.network)
            return (logits.mean(0) * self.times).softmax(1).numpy()


class OnnxRuntime:
    """`form` is folded or unrolled. Sessions do not spin: an idle peer must not take what others need."""

    def __init__(self, folder: Path, form: str = "folded", threads: int = 0) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = str(folder / f"{form}.onnx")
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.times = json.loads((folder / "model.json").read_text())["logits_times"]

    def __call__(self, batch: Array) -> Array:
        return softmax(self.session.run(["logits"], {"x": batch})[0] * self.times)


class OpenVINO:
    """One compiled model for each batch size of 1, 2, 4 ... `most`, which batches are filled up to; 0 for any size.

    Shapes that are known let OpenVINO plan its memory and choose its kernels before the first request.
    """

    def __init__(
        self,
        folder: Path,
        precision: str = "f32",
        form: str = "folded",
        hint: str = "LATENCY",
        most: int = 16,
        threads: int = 0,
    ) -> None:
        import openvino

        core = openvino.Core()
        config = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": hint}
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        path = folder / f"{form}.onnx"
        shape = json.loads((folder / "model.json").read_text())["shape"]
        self.times = json.loads((folder / "model.json").read_text())["logits_times"]
        self.sizes = [1 << i for i in range(most.bit_length())] if most else [0]
        self.requests = {}
        for size in self.sizes:
            model = core.read_model(path)
            if size:
                model.reshape([size, *shape])
            compiled = core.compile_model(model, "CPU", config)
            self.requests[size] = compiled.create_infer_request()

    def __call__(self, batch: Array) -> Array:
        if self.sizes == [0]:
            return softmax(self._run(0, batch) * self.times)
        parts, at = [], 0
        while at < len(batch):
            part = batch[at : at + self.sizes[-1]]
            size = next(size for size in self.sizes if size >= len(part))
            padded = np.zeros((size, *part.shape[1:]), np.float32)
            padded[: len(part)] = part
            parts.append(self._run(size, padded)[: len(part)])
            at += len(part)
        return softmax(np.concatenate(parts) * self.times)

    def _run(self, size: int, batch: Array) -> Array:
        request = self.requests[size]
        request.infer([batch], share_inputs=True)
        return np.array(request.get_output_tensor(0).data)


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "spikingjelly": SpikingJelly,
    "onnxruntime": OnnxRuntime,
    "openvino-f32": lambda folder: OpenVINO(folder, "f32", hint="THROUGHPUT"),
    "openvino-bf16": lambda folder: OpenVINO(folder, "bf16"),
}

CHOICES: dict[str, Callable[[Path], Engine]] = {
    "spikingjelly": SpikingJelly,
    "spikingjelly channels last": lambda folder: SpikingJelly(folder, channels_last=True),
    "onnxruntime folded": lambda folder: OnnxRuntime(folder, "folded"),
    "onnxruntime unrolled": lambda folder: OnnxRuntime(folder, "unrolled"),
    **{
        f"openvino {precision} {form} {hint.lower()} {'static' if most else 'dynamic'}": (
            lambda folder, p=precision, f=form, h=hint, m=most: OpenVINO(folder, p, f, h, m)  # type: ignore[misc]
        )
        for precision in ("f32", "bf16")
        for form in ("folded", "unrolled")
        for hint in ("LATENCY", "THROUGHPUT")
        for most in (8, 0)
    },
}


def rate(engine: Engine, batch: Array, seconds: float) -> float:
    """Images/s of processor time and of the wall, whichever says more: the best of the runs within `seconds`."""
    engine(batch)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        engine(batch)
        best = min(best, time.perf_counter() - begin)
    return len(batch) / best


def main() -> None:
    folder, only = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 3.0
    about = json.loads((folder / "model.json").read_text())
    x = np.random.default_rng(0).standard_normal((8, *about["shape"]), np.float32)
    for name, make in CHOICES.items():
        if only not in name:
            continue
        try:
            engine = make(folder)
            figures = [rate(engine, x[:size], seconds) for size in (1, 8)]
        except Exception as error:  # one that is not installed here, or cannot run the file
            reason = str(error).strip().partition("\n")[0][:100]
            sys.stdout.write(f"{name}: {type(error).__name__}: {reason}\n")
            continue
        sys.stdout.write(f"{name}: batch 1 {figures[0]:.1f}, batch 8 {figures[1]:.1f} images/s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
