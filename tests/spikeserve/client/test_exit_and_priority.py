"""`exit`, `risk` and `priority` from Python and on the command line, against a server whose model has exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spikeserve.app import Server
from spikeserve.cli import app
from spikeserve.client import AsyncClient, Client, ServerError


@pytest.fixture
def url(server_with_exits: Server) -> str:
    return f"http://127.0.0.1:{server_with_exits.http_port}"


def test_the_client_asks_for_an_exit_by_name_or_by_risk(url: str, png: bytes) -> None:
    with Client(url) as client:
        answers = [
            client.classify(png, exit="off"),
            client.classify(png, exit="balanced"),
            client.classify(png, exit="fast"),
            client.classify(png, risk=0.019),
            client.classify(png, risk=0.0),
        ]
    assert [answer.timesteps_used for answer in answers] == [4, 3, 2, 3, 4]
    assert [answer.exit_risk for answer in answers] == [0.0, 0.005, 0.02, 0.005, 0.0]


def test_the_client_gives_a_priority(url: str, png: bytes) -> None:
    with Client(url) as client:
        assert client.classify(png, priority="low", exit=None).timesteps_of == 4
        with pytest.raises(ServerError, match="normal is the highest"):
            client.classify(png, priority="high")
        with pytest.raises(ServerError, match="exit and risk"):
            client.classify(png, exit="fast", risk=0.01)


async def test_the_asyncio_client_does_the_same(url: str, png: bytes) -> None:
    async with AsyncClient(url) as client:
        assert (await client.classify(png, exit="fast", priority="low")).timesteps_used == 2
        assert (await client.classify(png, risk=0.005)).exit_risk == 0.005
        with pytest.raises(ServerError, match="normal is the highest"):
            await client.classify(png, priority="high")


@pytest.mark.parametrize(
    ("options", "used"),
    [
        (["--exit", "fast"], 2),
        (["--exit", "balanced", "--priority", "low"], 3),
        (["--risk", "0.03"], 2),
        (["--exit", "off"], 4),
    ],
)
def test_the_command_line_has_the_same_options(
    url: str, png: bytes, tmp_path: Path, options: list[str], used: int
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png)
    result = CliRunner().invoke(
        app, ["classify", "--json", *options, str(picture), "--server", url]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["timesteps_used"] == used


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--exit", "sometimes"], 2, "sometimes"),
        (["--priority", "urgent"], 2, "urgent"),
        (["--priority", "high"], 1, "normal is the highest"),
        (["--exit", "fast", "--risk", "0.01"], 1, "exit and risk"),
        (["--risk", "1"], 1, "less than 1"),
    ],
)
def test_the_command_line_says_what_cannot_be(
    url: str, png: bytes, tmp_path: Path, options: list[str], status: int, says: str
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(png)
    result = CliRunner().invoke(app, ["classify", *options, str(picture), "--server", url])
    assert result.exit_code == status
    assert says in result.stderr
