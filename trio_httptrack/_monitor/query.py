"""What a viewer wants to see of the connections: which ones, in which order, how grouped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .._states import HIJACKED, IDLE, NEW, Conn, ConnState, RequestInFlight

ROWS_PER_PAGE = 100  # on a page
MAX_PAGES = 10
"""Nobody reads ten thousand rows, and to make, send and sort them takes a worker seconds. Who looks
for something filters, or sorts otherwise."""

MAX_FILTER_LENGTH = 200  # characters

Key = tuple[Any, ...]


def is_websocket(conn: Conn, request: RequestInFlight) -> bool:
    """Whether it is an open one, which may stay for days."""
    if conn.protocol == "h2":
        return request.method == "CONNECT" and request.response_begun
    return conn.state is HIJACKED


def in_flight(conn: Conn) -> Iterable[RequestInFlight]:
    """The requests whose clients, or whose handlers, still wait for something."""
    # Nothing is asked of the others: there may be tens of thousands of them.
    return () if conn.state is NEW or conn.state is IDLE else conn.exchanges


def stuck(conn: Conn, now: float) -> Key:
    """What may be stuck is greater: the oldest request in flight, then what is new for long."""
    begun = [each.started_at for each in in_flight(conn) if not is_websocket(conn, each)]
    if begun:
        return 2, now - min(begun)
    return int(conn.state is NEW), now - conn.state_since


def path_of(conn: Conn) -> str:
    """That of its oldest request in flight, or of its last request."""
    for request in in_flight(conn):
        return request.path
    return conn.path or ""


# How connections are compared. Ages, not times: each process has a clock of its own.
ORDERS: Mapping[str, Callable[[Conn, float], Key]] = {
    "stuck": stuck,
    "id": lambda conn, now: (conn.id,),
    "client": lambda conn, now: conn.client or ("", 0),
    "protocol": lambda conn, now: (conn.protocol or "",),
    "tls": lambda conn, now: (conn.tls,),
    "state": lambda conn, now: (conn.state,),
    "in_state": lambda conn, now: (now - conn.state_since,),
    "age": lambda conn, now: (now - conn.opened_at,),
    "requests": lambda conn, now: (conn.requests,),
    "path": lambda conn, now: (path_of(conn),),
}


# What is large is what one looks for, so who sorts by these wants to see it first.
LARGEST_FIRST = frozenset({"stuck", "in_state", "age", "requests"})


@dataclass(frozen=True, slots=True)
class Query:
    """What a viewer wants to see, as in ``?state=active&path=/slow&sort=-age&page=2``.

    >>> Query.parse(b"sort=-age&page=2").link(page=3)
    '?sort=-age&page=3'
    >>> Query.parse(b"sort=speed")
    Traceback (most recent call last):
      ...
    ValueError: sort must be one of stuck, id, client, protocol, tls, state, in_state, age, \
requests, path, or that with a -
    """

    sort: str = "-stuck"
    """The name of an order; a minus puts the greatest first."""

    page: int = 1

    state: str = ""
    """Only connections in this state, such as ``"active"``."""

    client: str = ""
    """Only clients whose address begins with this."""

    path: str = ""
    """Only connections with a request whose path has this in it: one in flight, or their last."""

    group: str = ""
    """``"client"`` for client addresses instead of connections."""

    def __post_init__(self) -> None:
        if not isinstance(self.sort, str) or self.order not in ORDERS:
            raise ValueError(f"sort must be one of {', '.join(ORDERS)}, or that with a -")
        if not (type(self.page) is int and 0 < self.page < 10**9):
            raise ValueError("page must be a number from 1")
        states = list(map(str, ConnState))
        if self.state not in ("", *states):
            raise ValueError(f"state must be one of {', '.join(states)}")
        if self.group not in ("", "client"):
            raise ValueError("group must be client")
        for text in (self.client, self.path):
            if not isinstance(text, str) or len(text) > MAX_FILTER_LENGTH:
                raise ValueError(f"client and path have at most {MAX_FILTER_LENGTH} characters")

    @classmethod
    def parse(cls, query_string: bytes) -> Query:
        """Read a URL's query; what is not ours is let pass.

        Raises:
          ValueError: something in it cannot be used.
        """
        found: dict[str, Any] = {}
        for name, value in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
            if name == "page":
                number = value.isascii() and value.isdecimal() and len(value) < 10
                found["page"] = int(value) if number else 0
            elif name in PARAMETERS:
                found[name] = value
        return cls(**found)

    @property
    def order(self) -> str:
        return self.sort.removeprefix("-")

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")

    @property
    def filters(self) -> bool:
        """Whether it leaves connections out."""
        return bool(self.state or self.client or self.path)

    def matches(self, conn: Conn) -> bool:
        """Whether a connection passes the filters."""
        if self.state and str(conn.state) != self.state:
            return False
        if self.client and not (conn._peer or "").startswith(self.client):
            return False
        if self.path and self.path not in (conn.path or ""):
            return any(self.path in request.path for request in in_flight(conn))
        return True

    def key(self, conn: Conn, now: float) -> Key:
        return ORDERS[self.order](conn, now)

    def link(self, **changes: Any) -> str:
        """A URL's query for the same with some changes; what is as by default is left out."""
        changed = asdict(replace(self, **changes))
        given = {name: value for name, value in changed.items() if value != DEFAULTS[name]}
        return f"?{urlencode(given)}"


DEFAULTS = asdict(Query())
PARAMETERS = [field.name for field in fields(Query)]
