"""The status page as its clients see it, in memory; tests/browser looks at it in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any

import h11
import httpx
import pytest
import trio
from hypercorn.middleware import ProxyFixMiddleware
from hypercorn.middleware.dispatcher import TrioDispatcherMiddleware
from trio.testing import MockClock

from trio_httptrack import Conn, ConnState, HijackTracker, StatsTracker, compose
from trio_httptrack.status import StatusApp
from trio_httptrack.status._history import LENGTH
from trio_httptrack.status._view import COLUMNS, ROWS, Query, View
from trio_httptrack.testing import MemoryServer, memory_server

from .clients import Http2, http1
from .support import app as support_app

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState
UPGRADE = (
    b" HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ANYTHING = "/<script>alert(1)</script>&\"'\u202e\n"


class Mounted:
    """A status page beside an application, on a server."""

    def __init__(self, server: MemoryServer, client: httpx.AsyncClient) -> None:
        self.server = server
        self.client = client

    async def json(self, query: str = "") -> Any:
        answer = await self.client.get(f"/status{query}", headers={"accept": "application/json"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        return answer.json()

    async def html(self, query: str = "") -> str:
        answer = await self.client.get(f"/status{query}", headers={"accept": "text/html"})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        return answer.text


@asynccontextmanager
async def mounted(*, lifespan: bool = True, **settings: Any) -> AsyncIterator[Mounted]:
    stats, hijacks = StatsTracker(), HijackTracker()
    status = StatusApp(stats, hijack_tracker=hijacks)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await (status if lifespan else support_app)(scope, receive, send)
        else:
            await (status if scope["path"] == "/status" else support_app)(scope, receive, send)

    async with (
        memory_server(
            app, tracker=compose(stats, hijacks), keep_alive_timeout=10_000, **settings
        ) as server,
        httpx.AsyncClient(
            transport=server.httpx_transport(), base_url="http://localhost"
        ) as client,
    ):
        yield Mounted(server, client)


async def request(status: StatusApp, **scope: Any) -> tuple[int, dict[str, str], str]:
    """Call the application as a server would."""
    sent = []

    async def receive() -> Any:
        await trio.sleep_forever()

    async def send(event: Any) -> None:
        sent.append(event)

    whole = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "extensions": {},
        **scope,
    }
    await status(whole, receive, send)
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, body["body"].decode()


class Events:
    """A viewer of the events, on a connection of its own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)
        self._unread = b""

    async def begin(self, query: str = "") -> None:
        headers = [("host", "localhost"), ("accept", "text/event-stream")]
        asked = h11.Request(method="GET", target=f"/status{query}", headers=headers)
        sent = (self._h11.send(asked) or b"") + (self._h11.send(h11.EndOfMessage()) or b"")
        await self.stream.send_all(sent)
        response = await self._event()
        assert isinstance(response, h11.Response)
        assert (b"content-type", b"text/event-stream; charset=utf-8") in list(response.headers)

    async def next(self) -> dict[str, str] | None:
        """The next event's data; None at the end of the answer."""
        while b"\n\n" not in self._unread:
            event = await self._event()
            if isinstance(event, h11.EndOfMessage):
                return None
            assert isinstance(event, h11.Data)
            self._unread += event.data
        event_, _, self._unread = self._unread.partition(b"\n\n")
        assert event_.startswith(b"data: ")
        parts: dict[str, str] = json.loads(event_[6:])
        return parts

    async def _event(self) -> Any:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self.stream.receive_some())
        return event


# What is shown


