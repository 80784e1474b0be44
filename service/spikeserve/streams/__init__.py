"""Classify live event streams, window by window: what the server does, free of any protocol.

`Streams` opens them; a `Stream` turns events into answers; a `Session` is one as a client meets it, with its packets
numbered and its answers kept until they have arrived; an `Outlet` is the way of these answers to a client, who may not
read them; `Parking` holds sessions whose connection broke; `recordings` sends whole files through the same code.
"""

from spikeserve.streams.outlet import Outlet, Refusal, SlowClientError
from spikeserve.streams.parking import Parking
from spikeserve.streams.registry import Streams
from spikeserve.streams.session import Packet, PacketCount, Session
from spikeserve.streams.stream import Stream, WindowAnswer
from spikeserve.streams.terms import MAX_LATENESS_US, StreamOptions

__all__ = [
    "MAX_LATENESS_US",
    "Outlet",
    "Packet",
    "PacketCount",
    "Parking",
    "Refusal",
    "Session",
    "SlowClientError",
    "Stream",
    "StreamOptions",
    "Streams",
    "WindowAnswer",
]
