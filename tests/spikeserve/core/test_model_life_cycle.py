"""Models that are loaded, replaced and unloaded while the server works."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading

import numpy as np
import pytest

from spikeserve.classify import ClassifyRequest
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.repository import Labels, Repository
from spikeserve.repository import repository as module
from spikeserve.requests import current_request_id
from spikeserve.streams import StreamOptions
from spiketrain.events.types import Events
from spiketrain.manifest import DurationWindow, EventInput

MOVES = EventInput(sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=1000))


@pytest.fixture
def load(load):
    """Plain torch, which is ready soonest."""

    def quickly(**changes):
        return load(**{"executor": "reference"} | changes)

    return quickly


def states(repository):
    return [(i.name, i.version, i.state) for i in repository.models()]


def refusal(call, *arguments):
    with pytest.raises(ServiceError) as error:
        call(*arguments)
    return error.value


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def wait_until(true):
    done = threading.Event()
    for _ in range(600):
        if true():
            return
        done.wait(0.05)
    pytest.fail("it never became true")


def test_a_version_put_into_the_folder_is_loaded_on_demand(write, load):
    write("a", file="a/1.safetensors")
    repository, _, _ = load()
    write("a", file="a/2.safetensors", seed=1)
    assert repository.get("a").version == "1"
    infos = repository.load("a", "2")
    assert [(i.version, i.state, i.reason) for i in infos] == [("2", "ready", None)]
    assert repository.get("a").version == "2"
    assert repository.get("a", "1").version == "1"


def test_loading_what_is_served_already_changes_nothing(write, load, scraped):
    write("a")
    repository, metrics, _ = load()
    before = repository.get("a")
    repository.load("a")
    assert repository.get("a") is before
    assert scraped(metrics, "spikeserve_model_loads_total", model="a", outcome="loaded") == 1


def test_a_changed_file_takes_the_place_of_the_old_one_which_is_freed(write, load):
    write("a")
    repository, _, _ = load()
    engine = repository.get("a").engine
    digest = repository.get("a").manifest.digest
    write("a", seed=1)
    repository.load("a")
    assert repository.get("a").manifest.digest != digest
    wait_until(lambda: not engine.healthy)  # its thread has ended


def test_the_old_one_is_not_freed_while_somebody_works_with_it(write, load):
    write("a")
    repository, _, _ = load()
    held = repository.get("a")
    engine = held.engine
    write("a", seed=1)
    repository.load("a")
    engine.check()
    assert engine.healthy
    del held
    wait_until(lambda: not engine.healthy)


def test_one_that_is_held_for_too_long_is_freed_all_the_same(write, load):
    write("a")
    repository, _, _ = load(retire_seconds=0)
    held = repository.get("a")
    repository.unload("a")
    assert refusal(held.engine.check).message == (
        "a version 1 was replaced or unloaded: open a new stream"
    )


def test_a_broken_file_never_replaces_a_working_model(write, load, scraped):
    path = write("a")
    repository, metrics, _ = load()
    before = repository.get("a")
    damage(write("a", seed=1))
    error = refusal(repository.load, "a")
    assert error.kind is ErrorKind.IMPOSSIBLE
    assert str(path) in error.message
    assert repository.get("a") is before
    (info,) = repository.models()
    assert info.state == "ready"
    assert str(path) in info.reason
    assert repository.ready
    assert scraped(metrics, "spikeserve_models_failed") == 1
    assert scraped(metrics, "spikeserve_model_loads_total", model="a", outcome="failed") == 1
    repository.refresh()  # it has not changed, so it is not tried again
    assert scraped(metrics, "spikeserve_model_loads_total", model="a", outcome="failed") == 1
    assert repository.models()[0].reason == info.reason
    write("a", seed=1)
    repository.load("a")
    assert repository.models()[0].reason is None
    assert repository.get("a") is not before
    assert scraped(metrics, "spikeserve_models_failed") == 0


def test_a_broken_file_that_was_mended_is_loaded(write, load):
    path = write("a")
    write("b")
    good = path.read_bytes()
    damage(path)
    repository, _, _ = load()
    assert states(repository) == [("a", "1", "failed"), ("b", "1", "ready")]
    assert refusal(repository.load, "a").kind is ErrorKind.IMPOSSIBLE
    path.write_bytes(good)
    repository.load("a")
    assert states(repository) == [("a", "1", "ready"), ("b", "1", "ready")]


def test_unloading_and_loading_again(write, load, scraped):
    write("a", file="a/1.safetensors")
    write("a", file="a/2.safetensors", seed=1)
    write("b")
    repository, metrics, _ = load()
    engine = repository.get("a", "2").engine
    assert [(i.version, i.state) for i in repository.unload("a", "2")] == [("2", "unloaded")]
    assert not engine.healthy
    assert repository.get("a").version == "1"
    assert scraped(metrics, "spikeserve_model_ready", model="a", version="2") is None
    repository.unload("a")
    assert refusal(repository.get, "a").kind is ErrorKind.NOT_FOUND
    assert states(repository) == [
        ("a", "1", "unloaded"),
        ("a", "2", "unloaded"),
        ("b", "1", "ready"),
    ]
    assert repository.ready
    repository.refresh()  # what an operator has unloaded stays so until its file changes
    assert states(repository)[0] == ("a", "1", "unloaded")
    repository.load("a")
    assert states(repository) == [("a", "1", "ready"), ("a", "2", "ready"), ("b", "1", "ready")]
    assert scraped(metrics, "spikeserve_model_ready", model="a", version="2") == 1


def test_what_is_not_there_cannot_be_loaded_or_unloaded(write, load):
    write("a")
    repository, _, _ = load()
    error = refusal(repository.load, "../../etc/passwd")
    assert error.kind is ErrorKind.NOT_FOUND
    assert "there are a" in error.message
    assert refusal(repository.load, "a", "7").kind is ErrorKind.NOT_FOUND
    assert refusal(repository.unload, "b").kind is ErrorKind.NOT_FOUND
    assert refusal(repository.unload, "a", "7").kind is ErrorKind.NOT_FOUND


def test_a_server_that_stops_loads_nothing_more(write, load):
    write("a")
    repository, _, _ = load()
    repository.drain(0)
    assert refusal(repository.load, "a").kind is ErrorKind.UNAVAILABLE


async def test_pictures_under_way_are_answered_while_models_come_and_go(
    write, classifier_of, picture
):
    """Hot reloads under load, a load and an unload of another model beside them: no request is lost."""
    write("a")
    write("b")
    classifier = classifier_of(executor="auto")  # whose making disturbs others the most
    repository = classifier.repository
    done = asyncio.Event()
    answers = 0

    async def client() -> None:
        nonlocal answers
        while not done.is_set():
            await classifier.classify(ClassifyRequest(picture(), model="a"))
            answers += 1

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for seed in range(6):
        before = answers
        await asyncio.to_thread(write, "a", seed=seed)
        await asyncio.to_thread(repository.load, "a")
        await asyncio.to_thread(repository.unload, "b")
        await asyncio.to_thread(repository.load, "b")
        await asyncio.to_thread(wait_until, lambda before=before: answers >= before + 8)
    done.set()
    await asyncio.gather(*clients)  # raises what a client was refused
    wait_until(lambda: len(repository._retiring) == 0)


async def test_a_picture_that_waits_when_its_model_is_unloaded_is_answered(
    write, classifier_of, picture
):
    write("a")
    classifier = classifier_of()
    waiting = [
        asyncio.create_task(classifier.classify(ClassifyRequest(picture(), timesteps=100)))
        for _ in range(12)
    ]
    engine = classifier.repository.get("a").engine
    await asyncio.to_thread(wait_until, lambda: engine.slots_in_use)
    await asyncio.to_thread(classifier.repository.unload, "a")
    for result in await asyncio.gather(*waiting):
        assert result.timesteps_used == 100
    with pytest.raises(ServiceError):
        await classifier.classify(ClassifyRequest(picture()))


async def test_a_stream_stays_with_the_model_that_it_began_with(write, streams_of):
    write("moves", MOVES)
    streams = streams_of()
    stream = await streams.open(StreamOptions(start_us=0))
    engine = stream.model.engine
    await asyncio.to_thread(write, "moves", MOVES, seed=1)
    await asyncio.to_thread(streams.repository.load, "moves")
    event = Events(*(np.zeros(1, kind) for kind in (np.int64, np.uint16, np.uint16, np.uint8)))
    assert await stream.feed(event) == []
    (answer,) = await stream.advance(1000)
    assert answer.events == 1
    assert streams.repository.get(kind="events").engine is not engine
    await stream.close()
    assert engine.healthy
    del stream, answer
    await asyncio.to_thread(wait_until, lambda: not engine.healthy)


def test_two_loads_at_once_do_the_work_once(write, load, scraped, monkeypatch):
    write("a")
    repository, metrics, _ = load()
    write("a", seed=1)
    inside, both = threading.Event(), threading.Event()
    real = module.start

    def slow(*arguments):
        inside.set()
        assert both.wait(60)
        return real(*arguments)

    monkeypatch.setattr(module, "start", slow)
    threads = [threading.Thread(target=repository.load, args=("a",)) for _ in range(2)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    both.set()
    for thread in threads:
        thread.join()
    assert scraped(metrics, "spikeserve_model_loads_total", model="a", outcome="loaded") == 2


def test_loads_of_two_models_do_not_wait_for_each_other(write, load, monkeypatch):
    write("a")
    repository, _, _ = load()
    write("b")
    write("c")
    meeting = threading.Barrier(2, timeout=60)
    real = module.start

    def together(*arguments):
        meeting.wait()
        return real(*arguments)

    monkeypatch.setattr(module, "start", together)
    threads = [threading.Thread(target=repository.load, args=(name,)) for name in "bc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state for _, _, state in states(repository)] == ["ready"] * 3


def test_an_unload_during_a_load_comes_after_it(write, load, monkeypatch):
    write("a")
    repository, _, _ = load()
    write("a", seed=1)
    inside, go = threading.Event(), threading.Event()
    real = module.start

    def slow(*arguments):
        inside.set()
        assert go.wait(60)
        return real(*arguments)

    monkeypatch.setattr(module, "start", slow)
    loading = threading.Thread(target=repository.load, args=("a",))
    loading.start()
    assert inside.wait(60)
    unloading = threading.Thread(target=repository.unload, args=("a",))
    unloading.start()
    assert repository.get("a").version == "1"  # the old one answers meanwhile
    go.set()
    loading.join()
    unloading.join()
    assert states(repository) == [("a", "1", "unloaded")]


@pytest.mark.parametrize("when", ["before it is read", "after it was read"])
def test_a_file_that_is_deleted_while_it_is_loaded(write, load, monkeypatch, when):
    write("a")
    repository, _, _ = load()
    path = write("b")
    real = module.start

    def deleted(*arguments):
        if when == "before it is read":
            path.unlink()
            return real(*arguments)
        model = real(*arguments)
        path.unlink()
        return model

    monkeypatch.setattr(module, "start", deleted)
    if when == "before it is read":
        assert "No such file" in refusal(repository.load, "b").message
        assert states(repository) == [("a", "1", "ready"), ("b", "1", "failed")]
    else:
        repository.load("b")
        assert states(repository) == [("a", "1", "ready"), ("b", "1", "ready")]
    repository.refresh()
    wait_until(lambda: states(repository) == [("a", "1", "ready")])


def test_a_half_written_settings_file_changes_nothing(write, load, tmp_path):
    write("a", file="a/1.safetensors")
    repository, _, _ = load()
    settings = tmp_path / "models" / "a" / "settings.toml"
    settings.write_text("slots = ")
    write("a", file="a/2.safetensors")
    error = refusal(repository.load, "a")
    assert error.kind is ErrorKind.IMPOSSIBLE
    assert str(settings) in error.message
    assert repository.get("a").version == "1"
    settings.write_text("slots = 0\nspeed = 3")
    assert "slots" in refusal(repository.load, "a").message
    settings.write_text("slots = 7")
    repository.load("a")
    assert repository.get("a", "1").engine.slots == 7
    assert [i.reason for i in repository.models()] == [None, None]


@pytest.mark.parametrize(
    ("wanted", "served"),
    [('"all"', ["1", "2", "10"]), ("2", ["2", "10"]), ('["1", "2"]', ["1", "2"])],
)
def test_the_settings_file_says_which_versions_are_served(write, load, tmp_path, wanted, served):
    for version in ("1", "2", "10"):
        write("a", file=f"a/{version}.safetensors")
    settings = tmp_path / "models" / "a" / "settings.toml"
    settings.write_text(f"versions = {wanted}")
    repository, _, _ = load()
    assert [v for _, v, state in states(repository) if state == "ready"] == served
    assert len(states(repository)) == 3
    settings.unlink()
    repository.refresh()
    assert [v for _, v, state in states(repository) if state == "ready"] == ["1", "2", "10"]


def ask(repository, requests, name="a"):
    """How many of so many requests get which version; the ids of requests are numbers."""
    counts: dict[str, int] = {}
    for number in range(requests):
        token = current_request_id.set(str(number))
        version = repository.get(name).version
        assert repository.get(name).version == version  # the same request, the same version
        current_request_id.reset(token)
        counts[version] = counts.get(version, 0) + 1
    return counts


def test_labels_and_the_share_of_a_canary(write, load, tmp_path):
    for version in "123":
        write("a", file=f"a/{version}.safetensors")
    settings = tmp_path / "models" / "a" / "settings.toml"
    settings.write_text('canary_share = 0.2\n[labels]\nstable = "1"\ncanary = "2"')
    repository, _, _ = load()
    assert repository.get("a", "stable").version == "1"
    assert repository.get("a", "canary").version == "2"
    assert repository.get("a", "3").version == "3"
    counts = ask(repository, 1000)
    assert set(counts) == {"1", "2"}
    assert 160 < counts["2"] < 240  # the ids are fixed, so the number is too
    assert [(i.version, i.labels, i.default) for i in repository.models()] == [
        ("1", ("stable",), True),
        ("2", ("canary",), False),
        ("3", (), False),
    ]
    repository.unload("a", "2")
    assert ask(repository, 100) == {"1": 100}
    error = refusal(repository.get, "a", "canary")
    assert error.kind is ErrorKind.UNAVAILABLE
    assert "canary of model a is version 2" in error.message
    repository.unload("a", "1")
    assert ask(repository, 10) == {"3": 10}


def test_labels_may_be_set_while_it_serves(write, load):
    for version in "12":
        write("a", file=f"a/{version}.safetensors")
    repository, _, _ = load()
    assert ask(repository, 10) == {"2": 10}
    repository.set_labels("a", Labels({"stable": "1", "canary": "2"}))
    assert ask(repository, 100) == {"1": 100}
    repository.set_labels("a", Labels({"stable": "1", "canary": "2"}, 1.0))
    assert ask(repository, 100) == {"2": 100}
    repository.set_labels("a", Labels({"canary": "2"}, 0.5))
    assert set(ask(repository, 100)) == {"1", "2"}
    error = refusal(repository.set_labels, "a", Labels({"stable": "9"}))
    assert error.kind is ErrorKind.IMPOSSIBLE
    assert "'9'" in error.message
    assert refusal(repository.set_labels, "b", Labels()).kind is ErrorKind.NOT_FOUND
    with pytest.raises(ValueError, match="canary"):
        Labels({"stable": "1"}, 0.5)


def test_a_watched_folder_is_followed(write, load, tmp_path):
    write("a", file="a/1.safetensors")
    repository, _, _ = load(watch=True)
    write("a", file="a/2.safetensors", seed=1)
    wait_until(lambda: repository.get("a").version == "2")
    write("b", file="new/1.safetensors")
    wait_until(lambda: ("new", "1", "ready") in states(repository))
    before = repository.get("new")
    damage(tmp_path / "models" / "new" / "1.safetensors")
    wait_until(lambda: next(i for i in repository.models() if i.name == "new").reason)
    assert repository.get("new") is before
    del before
    shutil.rmtree(tmp_path / "models" / "new")
    wait_until(lambda: [name for name, _, _ in states(repository)] == ["a", "a"])
    staged = tmp_path / "2.safetensors"
    os.replace(tmp_path / "models" / "a" / "2.safetensors", staged)
    wait_until(lambda: states(repository) == [("a", "1", "ready")])
    os.replace(staged, tmp_path / "models" / "a" / "2.safetensors")
    wait_until(lambda: repository.get("a").version == "2")
    assert isinstance(repository, Repository)


def test_what_is_known_to_be_wrong_is_said_once(write, load, scraped, tmp_path):
    write("same", file="a.safetensors")
    write("same", file="b.safetensors")
    repository, metrics, _ = load()
    failed = {"model": "same", "outcome": "failed"}
    assert scraped(metrics, "spikeserve_model_loads_total", **failed) == 1
    repository.refresh()
    assert scraped(metrics, "spikeserve_model_loads_total", **failed) == 1
    assert states(repository) == [("same", "1", "ready"), ("same", "1", "failed")]
    (tmp_path / "models" / "a.safetensors").unlink()
    repository.refresh()  # nobody has its name any more
    wait_until(lambda: [i.path.name for i in repository.models()] == ["b.safetensors"])
    assert states(repository) == [("same", "1", "ready")]
