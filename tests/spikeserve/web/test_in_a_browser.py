"""The page in headless Chromium, against a server with bundled models: what a person sees."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spikeserve.settings import BUNDLED_MODELS, Settings, load_settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MODELS = ("fashion-clif", "fashion-clif-lif", "nmnist-clif")
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def address(serve: Callable[[Settings], str]) -> str:
    models = tuple(BUNDLED_MODELS / f"{name}.safetensors" for name in MODELS)
    ports = {"http_port": 0, "grpc_port": 0}
    return serve(load_settings(models=models, slots=4, torch_threads=1, drain_seconds=0.5, **ports))


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, open. Afterwards: nothing went wrong in it, and nothing was fetched from elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None,
    )
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("body[data-started]")
    yield page
    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((address, "blob:"))] == []


def drop(page: Page, view: str, content: bytes, name: str, media_type: str) -> None:
    """As a file manager does it."""
    page.evaluate(
        """([view, base64, name, type]) => {
            const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type }));
            for (const kind of ["dragover", "drop"])
                document.querySelector(view).dispatchEvent(
                    new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [view, base64.b64encode(content).decode(), name, media_type],
    )


def test_a_dropped_picture_shows_its_label_from_both_models(page: Page, checkout: Path) -> None:
    picture = (checkout / "examples" / "garment.png").read_bytes()
    drop(page, "#picture", picture, "garment.png", "image/png")
    page.wait_for_selector(".result >> nth=1")
    assert page.locator(".result h2").all_inner_texts() == ["fashion-clif", "fashion-clif-lif"]
    for answer in page.locator(".answer").all_inner_texts():
        assert answer.startswith("Ankle boot")
    assert "Both say Ankle boot" in page.inner_text("#picture-summary")
    first = page.locator(".result").first
    assert first.locator(".bars li").count() == 5
    assert first.locator(".growth circle").count() == 16  # four classes, four timesteps
    assert first.locator(".rates tbody tr").count() == 3
    spikes = first.locator("canvas.raster").get_attribute("aria-label")
    assert spikes is not None
    assert spikes.startswith("Spikes of the neurons shown, over 4 timesteps: stages.0.neuron ")
    assert has_colours(page, ".result canvas.raster")


@pytest.mark.parametrize("name", ["Trouser", "Dress", "Bag"])
def test_a_drawn_sample_is_what_it_looks_like(page: Page, name: str) -> None:
    page.select_option("#picture-other", "")
    page.get_by_role("button", name=f"Drawn sample: {name}").click()
    page.wait_for_selector(".result")
    assert page.locator(".answer").inner_text().startswith(name)


def test_early_exit_shows_where_it_stopped(page: Page) -> None:
    page.select_option("#picture-other", "")
    page.select_option("#picture-exit", "fast")
    page.get_by_role("button", name="Drawn sample: Ankle boot").click()
    page.wait_for_selector(".result")
    assert "1 of 4" in page.locator(".result .readouts").inner_text()
    assert page.locator(".growth .stop-text").text_content() == "stopped here"


def test_a_pasted_picture_is_classified(page: Page, checkout: Path) -> None:
    content = base64.b64encode((checkout / "examples" / "garment.png").read_bytes()).decode()
    page.evaluate(
        """(base64) => {
            const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "x.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
        }""",
        content,
    )
    page.wait_for_selector(".result")
    assert page.locator(".answer").first.inner_text().startswith("Ankle boot")


def test_a_picture_of_the_webcam_is_classified(page: Page) -> None:
    page.click("#picture-camera")
    page.click("#picture-snap")
    page.wait_for_selector(".result")
    assert page.locator("#picture-video").is_hidden()


def test_what_is_no_picture_shows_the_servers_words(page: Page) -> None:
    drop(page, "#picture", b"certainly no picture", "note.txt", "text/plain")
    problem = page.locator("#picture-problem .problem")
    problem.wait_for()
    assert "Unsupported content" in problem.inner_text()
    assert "the content is not a picture in one of the formats" in problem.inner_text()
    assert page.locator(".result").count() == 0
    page.get_by_role("button", name="Drawn sample: Bag").click()
    page.wait_for_selector(".result")
    assert problem.count() == 0


def test_an_impossible_wish_shows_the_servers_words(page: Page) -> None:
    page.fill("#picture-timesteps", "2")
    page.select_option("#picture-exit", "fast")
    page.get_by_role("button", name="Drawn sample: Bag").click()
    problem = page.locator("#picture-problem .problem")
    problem.wait_for()
    assert "Well-formed but impossible" in problem.inner_text()
    assert "timesteps" in problem.inner_text()


def test_a_dropped_recording_shows_its_timeline_and_decision(page: Page, checkout: Path) -> None:
    page.get_by_role("tab", name="Events").click()
    page.select_option("#events-speed", "0.5")
    recording = (checkout / "examples" / "digit.npz").read_bytes()
    drop(page, "#events", recording, "digit.npz", "application/octet-stream")
    page.wait_for_function(
        "() => document.querySelector('#events-source').textContent.startsWith('ended')"
    )
    assert "npz, 4,592 events" in page.inner_text("#events-source")
    decisions = page.locator("#events-log li").all_text_contents()
    assert decisions
    assert decisions[0].endswith(": no decision")
    assert any(each.endswith(": 3") for each in decisions)
    label = page.locator("#events-timeline canvas").get_attribute("aria-label")
    assert label is not None
    assert "windows; the last says" in label
    assert has_colours(page, "#events-timeline canvas")
    assert page.locator("#events-readouts").inner_text().splitlines()[3] >= "15"


