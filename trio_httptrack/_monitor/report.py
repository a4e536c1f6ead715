"""What one worker says of itself. It is JSON: it travels to other workers as it is.

Times are ages in seconds, because each process has a clock of its own.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from .._states import Conn, ConnState, RequestInFlight
from .sockets import traffic

MAX_LISTED = 20  # requests in flight of one connection

GAUGES = ("new", "active", "idle", "hijacked")
STATUS_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
COUNTERS = (*map(str, ConnState), "requests", *STATUS_CLASSES)


class Request(TypedDict):
    """A request in flight."""

    method: str
    path: str
    age: float
    stream: int | None
    """The number of its HTTP/2 stream."""

    phase: Literal["waiting", "streaming", "complete"]
    """``waiting`` for the response to begin; ``complete`` where only the handler goes on."""


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
    """That of the last request."""

    received: int | None
    sent: int | None
    """Bytes, as the kernel counts them: TLS and headers included. None if it does not say."""

    in_flight: list[Request]
    """The oldest first, 20 at most; but first those that have the path of the query."""

    in_flight_count: int


class Group(TypedDict):
    """The connections of one client address."""

    client: str
    """Empty for clients without an address, such as those of Unix sockets."""

    connections: int
    states: dict[str, int]
    oldest: float
    """The age of its oldest connection."""


class Worker(TypedDict):
    """A worker process, or a server within one."""

    pid: int
    name: str
    """Tells two servers of the same process apart."""

    uptime: float | None
    connections: int | None
    lag: float | None
    """By how much its event loop was late, at worst, in the last ten seconds."""

    draining: bool
    silent: float | None
    """For how long it has not responded to the question; then nothing else is known of it."""


class Report(TypedDict):
    """One worker at one time."""

    worker: Worker
    gauges: dict[str, int]
    """How many connections are in each state of ``GAUGES``."""

    websockets: int
    """Open ones, over HTTP/1.1 and HTTP/2."""

    counters: dict[str, int]
    """How often each of ``COUNTERS`` has happened since the start."""

    rates: dict[str, float] | None
    """The same per second, lately; None if that is not known yet."""

    history: dict[str, list[int | None]]
    """The gauges in the last minutes, one a second, the last one now; None is not known."""

    matching: int
    """How many connections pass the query's filters."""

    rows: list[Row]
    keys: list[list[Any]]
    """By which the rows are in order."""

    groups: list[Group]
    """The thousand busiest clients, where the query groups."""


def phase_of(request: RequestInFlight) -> Literal["waiting", "streaming", "complete"]:
    if request.response_complete:
        return "complete"
    return "streaming" if request.response_begun else "waiting"


def row_of(conn: Conn, worker: int, now: float, path: str = "") -> Row:
    """A connection now; ``path`` is what was looked for."""
    requests = [] if conn.state is ConnState.NEW else list(conn.exchanges)
    if path:
        requests.sort(key=lambda request: path not in request.path)  # which is stable
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
