"""API keys at rest, and the command that makes them."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spikeserve.access.keyring import Keyring
from spikeserve.access.keys import KeyFile, KeysError, digest, read_keys, write_keys
from spikeserve.access.rates import Bucket
from spikeserve.cli import app


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["key", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_shown_once_and_kept_as_a_hash(file: Path) -> None:
    key = command("create", "camera-1", "--file", file, "--requests-per-second", "5")
    assert key.startswith("sps_")
    assert len(key) > 40
    assert key not in file.read_text()
    assert key not in command("list", "--file", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (entry,) = read_keys(file).keys
    assert entry.name == "camera-1"
    assert entry.scopes == ("classify", "stream")
    assert entry.limits.requests_per_second == 5
    found = Keyring(file).find(key)
    assert found == entry
    assert Keyring(file).find(key + "x") is None


def test_several_keys_and_one_that_is_revoked(file: Path) -> None:
    first = command("create", "a", "--file", file)
    second = command("create", "b", "--file", file, "--scopes", "admin, metrics")
    assert first != second
    listed = command("list", "--file", file)
    assert "admin metrics" in listed
    command("revoke", "a", "--file", file)
    ring = Keyring(file)
    assert ring.find(first) is None
    assert ring.find(second) is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "a", "--scopes", "everything"], "scopes"),
        (["create", "not a name"], "name"),
        (["create", "a", "--requests-per-second", "0"], "requests_per_second"),
        (["revoke", "nobody"], "no key nobody"),
    ],
)
def test_what_cannot_be_is_a_clear_error(file: Path, arguments: list[str], said: str) -> None:
    command("create", "there", "--file", file)
    result = CliRunner().invoke(app, ["key", *arguments, "--file", str(file)])
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_name_is_given_once(file: Path) -> None:
    command("create", "a", "--file", file)
    result = CliRunner().invoke(app, ["key", "create", "a", "--file", str(file)])
    assert result.exit_code == 1
    assert "there is a key a" in result.stderr


def test_an_expired_key_is_none(file: Path) -> None:
    key = command("create", "a", "--file", file, "--days", "1")
    assert Keyring(file).find(key) is not None
    keys = read_keys(file)
    past = keys.keys[0].model_copy(update={"expires": datetime.now(UTC) - timedelta(seconds=1)})
    write_keys(file, KeyFile(keys=(past,)))
    assert Keyring(file).find(key) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"keys": [{"name": "a"}]}', '{"keys": [], "more": 1}', "\xff\xfe"],
)
def test_a_file_that_cannot_be_used_names_itself(file: Path, content: str) -> None:
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(KeysError, match=r"keys\.json"):
        Keyring(file)


def test_a_key_in_the_place_of_its_hash_is_not_repeated_in_the_message(file: Path) -> None:
    entry = {"name": "a", "sha256": "sps_secret", "scopes": ["classify"]}
    file.write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(KeysError) as error:
        Keyring(file)
    assert "sha256" in str(error.value)
    assert "sps_secret" not in str(error.value)


def test_the_file_is_read_again_when_it_changes_and_not_when_it_breaks(file: Path) -> None:
    now = 0.0
    first = command("create", "a", "--file", file)
    ring = Keyring(file, clock=lambda: now)
    second = command("create", "b", "--file", file)
    assert ring.find(second) is None  # looked a moment ago
    now = 1.5
    assert ring.find(second) is not None
    file.write_text("{")
    now = 3.0
    assert ring.find(first) is not None
    file.unlink()
    now = 5.0
    assert ring.find(first) is not None
    command("create", "c", "--file", file)
    now = 7.0
    assert ring.find(first) is None


def test_a_digest_is_sha256() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_bucket_gives_a_burst_and_then_the_rate() -> None:
    now = 0.0
    bucket = Bucket(2.0, 3.0, clock=lambda: now)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now = 0.5
    assert bucket.take() == 0
    assert bucket.take() == 0.5
    now = 100.0
    assert [bucket.take() for _ in range(3)] == [0, 0, 0]  # it holds no more than the burst
    assert bucket.take() > 0


def test_more_than_the_burst_is_paid_for_later() -> None:
    now = 0.0
    bucket = Bucket(10.0, 10.0, clock=lambda: now)
    assert bucket.take(25) == 0
    assert bucket.take(1) == pytest.approx(1.6)
    now = 1.6
    assert bucket.take(1) == 0
