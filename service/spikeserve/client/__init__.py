"""Clients of a spikeserve server: pictures over REST, event streams over gRPC, each in a plain and an asyncio form.

with Client("http://127.0.0.1:8000") as client:
    print(client.classify(Path("boot.png")).best)

with StreamClient("127.0.0.1:8001") as client:
    for window in client.stream(cut(read_recording(Path("digit.npz")))):
        print(window.end_us, window.best)
"""

from spikeserve.client.answers import (
    Classification,
    Decision,
    Drops,
    Ended,
    ModelSummary,
    Opened,
    Prediction,
    Window,
)
from spikeserve.client.errors import ClientError, ServerError, UnreachableError
from spikeserve.client.events import EventStream, StreamClient
from spikeserve.client.events_async import AsyncEventStream, AsyncStreamClient
from spikeserve.client.http import AsyncClient, ClassifyTerms, Client
from spikeserve.client.packets import Advance, Packet, Words, cut, cut_words, paced
from spikeserve.client.retries import RETRY_OPTIONS
from spikeserve.client.terms import StreamTerms
from spikeserve.client.timeline import RecordingTerms, Stretch, Timeline, TimelineWindow

__all__ = [
    "RETRY_OPTIONS",
    "Advance",
    "AsyncClient",
    "AsyncEventStream",
    "AsyncStreamClient",
    "Classification",
    "ClassifyTerms",
    "Client",
    "ClientError",
    "Decision",
    "Drops",
    "Ended",
    "EventStream",
    "ModelSummary",
    "Opened",
    "Packet",
    "Prediction",
    "RecordingTerms",
    "ServerError",
    "StreamClient",
    "StreamTerms",
    "Stretch",
    "Timeline",
    "TimelineWindow",
    "UnreachableError",
    "Window",
    "Words",
    "cut",
    "cut_words",
    "paced",
]
