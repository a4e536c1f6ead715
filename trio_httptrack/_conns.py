"""ConnTracker: wait until every connection has ended.

The graceful-shutdown half of the library: a counter, and an event that is set
whenever the counter is zero.
"""

from __future__ import annotations

from collections.abc import Hashable

import trio

from ._local import ProcessLocal
from ._states import HIJACKED, NEW, ConnState


class ConnTracker(ProcessLocal):
    """Counts open connections, and lets any number of tasks wait for none.

    Plus one on NEW, minus one on HIJACKED or CLOSED: an upgraded connection is
    no longer the HTTP server's, so it is not waited for.

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
          RuntimeError: more connections ended than began; the count stays zero.
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
        """Wait until no connection is open; at zero, return at once.

        A checkpoint in any case. Wakes every waiter each time the count reaches
        zero. By the time you run, another connection may have been accepted:
        stop accepting first, then wait.
        """
        await self._none_open.wait()

    def __repr__(self) -> str:
        return f"<ConnTracker count={self._count}>"
