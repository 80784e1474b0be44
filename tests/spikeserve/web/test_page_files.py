"""The page's files: small, from here only, under a strict policy, and asked for again only when they changed."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

import spikeserve

WEB = Path(spikeserve.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir())
MOST_BYTES = 200_000


async def test_browsers_get_the_page_and_programs_get_json(http: httpx.AsyncClient) -> None:
    page = await http.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    other = await http.get("/")
    assert other.json()["name"] == "spikeserve"
    assert page.headers["vary"] == other.headers["vary"] == "Accept"


@pytest.mark.parametrize("path", ["/", *(f"/web/{name}" for name in FILES)])
async def test_every_file_comes_under_a_policy_that_allows_nothing_from_elsewhere(
    http: httpx.AsyncClient, path: str
) -> None:
    reply = await http.get(path, headers={"Accept": "text/html"})
    assert reply.status_code == 200
    policy = dict(
        part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_a_file_that_has_not_changed_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/web/app.js")
    again = await http.get("/web/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    stale = await http.get("/web/app.js", headers={"If-None-Match": '"something-else"'})
    assert stale.status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e%2fapp.py", "app.py"])
async def test_other_files_are_not_there(http: httpx.AsyncClient, name: str) -> None:
    reply = await http.get(f"/web/{name}")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"


def test_all_files_together_are_small() -> None:
    assert sum((WEB / name).stat().st_size for name in FILES) < MOST_BYTES


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host_or_makes_html_of_text(name: str) -> None:
    text = (WEB / name).read_text(encoding="utf-8")
    hosts = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s\"']*", text)
    assert [host for host in hosts if host != "http://www.w3.org/2000/svg"] == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)


def test_every_module_that_is_imported_is_there() -> None:
    for name in FILES:
        text = (WEB / name).read_text(encoding="utf-8")
        for named in re.findall(r"[\"'(]/web/([a-z]+\.[a-z]+)[\"')]", text):
            assert named in FILES, f"{name} names {named}"