async def test_the_numbers_are_the_trackers(autojump_clock: MockClock) -> None:
    """As JSON: gauges, counters and the process whose they are."""
    async with mounted() as page:
        silent = await page.server.connect()
        idle = await page.server.connect()
        await trio.sleep(1)
        await http1(idle, path="/somewhere?secret=1")
        upgraded = await page.server.connect()
        await upgraded.send_all(b"GET /chat" + UPGRADE)
        await upgraded.receive_some()
        await trio.sleep(2)
        seen = await page.json("?sort=id")
        assert seen["connections"] == {"new": 1, "active": 1, "idle": 1, "hijacked": 1}
        assert seen["transitions"] == {"new": 4, "active": 3, "idle": 1, "hijacked": 1, "closed": 0}
        assert seen["open"] == 4
        totals = re.findall(r"<dt>(.*?)</dt> <dd>(\d+)</dd>", await page.html())
        assert totals == [
            *(("accepted", "4"), ("became active", "4"), ("became idle", "2"), ("hijacked", "1")),
            ("closed", "0"),
        ]
        assert seen["process"].keys() == {"pid", "host"}
        assert seen["rows"][:3] == [
            {
                "id": silent.conn.id,
                "client": f"127.0.0.1:{silent.conn.client[1]}",  # type: ignore[index]
                "protocol": None,
                "tls": False,
                "state": "new",
                "in_state": 3,
                "age": 3,
                "requests": 0,
                "path": None,
            },
            {
                "id": idle.conn.id,
                "client": f"127.0.0.1:{idle.conn.client[1]}",  # type: ignore[index]
                "protocol": "http/1.1",
                "tls": False,
                "state": "idle",
                "in_state": 2,
                "age": 3,
                "requests": 1,
                "path": "/somewhere",
            },
            {
                "id": upgraded.conn.id,
                "client": f"127.0.0.1:{upgraded.conn.client[1]}",  # type: ignore[index]
                "protocol": "http/1.1",
                "tls": False,
                "state": "hijacked",
                "in_state": 2,
                "age": 2,
                "requests": 1,
                "path": "/chat",
            },
        ]


async def test_an_http2_connection_over_tls_says_so(autojump_clock: MockClock) -> None:
    """And counts the requests of all of its streams."""
    async with mounted() as page:
        client = Http2(await page.server.connect(tls=True, alpn=["h2"]))
        await client.start()
        await client.get("/one")
        await client.get("/two")
        (row,) = [row for row in (await page.json())["rows"] if row["protocol"] == "h2"]
        assert (row["tls"], row["requests"], row["path"]) == (True, 2, "/two")
        html = await page.html()
        assert '<td role="cell" class="tls" data-title="TLS">TLS</td>' in html


async def test_the_longest_stuck_comes_first(autojump_clock: MockClock) -> None:
    """Unless one asks for another order, by a column, up or down."""
    async with mounted() as page:
        conns = []
        for _ in range(3):
            stream = await page.server.connect()
            conns.append(stream.conn.id)
            await trio.sleep(1)
        await http1(stream)
        third = (await page.json())["rows"]
        assert [row["id"] for row in third][:2] == conns[:2]
        for sort, first in (
            ("id", conns[0]),
            ("-age", conns[0]),
            ("state", conns[0]),
            ("-path", third[-1]["id"]),
        ):
            assert (await page.json(f"?sort={sort}"))["rows"][0]["id"] == first, sort


@pytest.mark.parametrize("sort", [*COLUMNS, *(f"-{column}" for column in COLUMNS)])
async def test_every_column_sorts_what_is_known_and_what_is_not(sort: str) -> None:
    """A connection whose peer, protocol or path is not known is in order, too."""
    tracker = StatsTracker()
    for client, requests in ((("10.0.0.1", 1), 2), (None, 0), (("::1", 2), 1)):
        conn = Conn(client)
        for _ in range(requests):
            conn._count_request("/")
        tracker.track(conn, NEW)
    tracker.track("not a Conn", NEW)
    status, _, body = await request(
        StatusApp(tracker),
        query_string=f"sort={sort}".encode(),
        headers=[(b"accept", b"application/json")],
    )
    assert status == 200
    rows = json.loads(body)["rows"]
    values = [(row[sort.strip("-")] is not None, row[sort.strip("-")]) for row in rows]
    assert len(rows) == 3
    assert values == sorted(values, reverse=sort.startswith("-"))


