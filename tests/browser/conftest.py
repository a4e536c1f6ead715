from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from .servers import Server, demo, hypercorn

CHROMIUM = "/usr/bin/chromium"
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def running() -> Iterator[Server]:
    """The demo, of its own for each test: what is in the table is known."""
    with demo() as running:
        yield running


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where workers find each other. The path of a socket must not be as long as pytest's are."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def workers(directory: Path) -> Iterator[Server]:
    """``hypercorn`` with two workers."""
    with hypercorn(directory, workers=2) as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Pages in which nothing goes wrong that a test does not see."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    context.on("console", lambda message: problems.append(message.text))
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("dialog", lambda dialog: problems.append(dialog.message))
    yield context
    context.close()
    assert problems == []


@pytest.fixture
def page(running: Server, context: BrowserContext) -> Page:
    """The status page of the demo."""
    page = context.new_page()
    page.goto(running.url)
    return page
