"""What a client has to send in one stream: numbered, and kept until the server is known to have it.

Nothing here waits; the plain and the asyncio stream each put their own waiting around it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from spikeserve.client.packets import Advance, Packet, Words
from spikeserve.grpc import rules
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spiketrain.events import wire

_ENCODINGS = {layout: number for number, layout in rules.ENCODINGS.items()}


@dataclass
class _Kept:
    """`sequence` is the packet's own number, or that of the packet before what is no packet."""

    sequence: int
    message: pb.EventMessage
    packet: bool
    size: int


class Outbox:
    """`keep_bytes` of packets are kept to be sent again, at most; the oldest go first, and count as lost packets when
    the server turns out not to have them. `sequence` is the number of the last packet."""

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._sent = 0  # of those kept, how many the present connection has been given
        self.sequence = 0
        self.ended = False

    def add(self, packet: Packet) -> None:
        """Raises ValueError for events that no message can hold."""
        if not isinstance(packet, Advance):
            self.sequence += 1
            self._keep(_packet(packet, self.sequence), True)
            return
        message = pb.EventMessage(advance=pb.Advance(time_us=packet.time_us))
        last = self._kept[-1] if self._kept else None
        if last is not None and self._sent == len(self._kept) and _advances(last.message):
            # A later time makes an earlier one superfluous, so that silence does not pile up.
            self._kept.pop()
            self._sent -= 1
        self._keep(message, False)

    def end(self) -> None:
        self.ended = True
        self._keep(pb.EventMessage(end=pb.EndOfStream()), False)

    def next(self, next_window: int) -> pb.EventMessage | None:
        """What is to be sent next, None while there is nothing. `next_window` tells the server which answers arrived."""
        if self._sent == len(self._kept):
            return None
        message = self._kept[self._sent].message
        self._sent += 1
        self._trim()
        message.next_window = next_window
        return message

    def arrived(self, sequence: int) -> None:
        """An answer says that the server has this packet, and thereby all before it."""
        while self._sent and (
            self._kept[0].sequence < sequence
            or (self._kept[0].packet and self._kept[0].sequence == sequence)
        ):
            self._drop()

    def rewind(self, last_sequence: int) -> None:
        """A new connection: what the server does not have is sent again."""
        self.arrived(last_sequence)
        self._sent = 0

    def _keep(self, message: pb.EventMessage, packet: bool) -> None:
        size = len(message.events.payload) if packet else 0
        self._kept.append(_Kept(self.sequence, message, packet, size))
        self._bytes += size

    def _trim(self) -> None:
        while self._bytes > self._keep_bytes and self._sent > 1:
            self._drop()

    def _drop(self) -> None:
        self._bytes -= self._kept.popleft().size
        self._sent -= 1


def _packet(packet: Packet, sequence: int) -> pb.EventMessage:
    if isinstance(packet, Words):
        fields = {
            "encoding": _ENCODINGS[packet.encoding],
            "payload": bytes(packet.payload),
            "base_us": packet.base_us,
        }
    else:
        payload, base_us = wire.encode(wire.Encoding.COLUMNS_V1, packet)  # type: ignore[arg-type]
        fields = {"payload": payload, "base_us": base_us}
    return pb.EventMessage(events=pb.EventPacket(sequence=sequence, **fields))  # type: ignore[arg-type]


def _advances(message: pb.EventMessage) -> bool:
    return message.WhichOneof("kind") == "advance"
