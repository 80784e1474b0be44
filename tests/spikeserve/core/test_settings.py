import os
from pathlib import Path

import pytest

from spikeserve.settings import BUNDLED_MODELS, Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith("SPIKESERVE_"):
            monkeypatch.delenv(name)


def test_defaults():
    settings = load_settings()
    assert (settings.http_port, settings.grpc_port) == (8000, 8001)
    assert settings.models == (BUNDLED_MODELS,)


def test_every_setting_is_documented_under_its_field():
    missing = [name for name, field in Settings.model_fields.items() if not field.description]
    assert missing == []


def test_no_name_is_one_that_kubernetes_sets_by_itself():
    assert not [
        n for n in Settings.model_fields if n == "port" or n.startswith(("port_", "service_"))
    ]


def test_flags_go_before_environment_before_file_before_defaults(monkeypatch, tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('http_port = 1\ngrpc_port = 2\nslots = 3\nmodels = ["a", "b"]\n')
    monkeypatch.setenv("SPIKESERVE_CONFIG", str(file))
    monkeypatch.setenv("SPIKESERVE_HTTP_PORT", "10")
    monkeypatch.setenv("SPIKESERVE_GRPC_PORT", "20")
    settings = load_settings(http_port=100, host=None)
    assert (settings.http_port, settings.grpc_port, settings.slots) == (100, 20, 3)
    assert settings.models == (Path("a"), Path("b"))
    assert settings.host == "127.0.0.1"


def test_the_file_can_be_named_by_a_flag(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("slots = 3")
    assert load_settings(config=file).slots == 3


def test_models_in_the_environment_are_separated_as_in_path(monkeypatch):
    monkeypatch.setenv("SPIKESERVE_MODELS", os.pathsep.join(["/a", "~/b", ""]))
    assert load_settings().models == (Path("/a"), Path.home() / "b")
    assert load_settings(models=Path("/c")).models == (Path("/c"),)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTP_PORT", "eighty", r"http_port \(SPIKESERVE_HTTP_PORT\): .*integer.*'eighty'"),
        ("HTTP_PORT", "70000", "http_port.*65535"),
        ("SLOTS", "0", "slots.*greater than or equal to 1"),
        ("LOG_FORMAT", "xml", "log_format.*'text' or 'json'"),
        ("MODELS", "", "models.*names no folder"),
        ("CONFIG", "/does/not/exist.toml", "config: there is no file /does/not/exist.toml"),
    ],
)
def test_wrong_values_are_named(monkeypatch, name, value, says):
    monkeypatch.setenv(f"SPIKESERVE_{name}", value)
    with pytest.raises(SettingsError, match=says):
        load_settings()


def test_a_setting_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("prot = 3")
    with pytest.raises(SettingsError, match=r"prot: there is no such setting; .*http_port"):
        load_settings(config=file)
    file.write_text("prot = [")
    with pytest.raises(SettingsError, match=r"s\.toml"):
        load_settings(config=file)
