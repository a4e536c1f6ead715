"""Graceful shutdown: drain the connections that are open when a worker stops accepting.

A worker stops accepting on SIGTERM, SIGINT and a SIGHUP reload, at ``max_requests``, and when a
``tracked_server`` block is left. Then it drains its connections:

* An HTTP/1.1 response has ``Connection: close``, whether its request was in flight when the drain
  began or came later. The connection closes after it.
* An idle connection closes after ``drain_idle_timeout`` seconds. A request that arrives before
  that still gets its response.
* A new connection may send its first request until it is ``drain_new_timeout`` seconds old.
* An HTTP/2 connection sends GOAWAY after the last response (``http2``).
* A WebSocket sends a close frame with ``drain_websocket_code`` and waits for the client's.
* An application can wait for ``conn.draining``.
* ``graceful_timeout`` seconds after the drain began, the remaining connections are closed by force.

The log lists the remaining connections at once, and then every second. If requests were closed by
force, it names the one that has taken longest.
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
    """What a drain needs of the worker."""

    connections: set[Connection]
    deadline: float
    report: ShutdownReport

    async def wait_all_closed(self) -> None:
        """Wait until no connection is left."""

    def abort(self) -> None:
        """Close every connection now."""


class Log(Protocol):
    """Hypercorn's logger."""

    async def info(self, message: str, *args: Any) -> None: ...
    async def warning(self, message: str, *args: Any) -> None: ...


@trio.lowlevel.enable_ki_protection
async def drain(
    server: Server,
    terminated: Callable[[], Awaitable[object]],
    graceful_timeout: float,
    log: Log,
) -> None:
    """Wait for the shutdown, and drain the connections.

    Runs beside the worker and is cancelled with it. In any case it closes every remaining socket
    at last: a ``send`` to a peer that does not read ignores cancellation, and only closing its
    socket wakes it.
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
        # Hypercorn cancels its own nursery at the same time, and may have been faster.
        left += requests_in_flight(server.connections)
    finally:
        server.abort()
    forced = sum(each.conn.close_reason == "app_shutdown_timeout" for each in connections)
    server.report = ShutdownReport(
        finished=len(connections) - forced,
        forced=forced,
        seconds=trio.current_time() - begun,
    )
    longest = longest_request(left)
    if longest:
        await log.warning(
            "Shut down: %s. The longest request was %s. "
            "If it should have finished, raise graceful_timeout, which is %s s",
            server.report,
            longest,
            graceful_timeout,
        )
    elif connections:
        await log.info("Shut down: %s", server.report)


def progress(connections: Collection[Connection]) -> str:
    """Describe the remaining connections: their number by state, and the oldest."""
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
    """Describe the longest request that was closed by force; empty if none was."""
    forced = [each for each in left if each[0].close_reason == "app_shutdown_timeout"]
    if not forced:
        return ""
    conn, request = min(forced, key=lambda each: each[1].started_at)
    age = trio.current_time() - request.started_at
    return f"{request.method} {request.path!r} ({conn}), {age:.1f} s"
