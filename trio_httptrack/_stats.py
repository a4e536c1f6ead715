"""Counters and gauges derived from connection-state transitions.

A *gauge* says how many connections are in a state now; a *counter* says how
often a state was entered. Nothing here awaits, so each ``track()`` call is
atomic with respect to other Trio tasks. At any time::

    accepted_total == accepted + active + idle + hijacked_total + closed_total
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ._local import ProcessLocal
from ._states import ACTIVE, CLOSED, HIJACKED, IDLE, NEW, ConnState


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts at one instant; a snapshot never changes afterwards.

    >>> Stats(active=1, closed_total=40).active
    1
    >>> print(Stats(accepted_total=3, active_total=9, idle_total=8, idle=1, closed_total=2))
    new 0, active 0, idle 1; in all: accepted 3, active 9, idle 8, hijacked 0, closed 2
    """

    accepted: int = 0
    """Gauge: connections in the state NEW, ``>= 0``.

    Persistently high: clients connect and then send nothing, or send too slowly. They may
    be attackers (slow loris), health checks that hold connections open, or clients that are
    stuck in TLS handshakes.
    """

    active: int = 0
    """Gauge: connections with a request in flight, ``>= 0``.

    Persistently high: requests arrive faster than the application handles them. If almost all
    open connections are active under load, you need more workers.
    """

    idle: int = 0
    """Gauge: keep-alive connections between two requests, ``>= 0``.

    Persistently high: many clients, each of which sends few requests. Each connection costs
    memory and a file descriptor. A shorter ``keep_alive_timeout`` closes them sooner.
    """

    accepted_total: int = 0
    """Counter: accepted connections.

    Growing as fast as the number of requests: clients do not keep connections alive, and
    each request pays for a TCP (and TLS) handshake.
    """

    active_total: int = 0
    """Counter: how often a connection became active.

    Over HTTP/1.1, that is the number of requests. Far below ``accepted_total``: most
    connections never send a request.
    """

    idle_total: int = 0
    """Counter: how often a connection became idle.

    Far below ``active_total``: connections are closed after one response instead of
    being kept alive.
    """

    hijacked_total: int = 0
    """Counter: connections that were upgraded to a WebSocket over HTTP/1.1.

    Growing fast: WebSocket clients reconnect, perhaps because something between
    them and you cuts their connections.
    """

    closed_total: int = 0
    """Counter: closed connections, without upgraded ones.

    ``accepted_total - hijacked_total - closed_total`` connections are open. If that only
    grows, connections pile up.
    """

    @property
    def gauges(self) -> dict[ConnState, int]:
        """How many connections are in each state now; that of NEW is ``accepted``.

        >>> {str(state): number for state, number in Stats(idle=4).gauges.items()}
        {'new': 0, 'active': 0, 'idle': 4}
        """
        return {NEW: self.accepted, ACTIVE: self.active, IDLE: self.idle}

    @property
    def counters(self) -> dict[ConnState, int]:
        """How often each state was entered; that of NEW is ``accepted_total``.

        >>> Stats(accepted_total=3).counters[ConnState.NEW]
        3
        """
        return {
            NEW: self.accepted_total,
            ACTIVE: self.active_total,
            IDLE: self.idle_total,
            HIJACKED: self.hijacked_total,
            CLOSED: self.closed_total,
        }

    def __str__(self) -> str:
        return (
            f"new {self.accepted}, active {self.active}, idle {self.idle}; in all: "
            f"accepted {self.accepted_total}, active {self.active_total}, "
            f"idle {self.idle_total}, hijacked {self.hijacked_total}, closed {self.closed_total}"
        )


# ``numbers[state]`` counts how many connections entered a state, ``numbers[LEFT[state]]`` how many
# left it. The difference is the gauge. So a transition costs two increments instead of three.
_LEFT_NEW, _LEFT_ACTIVE, _LEFT_IDLE = LEFT = (5, 6, 7)
_STATES = dict(zip(LEFT, (NEW, ACTIVE, IDLE), strict=True))

# In seconds: the upper bounds of the histograms of connection durations.
BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class StatsTracker(ProcessLocal):
    """The counts of all transitions, as :class:`Stats`, and the open connections.

    Anything hashable may stand for a connection. If tracking begins after a connection's
    NEW, the connection counts as accepted at its next transition.

    >>> tracker = StatsTracker()
    >>> tracker.track("a", ConnState.NEW)
    >>> tracker.track("a", ConnState.ACTIVE)
    >>> tracker.stats().active, tracker.connections()
    (1, {'a': <ConnState.ACTIVE: 1>})
    """

    __slots__ = ("__weakref__", "_left", "_numbers")

    def __init__(self) -> None:
        # One list: the interpreter copies it in one operation, so an exporter may copy it in
        # another thread.
        self._numbers = [0] * 8
        # For each open connection, the index of the number to increment at its next transition.
        self._left: dict[Hashable, int] = {}

    def track(self, conn: Hashable, state: ConnState) -> None:
        """Count one transition. A terminal state removes the connection.

        Raises:
          TypeError: ``conn`` is not hashable; nothing was counted.
        """
        numbers, left = self._numbers, self._left
        try:
            numbers[left[conn]] += 1
        except KeyError:
            numbers[NEW] += 1
            left[conn] = _LEFT_NEW
            if state is NEW:
                return
            numbers[_LEFT_NEW] += 1
        if state is ACTIVE:
            numbers[1] += 1
            left[conn] = _LEFT_ACTIVE
        elif state is IDLE:
            numbers[2] += 1
            left[conn] = _LEFT_IDLE
        elif state is NEW:  # for the second time: new again, but accepted only once
            numbers[_LEFT_NEW] -= 1
            left[conn] = _LEFT_NEW
        else:
            numbers[state] += 1
            del left[conn]

    def stats(self) -> Stats:
        """Return all counts at this instant. The time does not depend on the number of
        connections."""
        new, active, idle, hijacked, closed, *left = self._numbers.copy()
        gauges = new - left[NEW], active - left[ACTIVE], idle - left[IDLE]
        return Stats(*gauges, new, active, idle, hijacked, closed)

    def connections(self) -> dict[Hashable, ConnState]:
        """Return the open connections and their states at this instant, in the order of accept."""
        return {conn: _STATES[index] for conn, index in self._left.copy().items()}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.stats()}>"
