"""What a worker's monitor reports, and how the reports of several workers become one view."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_httptrack import Conn, ConnState, StatsTracker
from trio_httptrack._monitor.monitor import (
    BATCH_SIZE,
    HISTORY_LENGTH,
    LAG_INTERVAL,
    REST_FACTOR,
    Monitor,
    Selection,
)
from trio_httptrack._monitor.query import DEFAULTS, ORDERS, ROWS_PER_PAGE, Query
from trio_httptrack._monitor.report import MAX_LISTED, Report, row_of
from trio_httptrack._monitor.view import View, view_of
from trio_httptrack._states import RequestInFlight

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState


class Requests:
    """The server's side of a connection of which only its requests in flight matter."""

    def __init__(self, requests: Iterable[RequestInFlight]) -> None:
        self._requests = tuple(requests)
        self.socket = self.monitor = None

    def requests_in_flight(self) -> tuple[RequestInFlight, ...]:
        return self._requests


def request(path: str = "/", started_at: float = 0, **about: Any) -> RequestInFlight:
    return RequestInFlight(**{"method": "GET", "path": path, "started_at": started_at, **about})


def connection(
    *requests: RequestInFlight,
    client: tuple[str, int] | None = ("10.0.0.1", 1),
    state: ConnState = NEW,
    since: float = 0,
    protocol: str | None = None,
) -> Conn:
    conn = Conn(client, opened_at=since)
    conn.state, conn.state_since, conn.protocol = state, since, protocol
    if requests:
        conn._controls = Requests(requests)  # type: ignore[assignment]
        conn._count_request(requests[-1].path)
    return conn


class Server:
    """A worker without a server."""

    def __init__(self, *conns: Conn) -> None:
        self.stats_tracker = StatsTracker()
        self.hijacked = 0
        self.requests = 0
        self.responses = [0] * 10
        self.draining = False
        self.monitored: list[Conn] = []
        self.blocked: list[float] = []
        self.looks = 0
        for conn in conns:
            self.add(conn)

    def add(self, conn: Conn) -> None:
        self.monitored.append(conn)
        if conn.state is HIJACKED:
            self.hijacked += 1
        else:
            self.stats_tracker.track(conn, conn.state)

    async def log_blocked(self, seconds: float) -> None:
        self.blocked.append(seconds)

    async def log_info(self, message: str) -> None:
        raise NotImplementedError


async def report_of(*conns: Conn, query: Query | None = Query()) -> Report:  # noqa: B008
    return await Monitor(Server(*conns)).report(query)


def ids(view: View | Report) -> list[int]:
    return [row["id"] for row in view["rows"]]


# What is first


async def test_connections_that_may_be_stuck_come_first(autojump_clock: MockClock) -> None:
    """The oldest request in flight, then what is new for long; WebSockets and idle ones last."""
    await trio.sleep(1000)
    one_stream = request("/slow", 10, method="GET", stream_id=1)
    websocket = request("/ws", 1, method="CONNECT", stream_id=1, response_begun=True)
    expected = [
        connection(request("/new", 999), one_stream, state=ACTIVE, since=998, protocol="h2"),
        connection(request("/stream", 11, response_begun=True), state=ACTIVE, since=11),
        connection(request("/gone", 12), state=CLOSED, since=900),
        connection(since=13),
        connection(since=999),
        connection(request("/chat", 2, response_begun=True), state=HIJACKED, since=5),
        connection(websocket, state=ACTIVE, since=6, protocol="h2"),
        connection(state=IDLE, since=7),
        connection(state=IDLE, since=998),
    ]
    report = await report_of(*reversed(expected))
    assert ids(report) == [conn.id for conn in expected]


