"""What soak_hour.py sends: good and bad, over every protocol, with models and keys that change meanwhile.

Each kind of client does one thing after the other, with pauses, and notes what became of it. Wrong is what must not
happen: a good request that is not answered though nothing was refused, an error that is the server's fault (5xx except
503; UNKNOWN, INTERNAL, DATA_LOSS), a connection that breaks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import websockets
from fault_parts import Instance
from soak_parts import PACKET_US, SENSOR, Keys, bomb, packet, picture

from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.grpc.v2 import grpc_service_pb2 as oip
from spikeserve.grpc.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from spikeserve.settings import BUNDLED_MODELS
from spiketrain.checkpoint import write_atomically

EXAMPLES = Path(__file__).parent.parent / "examples"
_OUR_FAULT = ("UNKNOWN", "INTERNAL", "DATA_LOSS")
Actor = Callable[[], Awaitable[None]]


class Traffic:
    """`models` is the folder that the server watches."""

    def __init__(self, server: Instance, keys: Keys, models: Path, rate: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self._server, self._keys, self._models = server, keys, models
        self._rate = rate
        self._random = random.Random(0)
        self._pictures = [picture(seed) for seed in range(40)]
        self._garment = (EXAMPLES / "garment.png").read_bytes()
        self._recording = (EXAMPLES / "digit.npz").read_bytes()
        self._contents = itertools.cycle(
            (BUNDLED_MODELS / f"fashion-{name}.safetensors").read_bytes()
            for name in ("lif", "clif")
        )
        self._streams = itertools.count()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        # Each with how often a minute.
        self._actors: list[tuple[Actor, float]] = [
            (self._picture_rest, 480),
            (self._picture_grpc, 240),
            (self._picture_oip, 120),
            (self._stream, 20),
            (self._stream_left, 12),
            (self._stream_resumed, 12),
            (self._websocket, 12),
            (self._recorded, 12),
            (self._bad_rest, 120),
            (self._bad_grpc, 60),
            (self._bad_bytes, 30),
            (self._replace_model, 4),
            (self._unload_and_load, 3),
            (self._change_keys, 6),
        ]

    async def __aenter__(self) -> Traffic:
        self._http = httpx.AsyncClient(base_url=self._server.http, timeout=60)
        self._channel = grpc.aio.insecure_channel(self._server.grpc)
        self._stub = SpikeServeStub(self._channel)
        self._oip = GRPCInferenceServiceStub(self._channel)
        self._tasks = [asyncio.create_task(self._repeat(*each)) for each in self._actors]
        return self

    async def __aexit__(self, *error: object) -> None:
        """Each finishes what it has begun."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        await self._channel.close()
        await self._http.aclose()

    async def _repeat(self, actor: Actor, a_minute: float) -> None:
        pause = 60 / (a_minute * self._rate)
        due = time.monotonic() + self._random.uniform(0, pause)
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._stopping.wait()
            except TimeoutError:
                due = max(due + pause, time.monotonic())
                try:
                    async with asyncio.timeout(120):
                        await actor()
                except Exception as e:  # the others go on, and this one is counted
                    self.wrong[f"{actor.__name__.strip('_')}: {type(e).__name__}"] += 1

    def _note(self, what: str, code: str, wanted: bool) -> None:
        self.outcomes[f"{what}: {code}"] += 1
        fault = code in _OUR_FAULT or (code.isdigit() and int(code) >= 500 and code != "503")
        refused = code in ("503", "429", "UNAVAILABLE", "RESOURCE_EXHAUSTED")
        if fault or not (wanted or refused):
            self.wrong[f"{what}: {code}"] += 1

    @property
    def _key(self) -> dict[str, str]:
        return {"x-api-key": self._keys.current}

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._key.items())

    # Good requests.

    async def _picture_rest(self) -> None:
        picture = self._random.choice(self._pictures)
        query = {"model": "fashion", "exit": self._random.choice(("off", "balanced"))}
        reply = await self._http.post("/classify", params=query, content=picture, headers=self._key)
        self._note("picture, REST", str(reply.status_code), reply.status_code == 200)

    async def _picture_grpc(self) -> None:
        asked = pb.ClassifyRequest(image=self._random.choice(self._pictures), model="fashion")
        code = await _status(self._stub.Classify(asked, metadata=self._metadata, timeout=60))
        self._note("picture, gRPC", code, code == "OK")

    async def _picture_oip(self) -> None:
        count = self._random.randrange(1, 4)
        pixels = self._random.randbytes(784 * count)
        tensor = {"name": "image", "datatype": "UINT8", "shape": [count, 28, 28, 1]}
        tensor |= {"data": list(pixels)}
        reply = await self._http.post(
            "/v2/models/fashion/infer", json={"inputs": [tensor]}, headers=self._key
        )
        self._note("pictures, OIP", str(reply.status_code), reply.status_code == 200)

    async def _stream(self) -> None:
        code = await self._stream_of(pb.OpenStream(model="digits"), 30)
        self._note("stream, gRPC", code, code == "OK")

    async def _stream_left(self) -> None:
        """The client vanishes in the midst; every second one may come back, and does not."""
        resumable = next(self._streams) % 2 == 0
        call = self._stub.StreamEvents(metadata=self._metadata, timeout=60)
        try:
            await call.write(pb.EventMessage(open=pb.OpenStream(resumable=resumable)))
            await call.read()
            for number in range(self._random.randrange(1, 10)):
                await call.write(packet(number))
        except grpc.aio.AioRpcError as error:
            self._note("stream that is left", error.code().name, False)
        else:
            self._note("stream that is left", "OK", True)
        call.cancel()

    async def _stream_resumed(self) -> None:
        call = self._stub.StreamEvents(metadata=self._metadata, timeout=60)
        try:
            await call.write(pb.EventMessage(open=pb.OpenStream(resumable=True)))
            token = (await call.read()).opened.resume_token
            for number in range(7):
                await call.write(packet(number))
            await call.read()
        except grpc.aio.AioRpcError as error:
            self._note("stream that is resumed", error.code().name, False)
            return
        call.cancel()
        code = await self._stream_of(pb.OpenStream(resume_token=token), 20, 7)
        self._note("stream that is resumed", code, code == "OK")

    async def _stream_of(self, opening: pb.OpenStream, packets: int, begin: int = 0) -> str:
        """A stream to its end; what is read meanwhile must not be less than what the packets close."""
        call = self._stub.StreamEvents(metadata=self._metadata, timeout=60)

        async def send() -> None:
            await call.write(pb.EventMessage(open=opening))
            for number in range(begin, begin + packets):
                await call.write(packet(number))
                await asyncio.sleep(PACKET_US / 1e6)
            await call.write(pb.EventMessage(end=pb.EndOfStream()))
            await call.done_writing()

        sending = asyncio.ensure_future(send())
        try:
            ended = None
            async for answer in call:
                ended = answer.WhichOneof("kind") == "ended"
            await sending
            return "OK" if ended else "no end"
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return (await call.code()).name
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _websocket(self) -> None:
        """Every second one is left without a word."""
        url = self._server.http.replace("http", "ws") + "/events"
        leave = next(self._streams) % 2 == 0
        async with websockets.connect(url, additional_headers=self._key) as socket:
            await socket.send(json.dumps({"open": {"sensor": f"{SENSOR}x{SENSOR}"}}))
            opened = "opened" in json.loads(await socket.recv())
            for number in range(10):
                sent = packet(number).events
                await socket.send(struct.pack("<q", sent.base_us) + sent.payload)
            if not leave:
                await socket.send(json.dumps({"end": True}))
                async for text in socket:
                    opened = opened and "error" not in json.loads(text)
        self._note("stream, WebSocket", "OK" if opened else "error", opened)

    async def _recorded(self) -> None:
        reply = await self._http.post(
            "/classify/events", content=self._recording, headers=self._key
        )
        self._note("recording, REST", str(reply.status_code), reply.status_code == 200)

    # Bad ones.

    async def _bad_rest(self) -> None:
        good = self._random.choice(self._pictures)
        at = self._random.randrange(len(good))
        body = self._random.choice(
            [
                good[:at],
                good[:at] + self._random.randbytes(4) + good[at + 4 :],
                self._random.randbytes(self._random.randrange(2000)),
                bomb(30_000, 30_000),
                b'{"image": "not base64"}',
            ]
        )
        path = self._random.choice(
            (
                "/classify",
                "/classify?top_k=0",
                f"/classify?model=m{at}",
                "/classify/events",
                "/classify/trace",
                "/v2/models/fashion/infer",
                f"/nothing/{at}",
            )
        )
        key = self._key if at % 4 else {"x-api-key": f"wrong-{at}"}
        reply = await self._http.post(path, content=body, headers=key)
        self._note("bad, REST", str(reply.status_code), reply.status_code < 500)

    async def _bad_grpc(self) -> None:
        raw = self._random.randbytes(self._random.randrange(200))
        damaged = pb.EventPacket(payload=raw, encoding=self._random.randrange(6))  # type: ignore[arg-type]
        choice = self._random.randrange(4)
        if choice == 0:
            asked = pb.ClassifyRequest(image=raw, model="fashion")
            code = await _status(self._stub.Classify(asked, metadata=self._metadata))
        elif choice == 1:
            tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8")
            tensor.shape.extend([1, 28, 28, 1])
            infer = oip.ModelInferRequest(model_name="fashion", inputs=[tensor])
            infer.raw_input_contents.append(raw)
            code = await _status(self._oip.ModelInfer(infer, metadata=self._metadata))
        elif choice == 2:
            method = self._channel.unary_unary("/spikeserve.v1.SpikeServe/Classify")
            code = await _status(method(raw, metadata=self._metadata))
        else:
            messages = [
                pb.EventMessage(open=pb.OpenStream(sensor_width=self._random.randrange(60))),
                pb.EventMessage(events=damaged),
                pb.EventMessage(end=pb.EndOfStream()),
            ]
            call = self._stub.StreamEvents(iter(messages), metadata=self._metadata, timeout=60)
            code = await _status(_all(call))
        self._note("bad, gRPC", code, True)

    async def _bad_bytes(self) -> None:
        """To either port: noise, or a request that breaks off; and the connection is closed."""
        port = self._random.choice((self._server.http_port, self._server.grpc_port))
        request = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n"
        request += f"X-Api-Key: {self._keys.current}\r\n\r\n".encode() + self._garment[:100]
        said = self._random.choice(
            (self._random.randbytes(300), request, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0")
        )
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        await asyncio.sleep(0.2)
        writer.close()
        self.outcomes["bytes and gone"] += 1

    # Changes.

    async def _replace_model(self) -> None:
        """Another content of the same version, which the server notices by itself; every fifth one is damaged."""
        content = next(self._contents)
        if self._random.randrange(5) == 0:
            content = content[: len(content) // 2]
        path = self._models / "fashion" / "1.safetensors"
        await asyncio.to_thread(write_atomically, path, content)
        self.outcomes["model replaced"] += 1

    async def _unload_and_load(self) -> None:
        for action in ("unload", "load"):
            reply = await self._http.post(f"/models/fashion-ilif/{action}", headers=self._key)
            self._note(f"model, {action}", str(reply.status_code), reply.status_code < 300)
            asked = await self._http.post(
                "/classify",
                params={"model": "fashion-ilif"},
                content=self._garment,
                headers=self._key,
            )
            allowed = (200,) if action == "load" else (404, 503)
            code = asked.status_code
            self._note(f"picture after {action}", str(code), code in allowed)

    async def _change_keys(self) -> None:
        await asyncio.to_thread(self._keys.turn)
        self.outcomes["keys changed"] += 1


async def _status(call: Awaitable[object]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        # The client's transport says this, and not what the server said, where it was refused while it was sending.
        sending = error.details() == "Internal error from Core"
        return "refused while sending" if sending else error.code().name
    return "OK"


async def _all(call: grpc.aio.StreamStreamCall[pb.EventMessage, pb.EventAnswer]) -> None:
    async for _ in call:
        pass
