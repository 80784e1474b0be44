"""What is made of the rounds of benchmarks/server.py: medians, and files that grow by parts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

from results import RESULTS

Row = dict[str, Any]

_SPEEDS = (
    "requests_per_second",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "client_cores",
    "server_cores",
    "other_cores",
)
_KEPT = ("system", "label", "runtime", "concurrency", "agreement", "commit")


def medians(rows: Iterable[Row]) -> list[Row]:
    """One row for each system and concurrency. Memory is the most that was seen in any round."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["concurrency"]), []).append(row)
    found = []
    for group in groups.values():
        first = group[0]
        row = {key: first[key] for key in _KEPT if key in first}
        for key in _SPEEDS:
            if all(key in each for each in group):
                row[key] = statistics.median(each[key] for each in group)
        rates = [each["requests_per_second"] for each in group]
        row["rounds"], row["slowest_round"], row["fastest_round"] = (
            len(group),
            min(rates),
            max(rates),
        )
        if "memory_mib" in first:
            row["memory_mib"] = max(each["memory_mib"] for each in group)
            row["idle_cores"] = statistics.median(each["idle_cores"] for each in group)
        found.append(row)
    return found


def earlier(name: str, digest: str, without: set[str]) -> tuple[list[Row], dict[str, str]]:
    """Rounds in results/NAME.json, and why systems have none, of all but the systems named in `without`.

    Nothing where there is no such file, or one of another model.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return [], {}
    content = json.loads(path.read_text())
    if content["settings"].get("digest") != digest:
        return [], {}
    rows = [row for row in content["rounds"] if row["system"] not in without]
    reasons = {k: v for k, v in content["not_measured"].items() if k not in without}
    return rows, reasons


def in_order(rows: Iterable[Row], names: list[str]) -> list[Row]:
    """As the systems are listed; what is not listed comes last."""
    place = {name: i for i, name in enumerate(names)}
    return sorted(rows, key=lambda row: (place.get(row["system"], len(place)), row["concurrency"]))