async def test_of_ten_thousand_connections_a_page_has_a_hundred(autojump_clock: MockClock) -> None:
    """The others are on other pages; one that is too far is the last."""
    tracker = StatsTracker()
    for number in range(10_000):
        conn = Conn(("10.0.0.1", number), opened_at=-number)
        tracker.track(conn, NEW)
    status = StatusApp(tracker)
    seen: set[int] = set()
    for page in range(1, 101):
        _, _, body = await request(
            status, query_string=b"page=%d" % page, headers=[(b"accept", b"application/json")]
        )
        rows = json.loads(body)["rows"]
        assert len(rows) == ROWS
        seen |= {row["id"] for row in rows}
    assert len(seen) == 10_000
    _, _, html = await request(status, query_string=b"page=999999999")
    assert "10,000, sorted by “In state for”, descending; page 100 of 100" in html
    assert 'rel="prev"' in html
    assert 'rel="next"' not in html
    assert len(html) < 100_000


async def test_what_a_peer_says_stays_text() -> None:
    """It is escaped, and what cannot be seen is spelled out."""
    tracker = StatsTracker()
    conn = Conn(("<b>", 1))
    conn._count_request(ANYTHING)
    tracker.track(conn, NEW)
    _, _, html = await request(StatusApp(tracker))
    (script,) = re.findall("<script>(.*?)</script>", html, re.DOTALL)
    assert "alert" not in script
    shown = "/&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;\\u202e\\n"
    assert f"<bdi>{shown}</bdi>" in html
    assert "<b>" not in html
    assert "\u202e" not in html


async def test_the_html_is_well_formed(autojump_clock: MockClock) -> None:
    """Every element is closed in its turn, each id is there once, each link leads back here."""

    class Checker(HTMLParser):
        open: list[str]
        ids: list[str]
        links: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            attributes = dict(attrs)
            assert "style" not in attributes
            assert not [name for name in attributes if name.startswith("on")]
            if "id" in attributes:
                self.ids.append(attributes["id"] or "")
            if tag in ("a", "link"):
                self.links.append(attributes["href"] or "")
            if tag not in ("meta", "link"):
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    async with mounted() as page:
        await page.server.connect()
        html = await page.html("?sort=-path")
    checker = Checker()
    checker.open, checker.ids, checker.links = [], [], []
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert {"rows", "states", "totals", "process", "pages-above"} <= set(checker.ids)
    icon, *links = checker.links
    assert icon == "data:,"
    assert len(links) == len(COLUMNS)
    for link in links:
        assert link.startswith("?sort=")
        Query.parse(link[1:].partition("#")[0].encode())


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (b"sort=speed", "sort must be one of id, client, "),
        (b"sort=", "sort must be one of "),
        (b"page=0", "page must be a number from 1"),
        (b"page=-1", "page must be a number from 1"),
        (b"page=%C2%B2", "page must be a number from 1"),
        (b"page=", "page must be a number from 1"),
        (b"page=1" + b"0" * 5000, "page must be a number from 1"),
        (b"other=1&sort=id", None),
        (b"%ff%fe&&&=", None),
    ],
)
async def test_a_query_that_makes_no_sense_is_answered_with_400(
    query: bytes, says: str | None
) -> None:
    """It says what would; what others may add to a URL is let pass."""
    status, _, body = await request(StatusApp(StatsTracker()), query_string=query)
    assert status == (200 if says is None else 400)
    assert says is None or body.startswith(says)


async def test_the_pages_lead_to_each_other() -> None:
    """In the order that was chosen; another order begins with its first page."""
    tracker = StatsTracker()
    for _ in range(2 * ROWS + 1):
        tracker.track(Conn(), NEW)
    for page, around in ((1, [2]), (2, [1, 3]), (3, [2])):
        query = b"sort=age&page=%d" % page
        _, _, html = await request(StatusApp(tracker), query_string=query)
        links = re.findall(r'rel="(?:prev|next)" href="\?sort=age&amp;page=(\d+)#', html)
        assert list(map(int, links)) == around
        assert 'href="?sort=-age&amp;page=1#connections-heading">Age<' in html
        assert 'href="?sort=id&amp;page=1#connections-heading">No.<' in html


