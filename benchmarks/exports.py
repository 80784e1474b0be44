"""Whether exported files say the same elsewhere: NIR in SpikingJelly and snnTorch, ONNX in ONNX Runtime.

Each model is converted to LIF of the family `portable`, calibrated on training samples, and written as NIR. That file is
read by SpikingJelly and by snnTorch with their own importers, which run test samples, one at a time; every spike of
every layer is compared with ours. The model itself is written as an ONNX step and runs in ONNX Runtime from a state that
is not the initial one, its own state fed back, for ten timesteps; spikes are compared by layer and sample, as the file
counts them.

    python benchmarks/exports.py runs/*/best.safetensors --data data
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import nir
import numpy as np
import onnxruntime
import torch
import typer
from results import save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from spiketrain.checkpoint import Checkpoint, load_checkpoint
from spiketrain.convert import Calibration, calibrate
from spiketrain.convert.nir_export import export_nir
from spiketrain.convert.onnx_export import export_onnx
from spiketrain.convert.samples import Samples
from spiketrain.convert.source import training_data
from spiketrain.rates import each_step

STEPS = 10
Run = tuple[list[dict[str, Tensor]], Tensor]

output = Console()


def in_spikingjelly(path: Path, x: Tensor) -> Run:
    from spikingjelly.activation_based.nir_exchange import from_nir

    network = from_nir.import_from_nir(nir.read(path), dtype=torch.float64)
    return _recorded(network, from_nir._NIRStatefulModule, x.double())


def in_snntorch(path: Path, x: Tensor) -> Run:
    import snntorch
    from snntorch import import_nir

    with contextlib.redirect_stdout(io.StringIO()):
        network = import_nir.import_from_nir(nir.read(path))
    return _recorded(network.double(), snntorch.Leaky, x.double())


SIMULATORS: dict[str, Callable[[Path, Tensor], Run]] = {
    "SpikingJelly": in_spikingjelly,
    "snnTorch": in_snntorch,
}


def _recorded(network: nn.Module, kind: type, x: Tensor) -> Run:
    """Spikes by timestep and node, and the sum of the logits, of one sample x [T, 1, ...]."""
    steps: list[dict[str, Tensor]] = []

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, result: Any) -> Any:
            first = result[0] if isinstance(result, tuple) else result
            steps[-1][name] = first.detach().clone()
            # snnTorch's spikes are single precision whatever came in.
            first = first.to(x.dtype)
            return (first, *result[1:]) if isinstance(result, tuple) else first

        return hook

    for name, module in network.named_modules():
        if isinstance(module, kind):
            module.register_forward_hook(keep(name))
    state, logits = None, torch.zeros(())
    with torch.no_grad():
        for frame in x:
            steps.append({})
            y, state = network(frame) if state is None else network(frame, state)
            logits = logits + y.flatten()
    return steps, logits


def check_nir(model: Checkpoint, samples: list[Tensor]) -> Iterator[dict[str, Any]]:
    network = model.network().double()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nir"
        nodes = export_nir(model, path).nodes
        for simulator, run in SIMULATORS.items():
            compared = different = spikes = agreed = 0
            for x in samples:
                found, logits = run(path, x)
                total = torch.zeros(())
                for theirs, ours in zip(found, each_step(network, x.double()), strict=True):
                    total = total + ours.logits.flatten()
                    for layer, node in nodes.items():
                        wanted = ours.spikes[layer]
                        different += int((theirs[node].reshape(wanted.shape) != wanted).sum())
                        compared += wanted.numel()
                        spikes += int(wanted.sum())
                agreed += int(logits.argmax() == total.argmax())
            yield _row(simulator, len(samples), compared, spikes, different, agreed)


def check_onnx(model: Checkpoint, samples: list[Tensor]) -> dict[str, Any]:
    network = model.network()
    with tempfile.TemporaryDirectory() as folder:
        made = export_onnx(model, Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    x = torch.cat([each[torch.arange(STEPS + 2) % len(each)] for each in samples], 1)
    state = network.initial_state(x.shape[1])
    theirs: dict[str, Any] = {}
    compared = different = spikes = 0
    total, found_total = torch.zeros(()), np.zeros(())
    with torch.no_grad():
        for t, frame in enumerate(x):
            if t == 2:
                flat = (tensor for layer in state.values() for tensor in layer)
                theirs = {s["name"]: v.numpy() for s, v in zip(made.states, flat, strict=True)}
            expected = network.step(frame, state)
            state = expected.state
            if t < 2:
                continue
            results = session.run(names, {"x": frame.numpy(), **theirs})
            found = dict(zip(names, results, strict=True))
            theirs = {name: found[f"{name}/out"] for name in theirs}
            for layer, fired in expected.spikes.items():
                wanted = fired.flatten(1).sum(1).numpy()
                different += int(np.abs(found[f"{layer}/spikes"] - wanted).sum())
                spikes += int(wanted.sum())
                compared += fired.numel()
            total = total + expected.logits
            found_total = found_total + found["logits"]
    agreed = int((found_total.argmax(1) == total.argmax(1).numpy()).sum())
    return _row("ONNX Runtime", x.shape[1], compared, spikes, different, agreed)


def _row(
    where: str, samples: int, compared: int, spikes: int, different: int, agreed: int
) -> dict[str, Any]:
    return {
        "in": where,
        "samples": samples,
        "neurons_and_timesteps": compared,
        "spikes": spikes,
        "different": different,
        "same_class": agreed,
    }


def main(
    checkpoints: Annotated[list[Path], typer.Argument(help="Models to export.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Test samples of each model.")] = 20,
) -> None:
    torch.set_num_threads(1)
    table = Table("model", "in", "samples", "spikes", "different", "same class")
    rows: list[dict[str, Any]] = []
    for path in checkpoints:
        parent = load_checkpoint(path)
        chosen = Samples(training_data(parent.manifest, data), 256, "test", samples, 1)
        inputs = list(Samples(chosen.data, 256, "test", None, 128).calibration_inputs())
        steps = max(STEPS, parent.manifest.timesteps)
        constant = parent.manifest.input.kind == "image"
        held_out = [x.expand(steps, *x.shape) if constant else x for x, _ in chosen.held_out()]
        child = calibrate(parent, inputs, Calibration("portable"))
        results = [*check_nir(child, held_out), check_onnx(parent, held_out)]
        seed = None if parent.manifest.training is None else parent.manifest.training.seed
        for row in results:
            rows.append({"model": parent.manifest.name, "seed": seed, **row})
            cells = (row["in"], row["samples"], row["spikes"], row["different"], row["same_class"])
            table.add_row(f"{parent.manifest.name}, seed {seed}", *map(str, cells))
    output.print(table)
    save("exports", (__doc__ or "").split("\n\n")[1], {"samples": samples}, rows, {})


if __name__ == "__main__":
    typer.run(main)
