"""The HTML of the status page, from views made by hand; tests/browser looks at it in a browser."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import parse_qs

import pytest

from trio_httptrack._monitor.formatting import NOTHING
from trio_httptrack._monitor.query import Query
from trio_httptrack._monitor.report import COUNTERS, GAUGES, Group, Request, Row, Worker
from trio_httptrack._monitor.view import View
from trio_httptrack.status._page import POLICY, page, update

from . import views

TOKEN = "0123456789abcdef"
ANYTHING = "/<script>alert(1)</script>&\"'\u202e\n"
SHOWN = "/&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;\\u202e\\n"


def a_request(**changes: Any) -> Request:
    return views.request(**{"age": 1.5, **changes})


def a_row(*requests: Request, **changes: Any) -> Row:
    usual = {"worker": 11, "id": 7, "client": "192.0.2.7:4711", "in_state": 2.0, "age": 75.0}
    usual |= {"path": "/last", "received": 845, "sent": 12_345}
    return views.row(*requests, **{**usual, **changes})


def a_worker(pid: int = 11, **changes: Any) -> Worker:
    usual = {"name": f"{pid}-0a1b2c3d", "connections": 12, "lag": 0.0042}
    return views.worker(pid, **{**usual, **changes})


def a_view(*rows: Row, query: str = "", **changes: Any) -> View:
    usual = {
        "host": "web-1",
        "time": "2030-01-02T03:04:05Z",
        "workers": [a_worker()],
        "connections": dict.fromkeys(GAUGES, 3),
        "websockets": 5,
        "totals": dict.fromkeys(COUNTERS, 1234),
        "per_second": dict.fromkeys(COUNTERS, 0.0),
        "history": {state: [1, 2, 3] for state in GAUGES},
        "matching": len(rows),
        "pages": 1,
    }
    return views.view(*rows, query=Query.parse(query.encode()), **{**usual, **changes})


def part(view: View, name: str) -> str:
    """A changing part, which the page and its updates must have alike."""
    html: str = json.loads(update(view, None))[name]
    assert html in page(view, None)
    return html


def text(html: str) -> str:
    return unescape(re.sub("<[^>]*>", " ", html))


def links(html: str) -> dict[str, str]:
    """Return the queries of the links, by their texts."""
    found = re.findall(r'<a href="([^"]*)#connections"[^>]*>([^<]*)</a>', html)
    return {unescape(said): unescape(query) for query, said in found}


class Checker(HTMLParser):
    """Fails where elements are not closed in their turn, or are not allowed by the policy."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if "id" in attributes:
            self.ids.append(attributes["id"] or "")
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


A_GROUP = Group(client="192.0.2.7", connections=3, states={"idle": 2, "active": 1}, oldest=75.0)
EVERYTHING = [
    a_view(),
    a_view(
        a_row(*[a_request(stream=number) for number in range(20)], in_flight_count=57),
        a_row(id=8, client=None, protocol=None, path=None, received=None, sent=None, tls=True),
        query="state=active&client=192.&path=/&page=2&sort=-path",
        pages=3,
        workers=[a_worker(), a_worker(12, silent=3.2, uptime=None, connections=None, lag=None)],
        per_second=None,
    ),
    a_view(query="group=client", groups=[A_GROUP, {**A_GROUP, "client": ""}]),
]


@pytest.mark.parametrize("view", EVERYTHING)
def test_the_html_is_well_formed(view: View) -> None:
    """Every element is closed in its turn, each ID is there once, no style and no handler."""
    checker = Checker(page(view, TOKEN))
    parts = json.loads(update(view, TOKEN))
    assert parts.keys() <= set(checker.ids)
    for html in parts.values():
        Checker(html)


