"""The history of the connections, as a note on the error of a failed test.

The error closes every connection, so nothing is in flight afterwards. So the connections are
described when the error is first seen, in the block or in the server. The note is added when the
error leaves the block.
"""

from __future__ import annotations

import sys
import unittest
from collections.abc import Iterable

import trio

from .._connection.errors import PROPAGATING, split
from .._connection.shutdown_report import ShutdownReport
from .._states import Conn, ConnState, RequestInFlight
from ._recording import RecordingTracker, Transition, format_transitions

NAMED = 20  # connections in a note, and transitions and requests of each connection
KEPT = 1000  # transitions at least, and at most twice as many: a test may run for long


class History(RecordingTracker):
    """The latest transitions of a server's connections."""

    def __init__(self) -> None:
        super().__init__()
        self._accepted = 0
        self._described: str | None = None

    def track(self, conn: Conn, state: ConnState) -> None:
        super().track(conn, state)
        self._accepted += state is ConnState.NEW
        if len(self.events) >= 2 * KEPT:
            del self.events[:KEPT]

    def keep(self, error: BaseException, connections: Iterable[Conn]) -> None:
        """Describe the connections as they are now, if this is the first failure."""
        if self._described is None and is_failure(error):
            self._described = self._describe(connections)

    def add_note(self, error: BaseException, report: ShutdownReport | None) -> None:
        """Add the note to an error that leaves the block, if it is a failure."""
        if sys.version_info >= (3, 11) and is_failure(error):
            self.keep(error, ())  # if the error came after the connections were closed
            drained = "" if report is None else f"\nShut down: {report}"
            error.add_note(f"{self._described}{drained}")

    def _describe(self, connections: Iterable[Conn]) -> str:
        known = sorted({*connections, *self.conns}, key=lambda conn: conn.id)
        requests = {conn: conn.exchanges for conn in known}
        # If there are too many, those with requests in flight matter most.
        busy = [conn for conn in known if requests[conn]]
        named = [*(conn for conn in known if not requests[conn]), *busy][-NAMED:]
        left_out = self._accepted - len(named)
        lines = [
            f"Connections of this memory_server at {round(trio.current_time(), 3)}:"
            + (f" the last {len(named)}, without {left_out} others" if left_out else "")
            + ("" if named else " none")
        ]
        for conn in sorted(named, key=lambda conn: conn.id):
            lines.append(self._line(conn))
            lines += map(describe_request, requests[conn][:NAMED])
            if len(requests[conn]) > NAMED:
                lines.append(f"  in flight: {len(requests[conn]) - NAMED} others")
        return "\n".join(lines)

    def _history(self, conn: Conn) -> str:
        events = [event for event in self.events if event.conn is conn][-NAMED:]
        if not events:  # its events were dropped, but its last state is known
            events = [Transition(conn, conn.state, conn.state_since)]
        return ("" if events[0].state is ConnState.NEW else "... > ") + format_transitions(events)


def describe_request(request: RequestInFlight) -> str:
    """Describe a request in flight."""
    age = round(trio.current_time() - request.started_at, 3)
    if request.response_complete:
        doing = "its handler continues after the response"
    elif request.response_begun:
        doing = "streaming"
    else:
        doing = "waiting for its response"
    return f"  in flight: {request.method} {request.path!r}, {age} s, {doing}"


def is_failure(error: BaseException) -> bool:
    """Return whether an error fails a test: it is not only a cancellation, an exit or a skip."""
    others: tuple[type[BaseException], ...] = (*PROPAGATING, GeneratorExit, unittest.SkipTest)
    pytest = sys.modules.get("pytest")  # if it is not imported, nobody uses its skip
    if pytest is not None:
        others += (pytest.skip.Exception,)
    return split(error, others)[1] is not None
