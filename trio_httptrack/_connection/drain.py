"""What a shutdown does to the connections that are still there.

A worker drains when it has stopped accepting: on SIGTERM, SIGINT, a SIGHUP reload, at
``max_requests``, and when a ``tracked_server`` block is left:

* HTTP/1.1 is answered with ``Connection: close``, whether the request was in flight when the
  drain began or came later, and the connection ends after it;
* an idle connection ends after ``drain_idle_timeout`` seconds, in which a request that was
  already on its way is still answered;
* a new connection may send its first request until it is ``drain_new_timeout`` seconds old;
* HTTP/2 gets a GOAWAY behind the last response (``http2``);
* a WebSocket gets a close frame with ``drain_websocket_code`` and time to answer it;
* an application may wait for ``conn.draining``;
* ``graceful_timeout`` seconds after the drain began, what is left is closed by force.

The log says at once, and then every second, what is waited for; and where something was closed by
force, which request has taken longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

import trio

from .._states import Conn, RequestInFlight
from .connection import Connection
from .shutdown_report import ShutdownReport

InFlight = list[tuple[Conn, RequestInFlight]]


class Server(Protocol):
    """What a drain needs of the worker whose connections it ends."""

    connections: set[Connection]
    deadline: float
    report: ShutdownReport

    async def wait_all_closed(self) -> None:
        """Wait until no connection is left."""

    def abort(self) -> None:
        """Close every connection now."""


class Log(Protocol):
    """As Hypercorn's."""

    async def info(self, message: str, *args: Any) -> None: ...
    async def warning(self, message: str, *args: Any) -> None: ...


@trio.lowlevel.enable_ki_protection
async def drain(
    server: Server,
    terminated: Callable[[], Awaitable[object]],
    graceful_timeout: float,
    log: Log,
) -> None:
    """Wait for the shutdown and see it to its end.

    Runs beside the worker and is cancelled with it. However it ends, it closes every
    socket that is left: a ``send`` to a peer that does not read ignores cancellation,
    and nothing but its socket's end would wake it.
    """
    try:
        await terminated()
        begun = trio.current_time()
        server.deadline = begun + graceful_timeout
        connections = list(server.connections)
        for connection in connections:
            connection.drain()
        left: InFlight = []
        with trio.move_on_at(server.deadline):
            while server.connections:
                left = requests_in_flight(server.connections)
                await log.info("Shutting down: %s", progress(server.connections))
                with trio.move_on_after(1):
                    await server.wait_all_closed()
        # Hypercorn ends its own nursery at the same time, and may have been faster.
        left += requests_in_flight(server.connections)
    finally:
        server.abort()
    forced = sum(each.conn.close_reason == "app_shutdown_timeout" for each in connections)
    server.report = ShutdownReport(
        finished=len(connections) - forced,
        forced=forced,
        seconds=trio.current_time() - begun,
    )
    cut_off = longest_request(left)
    if cut_off:
        await log.warning(
            "Shut down: %s. The longest request was %s. "
            "If it should have ended, raise graceful_timeout, which is %s s",
            server.report,
            cut_off,
            graceful_timeout,
        )
    elif connections:
        await log.info("Shut down: %s", server.report)


def progress(connections: Collection[Connection]) -> str:
    """How many are left in which state, and which of them is the oldest."""
    states = Counter(each.conn.state for each in connections)
    oldest = min(connections, key=lambda each: each.conn.opened_at)
    age = trio.current_time() - oldest.conn.opened_at
    requests = oldest.conn.exchanges
    path = f" {requests[0].path!r}" if requests else ""
    return (
        f"{len(connections)} connection{'s' * (len(connections) > 1)} left "
        f"({', '.join(f'{state} {states[state]}' for state in sorted(states))}); "
        f"the oldest is {oldest.conn} {oldest.conn.state}{path}, {age:.1f} s old"
    )


def requests_in_flight(connections: Collection[Connection]) -> InFlight:
    return [(each.conn, request) for each in connections for request in each.conn.exchanges]


def longest_request(left: InFlight) -> str:
    """What is known of the oldest request that was cut off; nothing if none was."""
    cut_off = [each for each in left if each[0].close_reason == "app_shutdown_timeout"]
    if not cut_off:
        return ""
    conn, request = min(cut_off, key=lambda each: each[1].started_at)
    age = trio.current_time() - request.started_at
    return f"{request.method} {request.path!r} ({conn}), {age:.1f} s"