async def test_the_chart_is_the_history_in_steps(autojump_clock: MockClock) -> None:
    """As high as there were connections, and broken where nobody looked."""
    tracker = StatsTracker()
    status = StatusApp(tracker)

    async def chart() -> str:
        _, _, html = await request(status)
        found = re.search(r'between (\d+ and \d+) .*\n<path d="(.*?)"', html)
        assert found is not None
        return f"{found[1]}: {found[2]}"

    assert await chart() == "0 and 0: M300 100H300V100V100"
    await trio.sleep(1)
    tracker.track(conn := Conn(), NEW)
    tracker.track(Conn(), NEW)
    assert await chart() == "0 and 2: M299 100H299V100H300V4V100"
    await trio.sleep(10)
    tracker.track(conn, CLOSED)
    assert await chart() == "0 and 2: M289 100H289V100H290V4H291V100M300 100H300V52V100"


# The last minutes


async def test_the_history_is_there_before_anybody_looked(autojump_clock: MockClock) -> None:
    """One sample a second, from the lifespan's startup on."""
    async with mounted() as page:
        await trio.sleep(9.5)
        client = await page.server.connect()
        await trio.sleep(10)
        await client.aclose()
        await trio.sleep(10)
        seen = await page.json()
        new = dict(zip(seen["history"]["ago"], seen["history"]["new"], strict=True))
        assert len(new) == 31
        assert [ago for ago, number in new.items() if number] == [n + 0.5 for n in range(19, 9, -1)]


async def test_the_history_has_no_more_than_five_minutes(autojump_clock: MockClock) -> None:
    """However long the server has been running."""
    async with mounted() as page:
        await trio.sleep(LENGTH + 100.5)
        ago = (await page.json())["history"]["ago"]
        assert ago[0] == LENGTH - 0.5
        assert len(ago) == LENGTH + 1


async def test_without_a_lifespan_the_history_begins_with_the_first_look(
    autojump_clock: MockClock,
) -> None:
    """There is no task that could keep it before, and none is left."""
    async with mounted(lifespan=False) as page:
        await trio.sleep(10)
        assert (await page.json())["history"]["ago"] == [0]
        await trio.sleep(5)
        seen = await page.json()
        assert seen["history"]["ago"] == [5, 0]
        assert seen["per_second"]["active"] == 1 / 5


async def test_the_rates_are_those_of_the_last_ten_seconds(autojump_clock: MockClock) -> None:
    """Not of all time; and unknown until there is something to compare with."""
    async with mounted() as page:
        assert (await page.json())["per_second"] is None
        await page.server.connect()
        await trio.sleep(2)
        assert (await page.json())["per_second"] is None
        assert '<dd class="rate"></dd>' in await page.html()
        await trio.sleep(100)
        for _ in range(20):
            await http1(await page.server.connect())
        await trio.sleep(4)
        seen = await page.json()
        assert seen["per_second"]["new"] == 2
        assert "2.0/s" in await page.html()
        await trio.sleep(20)
        assert (await page.json())["per_second"]["new"] == 0


# Updates


async def test_a_viewer_is_sent_what_changes_each_second(autojump_clock: MockClock) -> None:
    """Ready-made parts of the page, in the order that was asked for."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin("?sort=id")
        first = await viewer.next()
        assert first is not None
        assert first.keys() == {"process", "states", "totals", "pages-above", "rows"}
        begun = trio.current_time()
        other = await page.server.connect()
        second = await viewer.next()
        assert second is not None
        assert trio.current_time() == begun + 1
        ids = re.findall(r'class="id" data-title="No.">(\d+)', second["rows"])
        assert ids == [str(viewer.stream.conn.id), str(other.conn.id)]


async def test_viewers_of_the_same_share_the_work(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of them cost one view a second."""
    made: list[Query] = []
    view = StatusApp._view

    def counted(self: StatusApp, query: Query) -> View:
        made.append(query)
        return view(self, query)

    monkeypatch.setattr(StatusApp, "_view", counted)
    async with mounted() as page:
        viewers = [Events(await page.server.connect()) for _ in range(20)]
        for viewer in viewers:
            await viewer.begin()
        for _ in range(5):
            for viewer in viewers:
                assert await viewer.next() is not None
    assert len(made) in (5, 6)