async def test_a_row_has_its_requests_in_flight(autojump_clock: MockClock) -> None:
    """The oldest first, with their ages and what they are waiting for."""
    await trio.sleep(100)
    conn = connection(
        request("/slow", 40, stream_id=5),
        request("/events", 60.5, stream_id=7, response_begun=True),
        request("/goes-on", 90, stream_id=9, response_begun=True, response_complete=True),
        state=ACTIVE,
        since=30,
        protocol="h2",
    )
    assert row_of(conn, 4711, trio.current_time()) == {
        "worker": 4711,
        "id": conn.id,
        "client": "10.0.0.1:1",
        "protocol": "h2",
        "tls": False,
        "state": "active",
        "in_state": 70,
        "age": 70,
        "requests": 1,
        "path": "/goes-on",
        "received": None,
        "sent": None,
        "in_flight": [
            {"method": "GET", "path": "/slow", "age": 60, "stream": 5, "phase": "waiting"},
            {"method": "GET", "path": "/events", "age": 39.5, "stream": 7, "phase": "streaming"},
            {"method": "GET", "path": "/goes-on", "age": 10, "stream": 9, "phase": "complete"},
        ],
        "in_flight_count": 3,
    }


async def test_of_many_requests_a_row_has_the_oldest() -> None:
    """With their number."""
    requests = [request(f"/{number}", number, stream_id=2 * number + 1) for number in range(57)]
    (row,) = (await report_of(connection(*requests, state=ACTIVE, protocol="h2")))["rows"]
    assert row["in_flight_count"] == 57
    assert [each["path"] for each in row["in_flight"]] == [f"/{n}" for n in range(MAX_LISTED)]


async def test_a_request_that_matches_the_filter_is_in_its_row() -> None:
    """Also behind many others that are older."""
    requests = [request(f"/{number}", number, stream_id=2 * number + 1) for number in range(57)]
    conn = connection(*requests, state=ACTIVE, protocol="h2")
    (row,) = (await report_of(conn, query=Query(path="/5")))["rows"]
    paths = [each["path"] for each in row["in_flight"]]
    assert paths[:8] == [f"/{number}" for number in (5, *range(50, 57))]
    assert paths[8:] == [f"/{number}" for number in (*range(5), *range(6, 13))]
    assert row["in_flight_count"] == 57


# Orders, filters, groups, pages: against a naive model

addresses = st.sampled_from([None, ("10.0.0.1", 1), ("10.0.0.2", 1), ("10.0.0.2", 2), ("::1", 9)])
flights = st.lists(
    st.builds(request, st.sampled_from(["/", "/slow", "/a/b"]), st.floats(-99, 0)), max_size=3
)
connections = st.lists(
    st.builds(
        lambda client, state, since, protocol, requests: connection(
            *requests, client=client, state=state, since=since, protocol=protocol
        ),
        addresses,
        st.sampled_from(list(ConnState)),
        st.floats(-99, 0),
        st.sampled_from([None, "http/1.1", "h2"]),
        flights,
    ),
    max_size=30,
)
sorts = st.sampled_from([f"{sign}{order}" for sign in ("", "-") for order in ORDERS])
states = st.sampled_from(["", *map(str, ConnState)])
clients = st.sampled_from(["", "10.", "10.0.0.2", "[::1]", "x"])
paths = st.sampled_from(["", "/", "slow", "/a/b", "none"])


def run(test: Callable[..., Any], *args: Any) -> Any:
    return trio.run(test, *args, clock=MockClock(autojump_threshold=0))


@given(conns=connections, sort=sorts, state=states, client=clients, path=paths)
def test_any_order_and_filter_is_that_of_a_sorted_list(
    conns: list[Conn], sort: str, state: str, client: str, path: str
) -> None:
    """Whatever is known or not known of a connection."""
    query = Query(sort=sort, state=state, client=client, path=path)
    report = run(lambda: report_of(*conns, query=query))

    def passes(conn: Conn) -> bool:
        at_rest = conn.state in (NEW, IDLE)
        seen = [conn.path or "", *(each.path for each in (() if at_rest else conn.exchanges))]
        return (
            (not state or str(conn.state) == state)
            and (conn._peer or "").startswith(client)
            and any(path in each for each in seen)
        )

    expected = [conn for conn in conns if passes(conn)]
    keys = [ORDERS[query.order](conn, 0.0) for conn in expected]
    assert report["matching"] == len(expected)
    assert Counter(ids(report)) == Counter(conn.id for conn in expected)
    found = {conn.id: ORDERS[query.order](conn, 0.0) for conn in expected}
    assert [found[each] for each in ids(report)] == sorted(keys, reverse=sort.startswith("-"))