def test_the_policy_allows_the_pages_own_style_and_script_only() -> None:
    """By their hashes; and the form leads to where it came from."""
    html = page(a_view(), None)
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = b64encode(sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in POLICY
    assert "default-src 'none';" in POLICY
    assert "form-action 'self';" in POLICY


@pytest.mark.parametrize(
    "view",
    [
        a_view(a_row(a_request(path=ANYTHING))),
        a_view(a_row(a_request(method=ANYTHING))),
        a_view(a_row(path=ANYTHING)),
        a_view(host=ANYTHING),
    ],
)
def test_text_of_a_client_is_escaped(view: View) -> None:
    """Markup is escaped, and so are invisible characters."""
    html = page(view, None)
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    assert "alert" not in script
    assert SHOWN in html
    assert "\u202e" not in html + update(view, None)


def test_the_filters_are_escaped() -> None:
    """In the form as it was typed, and below it as it is seen."""
    view = a_view()
    view["query"]["path"] = ANYTHING
    html = page(view, None)
    assert f"<b>{SHOWN}</b>" in html
    (value,) = re.findall('name="path" value="([^"]*)"', html)
    assert unescape(value) == ANYTHING


@pytest.mark.parametrize("view", EVERYTHING)
def test_the_token_is_in_every_link_and_nowhere_else(view: View) -> None:
    """The links and the form need it; but it is not visible on the page."""
    html = page(view, TOKEN)
    found = links(html)
    assert len(found) > 4
    for link in found.values():
        assert parse_qs(link[1:])["token"] == [TOKEN]
        Query.parse(link[1:].encode())
    assert html.count("<form") == html.count(f'<input type="hidden" name="token" value="{TOKEN}">')
    assert TOKEN not in text(html)
    assert html.count(TOKEN) == html.count("href=") - 1 + html.count("<form")  # but for the icon
    assert "token" not in page(view, None)
    assert links(page(a_view(query="sort=age"), TOKEN))["Oldest request"] == f"?token={TOKEN}"


def test_the_time_and_the_host_are_those_of_the_server() -> None:
    """In UTC, because viewers may have any time zone."""
    assert text(part(a_view(), "time")) == " 03:04:05 UTC "
    assert "<h1>web-1</h1>" in page(a_view(), None)


def test_each_worker_has_a_row() -> None:
    """With the data of its report."""
    view = a_view(workers=[a_worker(), a_worker(12, draining=True, uptime=9.26, connections=1234)])
    rows = [text(row).split("  ") for row in part(view, "workers").split("</tr>")]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["11", "1 h 05 min", "12", "4 ms", "serving"],
        ["12", "9.3 s", "1,234", "4 ms", "draining"],
        [],
    ]


def test_a_worker_that_does_not_respond_is_highlighted() -> None:
    """With the time of its silence, and no other values."""
    silent = a_worker(12, silent=3.21, uptime=None, connections=None, lag=None)
    html = part(a_view(workers=[a_worker(), silent]), "workers")
    assert '<tr data-key="12-0a1b2c3d" class="bad">' in html
    assert text(html).count("no response for 3.2 s") == 1
    assert text(html).split().count(NOTHING) == 3
    assert '<tr data-key="11-0a1b2c3d">' in html


def test_the_page_shows_how_many_workers_have_responded() -> None:
    """Those of a worker that does not respond are not among them, nor in any number."""
    silent = a_worker(12, silent=3.21, uptime=None, connections=None, lag=None)
    assert " connections. Sorted" in page(a_view(workers=[a_worker(), a_worker(12)]), None)
    assert " connections of 1 of 2 workers. Sorted" in page(
        a_view(workers=[a_worker(), silent]), None
    )


@pytest.mark.parametrize(("lag", "shown"), [(0.999, "<td>999 ms"), (1.0, '<td class="bad">1.0 s')])
def test_the_lag_of_a_blocked_event_loop_is_highlighted(lag: float, shown: str) -> None:
    """From that on which the log warns of."""
    assert shown in part(a_view(workers=[a_worker(lag=lag)]), "workers")


def test_the_chart_is_the_history_in_steps() -> None:
    """A step for each second, the last one now; none where nothing is known."""
    history = {state: [0] for state in GAUGES}
    history["active"] = [None, 1, 1, 4, None, None, 0]  # type: ignore[list-item]
    html = part(a_view(history=history), "states")
    assert '<path d="M294 100V76H296V4H297V100M299 100V100H300V100"/>' in html
    assert 'aria-label="active: between 0 and 4 in the last 5 minutes"' in html
    assert '<p class="peak">peak 4</p>' in html


def test_the_chart_has_no_more_than_five_minutes() -> None:
    """A second more would lie outside of it."""
    history: dict[str, list[int | None]] = {state: [0] for state in GAUGES}
    history["new"] = [9, *[1] * 300]
    assert '<path d="M0 100V4H300V100"/>' in part(a_view(history=history), "states")


def test_a_state_leads_to_its_connections() -> None:
    """With their number."""
    connections = {"new": 0, "active": 1234, "idle": 2, "hijacked": 3}
    html = part(a_view(connections=connections, query="path=/slow&page=2"), "states")
    assert links(html)["active"] == "?state=active&path=%2Fslow"
    assert '<p class="number">1,234</p>' in html


