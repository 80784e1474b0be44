"""The engine without a server: a closed loop that hands decoded pictures to the scheduler, in its own process.

What the server is measured against: the same repository, settings and executor, and neither HTTP nor decoding. C pictures
are under way at any time, submitted again from the loop when an answer has come. Prints what load.py prints.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import sys
import time
from pathlib import Path
from typing import Any

from load import Tally
from pictures import read_pictures

from spikeserve.images import ImageLimits, decode_image
from spikeserve.metrics import Metrics
from spikeserve.repository import LoadedModel, Repository
from spikeserve.settings import load_settings
from spiketrain.manifest import ImageInput


def measure(model: LoadedModel, pictures: list[Any], concurrency: int, tally: Tally) -> None:
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    source = itertools.cycle(pictures)
    timesteps = model.manifest.timesteps

    def submit() -> None:
        began = time.perf_counter()
        future = model.engine.submit(next(source), timesteps)
        future.add_done_callback(lambda answered: done.put((began, answered)))

    for _ in range(concurrency):
        submit()
    while True:
        began, answered = done.get()
        answered.result()
        now = time.perf_counter()
        tally.add(began, now)
        if now >= tally.end:
            return
        submit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pictures", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    given = parser.parse_args()
    settings = load_settings(models=(given.folder / "model.safetensors",))
    repository = Repository(settings, Metrics())
    repository.load_all()
    model = repository.get()
    spec = model.manifest.input
    if not isinstance(spec, ImageInput):
        raise TypeError(f"{model.name} takes no pictures")
    limits = ImageLimits(settings.max_body_bytes, settings.max_pixels)
    content = read_pictures(given.folder, given.pictures).content
    pictures = [decode_image(picture, spec, limits) for picture in content]
    begin = time.perf_counter() + given.warm_up
    # Warm-up and window are two loops, so that the processor's clock is read between them.
    measure(model, pictures, given.concurrency, Tally(begin, begin))
    tally = Tally(time.perf_counter(), time.perf_counter() + given.seconds)
    spent = time.process_time()
    measure(model, pictures, given.concurrency, tally)
    result = tally.result(time.process_time() - spent)
    json.dump(result, sys.stdout)
    sys.stdout.flush()
    repository.close()


if __name__ == "__main__":
    main()
