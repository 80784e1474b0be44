"""The page of a server that asks for API keys, in headless Chromium: who has none is asked, in words, and nothing of it is in an address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spikeserve.access.keys import KeyEntry, KeyFile, Scope, digest, write_keys
from spikeserve.settings import Settings, load_settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_MS = 60_000
SCOPES: dict[str, tuple[Scope, ...]] = {
    "sps_all": ("classify", "stream", "metrics"),
    "sps_pictures": ("classify",),
}


def entries(*keys: str) -> KeyFile:
    return KeyFile(
        keys=tuple(KeyEntry(name=key, sha256=digest(key), scopes=SCOPES[key]) for key in keys)
    )


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(path, entries(*SCOPES))
    return path


@pytest.fixture(scope="module")
def address(serve: Callable[[Settings], str], model_folder: Path, key_file: Path) -> str:
    return serve(
        load_settings(
            models=model_folder,
            keys=key_file,
            http_port=0,
            grpc_port=0,
            torch_threads=1,
            executor="reference",
            drain_seconds=0.5,
        )
    )


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, asking. Afterwards: no address that was asked for had a key in it."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#key-input:focus")
    yield page
    assert "sps" not in page.url
    context.close()
    assert errors == []
    assert [
        url for url in asked if "sps" in url or not url.startswith((address, "blob:", "ws"))
    ] == []


def give(page: Page, key: str) -> None:
    page.keyboard.type(key)
    page.keyboard.press("Enter")


def let_in(page: Page) -> None:
    page.wait_for_selector("body[data-started]")
    assert page.locator("#key").is_hidden()


def test_a_wrong_key_is_told_and_a_right_one_classifies_and_streams(page: Page) -> None:
    assert page.locator("#picture").is_hidden()
    assert page.locator("#key-input").get_attribute("type") == "password"
    assert page.locator("#key-problem").inner_text() == ""
    give(page, "sps_wrong")
    page.wait_for_selector("#key-input[aria-invalid=true]:focus")
    assert "the API key is not known here, or has expired" in page.inner_text("#key-problem")
    page.fill("#key-input", "")
    give(page, "two words")
    assert "without spaces" in page.inner_text("#key-problem")
    page.fill("#key-input", "")
    give(page, "sps_all")
    let_in(page)
    assert page.inner_text("#health").startswith("ready")
    page.get_by_role("button", name="Drawn sample: Bag").click()
    page.wait_for_selector(".result")
    page.get_by_role("tab", name="Events").click()
    page.select_option("#events-speed", "1")
    page.click("#events-demo")
    page.wait_for_function(
        "() => /^[1-9]\\d* windows/.test(document.querySelector('#events-timeline canvas').ariaLabel)"
    )
    page.click("#events-stop")
    page.get_by_role("tab", name="Server").click()
    page.wait_for_selector("#server-models tbody tr")
    assert page.locator(".problem").count() == 0


def test_the_key_outlives_a_reload_until_it_is_forgotten(page: Page) -> None:
    give(page, "sps_all")
    let_in(page)
    page.reload()
    let_in(page)
    page.click("#key-forget")
    page.wait_for_selector("#key-input:focus")
    assert page.evaluate("sessionStorage.length + localStorage.length") == 0
    assert page.context.cookies() == []


def test_what_a_key_may_not_do_is_said_where_it_is_tried(page: Page) -> None:
    give(page, "sps_pictures")
    let_in(page)
    assert page.inner_text("#health") == "ready"
    page.get_by_role("button", name="Drawn sample: Bag").click()
    page.wait_for_selector(".result")
    page.get_by_role("tab", name="Events").click()
    page.click("#events-demo")
    page.wait_for_selector("#events-problem .problem")
    assert "this needs stream" in page.inner_text("#events-problem")
    page.get_by_role("tab", name="Server").click()
    page.wait_for_selector("#server-problem .problem")
    assert "this needs metrics" in page.inner_text("#server-problem")


def test_a_key_that_is_revoked_is_asked_for_again(page: Page, key_file: Path) -> None:
    give(page, "sps_all")
    let_in(page)
    write_keys(key_file, entries("sps_pictures"))
    try:
        page.wait_for_timeout(1100)  # the server looks at the file once a second
        page.get_by_role("button", name="Drawn sample: Bag").click()
        page.wait_for_selector("#key-input:focus")
        assert page.locator("#picture").is_hidden()
        give(page, "sps_pictures")
        page.wait_for_selector("#picture:visible")
        page.get_by_role("button", name="Drawn sample: Bag").click()
        page.wait_for_selector(".result")
    finally:
        write_keys(key_file, entries(*SCOPES))


def test_a_browser_led_to_a_route_itself_asks_for_the_key_as_a_password(
    browser: Browser, address: str
) -> None:
    context = browser.new_context(http_credentials={"username": "any", "password": "sps_pictures"})
    reply = context.new_page().goto(f"{address}/models")
    assert reply is not None
    assert reply.status == 200
    context.close()
    context = browser.new_context()
    # What Chromium says when nobody fills in its dialog.
    with pytest.raises(Exception, match="ERR_INVALID_AUTH_CREDENTIALS"):
        context.new_page().goto(f"{address}/models")
    context.close()
