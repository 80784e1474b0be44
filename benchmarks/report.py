"""Puts the figures of results/*.json into the tables of the documentation: nobody types them.

A table stands between `<!-- NAME -->` and `<!-- end -->`, where NAME is a file of results/. It is written anew from that file; one
whose file is not there is left as it is.

    python benchmarks/report.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from results import RESULTS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = (
    "performance.md",
    "event-formats.md",
    "streaming.md",
    "batch.md",
    "scale.md",
    "explanation/drift.md",
    "operations.md",
)
_PLACE = re.compile(r"(<!-- (?P<name>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MAIN_RATIOS = re.compile(r"(exit_\w+_vs_(spikingjelly|best)|server_over_engine)_c\d+|latency.*")

Result = dict[str, Any]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def server(result: Result) -> str:
    """A line for each system, its figures at each concurrency."""
    concurrencies = sorted({row["concurrency"] for row in result["rows"]})
    by = {(row["system"], row["concurrency"]): row for row in result["rows"]}
    titles = ["", *(f"{c} client{'s' * (c > 1)}: requests/s, p50, p99 ms" for c in concurrencies)]
    titles += ["processor ms a request", "others, cores", "MiB", "idle, % of a core", "right, %"]
    lines = []
    for system in dict.fromkeys(row["system"] for row in result["rows"]):
        rows = [by[system, c] for c in concurrencies if (system, c) in by]
        last = rows[-1]
        cells = [
            f"{row['requests_per_second']:.4g}, {row['p50_ms']:.3g}, {row['p99_ms']:.3g}"
            for row in rows
        ]
        spent = 1e3 * last["server_cores"] / last["requests_per_second"]
        others = [f"{row['other_cores']:.2f}" for row in rows if "other_cores" in row]
        lines.append(
            [
                last["label"],
                *cells,
                *[""] * (len(concurrencies) - len(cells)),
                f"{spent:.2f}",
                ", ".join(others),
                f"{last['memory_mib']:.0f}" if "memory_mib" in last else "",
                f"{100 * last['idle_cores']:.2f}" if "idle_cores" in last else "",
                f"{100 * last['agreement']:.1f}" if "agreement" in last else "",
            ]
        )
    missing = "".join(
        f"Not measured: {name}: {why}\n" for name, why in result["not_measured"].items()
    )
    ratios = {key: v for key, v in result["ratios"].items() if _MAIN_RATIOS.fullmatch(key)}
    return f"{table(titles, lines)}\n{ratio_list(ratios)}{missing and chr(10)}{missing}"


def streams(result: Result) -> str:
    titles = ["", "streams", "cameras", "windows/s", "events/s", "sent", "lost", "differing"]
    titles += ["p50 ms", "p99 ms", "server, cores", "client, cores", "others, cores", "MiB"]
    lines = [
        [
            row["mode"],
            str(row["streams"]),
            "as fast as answered" if row["speed"] is None else f"{row['speed']:.3g} x real time",
            f"{row['windows_per_second']:.0f}",
            f"{row['events_per_second']:,.0f}",
            str(row["windows_sent"]),
            str(row["windows_lost"]),
            f"{row['windows_differing']} of {row['windows_compared']}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['server_cores']:.2f}",
            f"{row['client_cores']:.2f}",
            f"{row['other_cores']:.2f}",
            f"{row['memory_mib']:.0f}",
        ]
        for row in result["rows"]
    ]
    return table(titles, lines) + "\n" + ratio_list(result["ratios"])


def fairness(result: Result) -> str:
    titles = ["measured", "beside", "model", "clients or streams", "a second", "p50 ms", "p99 ms"]
    lines = []
    for row in result["rows"]:
        others = [part for part in row["together"].split(" + ") if part != row["part"]]
        figures = [f"{row[key]:.1f}" for key in ("a_second", "p50_ms", "p99_ms")]
        beside = ", ".join(others) or "nothing"
        lines.append([row["part"], beside, row["model"], str(row["clients"]), *figures])
    return table(titles, lines) + "\n" + ratio_list(result["ratios"])


def soak(result: Result) -> str:
    rows = [row for row in result["rows"] if "p50_ms" in row]
    keys = ("requests_per_second", "p50_ms", "p99_ms", "other_cores")
    lines = [[row["what"], row["system"], *(f"{row[key]:.4g}" for key in keys)] for row in rows]
    said = table(["", "", "requests/s", "p50 ms", "p99 ms", "others, cores"], lines) + "\n"
    memory = [row for row in result["rows"] if "requests_so_far" in row]
    for system in dict.fromkeys(row["system"] for row in memory):
        of = [row for row in memory if row["system"] == system]
        points = ", ".join(f"{row['memory_mib']:.1f}" for row in of)
        each = of[0]["requests_so_far"]
        said += f"Memory in MiB, {system}, every {each:,} requests: {points}\n\n"
    return said + ratio_list(result["ratios"])


def formats(result: Result) -> str:
    titles = ["format", "file", "origin", "events", "seconds", "exactness"]
    titles += ["Mev/s", "second reader, Mev/s", "ratio"]
    lines = []
    for row in result["rows"]:
        second = row["second_mev_per_s"]
        lines.append(
            [
                row["format"],
                row["file"],
                row["origin"],
                f"{row['events']:,}",
                f"{row['seconds']:.4g}",
                row["exactness"],
                f"{row['mev_per_s']:.1f}",
                f"{second:.1f}" if second else "",
                f"{row['mev_per_s'] / second:.2f}" if second else "",
            ]
        )
    return table(titles, lines)


def events(result: Result) -> str:
    """A table for each part; parts have columns of their own."""
    said = ""
    for part in dict.fromkeys(row["part"] for row in result["rows"]):
        rows = [{**row} for row in result["rows"] if row["part"] == part]
        titles = [key for key in rows[0] if key != "part"]
        lines = [[_cell(row[key]) for key in titles] for row in rows]
        said += f"{part}:\n\n{table([title.replace('_', ' ') for title in titles], lines)}\n"
    return said


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value)


def ratio_list(ratios: dict[str, float]) -> str:
    return table(["ratio", "value"], [[f"`{key}`", f"{v:.3g}"] for key, v in ratios.items()])


def about(result: Result) -> str:
    machine, settings = result["machine"], result["settings"]
    chips = ", ".join(machine.get("instructions", ())) or "instructions unknown"
    said = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "digest")
    return (
        f"{result['ended'][:10]}, commit {result['commit'] or 'unknown'}, {machine['processor']}, "
        f"{machine['cores']} cores ({chips}), load average at the end {result['load_average']:.1f}{said and '; '}{said}.\n\n"
    )


def agreement(result: Result) -> str:
    titles = ["model", "executor", "samples", "accuracy, %", "agreement, %"]
    titles += ["spike counts off, mean and worst layer, %", "speed, reference = 1"]
    base = {
        row["model"]: row["samples_per_second"]
        for row in result["rows"]
        if row["executor"] == "reference"
    }
    lines = []
    for row in result["rows"]:
        off = [100 * value for value in row["spike_counts_off"].values()]
        lines.append(
            [
                row["model"],
                row["executor"] + (" (auto)" if row["automatic"] else ""),
                f"{row['samples']:,}",
                f"{100 * row['accuracy']:.2f}",
                f"{100 * row['agreement']:.2f}",
                f"{sum(off) / len(off):.4f}, {max(off):.4f}",
                f"{speed / base[row['model']]:.2f}" if (speed := row["samples_per_second"]) else "",
            ]
        )
    return table(titles, lines)


def engine(result: Result) -> str:
    """A line for each system and number of threads, images/s by batch."""
    batches = sorted({row["batch"] for row in result["rows"]})
    rates: dict[tuple[str, int], dict[int, str]] = {}
    for row in result["rows"]:
        cells = rates.setdefault((row["system"], row["threads"]), {})
        cells[row["batch"]] = f"{row['images_per_second']:.1f}"
    titles = ["images/s", "threads", *(f"batch {batch}" for batch in batches)]
    lines = [
        [system, str(threads), *(cells.get(batch, "") for batch in batches)]
        for (system, threads), cells in rates.items()
    ]
    return table(titles, lines)


def drift(result: Result) -> str:
    """Delays in samples: medians, and the longest of all trials in brackets."""
    if any("part" in row for row in result["rows"]):
        return _drift_of_a_server(result["rows"])
    titles = ["model", "input", "by rates", "by probes"]
    lines, quiet = [], ["model", "clean samples", "alarms", "highest score", "groups", "alarms"]
    clean = []
    for row in result["rows"]:
        if row["input"] == "clean":
            clean.append(
                [
                    f"`{row['model']}`",
                    f"{row['samples']:,}",
                    str(row["alarms"]),
                    f"{row['highest_score']:.2f}",
                    str(row["groups"]),
                    f"{row['group_alarms']} (highest score {row['highest_group_score']:.2f})",
                ]
            )
        else:
            cells = [_delay(row["by_rates"]), _delay(row["by_probes"])]
            lines.append([f"`{row['model']}`", row["input"], *cells])
    return f"{table(titles, lines)}\n{table(quiet, clean)}"


def _drift_of_a_server(rows: list[dict[str, Any]]) -> str:
    found = {(row["part"], row["model"], row["input"]): row for row in rows}
    by_default = any(part == "as it comes" for part, _, _ in found)
    lines = []
    for (part, model, name), row in found.items():
        if part != "probed":
            continue
        cells = [_delay(row["by_rates"]), _delay(row["by_probes"])]
        if by_default:
            slow = found.get(("as it comes", model, name))
            cells += [_delay(slow["samples"]), _delay(slow["seconds"])] if slow else ["", ""]
        lines.append([f"`{model}`", name, *cells])
    titles = ["model", "input", "all probed: by rates", "by probes"]
    if by_default:
        titles += ["1 % for probes: first alarm, samples", "seconds"]
    said = table(titles, lines)
    clean = [
        [
            f"`{row['model']}`",
            f"{row['samples']:,}",
            f"{row['per_second']:.0f}",
            str(row["alarms"]),
            f"{max(row['highest_scores'].values()):.2f}",
            str(row["probes"]),
        ]
        for row in rows
        if row["part"] == "clean"
    ]
    if clean:
        quiet = ["model", "clean samples", "a second", "alarms", "highest score", "probed"]
        said += f"\n{table(quiet, clean)}"
    return said


def _delay(values: list[float | None]) -> str:
    came = [value for value in values if value is not None]
    if not came:
        return "none"
    missed = "" if len(came) == len(values) else f", {len(came)} of {len(values)}"
    return f"{median(came):.0f} ({max(came):.0f}{missed})"


def batch(result: Result) -> str:
    """Speeds, and what became of the runs that were killed."""
    speeds = [row for row in result["rows"] if "working_a_second" in row]
    titles = ["", "pictures/s, working", "pictures/s, whole"]
    keys = ("working_a_second", "whole_a_second")
    said = table(titles, [[row["what"], *(f"{row[key]:.0f}" for key in keys)] for row in speeds])
    lines = [
        [row["what"], str(row.get("pieces_done_twice", "")), "yes" if row["equal"] else "no"]
        for row in result["rows"]
        if "equal" in row
    ]
    killed = table(["", "pieces done twice", "all rows equal to a run let alone"], lines)
    return f"{said}\n{killed}\n{ratio_list(result['ratios'])}"


def scale(result: Result) -> str:
    """A line for each load: measured, simulated."""
    titles = [
        "server",
        "servers",
        "load",
        "answered/s",
        "refused/s",
        "p50 ms",
        "p99 ms",
        "others, cores",
    ]
    keys = (("a_second", 0), ("refused_a_second", 0), ("p50_ms", 1), ("p99_ms", 1))
    lines = []
    for row in result["rows"]:
        pairs = [
            f"{row[f'measured_{key}']:.{digits}f}, {row[f'simulated_{key}']:.{digits}f}"
            for key, digits in keys
        ]
        others = f"{row['other_cores']:.2f}"
        lines.append([row["subject"], str(row["servers"]), row["load"], *pairs, others])
    return table(titles, lines)


def faults(result: Result) -> str:
    titles = ["what happens", "answered", "refused", "lost", "slowest, s", ""]
    lines = [
        [
            row["fault"],
            f"{row['answered']:,}",
            str(row["refused"]),
            ", ".join((str(row["lost"]), *(f"{n} {how}" for how, n in row["how"].items()))),
            f"{row['slowest_seconds']:.2f}" if row["slowest_seconds"] else "",
            row["note"],
        ]
        for row in result["rows"]
    ]
    return table(titles, lines)


def plan(result: Result) -> str:
    rows = result["rows"]
    lines = [
        [row["what"], _cell(row["value"]), row["unit"], row["kind"], row["from"]] for row in rows
    ]
    return table(["", "", "", "", "from"], lines)


_WRITERS: dict[str, Callable[[Result], str]] = {
    "server": server,
    "streams": streams,
    "soak": soak,
    "fairness": fairness,
    "formats": formats,
    "events": events,
    "agreement": agreement,
    "engine": engine,
    "drift": drift,
    "faults": faults,
    "batch": batch,
    "scale": scale,
    "plan": plan,
}


def filled(page: str) -> str:
    def replaced(match: re.Match[str]) -> str:
        path = RESULTS / f"{match['name']}.json"
        if not path.exists():
            return match[0]
        result = json.loads(path.read_text())
        writer = _WRITERS[match["name"].partition("-")[0]]
        return f"{match[1]}\n{about(result)}{writer(result)}\n{match[3]}"

    return _PLACE.sub(replaced, page)


def main() -> None:
    for name in PAGES:
        page = DOCS / name
        page.write_text(filled(page.read_text()))
        sys.stdout.write(f"written: {page}\n")


if __name__ == "__main__":
    main()