@given(conns=connections, of=st.lists(st.integers(0, 3), min_size=30, max_size=30), sort=sorts)
def test_several_workers_give_the_view_of_one_with_all_connections(
    conns: list[Conn], of: list[int], sort: str
) -> None:
    """In any order, and by JSON."""
    query = Query(sort=sort)

    async def views() -> tuple[View, View]:
        parts = [[c for c, n in zip(conns, of, strict=False) if n == number] for number in range(4)]
        reports = [json.loads(json.dumps(await report_of(*part, query=query))) for part in parts]
        return view_of(query, reports), view_of(query, [await report_of(*conns, query=query)])

    several, one = run(views)
    keys = {conn.id: list(ORDERS[query.order](conn, 0.0)) for conn in conns}
    assert [keys[each] for each in ids(several)] == [keys[each] for each in ids(one)]
    for name in ("connections", "websockets", "totals", "matching", "pages", "query"):
        assert several[name] == one[name]


@given(conns=connections, of=st.lists(st.booleans(), min_size=30, max_size=30))
def test_groups_count_each_clients_connections(conns: list[Conn], of: list[bool]) -> None:
    """In all workers, the busiest first."""
    query = Query(group="client")

    async def view() -> View:
        parts = [
            [c for c, n in zip(conns, of, strict=False) if n is side] for side in (True, False)
        ]
        return view_of(query, [await report_of(*part, query=query) for part in parts])

    groups = run(view)["groups"]
    hosts = [conn.client[0] if conn.client else "" for conn in conns]
    assert {each["client"]: each["connections"] for each in groups} == Counter(hosts)
    numbers = [each["connections"] for each in groups]
    assert numbers == sorted(numbers, reverse=True)
    for group in groups:
        its = [c for c, host in zip(conns, hosts, strict=True) if host == group["client"]]
        assert group["states"] == Counter(str(conn.state) for conn in its)
        assert group["oldest"] == round(max(-conn.opened_at for conn in its), 3)


async def test_of_ten_thousand_connections_a_page_has_a_hundred() -> None:
    """There are ten pages, of the first thousand; one that is too far is the last."""
    conns = [connection(client=("10.0.0.1", number), since=number) for number in range(10_000)]
    monitor = Monitor(Server(*conns))
    seen: set[int] = set()
    for page in (1, 2, 10):
        view = view_of(Query(page=page), [await monitor.report(Query(page=page))])
        first = (page - 1) * ROWS_PER_PAGE
        assert ids(view) == [conn.id for conn in conns[first : first + ROWS_PER_PAGE]]
        assert view["pages"] == 10
        assert view["matching"] == 10_000
        seen.update(ids(view))
    assert len(seen) == 3 * ROWS_PER_PAGE
    query = Query(page=10**9 - 1)
    view = view_of(query, [await monitor.report(query)])
    assert view["query"]["page"] == 10
    assert ids(view) == [conn.id for conn in conns[9 * ROWS_PER_PAGE : 10 * ROWS_PER_PAGE]]


