"""Bytes of every event encoding and file format, nearly valid: by the decoders in this process, and by the server."""

from __future__ import annotations

import contextlib
import random
import sys
from pathlib import Path

from fuzz_mutations import mutated, noise
from fuzz_rpc import status
from fuzz_target import Tally, Target, events, stream_of

from spiketrain.events import EventFormatError, read_recording, wire

sys.path.insert(0, str(Path(__file__).parents[1] / "spiketrain" / "events" / "formats"))
from event_files import FILES, evt3_words, some

_MOST_EVENTS = 1 << 20


def fuzz_event_files(inputs: int, tally: Tally, first: int) -> None:
    """The decoders promise EventFormatError, whatever the bytes are."""
    dice = random.Random(first)
    seeds = {name: write(some(100)) for name, write in FILES.items()}
    while tally.inputs < inputs:
        name, good = dice.choice(list(seeds.items()))
        data = noise(dice) if dice.random() < 0.03 else mutated(good, dice, list(seeds.values()))
        # Named, it is read by this format even where its beginning is not what it was.
        named = name if dice.random() < 0.5 else None
        tally.begin()
        try:
            count = len(read_recording(data, named, _MOST_EVENTS))
        except EventFormatError:
            tally.end(f"{name}: refused")
        except Exception as error:
            tally.end(type(error).__name__)
            tally.wrong(f"{name} (named: {named}): {error!r}", data)
        else:
            tally.end(f"{name}: read")
            if count > _MOST_EVENTS:
                tally.wrong(f"{name}: {count} events", data)


def fuzz_event_words(inputs: int, tally: Tally, first: int) -> None:
    """Packets, cut anywhere, of all encodings; the decoder promises ValueError."""
    dice = random.Random(first)
    seeds = _payloads()
    while tally.inputs < inputs:
        encoding, good = dice.choice(list(seeds.items()))
        decoder = wire.Decoder()
        data = noise(dice) if dice.random() < 0.05 else mutated(good, dice)
        at = dice.randrange(len(data) + 1)
        base_us = dice.choice((0, 0, 1, -1, 2**61, -(2**61), 2**63 - 1, -(2**63)))
        tally.begin()
        try:
            for part in (data[:at], data[at:]):
                found = decoder.feed(encoding, part, base_us, _MOST_EVENTS)
                if dice.random() < 0.1:
                    decoder.lost()
                memory = decoder.memory()
            with contextlib.suppress(ValueError):
                wire.Decoder().remember(memory)
        except ValueError:
            tally.end(f"{encoding}: refused")
        except Exception as error:
            tally.end(type(error).__name__)
            tally.wrong(f"{encoding}, base {base_us}: {error!r}", data)
        else:
            tally.end(f"{encoding}: read")
            if found.p.size and found.p.max() > 1:
                tally.wrong(f"{encoding}: a polarity of {found.p.max()}", data)


def fuzz_events_served(target: Target, inputs: int, tally: Tally, first: int) -> None:
    """The same as recordings, as columns for the page, and as packets of a stream."""
    dice = random.Random(first)
    files = {name: write(some(100)) for name, write in FILES.items()}
    words = _payloads()
    numbers = dict(zip(wire.Encoding, range(1, 5), strict=True))
    path = "/spikeserve.v1.SpikeServe/StreamEvents"
    while tally.inputs < inputs:
        where = dice.randrange(3)
        if where < 2:
            data = mutated(dice.choice(list(files.values())), dice)
            route = ("/classify/events", "/events/columns")[where]
            tally.begin()
            code = str(target.http.post(route, content=data).status_code)
        else:
            encoding, good = dice.choice(list(words.items()))
            data = mutated(good, dice)
            messages = stream_of(target.events, data, numbers[encoding])
            tally.begin()
            sent = [each.SerializeToString() for each in messages]
            code = status(target.channel, path, sent, True)
        tally.answered(code, data)


def _payloads() -> dict[wire.Encoding, bytes]:
    columns, _ = wire.encode(wire.Encoding.COLUMNS_V1, events(100))
    # Behind the headers of the files are the words as cameras send them.
    evt2, aedat3 = FILES["evt2"](some(100)), FILES["aedat3"](some(100))
    return {
        wire.Encoding.COLUMNS_V1: columns,
        wire.Encoding.EVT2: evt2[-400:],
        wire.Encoding.EVT3: evt3_words(some(100)).tobytes(),
        wire.Encoding.AEDAT3_WORDS: aedat3[-800:],
    }