async def test_the_first_update_is_not_older_than_the_page(autojump_clock: MockClock) -> None:
    """Though another viewer has had this second's already."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        await viewer.next()
        await page.server.connect()
        assert ">3, sorted by" in (await page.html()).replace("<p>", ">")
        other = Events(await page.server.connect())
        await other.begin()
        update = await other.next()
        assert update is not None
        assert update["rows"].count("<tr ") == 4


async def test_a_viewer_that_does_not_read_is_waited_for(autojump_clock: MockClock) -> None:
    """Nothing piles up for it; what it reads at last is not from long ago."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        await trio.sleep(1000)
        number = 0
        while trio.current_time() == 1000:
            await viewer.next()
            number += 1
        assert number < 100  # and not a thousand


async def test_a_viewer_that_leaves_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    """Its handler ends with its connection, over HTTP/1.1 and HTTP/2."""
    async with mounted() as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        await viewer.stream.aclose()
        await viewer.stream.conn.wait_closed()
        h2 = Http2(await page.server.connect())
        await h2.start()
        stream_id = h2.h2.get_next_available_stream_id()
        h2.h2.send_headers(
            stream_id,
            [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "localhost"),
                (":path", "/status"),
                ("accept", "text/event-stream"),
            ],
            end_stream=True,
        )
        await h2.flush()
        while not h2.bodies:
            await h2.pump()
        h2.h2.reset_stream(stream_id)
        await h2.flush()
        await h2.get("/other")
        await trio.testing.wait_all_tasks_blocked()
        assert page.server.stats().idle == 1
        assert page.server.stats().active == 0


async def test_a_shutdown_ends_the_updates_at_once(autojump_clock: MockClock) -> None:
    """The answer is whole, and the page's EventSource asks the next worker."""
    async with mounted(graceful_timeout=100) as page:
        viewer = Events(await page.server.connect())
        await viewer.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(page.server.shutdown)
            while await viewer.next() is not None:
                pass
        assert trio.current_time() < 2


async def test_a_lifespan_that_is_over_keeps_no_history(autojump_clock: MockClock) -> None:
    """Its task ends with it, and with a cancellation."""
    async with mounted() as page:
        before = trio.current_time()
        await page.server.shutdown()
        await trio.sleep(10)
        assert trio.current_time() == before + 10
    with trio.move_on_after(5) as scope:
        async with mounted():
            await trio.sleep_forever()
    assert scope.cancelled_caught


# Who may look, and how


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.8.9.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("192.0.2.7", {}, 403),
        ("10.0.0.1", {}, 403),
        ("2001:db8::1", {}, 403),
        ("::ffff:192.0.2.7", {}, 403),
        ("192.0.2.7", {"x_forwarded_for": "127.0.0.1"}, 403),
        ("192.0.2.7", {"forwarded": "for=127.0.0.1"}, 403),
        ("192.0.2.7", {"x_real_ip": "127.0.0.1"}, 403),
        # Behind a proxy on this machine, everybody comes from it.
        ("127.0.0.1", {"x_forwarded_for": "192.0.2.7"}, 403),
        ("127.0.0.1", {"x_forwarded_for": "127.0.0.1"}, 403),
        ("127.0.0.1", {"X_Forwarded_Proto": "https"}, 403),
        ("127.0.0.1", {"forwarded": "for=192.0.2.7"}, 403),
        ("127.0.0.1", {"via": "1.1 proxy"}, 403),
        ("127.0.0.1", {"x_real_ip": "192.0.2.7"}, 403),
        ("127.0.0.1", {"cf_connecting_ip": "192.0.2.7"}, 403),
    ],
)
async def test_only_this_machine_is_answered(
    autojump_clock: MockClock, address: str, headers: Any, status: int
) -> None:
    """By the address of the socket; a header lets nobody in."""
    async with mounted() as page:
        client = await page.server.connect(client=(address, 4711))
        answered, body = await http1(client, path="/status", **headers)
        assert answered == status
        assert (b"Open now" in body) == (status == 200)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LOCALHOST:8000", 200),
        (b"app.localhost", 200),
        (b"127.0.0.1:8000", 200),
        (b"[::1]:8000", 200),
        (b"127.3.2.1", 200),
        (b"192.0.2.1", 403),
        (b"[2001:db8::1]", 403),
        (b"evil.example", 403),
        (b"localhost.evil.example", 403),
        (b"127.0.0.1.evil.example:8000", 403),
        (b"", 403),
        (b"[::1", 403),
        (b"\xff", 403),
    ],
)
async def test_a_site_that_resolves_to_this_machine_cannot_read_it(
    host: bytes, status: int
) -> None:
    """The browser of somebody who works here would ask by that site's name."""
    got, _, _ = await request(StatusApp(StatsTracker()), headers=[(b"host", host)])
    assert got == status