def test_rates_and_totals() -> None:
    """Of requests, and of responses by their status class; failures stand out."""
    rates = {**dict.fromkeys(COUNTERS, 0.0), "2xx": 1234.56, "5xx": 0.1}
    html = part(a_view(per_second=rates), "rates")
    assert '<dt>2xx</dt> <dd>1,235/s</dd> <dd class="total">1,234</dd>' in html
    assert '<dt>5xx</dt> <dd class="bad">0.1/s</dd>' in html
    assert re.findall("<dt>(.*?)</dt>", html) == [
        *("WebSockets", "accepted", "closed", "requests", "2xx", "3xx", "4xx", "5xx")
    ]
    assert "<dt>WebSockets</dt> <dd>5</dd>" in html
    assert 'class="bad"' not in part(a_view(), "rates")


def test_rates_that_are_not_known_yet_are_not_zero() -> None:
    """A server that has just been started."""
    assert part(a_view(per_second=None), "rates").count(f"<dd>{NOTHING}</dd>") == 7


def test_a_connection_is_a_row() -> None:
    """With all that is known of it, and which worker's it is."""
    html = part(a_view(a_row(tls=True)), "rows")
    cells = [text(cell).strip() for cell in html.split("</td>")]
    assert cells == [
        *("idle", "2.0 s", "192.0.2.7 :4711", "2.0 s   last    /last", "http/1.1 TLS", "3"),
        *("845 B", "12.3 kB", "1 min 15 s", "11", "7", ""),
    ]
    assert html.startswith('<tr data-key="11-7" class="idle">')


def test_unknown_values_of_a_connection_are_dashes() -> None:
    """Such as one over a Unix socket that has sent nothing yet."""
    row = a_row(state="new", client=None, protocol=None, path=None, received=None, sent=None)
    html = part(a_view(row), "rows")
    cells = [text(cell).strip() for cell in html.split("</td>")]
    assert [cells[at] for at in (2, 3, 4, 6, 7)] == [
        *(NOTHING, f"2.0 s      {NOTHING}", NOTHING, NOTHING, NOTHING)
    ]


def test_requests_in_flight_are_in_their_connections_row() -> None:
    """Method, path, age, stream, and how far the response has got."""
    requests = [
        a_request(age=75, stream=1, path="/a"),
        a_request(phase="streaming", stream=3, path="/b"),
        a_request(phase="complete", method="POST", stream=5, path="/c"),
    ]
    html = part(a_view(a_row(*requests, protocol="h2")), "rows")
    shown = [" ".join(text(each).split()) for each in re.findall("<p .*?</p>", html)]
    assert shown == [
        "1 min 15 s waiting GET /a stream 1",
        "1.5 s streaming GET /b stream 3",
        "1.5 s complete POST /c stream 5",
    ]
    assert "<details>" not in html


def test_of_many_requests_the_oldest_three_are_shown() -> None:
    """The others can be unfolded, and those that are not even listed are counted."""
    requests = [a_request(path=f"/{number}", stream=number) for number in range(20)]
    html = part(a_view(a_row(*requests, in_flight_count=57)), "rows")
    before, after = html.split("<details>")
    assert re.findall("<bdi>/(.*?)</bdi>", before) == ["0", "1", "2"]
    assert after.startswith("<summary>17 more, 20 of 57</summary>")
    assert re.findall("<bdi>/(.*?)</bdi>", after) == [str(number) for number in range(3, 20)]
    assert "<summary>17 more</summary>" in part(a_view(a_row(*requests)), "rows")


@pytest.mark.parametrize(
    ("row", "stands_out"),
    [
        (a_row(a_request(age=9.9)), False),
        (a_row(a_request(age=10)), True),
        (a_row(a_request(age=10, phase="streaming")), False),
        (a_row(state="new", in_state=9.9), False),
        (a_row(state="new", in_state=10), True),
        (a_row(state="idle", in_state=10), False),
    ],
)
def test_requests_and_connections_that_wait_long_are_highlighted(
    row: Row, stands_out: bool
) -> None:
    """A request without a response, a connection without a request; not what may take its time."""
    assert (" long" in part(a_view(row), "rows")) is stands_out


def test_the_page_shows_the_number_and_the_order_of_connections() -> None:
    """Without filters nothing more."""
    connections = {"new": 0, "active": 1000, "idle": 234, "hijacked": 0}
    view = a_view(connections=connections, matching=1234)
    assert (
        text(part(view, "found")).strip() == "1,234 connections. Sorted: the oldest request first."
    )
    view = a_view(query="sort=-age")
    assert "Sorted: by Age, descending." in text(part(view, "found"))


