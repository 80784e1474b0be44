from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Without a GPU the kernels for it run in Triton's interpreter, which has to be chosen before anything imports Triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The networks here are small: more threads would mostly wait for each other, on a busy machine for long.
torch.set_num_threads(1)

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The top of the checkout."""
    return TOP


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with data sets and container tools; tests that need it are skipped without."""
    path = TOP.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is missing: the data sets and tools that this test needs are there")
    return path


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """The data sets."""
    path = shared / "data"
    if not path.is_dir():
        pytest.skip(f"{path} is missing: the data sets that this test needs are there")
    return path
