"""A folder and a real Redis keep the same promises."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from spikeserve.snapshots import ForeignError, SnapshotError, Store, open_store, pack, unpack
from spikeserve.snapshots.folder import FolderStore
from spikeserve.snapshots.store import StoreSettingError

MakeStore = Callable[..., Store]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    place = tmp_path_factory.mktemp("redis") / "socket"
    command = [program, "--port", "0", "--unixsocket", str(place), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if _answers(place):
                break
            time.sleep(0.05)
        yield f"unix://{place}"
    finally:
        process.kill()
        process.wait()


def _answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(place))
        except OSError:
            return False
        return True


@pytest.fixture(params=["folder", "redis"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    stores: list[Store] = []
    place = str(tmp_path / "snapshots")
    if request.param == "redis":
        place = request.getfixturevalue("redis_url")
        import redis

        with redis.Redis.from_url(place) as client:
            client.flushall()

    def make(seconds: float = 60.0, most: int = 100) -> Store:
        stores.append(open_store(place, seconds, most))
        return stores[-1]

    yield make
    for each in stores:
        each.close()


def test_what_one_server_puts_another_one_gets_once(make_store: MakeStore) -> None:
    one, two = make_store(), make_store()
    one.put("a", b"first")
    one.put("a", b"second")
    assert two.get("a") == b"second"
    assert [one.remove("a"), two.remove("a")] == [True, False]
    assert (one.get("a"), one.get("never")) == (None, None)


def test_the_oldest_gives_way(make_store: MakeStore) -> None:
    store = make_store(most=2)
    for name in "abc":
        store.put(name, name.encode())
        time.sleep(0.02)
    assert [store.get(name) for name in "abc"] == [None, b"b", b"c"]


def test_it_expires(make_store: MakeStore) -> None:
    store = make_store(seconds=0.05)
    store.put("a", b"1")
    time.sleep(0.2)
    assert store.get("a") is None


def test_expired_and_half_written_files_are_removed_and_others_left_alone(tmp_path: Path) -> None:
    now = time.time()
    store = FolderStore(tmp_path, 10.0, 5, clock=lambda: now)
    store.put("a", b"1")
    (tmp_path / "x.unfinished").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("not ours")
    now += 11
    store.sweep()
    assert {p.name for p in tmp_path.iterdir()} == {"x.unfinished", "notes.txt"}
    now += 60
    store.sweep()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path, 10.0, 5)
    store.put("a", b"before")
    # A device that has no room for anything.
    monkeypatch.setattr("os.fdopen", lambda descriptor, mode: Path("/dev/full").open(mode))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        store.put("a", b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["a.snapshot"]
    assert store.get("a") == b"before"


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    FolderStore(tmp_path / "new", 10.0, 5).put("a", b"1")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "a.snapshot").stat().st_mode & 0o077 == 0


def test_redis_that_is_gone_is_an_error_at_once() -> None:
    pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store = open_store(f"redis://:secret@127.0.0.1:{port}/0", 10.0, 5)
    for action in (lambda: store.put("a", b"1"), lambda: store.get("a"), lambda: store.remove("a")):
        with pytest.raises(OSError, match="Redis at") as caught:
            action()
        assert "secret" not in str(caught.value)


def test_redis_that_never_answers_is_an_error_too() -> None:
    pytest.importorskip("redis")
    with socket.create_server(("127.0.0.1", 0)) as server:
        store = open_store(f"redis://127.0.0.1:{server.getsockname()[1]}/0", 10.0, 5)
        with pytest.raises(OSError, match="Timeout"):
            store.get("a")


@pytest.mark.parametrize("place", ["ftp://host/x", "redis://host/x?socket_timeout=abc", "FILE/x"])
def test_places_that_cannot_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreSettingError, match="snapshots"):
        open_store(place.replace("FILE", str(tmp_path / "file")), 10.0, 5)


CONTENT = {
    "a": [1, -(1 << 62), 0.1, float("inf"), None, True, "é"],
    "b": b"\0\xff",
    "c": {"d": np.arange(6, dtype=np.int64).reshape(2, 3), "e": np.empty(0, np.uint16)},
}


def test_a_snapshot_comes_back_as_it_was() -> None:
    content = unpack("token", pack("token", CONTENT))
    assert (content["a"], content["b"]) == (CONTENT["a"], CONTENT["b"])
    for name, array in CONTENT["c"].items():
        found = content["c"][name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert np.array_equal(found, array)
    content["c"]["d"][0, 0] = 7  # can be written to


def test_every_changed_byte_and_every_cut_is_noticed() -> None:
    snapshot = pack("token", CONTENT)
    for i in range(len(snapshot)):
        changed = bytearray(snapshot)
        changed[i] ^= 1
        with pytest.raises(SnapshotError):
            unpack("token", bytes(changed))
    for length in range(0, len(snapshot), 7):
        with pytest.raises(SnapshotError):
            unpack("token", snapshot[:length])


def test_a_snapshot_of_another_stream_is_foreign() -> None:
    with pytest.raises(ForeignError, match="another stream"):
        unpack("other", pack("token", CONTENT))


def test_objects_cannot_be_kept() -> None:
    with pytest.raises(TypeError, match="object"):
        pack("token", {"a": object()})
