"""A recording to a running server, one answer a window: python examples/stream_recording.py FILE [--server HOST:PORT]

The connection may break meanwhile: the client comes back, and the server goes on with the state it had.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spikeserve.client import StreamClient, cut
from spiketrain.events import open_recording
from spiketrain.stream_rules import DecisionRule


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", type=Path)
    parser.add_argument("--server", default="127.0.0.1:8001")
    options = parser.parse_args()
    with (
        open_recording(options.recording) as recording,
        StreamClient(options.server, reconnect_seconds=10) as client,
    ):
        stream = client.stream(
            cut(recording), sensor=recording.sensor, decision=DecisionRule(margin=0.4)
        )
        for window in stream:
            decided = window.decision.label if window.decision else None
            print(f"{window.end_us / 1e6:.3f} s  {window.best.label}  decided: {decided}")
        if stream.ended is not None:
            print(f"{stream.ended.windows} windows, {stream.ended.events} events")


if __name__ == "__main__":
    main()
