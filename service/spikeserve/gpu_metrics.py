"""Memory of the GPUs that this process computes on, asked for at every scrape. Without one there are no such series."""

from __future__ import annotations

import torch
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class GpuCollector(Collector):
    def describe(self) -> list[Metric]:
        return list(_families())

    def collect(self) -> list[Metric]:
        used, allocated, total = families = _families()
        # Asking would otherwise take memory on a GPU that nobody uses.
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for i in range(torch.cuda.device_count()):
                free_bytes, total_bytes = torch.cuda.mem_get_info(i)
                used.add_metric((str(i),), total_bytes - free_bytes)
                allocated.add_metric((str(i),), torch.cuda.memory_allocated(i))
                total.add_metric((str(i),), total_bytes)
        return list(families)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    def gauge(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"spikeserve_gpu_{name}", text, labels=("device",))

    return (
        gauge("memory_used_bytes", "Memory of the GPU in use, by anybody."),
        gauge("memory_allocated_bytes", "Memory of the GPU that this server's tensors take."),
        gauge("memory_total_bytes", "Memory of the GPU."),
    )
