"""What a benchmark leaves behind: one JSON file in results/ with the method, the machine, the rows and the ratios."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("spikeserve", "torch", "numpy", "numba", "fastapi", "uvicorn", "grpcio")
# Instructions that decide how fast a product of matrices is.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    described: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        pairs = (line.partition(":") for line in lines)
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        described["processor"] = fields.get("model name", described["processor"])
        flags = fields.get("flags", "").split()
        described["instructions"] = [flag for flag in _FLAGS if flag in flags]
    if meminfo.exists():
        described["memory_gib"] = round(int(meminfo.read_text().split()[1]) / (1 << 20), 1)
    return described


def commit() -> str:
    """The commit that was measured, with + where files differ from it; empty outside of a checkout."""
    here = Path(__file__).parent
    try:
        run = subprocess.run
        said = run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=here,
            text=True,
            capture_output=True,
            check=True,
        )
        changed = run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=here,
            text=True,
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.stdout.strip() + ("+" if changed.stdout.strip() else "")


def save(
    benchmark: str,
    method: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, float],
    **more: Any,
) -> Path:
    """Write results/BENCHMARK.json; `more` are further top-level fields."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{benchmark}.json"
    content = {
        "benchmark": benchmark,
        "method": method.strip(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "settings": dict(settings),
        **more,
        "rows": [dict(row) for row in rows],
        "ratios": dict(ratios),
    }
    path.write_text(json.dumps(_rounded(content), indent=1) + "\n")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
