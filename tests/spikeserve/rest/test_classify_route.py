"""POST /classify: what may be sent, and what comes back."""

from __future__ import annotations

import asyncio
import base64

import httpx
import pytest

JSON = {"Content-Type": "application/json"}


def upload(png: bytes, **more: object) -> dict[str, object]:
    return {"image": base64.b64encode(png).decode(), **more}


async def test_a_reply_has_what_the_design_promises(http: httpx.AsyncClient, png: bytes) -> None:
    reply = (await http.post("/classify", content=png)).json()
    assert list(reply) == [
        "model",
        "version",
        "predictions",
        "timesteps",
        "firing_rates",
        "synaptic_operations",
        "energy_joules",
        "timing_seconds",
    ]
    assert (reply["model"], reply["version"]) == ("pictures", "2")
    chances = [each["probability"] for each in reply["predictions"]]
    assert len(chances) == 5
    assert chances == sorted(chances, reverse=True)
    assert all("abcdefghij"[each["index"]] == each["label"] for each in reply["predictions"])
    assert reply["timesteps"] == {"used": 4, "of": 4}
    assert list(reply["firing_rates"]) == ["stages.0.neuron", "stages.1.neuron"]
    assert all(0 <= rate <= 1 for rate in reply["firing_rates"].values())
    assert list(reply["timing_seconds"]) == ["decode", "queue", "compute"]


@pytest.mark.parametrize(
    "content_type",
    [
        "image/png",
        "image/jpeg",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        None,
    ],
)
async def test_a_raw_body_is_told_by_its_content(
    http: httpx.AsyncClient, png: bytes, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    reply = await http.post("/classify", content=png, headers=headers)
    assert reply.status_code == 200


async def test_all_three_ways_to_send_a_picture_give_the_same_answer(
    http: httpx.AsyncClient, png: bytes
) -> None:
    replies = [
        await http.post("/classify", content=png),
        await http.post("/classify", files={"image": ("p.png", png, "image/png")}),
        await http.post("/classify", json=upload(png)),
    ]
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    assert len({str(reply.json()["predictions"]) for reply in replies}) == 1


async def test_many_clients_at_once_all_get_their_own_answer(
    http: httpx.AsyncClient, png: bytes
) -> None:
    replies = await asyncio.gather(
        *(http.post(f"/classify?top_k={n % 10 + 1}", content=png) for n in range(60))
    )
    assert [reply.status_code for reply in replies] == [200] * 60
    assert [len(reply.json()["predictions"]) for reply in replies] == [
        n % 10 + 1 for n in range(60)
    ]
    assert len({reply.json()["predictions"][0]["label"] for reply in replies}) == 1


async def test_options_work_in_the_query_in_a_form_and_in_json(
    http: httpx.AsyncClient, png: bytes
) -> None:
    options = {
        "model": "pictures",
        "version": "1",
        "top_k": "2",
        "timesteps": "3",
        "rates": "false",
        "exit": "off",
    }
    replies = [
        await http.post("/classify", params=options, content=png),
        await http.post("/classify", files={"image": ("p.png", png)}, data=options),
        await http.post(
            "/classify", json=upload(png, **options | {"top_k": 2, "timesteps": 3, "rates": False})
        ),
    ]
    for reply in replies:
        answer = reply.json()
        assert reply.status_code == 200, answer
        assert answer["version"] == "1"
        assert len(answer["predictions"]) == 2
        assert answer["timesteps"] == {"used": 3, "of": 3}
        assert answer["firing_rates"] == {}


async def test_a_large_json_body_is_read(http: httpx.AsyncClient, png: bytes) -> None:
    # Bytes after the end of a PNG file are ignored, so this is the same picture.
    assert (await http.post("/classify", json=upload(png + bytes(400_000)))).status_code == 200


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("model=nope", 404, "'nope'"),
        ("model=pictures&version=9", 404, "version '9'"),
        ("model=moves", 422, "takes events"),
        ("top_k=0", 422, "top_k"),
        ("top_k=11", 422, "10 classes"),
        ("top_k=two", 422, "top_k"),
        ("timesteps=0", 422, "timesteps"),
        ("timesteps=100000", 422, "timesteps"),
        ("rates=perhaps", 422, "rates"),
        ("exit=on", 422, "'off'"),
        ("topk=3", 422, "topk: there is no such option"),
    ],
)
async def test_impossible_options_are_refused_with_the_reason(
    http: httpx.AsyncClient, png: bytes, query: str, status: int, said: str
) -> None:
    reply = await http.post(f"/classify?{query}", content=png)
    assert reply.status_code == status
    assert said in reply.json()["detail"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"image": 5}', b'{"image": "%%%"}', b'{"image": ""}']
)
async def test_json_that_has_no_picture_is_refused(http: httpx.AsyncClient, content: bytes) -> None:
    reply = await http.post("/classify", content=content, headers=JSON)
    assert reply.status_code in (400, 422)
    assert reply.headers["content-type"] == "application/problem+json"


async def test_deeply_nested_json_is_refused(http: httpx.AsyncClient) -> None:
    reply = await http.post("/classify", content=b"[" * 100_000, headers=JSON)
    assert reply.status_code == 400


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=a", b"x"),
        ("multipart/form-data; boundary=a", b""),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="image"\r\n\r\nno file\r\n--a--\r\n',
        ),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\ncut',
        ),
    ],
)
async def test_a_form_without_a_picture_is_refused(
    http: httpx.AsyncClient, content_type: str, content: bytes
) -> None:
    reply = await http.post("/classify", content=content, headers={"Content-Type": content_type})
    assert reply.status_code in (400, 415)


async def test_a_form_with_the_picture_in_another_field_says_which(
    http: httpx.AsyncClient, png: bytes
) -> None:
    reply = await http.post("/classify", files={"file": ("p.png", png)})
    assert reply.status_code == 400
    assert "call it 'image'" in reply.json()["detail"]


async def test_an_option_given_twice_is_refused(http: httpx.AsyncClient, png: bytes) -> None:
    reply = await http.post("/classify?top_k=1", json=upload(png, top_k=2))
    assert reply.status_code == 422
    assert "top_k: in the query and in the body" in reply.json()["detail"]


async def test_an_unknown_content_type_is_refused(http: httpx.AsyncClient, png: bytes) -> None:
    reply = await http.post("/classify", content=png, headers={"Content-Type": "video/mp4"})
    assert reply.status_code == 415
    assert "image/png" in reply.json()["detail"]


async def test_a_compressed_body_is_refused(http: httpx.AsyncClient, png: bytes) -> None:
    reply = await http.post("/classify", content=png, headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 415


async def test_a_deadline_that_has_passed_is_answered_with_504(
    http: httpx.AsyncClient, png: bytes
) -> None:
    reply = await http.post("/classify", content=png, headers={"X-Timeout-Seconds": "0.000001"})
    assert reply.status_code == 504


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
async def test_a_deadline_that_is_none_is_refused(
    http: httpx.AsyncClient, png: bytes, value: str
) -> None:
    reply = await http.post("/classify", content=png, headers={"X-Timeout-Seconds": value})
    assert reply.status_code == 422
    assert "X-Timeout-Seconds" in reply.json()["detail"]
