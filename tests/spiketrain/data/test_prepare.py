"""Fetching, resuming, verifying and taking from a folder, against a server in memory; and the three commands."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from spiketrain.cli import app
from spiketrain.data import DATA_SETS, DataMissingError, folder_of
from spiketrain.data import prepare as prepare_module
from spiketrain.data.catalogue import CATALOGUE, Entry, Remote
from spiketrain.data.prepare import DownloadError, check, prepare

CONTENT = bytes(range(256)) * 5000
URL = "https://example.org/data/a.bin"


class Server:
    """One file. `cut` bytes at most come of a reply; without `ranges` it always sends the whole."""

    def __init__(
        self, content: bytes = CONTENT, cut: int | None = None, ranges: bool = True
    ) -> None:
        self.content, self.cut, self.ranges = content, cut, ranges
        self.asked: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if begin >= len(self.content):
            return httpx.Response(416)
        body = self.content[begin:]
        headers = {"Content-Length": str(len(body))}
        cut, self.cut = self.cut, None
        status = 206 if begin else 200
        return httpx.Response(status, headers=headers, stream=_Stream(body, cut))


class _Stream(httpx.SyncByteStream):
    def __init__(self, body: bytes, cut: int | None) -> None:
        self.body, self.cut = body, cut

    def __iter__(self):
        yield self.body[: self.cut]
        if self.cut is not None:
            raise httpx.ReadError("the connection broke")


def entry(monkeypatch, md5: str = "", **more: object) -> None:
    file = Remote("a.bin", URL, md5)
    found = Entry("A", "none", "none", "https://example.org", 1, (file,), **more)
    monkeypatch.setitem(CATALOGUE, "a", found)


def client(server: Server) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(server))


MD5 = hashlib.md5(CONTENT).hexdigest()


def test_a_file_is_fetched_once_and_verified(tmp_path: Path, monkeypatch) -> None:
    entry(monkeypatch, MD5)
    server = Server()
    heard: list[tuple[str, int, int | None]] = []
    (found,) = prepare(
        "a", tmp_path, report=lambda *said: heard.append(said), client=client(server)
    )
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert (found.state, found.digest) == ("right", f"md5:{MD5}")
    assert heard[-1] == ("a.bin", len(CONTENT), len(CONTENT))
    prepare("a", tmp_path, client=client(server))
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch, ranges: bool
) -> None:
    entry(monkeypatch, MD5)
    server = Server(cut=100_000, ranges=ranges)
    with pytest.raises(DownloadError, match=r"100000 bytes are kept; run this again.*--from"):
        prepare("a", tmp_path, client=client(server))
    assert not (tmp_path / "a.bin").exists()
    prepare("a", tmp_path, client=client(server))
    assert server.asked == [None, "bytes=100000-"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert not (tmp_path / "a.bin.part").exists()


def test_a_download_that_was_whole_but_not_renamed_is_taken(tmp_path: Path, monkeypatch) -> None:
    entry(monkeypatch, MD5)
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    prepare("a", tmp_path, client=client(Server()))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_another_file_is_refused_and_put_aside(tmp_path: Path, monkeypatch) -> None:
    entry(monkeypatch, MD5)
    with pytest.raises(
        DownloadError, match=r"md5:[0-9a-f]{32}, not md5:[0-9a-f]{32}.*a\.bin\.wrong"
    ):
        prepare("a", tmp_path, client=client(Server(b"<html>not found</html>")))
    assert not (tmp_path / "a.bin").exists()
    prepare("a", tmp_path, client=client(Server()))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_an_unknown_digest_is_recorded_and_compared_from_then_on(
    tmp_path: Path, monkeypatch
) -> None:
    entry(monkeypatch)
    (found,) = prepare("a", tmp_path, client=client(Server()))
    assert found.state == "recorded"
    assert found.digest == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert check("a", tmp_path)[0].state == "recorded"
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    assert check("a", tmp_path)[0].state == "wrong"


def test_files_are_taken_from_a_folder(tmp_path: Path, monkeypatch) -> None:
    entry(monkeypatch, MD5)
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(DataMissingError, match=r"no a\.bin in .*source"):
        prepare("a", tmp_path / "to", source)
    (source / "a.bin").write_bytes(CONTENT)
    assert prepare("a", tmp_path / "to", source)[0].state == "right"
    assert (tmp_path / "to" / "a.bin").read_bytes() == CONTENT
    (source / "a.bin").unlink()
    assert (tmp_path / "to" / "a.bin").read_bytes() == CONTENT


def test_an_archive_is_unpacked_once_and_never_outside(tmp_path: Path, monkeypatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("a/one.txt", "../outside.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"one"))
    entry(monkeypatch, unpack=("a.bin",))
    with pytest.raises(DownloadError, match=r"outside\.txt"):
        prepare("a", tmp_path / "in", client=client(Server(buffer.getvalue())))
    assert not (tmp_path / "outside.txt").exists()

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("a/one.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"one"))
    prepare("a", tmp_path / "well", client=client(Server(buffer.getvalue())))
    one = tmp_path / "well" / "a" / "one.txt"
    assert one.read_bytes() == b"one"
    one.write_bytes(b"changed")
    prepare("a", tmp_path / "well", client=client(Server()))
    assert one.read_bytes() == b"changed"


@pytest.mark.parametrize(
    ("name", "unpacked"),
    [
        ("cifar10", ["cifar-10-batches-py"]),
        ("cifar100", ["cifar-100-python"]),
        ("tiny-imagenet", ["tiny-imagenet-200"]),
        ("nmnist", ["Train", "Test"]),
        ("dvs-gesture", ["DvsGesture"]),
    ],
)
def test_what_is_unpacked_already_is_not_fetched(
    tmp_path: Path, name: str, unpacked: list[str]
) -> None:
    for folder in unpacked:
        (tmp_path / folder).mkdir()
    server = Server()
    found = prepare(name, tmp_path, client=client(server))
    assert {each.state for each in found} == {"missing"}
    assert server.asked == []


@pytest.mark.parametrize("name", ["nmnist", "dvs-gesture", "imagenet"])
def test_what_needs_a_person_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataMissingError, match=rf"{name}: cannot be downloaded.*https://.*--from FOLDER"
    ):
        prepare(name, tmp_path, client=client(Server()))


def test_large_folders_become_a_link(tmp_path: Path) -> None:
    (tmp_path / "here" / "train").mkdir(parents=True)
    prepare("imagenet", tmp_path / "data" / "imagenet", tmp_path / "here")
    assert (tmp_path / "data" / "imagenet" / "train").is_dir()
    prepare("imagenet", tmp_path / "data" / "imagenet", tmp_path / "here")


def test_every_data_set_but_ones_own_is_in_the_catalogue() -> None:
    assert set(CATALOGUE) == set(DATA_SETS) - {"recordings"}
    for each in CATALOGUE.values():
        assert each.instructions or all(file.url for file in each.files)
        assert all(len(file.md5) in (0, 32) for file in each.files)


def test_genuine_files_have_the_digests_of_the_catalogue(shared_data: Path) -> None:
    for name in ("mnist", "fashion-mnist"):
        assert {each.state for each in check(name, shared_data / folder_of(name))} == {"right"}


def test_the_commands_list_prepare_and_check(
    tmp_path: Path, shared_data: Path, monkeypatch
) -> None:
    run = CliRunner().invoke
    monkeypatch.setenv("SPIKETRAIN_DATA", str(tmp_path))
    listed = run(app, ["data", "list"], env={"COLUMNS": "200"})
    assert listed.exit_code == 0
    assert all(name in listed.output for name in CATALOGUE)
    prepared = run(app, ["data", "prepare", "mnist", "--from", str(shared_data / "mnist")])
    assert prepared.exit_code == 0, prepared.output
    assert prepared.output.count("with the known digest") == 4
    checked = run(app, ["data", "check", "mnist"])
    assert checked.exit_code == 0, checked.output
    assert "55000 train, 5000 validation, 10000 test; 10 classes" in checked.output
    unknown = run(app, ["data", "check", "nope"])
    assert unknown.exit_code == 1
    assert "unknown data set 'nope'" in unknown.output


def test_a_network_that_is_not_there_ends_in_one_line(tmp_path: Path, monkeypatch) -> None:
    def no_network(*arguments: object, **more: object) -> httpx.Client:
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("Name or service not known")

        return genuine(transport=httpx.MockTransport(refuse))

    genuine = httpx.Client
    monkeypatch.setattr(prepare_module.httpx, "Client", no_network)
    result = CliRunner().invoke(app, ["data", "prepare", "cifar10", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "Name or service not known" in result.output
    assert "--from FOLDER" in result.output
