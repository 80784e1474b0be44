"""A recording in one request, over REST: python examples/classify_recording.py FILE [--url URL]"""

from __future__ import annotations

import argparse
from pathlib import Path

from spikeserve.client import Client


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    with Client(options.url) as client:
        timeline = client.classify_events(options.recording, decision="leaky:margin=0.4")
    for stretch in timeline.decisions:
        print(f"{stretch.start_us / 1e6:.3f} to {stretch.end_us / 1e6:.3f} s: {stretch.label}")
    print(f"in all: {timeline.best.label} {timeline.best.probability:.1%}")


if __name__ == "__main__":
    main()