async def test_of_ten_thousand_clients_the_thousand_busiest_are_known() -> None:
    """An attack is among them."""
    conns = [connection(client=(f"10.0.{n // 256}.{n % 256}", n)) for n in range(2000)]
    conns += [connection(client=("10.1.1.1", number)) for number in range(50)]
    query = Query(group="client")
    report = await report_of(*conns, query=query)
    assert len(report["groups"]) == 10 * ROWS_PER_PAGE
    view = view_of(query, [report])
    assert view["pages"] == 10
    assert [(each["client"], each["connections"]) for each in view["groups"][:1]] == [
        ("10.1.1.1", 50)
    ]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (b"sort=speed", "sort must be one of stuck, id, client, "),
        (b"sort=", "sort must be one of "),
        (b"page=0", "page must be a number from 1"),
        (b"page=-1", "page must be a number from 1"),
        (b"page=%C2%B2", "page must be a number from 1"),
        (b"page=", "page must be a number from 1"),
        (b"page=1" + b"0" * 5000, "page must be a number from 1"),
        (b"state=busy", "state must be one of new, active, idle, hijacked, closed"),
        (b"group=path", "group must be client"),
        (b"path=" + b"a" * 201, "client and path have at most 200 characters"),
        (b"client=" + b"1" * 201, "client and path have at most 200 characters"),
    ],
)
def test_an_invalid_query_is_refused(query: bytes, says: str) -> None:
    """The error names the allowed values."""
    with pytest.raises(ValueError, match=says):
        Query.parse(query)


@given(
    st.builds(
        Query,
        sort=sorts,
        page=st.integers(1, 10**9 - 1),
        state=states,
        client=st.text(max_size=200),
        path=st.text(max_size=200),
        group=st.sampled_from(["", "client"]),
    )
)
def test_a_link_parses_to_the_query_it_was_made_from(query: Query) -> None:
    """What is as by default is not in it."""
    link = query.link()
    assert Query.parse(link[1:].encode()) == query
    assert Query().link() == "?"
    for name, default in DEFAULTS.items():
        assert (f"{name}=" in link) == (getattr(query, name) != default)


def test_unknown_parameters_of_a_url_are_ignored() -> None:
    """Such as the page's token."""
    assert Query.parse(b"other=1&token=abc&sort=id&%ff%fe&&&=") == Query(sort="id")


# Numbers


async def test_numbers_are_summed_up_over_the_workers(autojump_clock: MockClock) -> None:
    """Gauges, totals, WebSockets and rates; a worker that has not responded has none."""
    first = Server(connection(), connection(state=HIJACKED), connection(state=IDLE))
    websocket = request("/ws", method="CONNECT", response_begun=True, stream_id=1)
    handshake = request("/ws", method="CONNECT", stream_id=3)
    second = Server(connection(websocket, websocket, handshake, state=ACTIVE, protocol="h2"))
    monitors = [Monitor(first), Monitor(second)]
    for monitor in monitors:
        await monitor.report(None)
    await trio.sleep(5)
    first.requests, second.requests = 50, 25
    first.responses[2], second.responses[2], second.responses[5] = 49, 10, 5
    silent = {**(await monitors[0].report(None))["worker"], "pid": 1, "silent": 3.2}
    view = view_of(Query(), [await each.report(Query()) for each in monitors], [silent])  # type: ignore[list-item]
    assert view["connections"] == {"new": 1, "active": 1, "idle": 1, "hijacked": 1}
    assert view["websockets"] == 3
    assert view["totals"]["requests"] == 75
    assert [view["totals"][name] for name in ("2xx", "5xx")] == [59, 5]
    assert view["per_second"] is not None
    assert view["per_second"]["requests"] == 15
    assert view["per_second"]["2xx"] == 11.8
    assert [each["pid"] for each in view["workers"]] == [1, os.getpid(), os.getpid()]
    assert [each["silent"] for each in view["workers"]] == [3.2, None, None]
    assert [each["uptime"] for each in view["workers"]] == [5, 5, 5]
    assert sorted(each["connections"] or 0 for each in view["workers"][1:]) == [1, 3]


async def test_a_websocket_whose_connection_is_closed_is_not_open() -> None:
    """Though its handler still runs."""
    websocket = request("/ws", method="CONNECT", response_begun=True, stream_id=1)
    report = await report_of(connection(websocket, state=CLOSED, protocol="h2"))
    assert report["websockets"] == 0
    assert len(report["rows"]) == 1


