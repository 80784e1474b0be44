"""Keys, scopes and limits of a running server, over HTTP, WebSocket and gRPC."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import websockets
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from spikeserve.access import Gate
from spikeserve.access.keys import KeyEntry, KeyFile, KeyLimits, Scope, digest, write_keys
from spikeserve.app import Server, StartError
from spikeserve.client import AsyncClient
from spikeserve.client.connection import with_key
from spikeserve.client.errors import ServerError
from spikeserve.grpc.v1 import spikeserve_pb2 as pb
from spikeserve.grpc.v1.spikeserve_pb2_grpc import SpikeServeStub
from spikeserve.grpc.v2 import grpc_service_pb2 as oip
from spikeserve.grpc.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from spiketrain.events import wire
from spiketrain.events.types import Events

SCOPES: tuple[Scope, ...] = ("classify", "stream", "metrics", "admin")


def key_of(scope: str) -> str:
    return f"sps_the-key-for-{scope}"


@pytest.fixture
def keys(tmp_path: Path) -> Callable[..., Path]:
    """A file with one key for each scope, named after it; keyword arguments are limits of all of them."""

    def make(**limits: object) -> Path:
        path = tmp_path / "keys.json"
        entries = tuple(
            KeyEntry(
                name=scope,
                sha256=digest(key_of(scope)),
                scopes=(scope,),
                limits=KeyLimits.model_validate(limits),
            )
            for scope in SCOPES
        )
        write_keys(path, KeyFile(keys=entries))
        return path

    return make


def http_of(server: Server, scope: str | None = None) -> httpx.AsyncClient:
    headers = {} if scope is None else {"Authorization": f"Bearer {key_of(scope)}"}
    url = f"http://127.0.0.1:{server.http_port}"
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=60)


ROUTES = {
    ("POST", "/classify"): ("classify",),
    ("POST", "/classify/events"): ("classify", "stream"),
    ("POST", "/classify/trace"): ("classify",),
    ("POST", "/v2/models/pictures/infer"): ("classify",),
    ("GET", "/models"): SCOPES,
    ("GET", "/models/pictures"): SCOPES,
    ("GET", "/v2/models/pictures"): ("classify",),
    ("GET", "/metrics"): ("metrics",),
    ("GET", "/status"): ("metrics",),
    ("POST", "/models/pictures/load"): ("admin",),
    ("POST", "/models/nope/unload"): ("admin",),
    ("PUT", "/models/pictures/labels"): ("admin",),
    ("POST", "/v2/repository/models/pictures/load"): ("admin",),
    ("POST", "/v2/repository/models/nope/unload"): ("admin",),
    ("GET", "/health/ready"): (None, *SCOPES),
    ("GET", "/health/live"): (None, *SCOPES),
    ("GET", "/v2/health/ready"): (None, *SCOPES),
    ("GET", "/docs"): (None, *SCOPES),
    ("GET", "/"): SCOPES,
}


async def test_each_route_wants_its_scope(running, keys, caplog) -> None:
    caplog.set_level(logging.INFO)
    async with running(keys=keys()) as server:
        for scope in (None, *SCOPES):
            async with http_of(server, scope) as http:
                for (method, path), allowed in ROUTES.items():
                    status = (await http.request(method, path)).status_code
                    if scope in allowed:
                        assert status not in (401, 403), (method, path, scope)
                    else:
                        assert status == (401 if scope is None else 403), (method, path, scope)
    assert "sps_" not in caplog.text  # whatever is logged, keys are not


async def test_no_route_was_forgotten(running, keys) -> None:
    """Without a key, everything that the server describes is refused, but for what is open on purpose."""
    opened = {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
    async with running(keys=keys()) as server, http_of(server) as http:
        description = (await http.get("/openapi.json")).json()
        for template, methods in description["paths"].items():
            path = template.replace("{name}", "pictures").replace("{version}", "1")
            for method in methods:
                status = (await http.request(method.upper(), path)).status_code
                assert (status == 401) == (template not in opened), (method, template, status)


async def test_how_a_key_may_be_sent_and_what_a_refusal_says(running, keys) -> None:
    key = key_of("classify")
    basic = base64.b64encode(f"anybody:{key}".encode()).decode()
    async with running(keys=keys()) as server, http_of(server) as http:
        for headers in (
            {"Authorization": f"Bearer {key}"},
            {"authorization": f"bearer {key}"},
            {"X-Api-Key": key},
            {"Authorization": f"Basic {basic}"},
        ):
            assert (await http.get("/models", headers=headers)).status_code == 200
        for headers in (
            {},
            {"Authorization": key},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer sps_wrong"},
            {"Authorization": "Basic %%%"},
            {"Authorization": f"Bearer {key[:-1]}"},
            {"X-Api-Key": digest(key)},
        ):
            reply = await http.get("/models", headers=headers)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"].startswith("Bearer ")
            assert reply.json()["type"] == "urn:spikeserve:error:unauthenticated"
        reply = await http.get("/v2/models/pictures")
        assert reply.status_code == 401
        assert "API key" in reply.json()["error"]
        reply = await http.get("/models")
        assert "Basic" not in reply.headers["www-authenticate"]  # a page's script has no dialog
        reply = await http.get("/models", headers={"Accept": "text/html,*/*"})
        assert 'Basic realm="spikeserve"' in reply.headers["www-authenticate"]
        assert (await http.get("/", headers={"Accept": "text/html"})).status_code == 200
        assert (await http.get("/web/app.js")).status_code == 200
        reply = await http.get("/metrics", headers={"X-Api-Key": key})
        assert "needs metrics" in reply.json()["detail"]


async def test_grpc_methods_want_their_scope(running, keys, png: bytes) -> None:
    async with (
        running(keys=keys()) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub, inference = SpikeServeStub(channel), GRPCInferenceServiceStub(channel)

        async def code(call, request, scope: str | None) -> grpc.StatusCode:
            metadata = () if scope is None else (("authorization", f"Bearer {key_of(scope)}"),)
            try:
                await call(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        calls = [
            (stub.Classify, pb.ClassifyRequest(image=png), ("classify",)),
            (stub.ListModels, pb.ListModelsRequest(), SCOPES),
            (inference.ServerLive, oip.ServerLiveRequest(), (None, *SCOPES)),
            (
                inference.RepositoryModelLoad,
                oip.RepositoryModelLoadRequest(model_name="pictures"),
                ("admin",),
            ),
            (
                inference.RepositoryModelUnload,
                oip.RepositoryModelUnloadRequest(model_name="moves"),
                ("admin",),
            ),
        ]
        for call, request, allowed in calls:
            for scope in (None, *SCOPES):
                got = await code(call, request, scope)
                if scope in allowed:
                    assert got is grpc.StatusCode.OK
                elif scope is None:
                    assert got is grpc.StatusCode.UNAUTHENTICATED
                else:
                    assert got is grpc.StatusCode.PERMISSION_DENIED
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        stream = stub.StreamEvents(metadata=(("x-api-key", key_of("classify")),))
        assert await stream.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_websocket_wants_the_scope_stream(running, keys) -> None:
    async with running(keys=keys()) as server:
        url = f"ws://127.0.0.1:{server.http_port}/events"
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url)
        assert refused.value.response.status_code in (401, 403)
        headers = {"X-Api-Key": key_of("stream")}
        async with websockets.connect(url, additional_headers=headers) as socket:
            await socket.send(json.dumps({"open": {"model": "moves"}}))
            assert "opened" in json.loads(await socket.recv())


def coded(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


async def test_a_page_offers_its_key_as_a_subprotocol_and_is_told_why_it_is_refused(
    running, keys
) -> None:
    async with running(keys=keys()) as server:
        url = f"ws://127.0.0.1:{server.http_port}/events"

        def connect(key: str, **more: object) -> websockets.connect:
            offered = ["spikeserve.v1", f"spikeserve.key.{key}"]
            return websockets.connect(url, subprotocols=offered, **more)

        async with connect(coded(key_of("stream"))) as socket:
            assert socket.subprotocol == "spikeserve.v1"
            await socket.send(json.dumps({"open": {"model": "moves"}}))
            assert "opened" in json.loads(await socket.recv())
        for key, status in (("!", 401), (coded("sps_wrong"), 401), (coded(key_of("metrics")), 403)):
            with pytest.raises((websockets.InvalidStatus, websockets.InvalidHandshake)):
                async with connect(key):
                    pass
            async with connect(key, origin=f"http://127.0.0.1:{server.http_port}") as socket:
                said = json.loads(await socket.recv())
                assert said["error"]["status"] == status
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await socket.recv()
                assert closed.value.rcvd.code == 1008
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(coded(key_of("stream")), origin="http://elsewhere.example")
        assert refused.value.response.status_code == 403


async def test_keys_change_without_a_restart(running, keys, monkeypatch) -> None:
    monkeypatch.setattr("spikeserve.access.keyring._LOOK_SECONDS", 0.0)
    path = keys()
    async with running(keys=path) as server, http_of(server, "classify") as http:
        assert (await http.get("/models")).status_code == 200
        write_keys(path, KeyFile())
        assert (await http.get("/models")).status_code == 401
        keys()
        assert (await http.get("/models")).status_code == 200


async def test_keys_that_are_replaced_again_and_again_leave_nothing_behind(
    make_settings, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("spikeserve.access.keyring._LOOK_SECONDS", 0)
    path = tmp_path / "keys.json"

    def only(name: str) -> None:
        entry = KeyEntry(name=name, sha256=digest(name), scopes=("classify",))
        write_keys(path, KeyFile(keys=(entry,)))

    only("guest-0")
    gate = Gate(make_settings(keys=path))
    with gate.admit(("classify",), "guest-0"):
        for number in range(1, 20):
            only(f"guest-{number}")
            with gate.admit(("classify",), f"guest-{number}"):
                pass
        assert set(gate._uses) == {"guest-0", "guest-19"}  # the first one is still in
        assert gate.busy
    assert not gate.busy


async def test_a_file_of_keys_that_is_not_there_stops_the_start(make_settings, tmp_path) -> None:
    with pytest.raises(StartError, match=r"nowhere\.json"):
        Server(make_settings(keys=tmp_path / "nowhere.json"))


async def test_models_are_managed_by_nobody_unless_somebody_may(running) -> None:
    async with running() as server, http_of(server) as http:
        reply = await http.post("/models/moves/unload")
        assert reply.status_code == 403
        assert "SPIKESERVE_KEYS" in reply.json()["detail"]
        assert (await http.get("/models")).json()["models"][0]["state"] == "ready"


async def test_models_are_managed_with_an_audit_line(running, caplog) -> None:
    caplog.set_level(logging.INFO)
    async with running(admin="open") as server, http_of(server) as http:
        reply = await http.post("/models/moves/unload", headers={"X-Request-Id": "abc"})
        assert reply.status_code == 200
        assert [each["state"] for each in reply.json()["models"]] == ["unloaded"]
        reply = await http.post("/models/moves/load?version=1")
        assert [each["state"] for each in reply.json()["models"]] == ["ready"]
        assert (await http.post("/models/moves/load?version=7")).status_code == 404
        labels = {"labels": {"stable": "1", "canary": "2"}, "canary_share": 0.5}
        assert (await http.put("/models/pictures/labels", json=labels)).status_code == 200
        assert (await http.get("/models/pictures?version=1")).json()["labels"] == ["stable"]
        for wrong, status in (
            ({"labels": {"stable": "9"}}, 422),
            ({"canary_share": 0.5}, 422),
            ({"canary_share": 7}, 400),
            ({"else": 1}, 400),
        ):
            reply = await http.put("/models/pictures/labels", json=wrong)
            assert reply.status_code == status, wrong
    lines = [r.fields for r in caplog.records if r.name == "spikeserve.audit"]
    assert [(each["action"], each["code"]) for each in lines[:3]] == [
        ("POST /models/moves/unload", "200"),
        ("POST /models/moves/load", "200"),
        ("POST /models/moves/load", "404"),
    ]
    assert lines[0]["request_id"] == "abc"
    assert lines[0]["peer"] == "127.0.0.1"


async def test_the_admin_port_is_the_only_place_then(running) -> None:
    async with running(admin_port=0, admin="open") as server:
        async with http_of(server) as http:
            reply = await http.post("/models/moves/unload")
            assert reply.status_code == 403
            assert "admin port" in reply.json()["detail"]
            assert (await http.get("/models")).status_code == 200
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.admin_port}") as http:
            assert (await http.post("/models/moves/unload")).status_code == 200
            foreign = {"Origin": "https://elsewhere.example"}
            assert (await http.post("/models/moves/load", headers=foreign)).status_code == 403
            own = {"Origin": f"http://127.0.0.1:{server.admin_port}"}
            assert (await http.post("/models/moves/load", headers=own)).status_code == 200


async def test_cors_is_off_unless_it_is_set(running) -> None:
    origin = "https://lab.example.org"
    ask = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with running() as server, http_of(server) as http:
        reply = await http.options("/classify", headers=ask)
        assert "access-control-allow-origin" not in reply.headers
    async with running(cors_origins=(origin,)) as server, http_of(server) as http:
        reply = await http.options("/classify", headers=ask)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == origin
        reply = await http.get("/models", headers={"Origin": origin})
        assert reply.headers["access-control-allow-origin"] == origin
        other = {"Origin": "https://elsewhere.example"}
        assert (
            "access-control-allow-origin" not in (await http.get("/models", headers=other)).headers
        )


def picture(side: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(file, "PNG")
    return file.getvalue()


async def test_requests_a_second_of_one_key(running, keys, png: bytes) -> None:
    path = keys(requests_per_second=0.001, burst=2)
    async with running(keys=path) as server:
        async with http_of(server, "classify") as http:
            for _ in range(2):
                assert (await http.post("/classify", content=png)).status_code == 200
            reply = await http.post("/classify", content=png)
            assert reply.status_code == 429
            assert int(reply.headers["retry-after"]) > 100
            assert "requests_per_second" in reply.json()["detail"]
        async with http_of(server, "metrics") as http:
            assert (await http.get("/status")).status_code == 200  # another key's are not used up


async def test_bytes_and_pixels_of_one_key(running, keys) -> None:
    path = keys(max_body_bytes=2000, max_pixels=1000)
    async with running(keys=path) as server:
        async with http_of(server, "classify") as http:
            reply = await http.post("/classify", content=bytes(3000))
            assert reply.status_code == 413
            assert "max_body_bytes of the key classify" in reply.json()["detail"]
            reply = await http.post("/classify", content=picture(40))
            assert reply.status_code == 413
            assert "max_pixels of the key classify" in reply.json()["detail"]
            assert (await http.post("/classify", content=picture(28))).status_code == 200
        metadata = (("x-api-key", key_of("classify")),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            for image, said in ((bytes(3000), "max_body_bytes"), (picture(40), "max_pixels")):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await SpikeServeStub(channel).Classify(
                        pb.ClassifyRequest(image=image), metadata=metadata
                    )
                assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert f"{said} of the key classify" in error.value.details()


async def test_streams_of_one_key(running, keys) -> None:
    async with (
        running(keys=keys(max_streams=1)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = SpikeServeStub(channel)
        metadata = (("x-api-key", key_of("stream")),)
        opening = pb.EventMessage(open=pb.OpenStream(start_us=0))
        first = stub.StreamEvents(metadata=metadata)
        await first.write(opening)
        assert (await first.read()).opened.model == "moves"
        second = stub.StreamEvents(metadata=metadata)
        assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_streams" in await second.details()
        await first.done_writing()
        assert (await first.read()).HasField("ended")
        assert await first.code() is grpc.StatusCode.OK
        third = stub.StreamEvents(metadata=metadata)
        await third.write(opening)
        assert (await third.read()).opened.model == "moves"
        third.cancel()


async def test_requests_at_once_of_the_server_and_of_one_key(running, keys, png: bytes) -> None:
    for settings, status, said in (
        ({"max_requests": 1}, 503, "SPIKESERVE_MAX_REQUESTS"),
        ({"keys": keys(max_requests=1)}, 429, "max_requests"),
    ):
        async with running(**settings) as server, http_of(server, "classify") as http:
            _, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
            head = (
                "POST /classify HTTP/1.1\r\nHost: a\r\nX-Api-Key: {}\r\nContent-Length: 100\r\n\r\n"
            )
            writer.write(head.format(key_of("classify")).encode())
            await writer.drain()
            for _ in range(600):
                reply = await http.post("/classify", content=png)
                if reply.status_code != 200:
                    break
                await asyncio.sleep(0.01)
            assert reply.status_code == status
            assert said in reply.json()["detail"]
            assert "retry-after" in reply.headers
            writer.close()


def noise(count: int, end_us: int) -> pb.EventMessage:
    random = np.random.default_rng(0)
    events = Events(
        np.sort(random.integers(0, end_us, count)),
        random.integers(0, 34, count).astype(np.uint16),
        random.integers(0, 34, count).astype(np.uint16),
        random.integers(0, 2, count).astype(np.uint8),
    )
    payload, base_us = wire.encode(wire.Encoding.COLUMNS_V1, events)
    return pb.EventMessage(events=pb.EventPacket(payload=payload, base_us=base_us))


@pytest.mark.parametrize("whose", ["server", "key"])
async def test_events_a_second(running, keys, whose: str) -> None:
    """The burst of a second is granted, and what comes right after it is not."""
    settings = {"events_per_second": 1000} if whose == "server" else {}
    path = keys() if whose == "server" else keys(events_per_second=1000)
    async with (
        running(keys=path, **settings) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stream = SpikeServeStub(channel).StreamEvents(metadata=(("x-api-key", key_of("stream")),))
        await stream.write(pb.EventMessage(open=pb.OpenStream(start_us=0)))
        assert (await stream.read()).HasField("opened")
        for _ in range(2):
            # Late events count too.
            await stream.write(noise(5000, 100_000))

        async def read_all() -> None:
            while await stream.read() is not grpc.aio.EOF:
                pass

        with pytest.raises(grpc.aio.AioRpcError):
            await read_all()
        assert await stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        name = "SPIKESERVE_EVENTS_PER_SECOND" if whose == "server" else "events_per_second"
        assert name in await stream.details()


async def test_our_clients_send_a_key(running, keys, png: bytes, monkeypatch) -> None:
    async with running(keys=keys()) as server:
        url = f"http://127.0.0.1:{server.http_port}"
        async with AsyncClient(url, key=key_of("classify")) as client:
            assert (await client.classify(png)).model == "pictures"
        async with AsyncClient(url) as client:
            with pytest.raises(ServerError, match="API key"):
                await client.classify(png)
        monkeypatch.setenv("SPIKESERVE_API_KEY", key_of("classify"))
        async with AsyncClient(url) as client:
            assert (await client.classify(png)).model == "pictures"
    assert with_key([("a", "b")])[1] == ("x-api-key", key_of("classify"))
    assert with_key([("authorization", "Bearer x")]) == (("authorization", "Bearer x"),)
