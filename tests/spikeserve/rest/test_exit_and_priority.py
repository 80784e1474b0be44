"""`exit`, `risk` and `priority` of POST /classify; what they mean is tested without a protocol, in core."""

from __future__ import annotations

import base64

import httpx
import pytest


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("exit=balanced", "calibrate-exit"),
        ("risk=0.005", "calibrate-exit"),
        ("exit=sometimes", "'off', 'balanced' or 'fast'"),
        ("risk=1", "less than 1"),
        ("risk=nan", "finite"),
        ("exit=off&risk=0.01", "exit and risk"),
        ("priority=urgent", "'high', 'normal' or 'low'"),
    ],
)
async def test_what_cannot_be_is_refused(
    http: httpx.AsyncClient, png: bytes, query: str, says: str
) -> None:
    reply = await http.post(f"/classify?{query}", content=png)
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert says in reply.json()["detail"]


@pytest.mark.parametrize("options", [{"exit": "off", "priority": "low"}, {"priority": "high"}])
async def test_they_may_be_in_the_query_in_a_form_and_in_json(
    http: httpx.AsyncClient, png: bytes, options: dict[str, str]
) -> None:
    picture = base64.b64encode(png).decode()
    replies = [
        await http.post("/classify", params=options, content=png),
        await http.post("/classify", files={"image": ("p.png", png)}, data=options),
        await http.post("/classify", json={"image": picture, **options}),
    ]
    for reply in replies:
        assert reply.status_code == 200, reply.text
        assert reply.json()["timesteps"] == {"used": 4, "of": 4}