async def test_http2_clients_are_asked_for_their_host_too(autojump_clock: MockClock) -> None:
    """It is in ``:authority``."""
    async with mounted() as page:
        transport = page.server.httpx_transport(http1=False, http2=True)
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://localhost/status")).status_code == 200
            assert (await client.get("http://evil.example/status")).status_code == 403


async def test_allow_says_who_is_answered(autojump_clock: MockClock) -> None:
    """By address alone; the loopback is not among them unless it is named."""
    status = StatusApp(StatsTracker(), allow=["10.1.0.0/16", "2001:db8::7"])
    async with memory_server(status) as server:
        for address, expected in (
            ("10.1.2.3", 200),
            ("10.2.2.3", 403),
            ("2001:db8::7", 200),
            ("2001:db8::8", 403),
            ("::ffff:10.1.2.3", 200),
            ("127.0.0.1", 403),
        ):
            client = await server.connect(client=(address, 4711))
            answered, body = await http1(client, host="status.example", x_forwarded_for="10.1.2.3")
            assert answered == expected, address
            if expected == 403:
                assert b"You may not look at this page from" in body


@pytest.mark.parametrize(
    ("allow", "error", "says"),
    [
        ("10.0.0.0/8", TypeError, r"write allow=\['10.0.0.0/8'\]"),
        (["10.0.0.1/8"], ValueError, "allow: 10.0.0.1/8 has host bits set; write '10.1.2.0/24'"),
        (["localhost"], ValueError, "allow: 'localhost' does not appear to be"),
        (b"127.0.0.1", TypeError, "allow: networks are strings such as '10.1.2.0/24', not 49"),
    ],
)
def test_what_is_no_network_is_refused_at_once(
    allow: Any, error: type[Exception], says: str
) -> None:
    """With an example of what would be one."""
    with pytest.raises(error, match=says):
        StatusApp(StatsTracker(), allow=allow)


def test_something_else_than_a_stats_tracker_is_refused() -> None:
    """It would fail with the first viewer."""
    with pytest.raises(TypeError, match="a StatsTracker is needed, not <HijackTracker"):
        StatusApp(HijackTracker())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hijack_tracker must be a HijackTracker, not <StatsTr"):
        StatusApp(StatsTracker(), hijack_tracker=StatsTracker())  # type: ignore[arg-type]


async def test_middleware_that_believes_headers_changes_nothing(autojump_clock: MockClock) -> None:
    """ProxyFixMiddleware puts into the scope what the header says; the socket knows better."""
    status = StatusApp(StatsTracker(), allow=["127.0.0.1"])
    fixed: Any = ProxyFixMiddleware(status, mode="legacy", trusted_hops=1)
    async with memory_server(fixed) as server:
        client = await server.connect(client=("192.0.2.7", 4711))
        answered, _ = await http1(client, x_forwarded_for="127.0.0.1")
        assert answered == 403


@pytest.mark.parametrize("client", [None, ("/run/peer.sock", 0), ["unix"], ""])
async def test_a_peer_without_an_address_is_not_answered(client: Any) -> None:
    """Whoever speaks through a Unix socket is most likely a proxy."""
    for allow in (None, ["0.0.0.0/0", "::/0"]):
        status, _, body = await request(StatusApp(StatsTracker(), allow=allow), client=client)
        assert status == 403
        assert "from an unknown address" in body


