"""How fast events become frames, and answers: python benchmarks/events.py [--quick]

pipeline   payload -> events -> windows -> frames of 2 x 128 x 128, one thread, by encoding: million events per second of
           processor time (time.thread_time), the best of several runs. The peer, which takes turns with it, is plain NumPy
           as the public readers do it: structured records, windows cut by searchsorted, np.add.at into frames; for EVT3
           also the package evt3 where it is installed, followed by the same.
filters    each filter over two million events on 346 x 260 pixels.
server     a server in a process of its own, a client in this one: columns in messages of 2^18 events as fast as the server
           takes them, wall time; the processor time of the server's process beside it.
latency    the same server; packets of 10 ms (1 ms at 10 Mev/s) paced in real time, windows of 10 ms: from the sending of
           what closes a window to its answer, p50 and p99; and how many processors client and server had to work with.

The server's model is a small convolution on 34 x 34 pixels with random weights: the network is not what is measured here.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from event_server import Row, ServerProcess, events_on, latency, throughput, write_model
from results import save
from rich.console import Console
from rich.table import Table

from spiketrain.events import Events
from spiketrain.events.filters import FilterChain
from spiketrain.events.rule_text import parse_filter
from spiketrain.events.windows import Windows
from spiketrain.events.wire import Decoder, Encoding, encode
from spiketrain.manifest import DurationWindow, EventInput

MESSAGE = 1 << 17
FILTERS = (
    "background-activity",
    "refractory",
    "hot-pixels",
    "rate-limit:events_per_second=500000",
    "region:x=20,y=20,width=240,height=200,crop",
    "down-sample:2",
    "orient:rotate-90",
    "invert-polarity",
)


def evt2(events: Events) -> bytes:
    from spiketrain.events.formats import evt2 as layout

    return layout.encode(events).partition(b"% end\n")[2]


def evt3(events: Events) -> bytes:
    """A dense scene: rows are said where they change, and time where it does."""
    order = np.lexsort((events.x, events.y, events.t >> 6))
    events = events[order]
    t = events.t >> 6 << 6
    low, high = t & 0xFFF, (t >> 12) & 0xFFF
    new_high = np.diff(high, prepend=-1) != 0
    new_low = (np.diff(t, prepend=-1) != 0) | new_high
    new_row = (np.diff(events.y.astype(int), prepend=-1) != 0) | new_low
    counts = 1 + new_high.astype(int) + new_low + new_row
    ends = np.cumsum(counts)
    words = np.empty(int(ends[-1]), "<u2")
    words[ends - 1] = 0x2000 | (events.p.astype(np.uint16) << 11) | events.x
    words[(ends - 2)[new_row]] = events.y[new_row]
    words[(ends - 3)[new_low]] = 0x6000 | low[new_low]
    words[(ends - 4)[new_high]] = 0x8000 | high[new_high]
    return words.tobytes()


def aedat3(events: Events) -> bytes:
    data = (events.x.astype(np.uint32) << 17) | (events.y.astype(np.uint32) << 2)
    data |= (events.p.astype(np.uint32) << 1) | 1
    return np.stack([data, events.t.astype(np.uint32)], axis=1).astype("<u4").tobytes()


def best_of(works: list[Callable[[], Any]], runs: int) -> list[float]:
    """The best processor time of each, taking turns, so that what else the machine does meets all alike."""
    best = [float("inf")] * len(works)
    for _ in range(runs):
        for i, work in enumerate(works):
            begin = time.thread_time()
            work()
            best[i] = min(best[i], time.thread_time() - begin)
    return best


def pipeline(count: int, runs: int) -> list[Row]:
    events = events_on(128, 128, count, 1e6)
    spec = EventInput(
        sensor=(128, 128), shape=(2, 128, 128), window=DurationWindow(microseconds=10_000)
    )
    rows = []
    for encoding, make in (
        (Encoding.COLUMNS_V1, None),
        (Encoding.AEDAT3_WORDS, aedat3),
        (Encoding.EVT2, evt2),
        (Encoding.EVT3, evt3),
    ):
        parts = [events[at : at + MESSAGE] for at in range(0, count, MESSAGE)]
        if make is None:
            messages = [encode(encoding, part) for part in parts]
        else:
            content, step = make(events), 1 << 19
            messages = [(content[i : i + step], 0) for i in range(0, len(content), step)]

        def ours(messages: Any = messages, encoding: Encoding = encoding) -> int:
            decoder, windows = Decoder(), Windows(spec)
            done = 0
            for payload, base_us in messages:
                for window in windows.stream(decoder.feed(encoding, payload, base_us)):
                    done += window.events
            return done + sum(window.events for window in windows.drain())

        works: list[Callable[[], Any]] = [ours]
        peer = "NumPy, np.add.at"
        works.append(lambda messages=messages, encoding=encoding: plain(messages, encoding))
        if encoding is Encoding.EVT3:
            try:
                import_module("evt3")
                peer = "evt3, then NumPy, np.add.at"
            except ImportError:
                works.pop()
        got = ours()
        if got != count:
            raise SystemExit(f"{encoding}: {got} of {count} events were counted")
        times = best_of(works, runs)
        speeds = [count / each / 1e6 for each in times]
        rows.append(
            {
                "encoding": str(encoding),
                "bytes_per_event": sum(len(payload) for payload, _ in messages) / count,
                "mev_per_s": speeds[0],
                "peer": peer if len(speeds) > 1 else None,
                "peer_mev_per_s": speeds[1] if len(speeds) > 1 else None,
                "ratio": speeds[0] / speeds[1] if len(speeds) > 1 else None,
            }
        )
    return rows


def plain(messages: Any, encoding: Encoding) -> np.ndarray:
    """The same frames as one writes them in a few lines of NumPy."""
    if encoding is Encoding.EVT3:
        found = import_module("evt3").Decoder(128, 128).feed(b"".join(each for each, _ in messages))
        t, x, y, p = (np.asarray(each) for each in (found.t, found.x, found.y, found.p))
    elif encoding is Encoding.COLUMNS_V1:
        parts = []
        for payload, base_us in messages:
            n = len(payload) // 8
            yp = np.frombuffer(payload, "<u2", n, 6 * n)
            parts.append(
                (
                    np.frombuffer(payload, "<u4", n).astype(np.int64) + base_us,
                    np.frombuffer(payload, "<u2", n, 4 * n),
                    yp & 0x7FFF,
                    yp >> 15,
                )
            )
        t, x, y, p = (np.concatenate(each) for each in zip(*parts, strict=True))
    elif encoding is Encoding.AEDAT3_WORDS:
        words = np.frombuffer(b"".join(each for each, _ in messages), "<u4").reshape(-1, 2)
        data, t = words[:, 0], words[:, 1].astype(np.int64)
        x, y, p = data >> 17, (data >> 2) & 0x7FFF, (data >> 1) & 1
    else:
        words = np.frombuffer(b"".join(each for each, _ in messages), "<u4")
        kind = words >> 28
        high = np.maximum.accumulate(np.where(kind == 8, (words & 0xFFFFFFF).astype(np.int64), 0))
        kept = kind < 2
        words, high, p = words[kept], high[kept], kind[kept]
        t, x, y = (high << 6) | ((words >> 22) & 63), (words >> 11) & 0x7FF, words & 0x7FF
    cuts = np.searchsorted(t, np.arange(int(t[0]), int(t[-1]) + 10_000, 10_000))
    frames = np.zeros((len(cuts), 2, 128, 128), np.float32)
    for frame, begin, end in zip(frames, cuts, [*cuts[1:], len(t)], strict=True):
        np.add.at(frame, (p[begin:end], y[begin:end], x[begin:end]), 1)
    return frames


def filters(count: int, runs: int) -> list[Row]:
    events = events_on(346, 260, count, 1e6)
    rows = []
    for text in FILTERS:
        rule = parse_filter(text)

        def work(rule: Any = rule) -> FilterChain:
            chain = FilterChain((rule,), (346, 260))
            chain.apply(events)
            return chain

        kept = 1 - work().dropped / count
        rows.append(
            {"filter": text, "mev_per_s": count / best_of([work], runs)[0] / 1e6, "kept": kept}
        )
    return rows


def show(console: Console, title: str, rows: list[Row]) -> None:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer events and runs")
    options = parser.parse_args()
    count, runs = (1 << 20, 3) if options.quick else (1 << 22, 7)
    console = Console(width=160)
    method = (__doc__ or "").split("\n\n", 1)[1]
    console.print(method)
    parts = {
        "Decode, windows and frames (128 x 128), one thread": pipeline(count, runs),
        "Filters (346 x 260), one thread": filters(count // 2, runs),
    }
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        with ServerProcess(Path(folder)) as server:
            parts["Through gRPC"] = [throughput(server, 4 * count)]
            seconds = 3.0 if options.quick else 10.0
            parts["Latency after a window has closed"] = [
                latency(server, rate, seconds) for rate in (1e3, 1e5, 1e7)
            ]
    for title, rows in parts.items():
        show(console, title, rows)
    pipelines = next(iter(parts.values()))
    ratios = {
        f"{row['encoding']}_vs_plain_numpy": row["ratio"] for row in pipelines if row["ratio"]
    }
    rows = [{"part": title, **row} for title, rows in parts.items() for row in rows]
    save("events", method, {"events": count, "runs": runs}, rows, ratios)


if __name__ == "__main__":
    main()
