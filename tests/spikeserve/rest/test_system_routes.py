"""Models, health, metrics and the page that describes the routes."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from spikeserve.app import Server
from spiketrain.manifest import Manifest


async def test_models_are_listed_with_what_they_take(http: httpx.AsyncClient) -> None:
    models = (await http.get("/models")).json()["models"]
    assert [
        (each["name"], each["version"], each["state"], each["input"], each["default"])
        for each in models
    ] == [
        ("moves", "1", "ready", "events", True),
        ("pictures", "1", "ready", "image", False),
        ("pictures", "2", "ready", "image", True),
    ]
    assert models[0]["shape"] == [2, 34, 34]
    assert models[0]["classes"] == list("abcdefghij")


async def test_a_model_comes_with_the_whole_manifest_in_readable_json(
    http: httpx.AsyncClient,
) -> None:
    reply = await http.get("/models/pictures")
    model = reply.json()
    assert model["version"] == "2"
    assert model["versions"] == ["1", "2"]
    assert Manifest.model_validate(model["manifest"]).name == "pictures"
    assert '\n  "manifest": {\n    "format_version": 1,' in reply.text
    assert (await http.get("/models/pictures?version=1")).json()["version"] == "1"


@pytest.mark.parametrize(
    "path", ["/models/nope", "/models/pictures?version=9", "/models/..%2f..%2fetc"]
)
async def test_an_unknown_model_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.get(path)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"


async def test_readiness_ends_when_the_server_is_told_to_stop(
    server: Server, http: httpx.AsyncClient
) -> None:
    assert (await http.get("/health/ready")).json() == {"status": "ready"}
    server.health.drain()
    reply = await http.get("/health/ready")
    assert (reply.status_code, reply.json()) == (503, {"status": "draining"})
    assert (await http.get("/health/live")).status_code == 200


async def test_metrics_are_what_prometheus_reads_and_have_firing_rates(
    http: httpx.AsyncClient, png: bytes
) -> None:
    await http.post("/classify", content=png)
    await http.get("/nothing/here")
    reply = await http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }
    pictures = (("model", "pictures"), ("version", "2"))
    rate = samples["spikeserve_firing_rate", (("layer", "stages.0.neuron"), *pictures)]
    assert 0 <= rate <= 1
    for stage in ("decode", "queue", "compute", "encode"):
        assert (
            samples["spikeserve_stage_seconds_count", (pictures[0], ("stage", stage), pictures[1])]
            == 1
        )
    answered = (("code", "200"), pictures[0], ("route", "/classify"), pictures[1])
    assert samples["spikeserve_requests_total", answered] == 1
    # A path that a client made up is no label.
    unmatched = (("code", "404"), ("model", ""), ("route", "unmatched"), ("version", ""))
    assert samples["spikeserve_requests_total", unmatched] == 1
    assert "/nothing/here" not in reply.text


async def test_docs_fetch_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs")
    assert page.status_code == 200
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        assert link.startswith("/")
        assert (await http.get(link)).status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text


async def test_the_description_of_the_routes_names_all_of_them(http: httpx.AsyncClient) -> None:
    description = json.loads((await http.get("/openapi.json")).text)
    own = {path for path in description["paths"] if not path.startswith("/v2")}
    assert own == {
        "/classify",
        "/classify/events",
        "/classify/trace",
        "/events/columns",
        "/events/demo",
        "/status",
        "/models",
        "/models/{name}",
        "/models/{name}/load",
        "/models/{name}/unload",
        "/models/{name}/labels",
        "/health/live",
        "/health/ready",
    }
    body = description["paths"]["/classify"]["post"]["requestBody"]["content"]
    assert {"image/png", "multipart/form-data", "application/json"} <= set(body)
    responses = description["paths"]["/classify"]["post"]["responses"]
    assert set(responses) == {"200", "default"}
    assert "application/problem+json" in responses["default"]["content"]


async def test_the_root_says_where_to_go(http: httpx.AsyncClient) -> None:
    for route in (await http.get("/")).json()["routes"]:
        assert (await http.get(route)).status_code in (200, 405)
