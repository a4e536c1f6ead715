"""ConnTracker: wait until every connection is closed.

The graceful-shutdown half of the library: a counter, and an event that is set
whenever the counter is zero.
"""

from __future__ import annotations

from collections.abc import Hashable

import trio

from ._local import ProcessLocal
from ._states import HIJACKED, NEW, ConnState


class ConnTracker(ProcessLocal):
    """The number of open connections; any number of tasks can wait until none is open.

    It adds one on NEW, and subtracts one on HIJACKED or CLOSED. It does not wait for an
    upgraded connection, because that is no longer the HTTP server's.

    >>> conns = ConnTracker()
    >>> conns.track("a connection", ConnState.NEW)
    >>> conns.count
    1
    """

    __slots__ = ("__weakref__", "_count", "_none_open")

    def __init__(self) -> None:
        self._count = 0
        self._none_open = trio.Event()
        self._none_open.set()

    @property
    def count(self) -> int:
        """Connections open now, ``>= 0``."""
        return self._count

    def track(self, conn: Hashable, state: ConnState) -> None:
        """Count one transition. Only NEW, HIJACKED and CLOSED matter.

        Raises:
          RuntimeError: more connections were closed than opened; the count stays zero.
        """
        if state is NEW:
            if not self._count:
                self._none_open = trio.Event()
            self._count += 1
        elif state >= HIJACKED:
            if not self._count:
                raise RuntimeError(
                    f"{conn!r} reported {state}, but no connection is open: each connection "
                    "must report NEW once, before its one terminal state, and a tracker must "
                    "be in place before the server accepts"
                )
            self._count -= 1
            if not self._count:
                self._none_open.set()

    async def wait(self) -> None:
        """Wait until no connection is open. Always a checkpoint.

        Every waiter wakes each time the count reaches zero. By the time you run,
        the server may have accepted another connection: stop accepting first, then wait.
        """
        await self._none_open.wait()

    def __repr__(self) -> str:
        return f"<ConnTracker count={self._count}>"
