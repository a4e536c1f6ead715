"""What is shown to one viewer at one time: the numbers, and one page of the connections.

It costs one pass over the open connections to sort them; all else is of a fixed size.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .._hijacks import HijackTracker
from .._states import Conn, ConnState
from .._stats import StatsTracker
from ._history import LENGTH, History, Sample

ROWS = 100  # on a page

COLUMNS: dict[str, Callable[[Conn], Any]] = {
    "id": lambda conn: conn.id,
    "client": lambda conn: conn.client or ("", 0),
    "protocol": lambda conn: conn.protocol or "",
    "tls": lambda conn: conn.tls,
    "state": lambda conn: conn.state,
    "in_state": lambda conn: -conn.state_since,
    "age": lambda conn: -conn.opened_at,
    "requests": lambda conn: conn.requests,
    "path": lambda conn: path_of(conn) or "",
}


def path_of(conn: Conn) -> str | None:
    """That of its oldest request in flight, or of its last request."""
    requests = conn.exchanges
    return requests[0].path if requests else conn.path


def pages(connections: int) -> int:
    return max(1, -(-connections // ROWS))


@dataclass(frozen=True, slots=True)
class Query:
    """What a viewer wants to see, as in ``?sort=-age&page=2``; a minus puts the greatest first."""

    sort: str = "-in_state"  # the longest stuck
    page: int = 1

    @classmethod
    def parse(cls, query_string: bytes) -> Query:
        query = cls()
        for name, value in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
            if name == "sort":
                if value.removeprefix("-") not in COLUMNS:
                    raise ValueError(f"sort must be one of {', '.join(COLUMNS)}, or that with a -")
                query = replace(query, sort=value)
            elif name == "page":
                if not (
                    value.isascii() and value.isdecimal() and 0 < len(value) < 10 and int(value)
                ):
                    raise ValueError("page must be a number from 1")
                query = replace(query, page=int(value))
        return query

    @property
    def column(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")

    def within(self, connections: int) -> Query:
        """The same, or the last page that there is."""
        return replace(self, page=min(self.page, pages(connections)))

    def link(self, **changes: Any) -> str:
        return f"?{urlencode(asdict(replace(self, **changes)))}"


@dataclass(frozen=True, slots=True)
class Row:
    """One connection; times in seconds."""

    id: int
    client: str | None
    protocol: str | None
    tls: bool
    state: str
    in_state: float
    age: float
    requests: int
    path: str | None


@dataclass(frozen=True, slots=True)
class View:
    query: Query
    now: Sample
    samples: list[Sample]
    rates: dict[ConnState, float] | None
    hijacks: bool
    """Whether it is known which upgraded connections are open."""

    connections: int
    pages: int
    rows: list[Row]

    @classmethod
    def of(
        cls, query: Query, tracker: StatsTracker, hijacks: HijackTracker | None, history: History
    ) -> View:
        now = history.now()
        conns = [conn for conn in tracker.connections() if isinstance(conn, Conn)]
        if hijacks is not None:
            conns += hijacks.connections()
        conns.sort(key=COLUMNS[query.column], reverse=query.descending)
        query = query.within(len(conns))
        shown = conns[(query.page - 1) * ROWS : query.page * ROWS]
        return cls(
            query=query,
            now=now,
            samples=[
                *(each for each in history.samples if now.time - LENGTH <= each.time < now.time),
                now,
            ],
            rates=history.rates(now),
            hijacks=hijacks is not None,
            connections=len(conns),
            pages=pages(len(conns)),
            rows=[_row(conn, now.time) for conn in shown],
        )

    @property
    def gauges(self) -> dict[ConnState, int]:
        """How many connections are in each state that is known of."""
        return self._gauges(self.now)

    @property
    def counters(self) -> dict[ConnState, int]:
        return self.now.stats.counters

    def history(self) -> dict[ConnState, list[tuple[float, int]]]:
        """Each state's gauge over the last minutes: how many seconds ago, and how many."""
        samples = [(self.now.time - each.time, self._gauges(each)) for each in self.samples]
        return {state: [(ago, each[state]) for ago, each in samples] for state in self.gauges}

    def _gauges(self, sample: Sample) -> dict[ConnState, int]:
        hijacked = {ConnState.HIJACKED: sample.hijacked} if self.hijacks else {}
        return sample.stats.gauges | hijacked

    def as_json(self) -> str:
        history = {
            "ago": [round(self.now.time - each.time, 3) for each in self.samples],
            **{str(state): [each for _, each in line] for state, line in self.history().items()},
        }
        return json.dumps(
            {
                "process": {"pid": os.getpid(), "host": platform.node()},
                "connections": _by_name(self.gauges),
                "transitions": _by_name(self.counters),
                "per_second": self.rates and _by_name(self.rates),
                "history": history,
                "open": self.connections,
                "sort": self.query.sort,
                "page": self.query.page,
                "pages": self.pages,
                "rows": [asdict(row) for row in self.rows],
            }
        )


def _by_name(numbers: dict[ConnState, Any]) -> dict[str, Any]:
    return {str(state): number for state, number in numbers.items()}


def _row(conn: Conn, now: float) -> Row:
    return Row(
        id=conn.id,
        client=conn._peer,
        protocol=conn.protocol,
        tls=conn.tls,
        state=str(conn.state),
        in_state=round(now - conn.state_since, 3),
        age=round(now - conn.opened_at, 3),
        requests=conn.requests,
        path=path_of(conn),
    )
