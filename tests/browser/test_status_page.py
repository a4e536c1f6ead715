"""The status page as a person sees it, in Chromium."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from .demo import Demo

# Every piece of text that is shown, with its contrast to what is behind it (WCAG 2, 1.4.3).
CONTRASTS = """() => {
  const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
  const luminance = ([r, g, b]) =>
    0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b)
  const numbers = color => color.match(/[\\d.]+/g).map(Number)
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = numbers(getComputedStyle(element).backgroundColor)
      if (color.length === 3 || color[3] === 1) return color
    }
    return [255, 255, 255]
  }
  const found = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue
    if (element.closest("script, style")) continue
    const [a, b] = [numbers(getComputedStyle(element).color), behind(element)].map(luminance)
    found.push([element.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)])
  }
  return found
}"""


def number(page: Page, state: str) -> Any:
    return page.locator(f"article.{state} .number")


def test_the_values_change_while_connections_come_and_go(page: Page, running: Demo) -> None:
    """Without loading the page again: gauges, totals, chart and table."""
    page.evaluate("window.loaded = true")
    expect(page.locator("#live")).to_have_text("live")
    expect(number(page, "active")).to_have_text("1")  # the page's own
    chart = page.locator("article.idle path").get_attribute("d")
    for _ in range(3):
        running.connect()
        running.connect("/try")
    running.websocket()
    expect(number(page, "new")).to_have_text("3")
    expect(number(page, "idle")).to_have_text("3")
    expect(number(page, "hijacked")).to_have_text("1")
    expect(page.locator("tbody tr.idle")).to_have_count(3)
    expect(page.locator("tbody tr.idle .path").first).to_have_text("/try")
    assert page.locator("article.idle path").get_attribute("d") != chart
    running.close_clients()
    expect(number(page, "new")).to_have_text("0")
    expect(page.locator("tbody tr.hijacked")).to_have_count(0)
    closed = page.locator("#totals div", has_text="closed").locator("dd").first
    expect(closed).to_have_text(re.compile("^[6-9]$"))  # Chromium may have opened a spare one
    assert page.evaluate("window.loaded")


def test_a_script_in_a_path_stays_text(page: Page, running: Demo) -> None:
    """In the page as it was loaded and in what came later, and what is invisible is spelled out."""
    script = "/%3Cscript%3Ealert(1)%3C/script%3E%3Cimg%20src=x%20onerror=alert(2)%3E%E2%80%AE"
    text = "/<script>alert(1)</script><img src=x onerror=alert(2)>\\u202e"
    running.connect(script)
    cell = page.locator("tbody tr.idle .path")
    expect(cell).to_have_text(text)
    page.reload()
    expect(cell).to_have_text(text)
    assert page.locator("tbody script, tbody img").count() == 0


def test_nothing_runs_that_is_not_the_pages_own(browser: Browser, running: Demo) -> None:
    """Even if somebody got markup into it: the browser enforces the policy."""
    page = browser.new_page()
    page.goto(running.url)
    for broken in (
        "<img src='data:,' onerror='window.broken = 1'>",
        "<p style='color: red'>",
        "<iframe srcdoc='<script>parent.broken = 2</script>'></iframe>",
        "<img src='https://elsewhere.example/'>",
    ):
        with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
            page.evaluate("html => { document.querySelector('h1').innerHTML = html }", broken)
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(
            """() => {
              const script = document.createElement("script")
              script.textContent = "window.broken = 3"
              document.body.append(script)
            }"""
        )
    assert page.evaluate("window.broken") is None
    page.close()


def test_nothing_is_loaded_from_elsewhere(browser: Browser, running: Demo) -> None:
    """The page, and its events, from where it came from; no favicon either."""
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(running.url)
    expect(page.locator("#live")).to_have_text("live")
    assert [url for url in asked if not url.startswith("data:")] == [running.url, running.url]
    page.close()


def test_without_javascript_there_is_the_table(browser: Browser, running: Demo) -> None:
    """Sorted by links; what needs a script is not shown."""
    for path in ("/bb", "/aa", "/cc"):
        running.connect(path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(running.url)
    expect(page.get_by_role("button")).to_have_count(0)
    page.get_by_role("link", name="Last path").click()
    assert page.locator("tbody .path").all_text_contents() == ["/", "/aa", "/bb", "/cc"]
    page.get_by_role("link", name="Last path").click()
    assert page.locator("tbody .path").all_text_contents() == ["/cc", "/bb", "/aa", "/"]
    assert page.locator("article").count() == 4
    context.close()


def test_the_keyboard_is_enough(page: Page, running: Demo) -> None:
    """Each control is reached by Tab, shows that it has the focus, and works by Enter."""
    running.connect("/try")
    reached = []
    for _ in range(11):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label')")
            or page.evaluate("document.activeElement.textContent")
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached
    assert reached == [
        *("Pause", "Table of connections", "No.", "Client", "Protocol", "TLS", "State"),
        *("In state for", "Age", "Requests", "Last path"),
    ]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?sort=-requests*")
    assert page.locator("th.requests").get_attribute("aria-sort") == "descending"


def test_updates_can_be_paused(page: Page, running: Demo) -> None:
    """To read or to copy something; going on shows what there is now."""
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#live")).to_have_text("paused")
    before = page.locator("#process").text_content()
    running.connect()
    other = page.context.new_page()
    other.goto(running.url)
    expect(number(other, "new")).to_have_text("1")
    expect(other.locator("#live")).to_have_text("live")
    assert page.locator("#process").text_content() == before
    assert number(page, "new").text_content() == "0"
    page.get_by_role("button", name="Resume").click()
    expect(number(page, "new")).to_have_text("1")
    expect(page.locator("#live")).to_have_text("live")


def test_it_says_when_the_server_is_gone(browser: Browser, running: Demo) -> None:
    """The numbers are old then, and look it."""
    page = browser.new_page()
    page.goto(running.url)
    expect(page.locator("#live")).to_have_text("live")
    running.process.kill()
    expect(page.locator("#live")).to_have_text("not connected: the numbers are old")
    page.close()


def test_a_screen_reader_finds_its_way(page: Page, running: Demo) -> None:
    """Headings, a table with its headers and its order, charts in words, and what is live."""
    running.connect("/try")
    expect(page.locator("tbody tr")).to_have_count(2)
    headings = page.get_by_role("heading").all_text_contents()
    assert headings == [
        "Connections",
        "new",
        "active",
        "idle",
        "hijacked",
        "Since the start",
        "Open now",
    ]
    expect(page.get_by_role("table")).to_have_count(1)
    expect(page.get_by_role("columnheader")).to_have_count(9)
    expect(page.get_by_role("row")).to_have_count(3)
    expect(page.get_by_role("cell")).to_have_count(18)
    assert page.locator("th[aria-sort]").count() == 1
    expect(
        page.get_by_role("img", name="idle: between 0 and 1 in the last 5 minutes")
    ).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("region", name="Table of connections")).to_have_count(1)
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_text_can_be_read(browser: Browser, running: Demo, scheme: Any, width: int) -> None:
    """In the viewer's colours, at a contrast of 4.5, large enough, and on a phone's width."""
    running.connect()
    running.connect("/slow", wait=False)
    running.connect("/" + "long" * 100)
    running.websocket()
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(running.url)
    expect(page.locator("tbody tr.active")).to_have_count(2)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50
    assert not [each for each in contrasts if each[1] < 4.5]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 20, 23)"}[scheme]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        "[...document.querySelectorAll('body :not(script)')]"
        ".map(each => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert min(sizes) >= 12
    context.close()


def test_on_a_phone_each_connection_is_a_card(browser: Browser, running: Demo) -> None:
    """Whose fields say what they are, and which is a row of a table all the same."""
    running.connect("/try")
    context = browser.new_context(viewport={"width": 360, "height": 800})
    page = context.new_page()
    page.goto(running.url)
    expect(page.get_by_role("row")).to_have_count(3)
    expect(page.get_by_role("cell")).to_have_count(18)
    row = page.locator("tbody tr.idle")
    titles = row.locator("td").evaluate_all(
        "cells => cells.map(each => getComputedStyle(each, '::before').content)"
    )
    assert all(title.strip('"') for title in titles)
    rights = page.locator("td").evaluate_all(
        "cells => cells.map(each => each.getBoundingClientRect().right)"
    )
    assert max(rights) <= 360
    context.close()


@pytest.mark.parametrize("width", [320, 360, 390, 430])
def test_great_numbers_have_room_on_a_phone(browser: Browser, running: Demo, width: int) -> None:
    """Nothing is cut off, and nothing lies over something else."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(running.url)
    page.get_by_role("button", name="Pause").click()
    page.evaluate(
        """() => {
          for (const each of document.querySelectorAll(".number")) each.textContent = "100,000"
          for (const each of document.querySelectorAll(".axis :nth-child(2)"))
            each.textContent = "most 100,000"
        }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for card in page.locator("article").all():
        name, number = card.locator("h2").bounding_box(), card.locator(".number").bounding_box()
        assert name is not None
        assert number is not None
        assert name["x"] + name["width"] <= number["x"]
        assert number["x"] + number["width"] <= width
    context.close()


def test_the_headers_stay_in_sight(page: Page, running: Demo) -> None:
    """However far down one reads."""
    for _ in range(60):
        running.connect()
    expect(page.locator("tbody tr")).to_have_count(61)
    page.get_by_role("button", name="Pause").click()  # or the row may be replaced meanwhile
    page.locator("tbody tr").last.scroll_into_view_if_needed()
    expect(page.locator("tbody tr").last).to_be_in_viewport()
    expect(page.locator("th.client")).to_be_in_viewport()


def test_an_update_leaves_the_focus_where_it_is(page: Page, running: Demo) -> None:
    """Also on a link that is made anew."""
    for _ in range(110):
        running.connect()
    link = page.get_by_role("link", name="next page")
    link.focus()
    running.connect()
    expect(page.locator("#pages-above")).to_contain_text(re.compile("11[2-4],"))
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**page=2*")


def test_a_page_that_is_not_seen_asks_for_nothing(page: Page, running: Demo) -> None:
    """A browser has six connections for a host, and each tab would take one."""
    other = page.context.new_page()
    other.goto(running.url)
    expect(number(other, "active")).to_have_text("2")
    hide = "hidden => { Object.defineProperty(document, 'hidden', { get: () => hidden, "
    hide += "configurable: true }); document.dispatchEvent(new Event('visibilitychange')) }"
    page.evaluate(hide, True)
    expect(number(other, "active")).to_have_text("1")
    page.evaluate(hide, False)
    expect(number(other, "active")).to_have_text("2")


def test_a_server_that_comes_back_is_found(browser: Browser, running: Demo) -> None:
    """Though an EventSource gives up where something else has answered in between."""
    page = browser.new_page()
    refused: list[Route] = []

    def answer(route: Route) -> None:
        if "event-stream" in route.request.headers["accept"] and not refused:
            refused.append(route)
            route.fulfill(status=503)
        else:
            route.continue_()

    page.route("**/*", answer)
    page.goto(running.url)
    expect(page.locator("#live")).to_have_text("not connected: the numbers are old")
    expect(page.locator("#live")).to_have_text("live")
    page.close()
