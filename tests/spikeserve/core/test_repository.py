import math

import pytest

from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.settings import load_settings
from spiketrain.checkpoint import load_checkpoint
from spiketrain.manifest import DurationWindow, EventInput
from spiketrain.neurons import GLIFConfig

MOVES = EventInput(sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=1000))


def listed(repository):
    return [(i.name, i.version, i.state, i.default) for i in repository.models()]


def refused(repository, *arguments, **options):
    with pytest.raises(ServiceError) as error:
        repository.get(*arguments, **options)
    return error.value


def test_flat_files_and_folders_of_versions(write, load):
    write("beta")
    write("alpha")
    write("whatever", file="gamma/2.safetensors")
    write("whatever", file="gamma/10.safetensors", seed=1)
    write("whatever", file="gamma/rc1.safetensors", seed=2)
    write("moves", MOVES)
    repository, _, _ = load()
    assert listed(repository) == [
        ("alpha", "1", "ready", True),
        ("beta", "1", "ready", False),
        ("gamma", "rc1", "ready", False),
        ("gamma", "2", "ready", False),
        ("gamma", "10", "ready", False),
        ("moves", "1", "ready", True),
    ]
    assert repository.ready
    assert repository.get("gamma").version == "10"
    assert repository.get("gamma", "2").version == "2"
    assert repository.get().name == "alpha"
    assert repository.get(kind="events").name == "moves"


def test_a_model_knows_its_neurons(write, load):
    path = write("alpha")
    model = load()[0].get()
    network = load_checkpoint(path).network()
    assert model.neurons == {k: math.prod(v) for k, v in network.neuron_shapes().items()}
    assert tuple(model.neurons) == model.engine.layers
    assert model.macs > 0
    assert not model.bound_to_timesteps


@pytest.mark.parametrize(
    "options", [{"neuron": GLIFConfig()}, {"layers": {"stages.1.neuron": GLIFConfig()}}]
)
def test_glif_anywhere_binds_a_model_to_its_timesteps(write, load, options):
    write("alpha", **options)
    assert load()[0].get().bound_to_timesteps


def test_the_default_is_the_one_of_the_settings_where_it_fits(write, load):
    write("alpha")
    write("beta")
    write("moves", MOVES)
    repository, _, _ = load(default_model="beta")
    assert repository.get().name == "beta"
    assert repository.get(kind="events").name == "moves"
    repository, _, _ = load(default_model="moves")
    assert repository.get().name == "alpha"
    repository, _, _ = load(default_model="typo")
    error = refused(repository)
    assert error.kind is ErrorKind.NOT_FOUND
    assert "'typo' is not loaded" in error.message


def test_unknown_names_and_versions_are_told_the_known_ones(write, load):
    write("alpha")
    write("beta")
    repository, _, _ = load()
    error = refused(repository, "gamma")
    assert error.kind is ErrorKind.NOT_FOUND
    assert "'gamma'" in error.message
    assert "alpha, beta" in error.message
    error = refused(repository, "alpha", "7")
    assert error.kind is ErrorKind.NOT_FOUND
    assert "has no version '7'; it has 1" in error.message
    error = refused(repository, kind="events")
    assert error.kind is ErrorKind.NOT_FOUND
    assert "no model takes events" in error.message


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "one byte":
        data[len(data) // 2] ^= 1
    elif how == "truncated":
        data = data[: len(data) // 2]
    else:
        data = bytearray(b"text")
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["one byte", "truncated", "text"])
def test_a_broken_file_is_listed_with_the_reason_and_the_others_are_served(
    write, load, how, scraped
):
    damage(write("broken"), how)
    write("fine")
    repository, metrics, _ = load()
    assert listed(repository) == [("broken", "1", "failed", False), ("fine", "1", "ready", True)]
    broken = repository.models()[0]
    assert str(broken.path) in broken.reason
    assert broken.manifest is None
    assert repository.ready
    assert refused(repository, "broken").kind is ErrorKind.NOT_FOUND
    assert scraped(metrics, "spikeserve_models_failed") == 1
    assert scraped(metrics, "spikeserve_model_ready", model="fine") == 1
    assert scraped(metrics, "spikeserve_model_ready", model="broken") is None


def test_a_name_twice_serves_the_first(write, load):
    first = write("same", file="a.safetensors")
    write("same", file="b.safetensors")
    repository, _, _ = load()
    assert repository.get("same").path == first
    failed = [i for i in repository.models() if i.state == "failed"]
    assert len(failed) == 1
    assert str(first) in failed[0].reason


def test_a_folder_that_cannot_name_a_model_is_listed(write, load):
    write("fine", file="Not A Name/1.safetensors")
    repository, _, _ = load()
    (info,) = repository.models()
    assert info.state == "failed"
    assert "cannot name a model" in info.reason


def test_without_any_model_it_is_not_ready_and_says_so(load, tmp_path):
    repository, _, _ = load(models=tmp_path / "missing")
    assert not repository.ready
    assert refused(repository).kind is ErrorKind.UNAVAILABLE
    (info,) = repository.models()
    assert info.state == "failed"
    assert "missing" in info.reason


def test_before_loading_it_is_not_ready_and_asks_to_try_again(write, tmp_path):
    write("alpha")
    repository = Repository(load_settings(models=tmp_path / "models"), Metrics())
    assert not repository.ready
    error = refused(repository, "alpha")
    assert error.kind is ErrorKind.UNAVAILABLE
    assert error.retry_after
    repository.close()


def test_single_files_and_other_files(write, load, tmp_path):
    path = write("alpha")
    (tmp_path / "models" / "notes.txt").write_text("not a model")
    (tmp_path / "models" / ".hidden.safetensors").write_text("half written")
    assert listed(load()[0]) == [("alpha", "1", "ready", True)]
    assert listed(load(models=path)[0]) == [("alpha", "1", "ready", True)]


def test_closing_ends_readiness(write, load):
    write("alpha")
    repository, metrics, _ = load()
    assert repository.drain(1)
    assert not repository.ready
    repository.close()
    repository.close()
    assert not repository.ready
    metrics.render()


def test_a_repository_closed_while_it_loads_leaves_nothing_running(write, tmp_path):
    write("alpha")
    repository = Repository(load_settings(models=tmp_path / "models", slots=1), Metrics())
    repository.close()
    repository.load_all()
    assert not repository.ready
    with pytest.raises(ServiceError):
        repository.get("alpha").engine.check()


def test_one_engine_that_crashes_makes_the_server_not_ready(write, load):
    write("alpha")
    write("beta")
    repository, _, _ = load()
    repository.get("alpha").engine.stop()
    assert not repository.ready
