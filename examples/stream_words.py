"""A Prophesee .raw file, EVT 2.0 or 3.0, as the camera's own words: python examples/stream_words.py FILE SENSOR [--server ...]

Nothing is decoded on this side. The filters lead from the camera's pixels to those that the model was made for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spikeserve.client import StreamClient, cut_words
from spiketrain.events.rule_text import parse_filter, parse_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", type=Path)
    parser.add_argument("sensor", type=parse_size, help="WIDTHxHEIGHT")
    parser.add_argument("--filter", type=parse_filter, action="append", default=[])
    parser.add_argument("--server", default="127.0.0.1:8001")
    options = parser.parse_args()
    with StreamClient(options.server) as client:
        words = cut_words(options.recording)
        for window in client.stream(words, sensor=options.sensor, filters=options.filter):
            print(f"{window.end_us / 1e6:.3f} s  {window.events} events  {window.best.label}")


if __name__ == "__main__":
    main()
