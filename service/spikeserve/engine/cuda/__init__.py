"""The executor for NVIDIA GPUs. Needs Triton (the extra `gpu`) and a torch with CUDA."""

from __future__ import annotations

from spikeserve.engine.cuda.executor import CudaExecutor

__all__ = ["CudaExecutor"]
