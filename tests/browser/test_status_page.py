"""The status page as a person sees it, in Chromium."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from .servers import Server, hypercorn

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


def number(page: Page, state: str) -> Locator:
    return page.locator(f"li.{state} .number")


def rows(page: Page, state: str = "") -> Locator:
    return page.locator(f"#rows tr{state and '.'}{state}")


def unfold_the_filters(page: Page) -> None:
    page.get_by_text("Filter or group").click()


def test_the_values_change_while_connections_come_and_go(page: Page, running: Server) -> None:
    """Without loading the page again: gauges, totals, chart and table."""
    page.evaluate("window.loaded = true")
    expect(page.locator("#live")).to_have_text("live")
    expect(number(page, "active")).to_have_text("1")  # the page's own
    chart = page.locator("li.idle path").get_attribute("d")
    for _ in range(3):
        running.connect()
        running.connect("/try")
    running.websocket()
    expect(number(page, "new")).to_have_text("3")
    expect(number(page, "idle")).to_have_text("3")
    expect(number(page, "hijacked")).to_have_text("1")
    expect(rows(page, "idle")).to_have_count(3)
    expect(rows(page, "idle").locator("bdi").first).to_have_text("/try")
    expect(page.locator("#rates div", has_text="WebSockets").locator("dd").first).to_have_text("1")
    assert page.locator("li.idle path").get_attribute("d") != chart
    running.close_clients()
    expect(number(page, "new")).to_have_text("0")
    expect(rows(page, "hijacked")).to_have_count(0)
    closed = page.locator("#rates div", has_text="closed").locator(".total")
    expect(closed).to_have_text(re.compile("^[6-9]$"))  # Chromium may have opened a spare one
    assert page.evaluate("window.loaded")


def test_a_stuck_request_is_found_at_a_glance(workers: Server, context: BrowserContext) -> None:
    """The oldest request in flight comes first, although its connection is busy with others."""
    workers.connect("/try")
    workers.connect("/slow", wait=False)
    client = workers.http2()
    client.request("/try", "/slow", "/try")
    page = context.new_page()
    page.goto(workers.url)
    expect(rows(page, "idle")).to_have_count(1)
    expect(page.locator("#rows bdi", has_text="/slow")).to_have_count(2)
    workers.connect("/slow", wait=False)
    client.request(*["/slow"] * 5)
    expect(page.locator("#rows summary")).to_have_text("3 more")
    expect(page.locator("#rows bdi", has_text="/slow")).to_have_count(8)
    *ages, _ = page.locator("#rows tr.active p:first-child .age").all_text_contents()
    assert len(ages) == 3
    assert ages == sorted(ages, key=lambda age: -float(age.removesuffix(" s")))
    stuck = rows(page).filter(has=page.locator("summary"))
    oldest = stuck.locator("p").first
    expect(oldest.locator("bdi")).to_have_text("/slow")
    expect(oldest.locator("small")).to_have_text("stream 3")
    expect(oldest.locator(".phase")).to_have_text("waiting")
    expect(stuck.locator(".protocol")).to_have_text("h2")
    classes = [row.get_attribute("class") for row in page.locator("#rows tr").all()]
    assert classes == [*["active"] * 3, "idle", "active"]  # the last one is the page's own


def test_a_script_in_a_path_stays_text(page: Page, running: Server) -> None:
    """In the page and in its updates; and invisible characters are escaped."""
    script = "/%3Cscript%3Ealert(1)%3C/script%3E%3Cimg%20src=x%20onerror=alert(2)%3E%E2%80%AE"
    text = "/<script>alert(1)</script><img src=x onerror=alert(2)>\\u202e"
    running.connect(script)
    cell = rows(page, "idle").locator("bdi")
    expect(cell).to_have_text(text)
    page.reload()
    expect(cell).to_have_text(text)
    assert page.locator("tbody script, tbody img").count() == 0


def test_nothing_runs_that_is_not_the_pages_own(browser: Browser, running: Server) -> None:
    """Even if markup were injected: the browser enforces the policy."""
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


def test_nothing_is_loaded_from_elsewhere(browser: Browser, running: Server) -> None:
    """The page, and its events, from where it came from; no favicon either."""
    page = browser.new_page()
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(running.url)
    expect(page.locator("#live")).to_have_text("live")
    assert [url for url in requested if not url.startswith("data:")] == [running.url, running.url]
    page.close()


def test_without_javascript_there_is_the_table(browser: Browser, running: Server) -> None:
    """Sorted by links and filtered by a form; what needs a script is not shown."""
    for path in ("/bb", "/aa", "/cc"):
        running.connect(path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(running.url)
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    page.get_by_role("link", name="Path").click()
    assert page.locator("#rows bdi").all_text_contents() == ["/", "/aa", "/bb", "/cc"]
    page.get_by_role("link", name="Path").click()
    assert page.locator("#rows bdi").all_text_contents() == ["/cc", "/bb", "/aa", "/"]
    assert page.locator("svg").count() == 4
    unfold_the_filters(page)
    page.get_by_label("Path contains").fill("a")
    page.get_by_role("button", name="Apply").click()
    assert page.locator("#rows bdi").all_text_contents() == ["/aa"]
    expect(page.get_by_label("Path contains")).to_have_value("a")
    expect(page.get_by_text("Sorted: by Path, descending.")).to_be_visible()
    context.close()


def test_filters_stay_in_force_until_they_are_removed(page: Page, running: Server) -> None:
    """State, client and path together, in the updates, too."""
    for host in ("127.0.0.2", "127.0.0.3"):
        running.connect("/try", host=host)
        running.connect("/other", host=host)
    expect(rows(page, "idle")).to_have_count(4)
    unfold_the_filters(page)
    page.get_by_label("State").select_option("idle")
    page.get_by_label("Client begins with").fill("127.0.0.2")
    page.get_by_label("Path contains").fill("/t")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#rows .client")).to_have_text(re.compile(r"^127\.0\.0\.2:"))
    expect(page.locator("#found")).to_contain_text(
        "1 of 5 connections: state idle, client begins with 127.0.0.2, path contains /t"
    )
    running.connect("/try", host="127.0.0.2")
    running.connect("/try", host="127.0.0.3")
    expect(page.locator("#found")).to_contain_text("2 of 7 connections")
    expect(rows(page)).to_have_count(2)
    page.get_by_role("link", name="remove filters").click()
    expect(rows(page)).to_have_count(7)


def test_a_busy_client_is_found(page: Page, running: Server) -> None:
    """By grouping; from there it is one click to its connections."""
    for _ in range(3):
        running.connect("/try", host="127.0.0.2")
    running.connect(host="127.0.0.22")
    unfold_the_filters(page)
    page.get_by_label("Group by client").check()
    page.get_by_role("button", name="Apply").click()
    first = rows(page).first.locator("td")
    expect(first.first).to_have_text("127.0.0.2")
    assert first.all_text_contents()[1:6] == ["3", "0", "0", "3", "0"]
    expect(rows(page)).to_have_count(3)
    running.connect(host="127.0.0.4")
    expect(rows(page)).to_have_count(4)
    page.get_by_role("link", name="127.0.0.2", exact=True).click()
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#rows .client").first).to_have_text(re.compile(r"^127\.0\.0\.2:"))


def test_every_link_has_the_token(page: Page, running: Server) -> None:
    """A viewer who follows one sees the page, and not a refusal."""
    for _ in range(110):
        running.connect()
    expect(page.get_by_role("link", name="Next page")).to_be_visible()
    links = page.locator("a").evaluate_all("links => links.map(each => each.href)")
    assert len(links) == 15
    assert [link for link in links if f"token={running.token}" not in link] == []
    for name in ("Next page", "Age", "new"):
        page.get_by_role("link", name=name, exact=True).click()
        expect(page.get_by_role("heading", name="Connections")).to_be_visible()
    assert "state=new" in page.url


def test_a_worker_that_does_not_respond_is_silent(workers: Server, context: BrowserContext) -> None:
    """The other worker shows it, with the time of its silence; later it is back."""
    page = context.new_page()
    page.goto(workers.url)
    expect(page.locator("#workers tr")).to_have_count(2)
    own = page.locator("#rows tr", has_text="streaming").locator(".worker").text_content()
    pids = page.locator("#workers th").all_text_contents()
    (other,) = (int(pid) for pid in pids if pid != own)
    os.kill(other, signal.SIGSTOP)
    silent = page.locator("#workers tr.bad")
    expect(silent).to_contain_text(str(other))
    expect(silent).to_contain_text("no response for 1.")
    expect(silent).to_contain_text("no response for 2.")
    expect(page.locator("#workers tr:not(.bad)")).to_have_count(1)
    os.kill(other, signal.SIGCONT)
    expect(silent).to_have_count(0)
    expect(page.locator("#workers tr", has_text="serving")).to_have_count(2)


def test_a_worker_that_was_killed_disappears(context: BrowserContext, directory: Path) -> None:
    """With its connections. (Hypercorn ends its other workers then, so these are two servers.)"""
    with hypercorn(directory, workers=0) as first, hypercorn(directory, workers=0) as second:
        second.connect("/slow", wait=False)
        page = context.new_page()
        page.goto(first.url)
        expect(page.locator("#workers tr")).to_have_count(2)
        expect(page.locator("#rows .worker", has_text=str(second.process.pid))).to_have_count(1)
        second.process.kill()
        expect(page.locator("#workers th")).to_have_count(1)
        expect(page.locator("#workers th")).to_have_text(str(first.process.pid))
        expect(page.locator("#rows .worker", has_text=str(second.process.pid))).to_have_count(0)
        page.close()


def test_the_keyboard_is_enough(page: Page, running: Server) -> None:
    """Each control is reached by Tab, shows that it has the focus, and works by Enter."""
    running.connect("/try")
    expected = [
        *("Pause", "new", "active", "idle", "hijacked", "Filter or group", "State"),
        *("In state for", "Client", "Oldest request", "Path", "Protocol", "TLS", "Requests"),
        *("Age", "ID"),
    ]
    reached = []
    for _ in expected:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", reached
    assert reached == expected
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?sort=-age*")
    assert page.locator("th.age").get_attribute("aria-sort") == "descending"


def test_updates_can_be_paused(page: Page, running: Server) -> None:
    """To read or to copy something; going on shows what there is now."""
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#live")).to_have_text("paused")
    before = page.locator("#time").text_content()
    running.connect()
    other = page.context.new_page()
    other.goto(running.url)
    expect(number(other, "new")).to_have_text("1")
    expect(other.locator("#live")).to_have_text("live")
    shown = other.locator("#time").text_content()
    assert shown is not None
    expect(other.locator("#time")).not_to_have_text(shown)
    assert page.locator("#live").text_content() == "paused"
    assert page.locator("#time").text_content() == before
    assert number(page, "new").text_content() == "0"
    page.get_by_role("button", name="Resume").click()
    expect(number(page, "new")).to_have_text("1")
    expect(page.locator("#live")).to_have_text("live")


def test_the_page_shows_that_the_server_has_gone(browser: Browser, running: Server) -> None:
    """The numbers are old then, and look it."""
    page = browser.new_page()
    page.goto(running.url)
    expect(page.locator("#live")).to_have_text("live")
    running.process.kill()
    expect(page.locator("#live")).to_have_text("not connected: the numbers are old")
    page.close()


def test_a_screen_reader_finds_its_way(page: Page, running: Server) -> None:
    """Headings, tables with their headers and their order, charts in words, and what is live."""
    running.connect("/try")
    expect(rows(page)).to_have_count(2)
    assert page.get_by_role("heading").all_text_contents()[1:] == [
        *("Workers", "States, over the last 5 minutes", "new", "active", "idle", "hijacked"),
        *("Rates over the last 10 seconds, and totals", "Connections"),
    ]
    expect(page.get_by_role("table")).to_have_count(2)
    expect(page.get_by_role("columnheader")).to_have_count(5 + 11)
    expect(page.get_by_role("rowheader")).to_have_count(1)
    expect(page.get_by_role("row")).to_have_count(2 + 3)
    expect(page.get_by_role("cell")).to_have_count(4 + 22)
    assert page.locator("th[aria-sort]").count() == 1
    expect(
        page.get_by_role("img", name="idle: between 0 and 1 in the last 5 minutes")
    ).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("live")
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("query", ["", "&group=client&client=127"])
def test_every_text_can_be_read(
    browser: Browser, running: Server, scheme: Any, width: int, query: str
) -> None:
    """In the viewer's colours, at a contrast of 4.5, large enough, and on a phone's width."""
    running.connect()
    running.connect("/slow", wait=False)
    running.connect("/" + "long" * 100)
    running.websocket()
    running.http2().request(*["/slow"] * 5)
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(running.url + query)
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_role("button", name="Pause").click()
    page.evaluate(
        """() => {
          const standsOut = "#workers tr, #rates dd, #rows tr.active p, #rows tr.new"
          for (const each of document.querySelectorAll(standsOut)) each.classList.add("bad", "long")
          for (const each of document.querySelectorAll("details")) each.open = true
        }"""
    )
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


@pytest.mark.parametrize("width", [320, 360, 390, 430])
def test_on_a_phone_each_connection_is_a_line(
    browser: Browser, running: Server, width: int
) -> None:
    """State, client, how long, and the path of its oldest request; nothing is wider than it."""
    running.connect()
    running.connect("/" + "long" * 40)
    running.connect("/slow", wait=False)
    running.http2().request(*["/slow"] * 5)
    running.websocket()
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(running.url)
    page.get_by_role("button", name="Pause").click()
    expect(rows(page)).to_have_count(6)
    expect(page.get_by_role("row")).to_have_count(2 + 7)
    heights = rows(page).evaluate_all("rows => rows.map(each => each.offsetHeight)")
    assert max(heights) <= 30
    for state, path in (("active", "/slow"), ("idle", "/longlong"), ("hijacked", "/ws")):
        row = rows(page, state).first
        shown = row.evaluate(
            """row => [...row.querySelectorAll(".state, .client, .age, bdi")]
            .filter(each => each.checkVisibility({ visibilityProperty: true }))
            .map(each => each.textContent)"""
        )
        assert len(shown) == 4
        assert shown[0] == state
        assert shown[1].startswith("127.0.0.1")
        assert shown[2].endswith(" s")
        assert shown[3].startswith(path)
        expect(row.locator(".worker")).not_to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unfold_the_filters(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


@pytest.mark.parametrize("width", [320, 360, 390, 430, 1280])
def test_great_numbers_have_room(browser: Browser, running: Server, width: int) -> None:
    """Nothing is cut off, and nothing lies over something else."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(running.url)
    page.get_by_role("button", name="Pause").click()
    page.evaluate(
        """() => {
          const set = (which, text) => {
            for (const each of document.querySelectorAll(which)) each.textContent = text
          }
          set(".number", "100,000")
          set(".peak", "peak 100,000")
          set("#rates dd", "12,346/s")
          set("#workers td:last-child", "no response for 1 min 15 s")
        }"""
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "li h3, li p, #rates dd, #rates dt, thead th, #workers td, #workers th"
    assert (
        page.evaluate(
            """wide => [...document.querySelectorAll(wide)]
        .filter(each => each.checkVisibility() && each.scrollWidth > each.clientWidth + 1)
        .map(each => each.textContent)""",
            wide,
        )
        == []
    )
    for tile in page.locator("#states li").all():
        edge = tile.bounding_box()
        number = tile.locator(".number").bounding_box()
        assert edge is not None
        assert number is not None
        assert number["x"] + number["width"] <= edge["x"] + edge["width"] + 1
    context.close()


def test_the_headers_stay_in_sight(page: Page, running: Server) -> None:
    """However far down one reads."""
    for _ in range(60):
        running.connect()
    expect(rows(page)).to_have_count(61)
    page.get_by_role("button", name="Pause").click()  # or the row may be replaced meanwhile
    rows(page).last.scroll_into_view_if_needed()
    expect(rows(page).last).to_be_in_viewport()
    expect(page.locator("th.client")).to_be_in_viewport()


def test_columns_stay_where_they_are(page: Page, running: Server) -> None:
    """However long what is in them."""
    where = "each => each.getBoundingClientRect().left"
    before = [header.evaluate(where) for header in page.locator("thead th").all()]
    running.connect("/" + "long" * 40)
    expect(rows(page)).to_have_count(2)
    page.evaluate(
        "for (const each of document.querySelectorAll('td')) each.append(' and something more')"
    )
    assert [header.evaluate(where) for header in page.locator("thead th").all()] == before


def test_an_update_does_not_move_the_focus(page: Page, running: Server) -> None:
    """Also on a link that is behind something new."""
    for _ in range(110):
        running.connect()
    link = page.get_by_role("link", name="Next page")
    link.focus()
    running.connect()
    expect(page.locator("#found")).to_contain_text(re.compile("11[2-4] "))
    expect(link).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**page=2*")


def test_an_update_keeps_requests_unfolded(workers: Server, context: BrowserContext) -> None:
    """Though its row changes, and gets another place."""
    other, client = workers.http2(), workers.http2()
    other.request(*["/try"] * 6, "/slow")
    client.request(*["/slow"] * 5)
    page = context.new_page()
    page.goto(workers.url + "&sort=-requests")
    expect(rows(page, "active")).to_have_count(3)
    assert rows(page).nth(1).locator("summary").text_content() == "2 more"
    summary = page.locator("#rows summary")
    summary.focus()
    page.keyboard.press("Enter")
    client.request(*["/slow"] * 4)
    expect(rows(page).first.locator("summary")).to_have_text("6 more")
    expect(summary).to_be_focused()
    expect(page.locator("#rows details[open] p")).to_have_count(6)
    client.cancel(1, 3, 5, 7)
    expect(page.locator("#rows details[open] p")).to_have_count(2)
    expect(page.locator("#rows details p").last).to_be_visible()
    expect(summary).to_be_focused()


def test_connections_of_the_same_number_are_two_rows(page: Page) -> None:
    """Two servers in one process count theirs each for itself."""
    page.get_by_role("button", name="Pause").click()
    for names in (["a", "b"], ["b", "c", "a"], ["c"]):
        html = "".join(f'<tr data-key="11-1"><td>{name}</td></tr>' for name in names)
        page.evaluate("html => show('rows', html)", html)
        assert rows(page).all_text_contents() == names


def test_an_update_does_not_change_the_form(page: Page, running: Server) -> None:
    """What is typed, where the cursor is, and that it is unfolded."""
    unfold_the_filters(page)
    field = page.get_by_label("Path contains")
    field.fill("/slow")
    page.keyboard.press("ArrowLeft")
    running.connect()
    expect(number(page, "new")).to_have_text("1")
    page.keyboard.type("l")
    expect(field).to_have_value("/slolw")


def test_an_update_keeps_the_selection(page: Page, running: Server) -> None:
    """A viewer copies a client's address while the row before it is removed."""
    running.connect("/try")
    before = running.connect()
    expect(rows(page, "idle")).to_have_count(1)
    expect(rows(page, "new")).to_have_count(1)
    page.evaluate("getSelection().selectAllChildren(document.querySelector('tr.idle .client'))")
    selected = page.evaluate("getSelection().toString()")
    before.close()
    expect(rows(page, "new")).to_have_count(0)
    assert page.evaluate("getSelection().toString()") == selected
    assert selected.startswith("127.0.0.1:")


def test_a_hidden_page_sends_no_requests(page: Page, running: Server) -> None:
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


def test_a_server_that_comes_back_is_found(browser: Browser, running: Server) -> None:
    """Although an EventSource gives up after a response that is not an event stream."""
    page = browser.new_page()
    refused: list[Route] = []

    def response(route: Route) -> None:
        if "event-stream" in route.request.headers["accept"] and not refused:
            refused.append(route)
            route.fulfill(status=503)
        else:
            route.continue_()

    page.route("**/*", response)
    page.goto(running.url)
    expect(page.locator("#live")).to_have_text("not connected: the numbers are old")
    expect(page.locator("#live")).to_have_text("live")
    page.close()
