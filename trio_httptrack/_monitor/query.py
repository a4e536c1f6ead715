"""What a viewer wants to see: which connections, in which order, and how they are grouped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .._states import HIJACKED, IDLE, NEW, Conn, ConnState, RequestInFlight

ROWS_PER_PAGE = 100  # on a page
MAX_PAGES = 10
"""Nobody reads ten thousand rows, and a worker needs seconds to make, sort and send them. To find a
connection, a viewer filters or sorts."""

MAX_FILTER_LENGTH = 200  # characters

Key = tuple[Any, ...]


def is_websocket(conn: Conn, request: RequestInFlight) -> bool:
    """Return whether a request is an open WebSocket, which may stay open for days."""
    if conn.protocol == "h2":
        return request.method == "CONNECT" and request.response_begun
    return conn.state is HIJACKED


def in_flight(conn: Conn) -> Iterable[RequestInFlight]:
    """Return a connection's requests in flight."""
    # Without a call for new and idle connections: there may be tens of thousands of them.
    return () if conn.state is NEW or conn.state is IDLE else conn.exchanges


def stuck(conn: Conn, now: float) -> Key:
    """Return a sort key. It is greatest for the connection that is most likely to be stuck.

    First come connections with a request in flight, by the age of the oldest one. Then come new
    connections, by their age. WebSockets do not count.
    """
    begun = [each.started_at for each in in_flight(conn) if not is_websocket(conn, each)]
    if begun:
        return 2, now - min(begun)
    return int(conn.state is NEW), now - conn.state_since


def path_of(conn: Conn) -> str:
    """Return the path of the oldest request in flight, or else of the last request."""
    for request in in_flight(conn):
        return request.path
    return conn.path or ""


# The sort keys. They have ages, not times, because each process has a clock of its own.
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


# Orders whose greatest values are the interesting ones. The views sort them descending at first.
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
    """The name of an order. A minus sorts descending."""

    page: int = 1

    state: str = ""
    """Only connections in this state, such as ``"active"``."""

    client: str = ""
    """Only clients whose address begins with this."""

    path: str = ""
    """Only connections with a request whose path contains this: one in flight, or the last."""

    group: str = ""
    """``"client"`` to list client addresses instead of connections."""

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
        """Parse the query of a URL. Unknown parameters are ignored.

        Raises:
          ValueError: a parameter has an invalid value.
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
        """Whether this query has filters."""
        return bool(self.state or self.client or self.path)

    def matches(self, conn: Conn) -> bool:
        """Return whether a connection passes the filters."""
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
        """Return the query of a URL, with some changes. Defaults are left out."""
        changed = asdict(replace(self, **changes))
        given = {name: value for name, value in changed.items() if value != DEFAULTS[name]}
        return f"?{urlencode(given)}"


DEFAULTS = asdict(Query())
PARAMETERS = [field.name for field in fields(Query)]
