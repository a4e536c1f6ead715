"""A tracker for tests, which records every transition and can wait for one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import trio

from .._local import ProcessLocal
from .._states import Conn, ConnState


class Transition(NamedTuple):
    """One change of a connection's state.

    >>> from trio_httptrack import Conn, ConnState
    >>> Transition(Conn(), ConnState.NEW, time=0.0).state.terminal
    False
    """

    conn: Conn
    """The connection."""

    state: ConnState
    """The new state."""

    time: float
    """When, in seconds on Trio's clock; a mock clock starts at 0."""


class RecordingTracker(ProcessLocal):
    """A record of every transition and its time, for tests.

    Its ``repr()`` has a line for each connection. As the message of an assertion, it shows what
    happened before the failure: ``assert conn.state is ConnState.IDLE, str(tracker)``.

    >>> import trio, trio.testing
    >>> from trio_httptrack import Conn, ConnState
    >>> async def main():
    ...     tracker, conn = RecordingTracker(), Conn(("192.0.2.7", 4711))
    ...     tracker.track(conn, ConnState.NEW)
    ...     await trio.sleep(5)
    ...     tracker.track(conn, ConnState.CLOSED)
    ...     print(*tracker.states(conn))
    ...     print(f"{tracker!r}".replace(str(conn.id), "1", 1))
    >>> trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    new closed
    Conn 1 192.0.2.7:4711: NEW 0.0 > CLOSED 5.0
    """

    def __init__(self) -> None:
        self.events: list[Transition] = []
        """Every transition, in the order in which they were reported."""

        self._changed = trio.lowlevel.ParkingLot()

    def track(self, conn: Conn, state: ConnState) -> None:
        """Record one transition.

        Raises:
          RuntimeError: it is called outside of Trio, whose clock it reads.
        """
        self.events.append(Transition(conn, state, trio.current_time()))
        self._changed.unpark_all()

    @property
    def conns(self) -> list[Conn]:
        """Every connection, in the order of their first transitions."""
        return list(dict.fromkeys(event.conn for event in self.events))

    def states(self, conn: Conn) -> list[ConnState]:
        """Return the states of one connection, in order; empty if none was reported."""
        return [event.state for event in self.events if event.conn == conn]

    async def wait_for(
        self, state: ConnState, *, conn: Conn | None = None, times: int = 1
    ) -> Transition:
        """Wait until a state has been reported, and return that transition.

        Transitions before the call count, so none can be missed: after
        ``wait_for(ConnState.IDLE, times=2)``, two requests on one connection are complete. A
        checkpoint. If the state may never be reported, put ``trio.fail_after()`` around it.

        Args:
          state: the state.
          conn: the connection; None for any.
          times: how often the state must have been reported, at least 1.

        Raises:
          ValueError: ``times`` is below 1, or ``state`` is not a ConnState.
        """
        state = ConnState(state)
        if times < 1:
            raise ValueError(f"times must be at least 1, not {times}")
        await trio.lowlevel.checkpoint()
        while True:
            found = [
                event
                for event in self.events
                if event.state is state and (conn is None or event.conn == conn)
            ]
            if len(found) >= times:
                return found[times - 1]
            await self._changed.park()

    def __repr__(self) -> str:
        """Return a line for each connection."""
        lines = [self._line(conn) for conn in self.conns]
        return "\n".join(lines) or "RecordingTracker: no connection"

    def _line(self, conn: Conn) -> str:
        name = str(conn)
        history = self._history(conn)
        reason = getattr(conn, "close_reason", None)
        return f"{name[:1].upper()}{name[1:]}: {history}" + (f" ({reason})" if reason else "")

    def _history(self, conn: Conn) -> str:
        return format_transitions(event for event in self.events if event.conn == conn)


def format_transitions(events: Iterable[Transition]) -> str:
    """Format the states of a connection and their times."""
    return " > ".join(f"{event.state.name} {round(event.time, 3)}" for event in events)
