"""The report of one worker, which is sent to other workers as JSON.

Times are ages in seconds, because each process has a clock of its own.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from .._states import Conn, ConnState, RequestInFlight
from .sockets import traffic

MAX_LISTED = 20  # requests in flight that are listed for one connection

GAUGES = ("new", "active", "idle", "hijacked")
STATUS_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
COUNTERS = (*map(str, ConnState), "requests", *STATUS_CLASSES)


class Request(TypedDict):
    """A request in flight."""

    method: str
    path: str
    age: float
    stream: int | None
    """The ID of its HTTP/2 stream; None over HTTP/1.1."""

    phase: Literal["waiting", "streaming", "complete"]
    """``waiting``: the response has not begun. ``streaming``: it has begun. ``complete``: it is
    complete, and only the handler still runs."""


class Row(TypedDict):
    """A connection."""

    worker: int
    """The worker's process ID."""

    id: int
    client: str | None
    protocol: str | None
    tls: bool
    state: str
    in_state: float
    age: float
    requests: int
    path: str | None
    """The path of the last request."""

    received: int | None
    sent: int | None
    """Bytes, as the kernel counts them, with TLS and headers; None if the kernel does not."""

    in_flight: list[Request]
    """At most 20 requests in flight: those that match the path of the query come first, then the
    oldest."""

    in_flight_count: int


class Group(TypedDict):
    """The connections of one client address."""

    client: str
    """The address; empty for clients without one, such as those of Unix sockets."""

    connections: int
    states: dict[str, int]
    oldest: float
    """The age of its oldest connection."""


class Worker(TypedDict):
    """A worker process, or a server within one."""

    pid: int
    name: str
    """The name of its socket. It differs for two servers in the same process."""

    uptime: float | None
    connections: int | None
    lag: float | None
    """The greatest lag of its event loop in the last ten seconds."""

    draining: bool
    silent: float | None
    """For how long it has not responded. If that is not None, nothing else is known."""


class Report(TypedDict):
    """One worker at one time."""

    worker: Worker
    gauges: dict[str, int]
    """The number of connections in each state of ``GAUGES``."""

    websockets: int
    """The number of open WebSockets, over HTTP/1.1 and HTTP/2."""

    counters: dict[str, int]
    """The values of ``COUNTERS`` since the start."""

    rates: dict[str, float] | None
    """The counters per second over the last ten seconds; None if not known yet."""

    history: dict[str, list[int | None]]
    """The gauges of the last minutes, one value a second; the last value is now. None: unknown."""

    matching: int
    """How many connections pass the query's filters."""

    rows: list[Row]
    keys: list[list[Any]]
    """The sort keys of the rows, by which the rows of several workers are merged."""

    groups: list[Group]
    """The thousand busiest clients, if the query groups."""


def phase_of(request: RequestInFlight) -> Literal["waiting", "streaming", "complete"]:
    if request.response_complete:
        return "complete"
    return "streaming" if request.response_begun else "waiting"


def row_of(conn: Conn, worker: int, now: float, path: str = "") -> Row:
    """Return a connection's row. Requests that match ``path`` are listed first."""
    requests = [] if conn.state is ConnState.NEW else list(conn.exchanges)
    if path:
        requests.sort(key=lambda request: path not in request.path)  # sort() is stable
    received, sent = traffic(conn._socket)
    return Row(
        worker=worker,
        id=conn.id,
        client=conn._peer,
        protocol=conn.protocol,
        tls=conn.tls,
        state=str(conn.state),
        in_state=round(now - conn.state_since, 3),
        age=round(now - conn.opened_at, 3),
        requests=conn.requests,
        path=conn.path,
        received=received,
        sent=sent,
        in_flight=[request_of(each, now) for each in requests[:MAX_LISTED]],
        in_flight_count=len(requests),
    )


def request_of(request: RequestInFlight, now: float) -> Request:
    return Request(
        method=request.method,
        path=request.path,
        age=round(now - request.started_at, 3),
        stream=request.stream_id,
        phase=phase_of(request),
    )
