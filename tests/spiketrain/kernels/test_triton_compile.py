"""Every GPU kernel compiles to PTX and machine code for sm_80 and sm_90, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip(f"Triton has no assembler for {platform.machine()}")
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    environment.pop("SPIKETRAIN_KERNELS", None)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_kernel_is_assembled_for_both_architectures(report: Any) -> None:
    built = {(each["kernel"], each["neuron"], each["target"]) for each in report["kernels"]}
    kernels = ("forward_kernel", "backward_kernel", "slots_kernel")
    neurons = ("lif", "plif", "clif", "ilif", "glif")
    targets = ("sm_80", "sm_90a")
    assert built == {(k, n, t) for k in kernels for n in neurons for t in targets}


def test_nothing_is_held_outside_the_registers(report: Any) -> None:
    spilled = [each for each in report["kernels"] if each["stack"] or each["local"]]
    assert spilled == []


def test_reads_are_wide(report: Any) -> None:
    """Rows of a multiple of 16 neurons are known to be aligned, although their number is not known."""
    narrow = {each["kernel"] for each in report["kernels"] if not each["wide_reads"]}
    assert narrow == set()


def test_a_new_batch_size_compiles_nothing(report: Any) -> None:
    """One version for rows that are aligned, none for other sizes."""
    assert report["versions"] == {"1": 2, "3": 0, "4": 0, "8": 0}
