"""The figures that the server's benchmark is about, from its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]

OURS = "spikeserve"
# From the most accurate to the fastest: what exit_on is, is the first that was measured.
EXITS = ("spikeserve-balanced", "spikeserve-fast")
ENGINE = "engine"


def serving_ratios(rows: Iterable[Row]) -> dict[str, float]:
    """Requests/s of ours over theirs at each concurrency; `spikingjelly` is the fastest server with SpikingJelly in it.

    `latency_c1_vs_best` is our p50 with one client over the least of all peers; `server_over_engine` the server's
    throughput over the bare engine's, at the highest concurrency that both have.
    """
    by = {(row["system"], row["concurrency"]): row for row in rows}
    concurrencies = sorted({concurrency for _, concurrency in by})
    found: dict[str, float] = {}
    for clients in concurrencies:
        peers = [row for (_, at), row in by.items() if at == clients and row["runtime"] != OURS]
        jelly = [row for row in peers if row["runtime"] == "spikingjelly"]
        exit_on = next((name for name in EXITS if (name, clients) in by), "")
        for title, system in (("exit_off", OURS), ("exit_on", exit_on), ("exit_fast", EXITS[1])):
            if (ours := by.get((system, clients))) is None:
                continue
            rate = ours["requests_per_second"]
            for name, group in (("spikingjelly", jelly), ("best", peers)):
                if group:
                    theirs = max(row["requests_per_second"] for row in group)
                    found[f"{title}_vs_{name}_c{clients}"] = rate / theirs
            for row in peers:
                key = f"{title}_vs_{row['system']}_c{clients}"
                found[key] = rate / row["requests_per_second"]
        ours = by.get((OURS, clients))
        engine = by.get((ENGINE, clients))
        if ours is not None and engine is not None:
            over = ours["requests_per_second"] / engine["requests_per_second"]
            found[f"server_over_engine_c{clients}"] = found["server_over_engine"] = over
        if ours is not None and peers and clients == 1:
            found["latency_c1_vs_best"] = ours["p50_ms"] / min(row["p50_ms"] for row in peers)
    return found
