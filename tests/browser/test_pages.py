"""What an operator sees: the Temporal UI and the API's own pages, in a real browser."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Frame, Page, expect, sync_playwright

from tests.stack import Stack

pytestmark = pytest.mark.slow

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
_LOADS_WITHIN_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    binary = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip("no Chromium on this machine (tests/system.sh installs it where it may)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=binary, args=["--no-sandbox", "--disable-gpu", "--disable-sync", *_QUIET]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1500, "height": 1100})
    opened.set_default_timeout(_LOADS_WITHIN_MS)
    expect.set_options(timeout=_LOADS_WITHIN_MS)
    yield opened
    opened.close()


def until_written(page: Page, text: str) -> None:
    """Markdown is shown in frames of its own."""
    deadline = time.monotonic() + _LOADS_WITHIN_MS / 1000
    while not any(text in _written(frame) for frame in page.frames):
        assert time.monotonic() < deadline, f"{text!r} is nowhere on {page.url}"
        page.wait_for_timeout(100)


def _written(frame: Frame) -> str:
    """Nothing, if it has just been taken off the page to be drawn anew."""
    try:
        return frame.locator("body").inner_text()
    except Error:
        if not frame.is_detached():
            raise
        return ""


def test_the_temporal_ui_shows_what_each_entity_is_and_does(stack: Stack, small_model: Path, page: Page) -> None:
    stack.deploy("seen", str(small_model))
    stack.until_ready("seen")
    instance = stack.instances("seen")[0]
    host = stack.host("a")

    url = f"{stack.settings.effective_temporal_ui_url}/namespaces/default/workflows"
    page.goto(url)
    if page.get_by_text("Internal Error", exact=True).is_visible():  # of a server that has just begun
        page.goto(url)
    for workflow_id in ("deployment/seen", f"instance/{instance['id']}", f"host/{host['id']}"):
        expect(page.get_by_text(workflow_id, exact=True).first).to_be_visible()

    page.goto(stack.deployment("seen")["status"]["workflow_url"])
    page.get_by_text("User Metadata").first.click()
    until_written(page, f"seen: {small_model.name}")
    until_written(page, "1 of 1 replicas ready")
    page.get_by_text("Search Attributes").first.click()
    for shown in ('"HoldfastState"', '"ready"', '"HoldfastModel"', '"HoldfastRevision"'):
        expect(page.get_by_text(shown, exact=True).first).to_be_visible()

    page.goto(instance["workflow_url"])
    page.get_by_text("User Metadata").first.click()
    until_written(page, "replica 1 of seen, revision 1")
    until_written(page, "serve until told to stop")
    page.get_by_text("Pending Activities").first.click()
    expect(page.get_by_text("run_engine").first).to_be_visible()

    page.goto(host["workflow_url"])
    page.get_by_text("User Metadata").first.click()
    until_written(page, "hold the lease")


def test_the_api_describes_itself_without_the_internet(stack: Stack, page: Page) -> None:
    elsewhere: list[str] = []
    page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith((stack.url, "data:")) else None)
    page.goto(f"{stack.url}/docs")
    expect(page.get_by_text("/api/v1/deployments", exact=True).first).to_be_visible()
    expect(page.get_by_text("Create a deployment")).to_be_visible()
    assert elsewhere == []
