"""The documentation builds without a warning, and the reference has what the code has."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

from spikeserve.settings import Settings
from spiketrain.manifest import Manifest

REFERENCE = ("rest", "grpc", "settings", "metrics", "checkpoint", "cli")


def build(
    checkout: Path, target: Path, config: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Never with -q: it would silence what --strict counts."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(target)]
    if config is not None:
        command += ["-f", str(config)]
    return subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def site(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(checkout, target)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


def text(site: Path, page: str) -> str:
    return re.sub(r"<[^>]+>", " ", (site / page).read_text(encoding="utf-8"))


def test_every_page_is_in_the_navigation(site: Path, checkout: Path) -> None:
    front = (site / "index.html").read_text()
    for page in (checkout / "docs").rglob("*.md"):
        name = page.relative_to(checkout / "docs").with_suffix(".html").as_posix()
        assert f'href="{name}' in front or name == "index.html", name
    assert all(f'href="reference/{name}.html' in front for name in REFERENCE)


def test_the_reference_has_all_settings_fields_calls_and_commands(site: Path) -> None:
    settings = text(site, "reference/settings.html")
    assert all(f"SPIKESERVE_{name.upper()}" in settings for name in Settings.model_fields)
    checkpoint = text(site, "reference/checkpoint.html")
    assert all(name in checkpoint for name in Manifest.model_fields)
    rpc = text(site, "reference/grpc.html")
    assert all(f"{name} " in rpc or f"{name}\n" in rpc for name in ("EventMessage", "COLUMNS_V1"))
    assert "POST /classify/events" in text(site, "reference/rest.html")
    assert "spikeserve_drifting" in text(site, "reference/metrics.html")
    cli = text(site, "reference/cli.html")
    assert all(name in cli for name in ("spikeserve serve", "spiketrain profile", "--http-port"))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        found = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', page.read_text())
        assert found == [], page


def test_links_that_lead_nowhere_are_errors(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    links = "[here](nowhere.md) [there](index.md#no-heading)"
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{links}\n")
    config = (checkout / "mkdocs.yml").read_text()
    # The generated pages are no matter here, and take most of the time.
    config = config.replace("hooks: [docs/generate/hooks.py]\n", "")
    (tmp_path / "mkdocs.yml").write_text(config)
    done = build(tmp_path, tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "no-heading" in done.stderr


def test_links_out_of_the_documentation_lead_to_files_of_the_checkout(checkout: Path) -> None:
    sys.path.insert(0, str(checkout / "docs"))
    hooks = importlib.import_module("generate.hooks")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    config = {"docs_dir": str(checkout / "docs")}

    def shown(link: str) -> str:
        return str(hooks.on_page_markdown(link, page, SimpleNamespace(**config)))

    assert shown("[CHANGELOG.md](../CHANGELOG.md)") == "`CHANGELOG.md`"
    assert shown("[the licence](../LICENSE)") == "the licence (`LICENSE`)"
    assert shown("[performance](performance.md)") == "[performance](performance.md)"
    with pytest.raises(PluginError, match="leads nowhere"):
        shown("[x](../nowhere.py)")
