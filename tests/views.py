"""Views made by hand: that of a server with little load, and what a test changes in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from trio_httptrack._monitor.query import Query
from trio_httptrack._monitor.report import COUNTERS, GAUGES, Group, Request, Row, Worker
from trio_httptrack._monitor.view import View


def worker(pid: int = 4021, **changes: Any) -> Worker:
    known = Worker(
        pid=pid,
        name=f"{pid}-abcd",
        uptime=3900,
        connections=3,
        lag=0.002,
        draining=False,
        silent=None,
    )
    return cast(Worker, {**known, **changes})


def silent(pid: int, seconds: float) -> Worker:
    return worker(pid, uptime=None, connections=None, lag=None, silent=seconds)


def request(**changes: Any) -> Request:
    usual = Request(method="GET", path="/slow", age=75.0, stream=None, phase="waiting")
    return cast(Request, {**usual, **changes})


def row(*in_flight: Request, **changes: Any) -> Row:
    usual = Row(
        worker=4021,
        id=17,
        client="192.0.2.7:51234",
        protocol="http/1.1",
        tls=False,
        state="active" if in_flight else "idle",
        in_state=75.0,
        age=130.0,
        requests=3,
        path="/slow",
        received=1234,
        sent=0,
        in_flight=list(in_flight),
        in_flight_count=len(in_flight),
    )
    return cast(Row, {**usual, **changes})


def view(
    *rows: Row, query: Query | None = None, groups: tuple[Group, ...] = (), **changes: Any
) -> View:
    usual = View(
        host="web-3",
        time="2026-11-27T01:31:00Z",
        workers=[worker()],
        connections={**dict.fromkeys(GAUGES, 0), "active": 1, "idle": 2},
        websockets=0,
        totals=dict.fromkeys(COUNTERS, 0),
        per_second=None,
        history={},
        query=asdict(query or Query()),
        matching=len(rows),
        pages=1,
        rows=list(rows),
        groups=list(groups),
    )
    return cast(View, {**usual, **changes})