async def test_a_proxy_that_speaks_http_1_0_is_not_answered(autojump_clock: MockClock) -> None:
    """As nginx does unless it is told otherwise, and no browser does."""
    async with mounted() as page:
        client = await page.server.connect()
        await client.send_all(b"GET /status HTTP/1.0\r\nhost: 127.0.0.1:8000\r\n\r\n")
        assert (await client.receive_some()).startswith(b"HTTP/1.1 403")


async def test_it_lives_through_several_runs_of_trio() -> None:
    """As an application that is a module's own does in tests: each clock begins anew."""
    tracker = StatsTracker()
    status = StatusApp(tracker)

    async def run(connections: int) -> bytes:
        for _ in range(connections):
            tracker.track(Conn(), NEW)
        await trio.sleep(20)
        return status._update(Query())

    def in_thread(connections: int) -> bytes:
        return trio.run(run, connections, clock=MockClock(autojump_threshold=0))

    assert b"1, sorted by" in await trio.to_thread.run_sync(in_thread, 1)
    assert b"31, sorted by" in await trio.to_thread.run_sync(in_thread, 30)
    assert [sample.stats.accepted for sample in status._history.samples] == [31]


async def test_a_tracker_that_nobody_feeds_is_not_taken_for_peace() -> None:
    """It is the mistake that is made first."""
    _, _, html = await request(StatusApp(StatsTracker()))
    assert "is it on the config's conn_state?" in html


async def test_it_can_only_be_read(autojump_clock: MockClock) -> None:
    """GET and HEAD, by HTTP."""
    async with mounted() as page:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = await page.client.request(method, "/status")
            assert answer.status_code == 405
            assert answer.headers["allow"] == "GET, HEAD"
        for accept in ("text/html", "application/json", "text/event-stream"):
            answer = await page.client.head("/status", headers={"accept": accept})
            assert answer.status_code == 200
            assert answer.text == ""
        client = await page.server.connect()
        await client.send_all(b"GET /status" + UPGRADE)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"headers": [(b"accept", b"application/json")]},
        {"method": "POST"},
        {"query_string": b"page=x"},
        {"client": ("192.0.2.7", 1)},
    ],
)
async def test_every_answer_is_private_and_strict(scope: Any) -> None:
    """Kept nowhere, framed nowhere, and nothing in it runs or loads but its own script."""
    _, headers, body = await request(StatusApp(StatsTracker()), **scope)
    assert headers["cache-control"] == "no-store"
    assert headers["vary"] == "accept"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["content-length"] == str(len(body.encode()))
    policy = re.sub("'sha256-[^']{44}'", "HASH", headers["content-security-policy"])
    assert policy == (
        "default-src 'none'; style-src HASH; script-src HASH; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("*/*", "text/html"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("Application/JSON;q=0.9", "application/json"),
        ("image/png", "text/html"),
        ("", "text/html"),
    ],
)
async def test_the_client_gets_the_first_kind_that_it_names(accept: str, kind: str) -> None:
    """HTML if it names none that there is."""
    _, headers, _ = await request(
        StatusApp(StatsTracker()), headers=[(b"accept", accept.encode("latin-1"))]
    )
    assert headers["content-type"].partition(";")[0] == kind


async def test_it_can_be_mounted_by_hypercorns_dispatcher(autojump_clock: MockClock) -> None:
    """With the lifespan, so that there is a history; below a path, whose slash does not matter."""
    tracker = StatsTracker()
    app = TrioDispatcherMiddleware({"/status": StatusApp(tracker), "": support_app})
    async with (
        memory_server(app, tracker=tracker, keep_alive_timeout=60) as server,
        httpx.AsyncClient(
            transport=server.httpx_transport(), base_url="http://localhost"
        ) as client,
    ):
        await trio.sleep(10)
        assert (await client.get("/elsewhere")).text == "/elsewhere"
        for path in ("/status", "/status/", "/status?sort=id"):
            answer = await client.get(path, headers={"accept": "application/json"})
            assert len(answer.json()["history"]["ago"]) >= 10