def test_the_demonstration_runs_and_is_stopped(page: Page) -> None:
    page.get_by_role("tab", name="Events").click()
    page.select_option("#events-speed", "1")
    page.click("#events-demo")
    page.wait_for_function("() => document.querySelectorAll('#events-log li').length >= 4")
    page.click("#events-stop")
    assert page.locator("#events-stop").is_disabled()
    assert page.locator("#events-problem .problem").count() == 0


def test_the_webcam_becomes_events_in_the_browser(page: Page) -> None:
    page.get_by_role("tab", name="Events").click()
    page.click("#events-camera")
    page.wait_for_function(
        "() => /^\\d+ windows/.test(document.querySelector('#events-timeline canvas').ariaLabel)"
    )
    assert "webcam, 34x34 pixels" in page.inner_text("#events-source")
    page.wait_for_function(
        "() => parseFloat(document.querySelector('#events-readouts dd').textContent) > 0"
    )
    page.click("#events-stop")
    assert page.locator("#events-video").is_hidden()


def test_what_is_no_recording_shows_the_servers_words(page: Page) -> None:
    page.get_by_role("tab", name="Events").click()
    drop(page, "#events", b"certainly no recording", "note.txt", "text/plain")
    problem = page.locator("#events-problem .problem")
    problem.wait_for()
    assert "Unsupported content" in problem.inner_text()
    assert page.inner_text("#events-source") == "no stream"


def test_the_server_panel_has_models_and_what_was_refused(page: Page) -> None:
    drop(page, "#picture", b"neither is this", "note.txt", "text/plain")
    page.locator("#picture-problem .problem").wait_for()
    page.get_by_role("tab", name="Server").click()
    page.wait_for_selector("#server-refusals td.why")
    rows = page.locator("#server-models tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == list(MODELS)
    assert (
        "the content is not a picture" in page.locator("#server-refusals td.why").first.inner_text()
    )


def test_the_server_panel_says_when_neurons_fire_otherwise_than_on_held_out_data(
    page: Page,
) -> None:
    # White where pictures of clothes are black.
    page.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(28, 28);
            const context = canvas.getContext("2d");
            context.fillStyle = "#fff";
            context.fillRect(0, 0, 28, 28);
            const body = await canvas.convertToBlob({ type: "image/png" });
            for (let i = 0; i < 40; i++) await fetch("/classify?model=fashion-clif", { method: "POST", body });
        }"""
    )
    page.get_by_role("tab", name="Server").click()
    page.wait_for_selector("#server-drift .shift")
    tables = page.locator("#server-drift tbody")
    assert tables.count() == len(MODELS)
    clif = tables.first.inner_text()
    assert clif.startswith("fashion-clif")
    assert "drifting" in clif
    assert "than on held-out data: lately" in clif
    assert tables.first.locator("tr").count() == 3


def test_the_keyboard_reaches_all_views_and_samples(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    for view in ("events", "server", "picture"):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"tab-{view}"
        assert page.locator(f"#{view}").is_visible()
    page.get_by_role("button", name="Drawn sample: Dress").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".result")


def test_every_control_has_a_name(page: Page) -> None:
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, select, input, canvas, [role=tab]")].filter((each) =>
            !(each.textContent.trim() || each.ariaLabel || each.labels?.length) && !each.closest("button[aria-label]")
        ).map((each) => each.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Page, scheme: str) -> None:
    page.evaluate("(scheme) => document.documentElement.dataset.theme = scheme", scheme)
    pairs = [
        ("--ink", "--panel"), ("--ink", "--ground"), ("--ink", "--sunk"),
        ("--soft", "--panel"), ("--soft", "--ground"), ("--soft", "--sunk"),
        ("--accent", "--panel"), ("--on-accent", "--accent"), ("--bad", "--bad-ground"),
        *((f"--class-{i}", "--panel") for i in range(1, 5)),
    ]  # fmt: skip
    colours = page.evaluate(
        "async (names) => { const { rgb } = await import('/web/dom.js');"
        " return Object.fromEntries(names.map((name) => [name, rgb(name)])); }",
        sorted({name for pair in pairs for name in pair}),
    )
    for text, ground in pairs:
        # AA of WCAG 2.2, for text of any size.
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("view", ["picture", "events", "server"])
def test_it_fits_a_phone(page: Page, view: str) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    if view == "picture":
        page.get_by_role("button", name="Drawn sample: Bag").click()
        page.wait_for_selector(".result")
    page.click(f"#tab-{view}")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def has_colours(page: Page, canvas: str) -> bool:
    """Whether something was drawn on it: more than one colour."""
    return bool(
        page.evaluate(
            """(selector) => {
                const canvas = document.querySelector(selector);
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return new Set(new Uint32Array(data.buffer)).size > 3;
            }""",
            canvas,
        )
    )


def contrast(text: list[float], ground: list[float]) -> float:
    """Contrast ratio of WCAG 2.2."""
    lighter, darker = sorted((luminance(text), luminance(ground)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(rgb: list[float]) -> float:
    parts = [each / 255 for each in rgb]
    red, green, blue = (
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
