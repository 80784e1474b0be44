"""`spiketrain report` on a tiny run: right figures, one file with everything in it, and safe names."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.cli import app
from spiketrain.convert.source import training_data
from spiketrain.data import Split
from spiketrain.energy import fan_out, synaptic_operations
from spiketrain.evaluate import evaluate
from spiketrain.report import charts
from spiketrain.report.curves import read_curves
from spiketrain.report.measure import measure
from spiketrain.report.page import wilson

VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """Every tag is closed where it should be; collects attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "data")]
        assert not any(key.startswith("on") for key, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style",):
            self.text += data + " "


def spiketrain(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def page(trained: Any) -> Tags:
    said = spiketrain("report", trained.folder, "--data", trained.data)
    assert "report.html: " in said
    assert "of 60 samples" in said
    return Tags((trained.folder / "report.html").read_text())


def test_one_file_with_everything_in_it(page: Tags, trained: Any) -> None:
    assert "script" not in page.names
    assert {"svg", "polyline", "table", "style"} <= page.names
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    text = (trained.folder / "report.html").read_text()
    assert not re.findall(r"https?://|url\(|@import", text)
    assert "light dark" in text


def test_every_section_is_there_with_its_figures(page: Tags, trained: Any) -> None:
    manifest = load_checkpoint(trained.folder / "best.safetensors").manifest
    test = next(entry for entry in manifest.accuracy if entry.split == "test")
    assert f"{100 * test.value:.2f} %" in page.text
    for title in (
        "Training",
        "Accuracy by timestep",
        "Confusion",
        "Firing rates",
        "Spikes of single samples",
        "Synaptic operations and energy",
        "Where it comes from",
    ):
        assert title in page.text
    for value in test.by_timestep:
        assert f"{100 * value:.2f} %" in page.text
    assert (
        "Measured on 60 samples of fashion-mnist, test. The epoch was selected on validation."
        in page.text
    )
    assert "Ankle boot" in page.text
    assert manifest.digest in page.text
    assert "32-bit float" in page.text
    assert "8-bit integer" in page.text


def test_what_is_measured_is_what_evaluation_says(trained: Any) -> None:
    checkpoint = load_checkpoint(trained.folder / "best.safetensors")
    network = checkpoint.network()
    data = training_data(checkpoint.manifest, trained.data)
    measured = measure(network, data, data.test, 3, batch_size=17)
    expected = evaluate(network, data.batches("test", 60))
    assert measured.accuracy_by_timestep == pytest.approx(expected.accuracy_by_timestep)
    assert int(measured.confusion.sum()) == 60
    assert measured.confusion.diag().sum() / 60 == pytest.approx(expected.accuracy)
    right = expected.labels * 10 + expected.predictions
    assert torch.equal(measured.confusion.flatten(), torch.bincount(right, minlength=100))
    for name, rates in expected.rates_by_timestep.items():
        torch.testing.assert_close(measured.rates[name].float(), rates)
    x, _ = next(iter(data.batches("test", 60)))
    with torch.no_grad():
        spikes = {name: s.sum(0) for name, s in network(x, 3).spikes.items()}
    operations = synaptic_operations(spikes, fan_out(network))
    torch.testing.assert_close(measured.operations_of_samples, operations)
    assert measured.spikes == pytest.approx(sum(s.sum().item() for s in spikes.values()) / 60)
    assert measured.work.passes == 1
    assert measured.work.state == 2 * measured.work.neurons  # CLIF has two
    assert measured.work.updates == 3 * measured.work.neurons * 3
    silent = {name: (s.sum(0) == 0).double().mean().item() for name, s in spikes.items()}
    assert measured.silent == pytest.approx(silent)


def test_chosen_samples_are_shown_as_they_fire(trained: Any) -> None:
    checkpoint = load_checkpoint(trained.folder / "best.safetensors")
    network = checkpoint.network()
    data = training_data(checkpoint.manifest, trained.data)
    measured = measure(network, data, data.test, 3, [5, 41])
    assert [each.index for each in measured.rasters] == [5, 41]
    raster = measured.rasters[1]
    x = next(iter(data.batches(data.test.at(torch.tensor([41])), 1)))[0]
    with torch.no_grad():
        run = network(x, 3)
    for name, shown in raster.spikes.items():
        flat = run.spikes[name][:, 0].flatten(1)
        assert raster.shown_of[name] == int(flat.any(0).sum())
        columns = {tuple(column.tolist()) for column in flat.T.bool()}
        assert {tuple(column.tolist()) for column in shown.T} <= columns
        assert shown.any(0).all()
    torch.testing.assert_close(raster.picture, data.test.x[41].float() / 255)
    assert raster.answers[-1][0] == int(run.logits.mean(0).argmax())
    for wrong in ([60], [-1]):
        with pytest.raises(ValueError, match="samples 0 to 59"):
            measure(network, data, data.test, 3, wrong)
    empty = Split(data.test.x[:0], data.test.y[:0])
    with pytest.raises(ValueError, match="empty"):
        measure(network, data, empty, 3)


def test_a_checkpoint_alone_has_no_curves_and_its_names_are_no_html(
    trained: Any, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(trained.folder / "best.safetensors")
    classes = ('<script>alert("1")</script>', "a & b", *"cdefghij")
    manifest = checkpoint.manifest.model_copy(update={"classes": classes})
    save_checkpoint(tmp_path / "x.safetensors", manifest, checkpoint.tensors)
    out = tmp_path / "page.html"
    command = ("report", tmp_path / "x.safetensors", "--data", trained.data, "-o", out)
    spiketrain(*command, "--limit", 20, "--sample", 3, "--split", "validation")
    page = Tags(out.read_text())
    assert "script" not in page.names
    assert "No training logs lie beside this checkpoint" in page.text
    assert "20 samples of fashion-mnist, validation" in page.text
    assert "Sample 3" in page.text
    assert "--sample: the split has samples 0 to 19" in spiketrain(
        *command, "--limit", 20, "--sample", 20, code=1
    )
    assert "is not there: name the folder" in spiketrain("report", tmp_path / "none", code=1)


def test_curves_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard.writer")
    assert read_curves(tmp_path) == {}
    for start, values in ((1, (1.0, 0.8, 0.7)), (3, (0.6, 0.5))):
        board = writer.SummaryWriter(str(tmp_path / "tensorboard"), filename_suffix=f".{start}")
        for epoch, value in enumerate(values, start):
            board.add_scalar("loss/train", value, epoch, walltime=1000 * start + epoch)
        board.close()
    curve = read_curves(tmp_path)["loss/train"]
    assert [epoch for epoch, _ in curve] == [1, 2, 3, 4]
    assert [value for _, value in curve] == pytest.approx([1.0, 0.8, 0.6, 0.5])


@pytest.mark.parametrize(
    "values", [[0.5], [0.5, 0.5], [0.0, 0.0], [1e-9, 2e-9], [3e8, -1e8], [0.91, 0.9101, 0.9102]]
)
def test_axes_hold_their_lines(values: list[float]) -> None:
    points = list(enumerate(values, 1))
    svg = charts.lines({"a": points, "b": points}, "epoch")
    ys = [float(y) for y in re.findall(r'cy="([-\d.e+]+)"', svg)]
    assert len(ys) == 2 * len(values)
    assert all(0 <= y <= 220 for y in ys)
    ticks = [float(y) for y in re.findall(r'class="grid" .*? y1="([-\d.]+)"', svg)]
    assert 2 <= len(ticks) <= 8
    assert charts.lines({}, "epoch").endswith("</svg>")


def test_intervals() -> None:
    """The score interval's figures for 8 of 10 are in every table of it."""
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(1.0, 50)[1] == pytest.approx(1.0)
    assert wilson(0.0, 50)[0] == pytest.approx(0.0)


@pytest.mark.usefixtures("page")
def test_in_a_browser(trained: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    path = next((each for each in found if each), None)
    if path is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    grounds = set()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 420, "height": 800}, color_scheme=scheme)
            said: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("request", lambda request, said=said: said.append(request.url))
            page.goto(f"file://{trained.folder}/report.html")
            # Nothing sticks out, and nothing else is asked for.
            assert page.evaluate("document.documentElement.scrollWidth") <= 420
            others = [each for each in said if not each.startswith(("file:", "data:"))]
            assert not others
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.close()
    assert len(grounds) == 2