def test_filters_are_shown_and_can_be_removed() -> None:
    """What is left out is counted, and the order stays."""
    query = "state=active&client=192.&path=/slow&sort=-age&page=2"
    view = a_view(query=query, connections=dict.fromkeys(GAUGES, 2), matching=1)
    html = part(view, "found")
    said = " ".join(text(html).split())
    assert said.startswith(
        "1 of 8 connections: state active , client begins with 192. , path contains /slow ("
    )
    assert links(html)["remove filters"] == "?sort=-age"


def test_the_form_has_the_current_filters() -> None:
    """Unfolded if something is; it keeps the order, and is no part of the updates."""
    html = page(a_view(query="state=idle&client=192.&path=/slow&group=client&sort=-age"), None)
    assert "<details open>" in html
    assert "<option selected>idle</option>" in html
    assert 'name="client" value="192."' in html
    assert 'name="path" value="/slow"' in html
    assert 'name="group" value="client" checked' in html
    assert '<input type="hidden" name="sort" value="-age">' in html
    assert "<details open>" in page(a_view(query="group=client"), None)
    # A connection that is closed is there while a handler goes on.
    assert "<option selected>closed</option>" in page(a_view(query="state=closed"), None)
    assert "<details open>" not in page(a_view(query="sort=-age"), None)
    assert "<form" not in update(a_view(), None)


def test_the_pages_lead_to_each_other() -> None:
    """With the same order and filters; there is nothing before the first or behind the last."""
    first = part(a_view(query="path=/a", pages=3), "found")
    assert "Page 1 of 3" in text(first)
    assert links(first)["Next page"] == "?page=2&path=%2Fa"
    assert "Previous page" not in links(first)
    middle = links(part(a_view(query="page=2", pages=3), "found"))
    assert middle == {"Previous page": "?", "Next page": "?page=3"}
    assert "Next page" not in links(part(a_view(query="page=3", pages=3), "found"))
    assert "Page" not in text(part(a_view(), "found"))


def test_headers_sort() -> None:
    """By what is large first where that is looked for; a second click turns the order round."""
    html = page(a_view(query="sort=age&page=2&path=/a"), None)
    found = links(html)
    assert found["Client"] == "?sort=client&path=%2Fa"
    assert found["Requests"] == "?sort=-requests&path=%2Fa"
    assert found["Age"] == "?sort=-age&path=%2Fa"
    assert '<th scope="col" class="age" aria-sort="ascending">' in html
    table = html.partition("</style>")[2]
    assert table.count("aria-sort") == table.count("aria-current") == 1
    assert links(page(a_view(query="sort=-age"), None))["Age"] == "?sort=age"
    assert found["Oldest request"] == "?path=%2Fa"


def test_groups_are_the_busiest_clients() -> None:
    """How many connections, in which states, and how old; each leads to its connections."""
    view = a_view(
        query="group=client&state=idle",
        groups=[A_GROUP, {**A_GROUP, "client": "2001:db8::7"}, {**A_GROUP, "client": ""}],
    )
    html = part(view, "rows")
    rows = [" ".join(text(row).split()) for row in html.split("</tr>")]
    assert rows[0] == "192.0.2.7 3 0 1 2 0 1 min 15 s"
    assert rows[2].startswith(f"{NOTHING} 3 ")
    found = links(html)
    # With the colon, or it would lead to 192.0.2.70, too.
    assert found["192.0.2.7"] == "?state=idle&client=192.0.2.7%3A"
    assert found["2001:db8::7"] == "?state=idle&client=%5B2001%3Adb8%3A%3A7%5D%3A"
    assert len(found) == 2
    assert "the busiest client first" in text(part(view, "found"))


def test_a_page_of_a_hundred_connections_is_small() -> None:
    """Below 100 kB with ordinary paths, and as small are the updates of each second."""
    requests = [a_request(path="/api/products/4711/reviews", stream=101) for _ in range(2)]
    rows = [a_row(*requests[: number % 3], id=number) for number in range(100)]
    history = {state: [number % 7 for number in range(300)] for state in GAUGES}
    view = a_view(*rows, history=history)
    assert len(page(view, TOKEN).encode()) < 100_000
    assert len(update(view, TOKEN).encode()) < 90_000