async def test_a_viewers_own_connection_is_listed_last() -> None:
    """However long it views the page: it is listed after connections that may be stuck."""
    viewer = connection(request("/status", -600), state=ACTIVE, since=-600)
    others = [connection(request("/slow", -5), state=ACTIVE, since=-5), connection(since=-1)]
    monitor = Monitor(Server(viewer, *others))
    with monitor.viewing(viewer):
        report = await monitor.report(Query())
        assert ids(report) == [*(conn.id for conn in others), viewer.id]
        assert ids(await monitor.report(Query(sort="-age")))[0] == viewer.id
    assert ids(await monitor.report(Query()))[0] == viewer.id


async def test_the_rates_are_those_of_the_last_ten_seconds(autojump_clock: MockClock) -> None:
    """Not of all time; and unknown until there is something to compare with."""
    server = Server()
    monitor = Monitor(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(monitor.run)
        await trio.sleep(2)
        assert (await monitor.report(None))["rates"] is None
        await trio.sleep(100)
        server.requests += 20
        await trio.sleep(5)
        rates = (await monitor.report(None))["rates"]
        assert rates is not None
        assert 1.8 <= rates["requests"] <= 2
        await trio.sleep(20)
        rates = (await monitor.report(None))["rates"]
        assert rates is not None
        assert rates["requests"] == 0
        nursery.cancel_scope.cancel()


async def test_the_history_is_kept_without_viewers(autojump_clock: MockClock) -> None:
    """One number a second, the last one now, and no more than five minutes."""
    server = Server()
    monitor = Monitor(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(monitor.run)
        await trio.sleep(9.5)
        conn = connection()
        server.add(conn)
        await trio.sleep(10)
        server.stats_tracker.track(conn, CLOSED)
        await trio.sleep(10)
        history = (await monitor.report(Query()))["history"]
        assert history["new"] == [0] * 10 + [1] * 10 + [0] * 10
        assert history["hijacked"] == [0] * 30
        await trio.sleep(2 * HISTORY_LENGTH)
        assert len((await monitor.report(Query()))["history"]["idle"]) in (
            HISTORY_LENGTH,
            HISTORY_LENGTH + 1,
        )
        assert (await monitor.report(None))["history"] == {}
        nursery.cancel_scope.cancel()


async def test_unknown_seconds_are_missing_in_the_history(autojump_clock: MockClock) -> None:
    """Such as of the time in which the event loop was blocked."""
    monitor = Monitor(Server(connection()))
    await monitor.report(Query())
    await trio.sleep(6)
    assert (await monitor.report(Query()))["history"]["new"] == [1, 1, 1, None, None, None, 1]


async def test_the_histories_of_younger_workers_end_now(autojump_clock: MockClock) -> None:
    """Each second is the sum of what is known."""
    old = Monitor(Server(connection(), connection()))
    await old.report(Query())
    await trio.sleep(5)
    young = Monitor(Server(connection()))
    view = view_of(Query(), [await each.report(Query()) for each in (old, young)])
    assert view["history"]["new"] == [2, 2, 2, None, None, 3]


# The event loop


async def test_a_loop_that_was_blocked_is_logged_once(mock_clock: MockClock) -> None:
    """With its length, to an eighth of a second; what is shorter than a second is only lag."""
    server = Server()
    monitor = Monitor(server)

    async def pass_time(seconds: float) -> None:
        mock_clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(monitor.run)
        await trio.testing.wait_all_tasks_blocked()
        await pass_time(LAG_INTERVAL + 0.85)
        assert server.blocked == []
        assert (await monitor.report(None))["worker"]["lag"] == pytest.approx(0.85)
        await pass_time(LAG_INTERVAL / 2)
        await pass_time(3.2)
        assert server.blocked == [pytest.approx(3.2)]
        for _ in range(120):
            await pass_time(LAG_INTERVAL)
        assert len(server.blocked) == 1
        assert (await monitor.report(None))["worker"]["lag"] == pytest.approx(0, abs=1e-6)
        nursery.cancel_scope.cancel()


# What it costs


async def test_reports_take_a_tenth_of_the_time_at_most(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many look: behind each report there is a rest."""
    looks: list[float] = []
    add = Selection.add

    def slow(self: Selection, conns: list[Conn]) -> None:
        mock_clock.jump(0.01)  # as long as this takes
        looks.append(trio.current_time())
        add(self, conns)

    monkeypatch.setattr(Selection, "add", slow)
    monitor = Monitor(Server(*(connection() for _ in range(4 * BATCH_SIZE))))
    mock_clock.autojump_threshold = 0
    async with trio.open_nursery() as nursery:
        for page in range(1, 11):
            nursery.start_soon(monitor.report, Query(page=page))
    assert len(looks) == 40
    assert trio.current_time() == pytest.approx(9 * REST_FACTOR * 0.04 + 0.04, rel=0.01)


async def test_the_time_in_which_the_process_was_stopped_counts_little(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would rest for hours after it was stopped for some minutes."""
    add = Selection.add

    def stopped(self: Selection, conns: list[Conn]) -> None:
        mock_clock.jump(600)
        add(self, conns)

    monitor = Monitor(Server(connection()))
    with monkeypatch.context() as patched:
        patched.setattr(Selection, "add", stopped)
        await monitor.report(Query())
    began = trio.current_time()
    mock_clock.autojump_threshold = 0
    await monitor.report(Query())
    assert trio.current_time() - began <= 1


async def test_metrics_do_not_wait_for_viewers(mock_clock: MockClock) -> None:
    """A scrape has a deadline, and costs little."""
    monitor = Monitor(Server(connection()))
    with monitor.charged():
        mock_clock.jump(10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(monitor.report, Query())
        await trio.testing.wait_all_tasks_blocked()
        assert (await monitor.report(None))["worker"]["uptime"] == 10
        nursery.cancel_scope.cancel()


async def test_other_tasks_run_while_a_report_is_made() -> None:
    """After each portion of connections."""
    monitor = Monitor(Server(*(connection() for _ in range(10 * BATCH_SIZE))))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await monitor.report(Query())
        nursery.cancel_scope.cancel()
    assert turns >= 10


@pytest.mark.parametrize("checkpoints", range(8))
async def test_no_age_is_negative(mock_clock: MockClock, checkpoints: int) -> None:
    """Though a request may have begun while the report was made, whenever that was."""
    conns = [connection(state=IDLE) for _ in range(2 * BATCH_SIZE)]
    server = Server(*conns)

    async def others() -> None:
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        mock_clock.jump(1)
        for conn in conns:
            conn.state_since = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        report = await Monitor(server).report(Query())
    assert all(row["in_state"] >= 0 for row in report["rows"])


async def test_a_viewer_that_shares_a_report_costs_nothing(autojump_clock: MockClock) -> None:
    """For as long as its age allows; and what is new replaces what is old."""
    server = Server()
    monitor = Monitor(server)
    first = await monitor.report(Query())
    server.add(connection())
    assert await monitor.report(Query(), max_age=0.9) is first
    assert (await monitor.report(Query(), max_age=0.9))["matching"] == 0
    assert (await monitor.report(Query(page=2), max_age=0.9))["matching"] == 1
    fresh = await monitor.report(Query())
    assert fresh["matching"] == 1
    assert await monitor.report(Query(), max_age=0.9) is fresh
    await trio.sleep(1)
    assert await monitor.report(Query(page=3), max_age=0.9) is not fresh
    assert len(monitor._recent_reports) == 1  # reports that are too old for any viewer are dropped
    assert await monitor.report(Query(), max_age=0.9) is not fresh


async def test_a_cancelled_viewer_does_not_block_the_next_one() -> None:
    """Also in the middle of a report."""
    monitor = Monitor(Server(*(connection() for _ in range(10 * BATCH_SIZE))))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(monitor.report, Query())
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert scope.cancelled_caught
    assert len(ids(await monitor.report(Query()))) == ROWS_PER_PAGE
