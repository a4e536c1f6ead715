"""HijackTracker: upgraded connections, until their sockets close.

HIJACKED is the last state that trackers are told of, because from then on a connection is no
longer the HTTP server's. Its socket may stay open for hours. Here it is followed to its end.
"""

from __future__ import annotations

import trio

from ._local import ProcessLocal
from ._states import HIJACKED, Conn, ConnState


class HijackTracker(ProcessLocal):
    """Knows the upgraded connections, such as WebSockets over HTTP/1.1, that are still open.

    >>> hijacks = HijackTracker()
    >>> hijacks.track(Conn(), ConnState.HIJACKED)
    >>> hijacks.count
    1
    """

    __slots__ = ("__weakref__", "_conns", "_none_open")

    def __init__(self) -> None:
        self._conns: dict[Conn, None] = {}
        self._none_open = trio.Event()
        self._none_open.set()

    @property
    def count(self) -> int:
        """Upgraded connections open now, ``>= 0``. Persistently high: clients that stay, which
        a shutdown has to say goodbye to one by one."""
        return len(self._conns)

    def connections(self) -> list[Conn]:
        """The upgraded connections open now, the oldest upgrade first."""
        return list(self._conns)

    def track(self, conn: Conn, state: ConnState) -> None:
        """Take note of a transition. Only HIJACKED matters, and once. Not a checkpoint.

        Of all trackers this one needs a :class:`Conn`, whose end it can wait for.
        """
        if state is HIJACKED and conn not in self._conns and not conn._is_closed:
            conn._call_when_closed(self._forget)
            if not self._conns:
                self._none_open = trio.Event()
            self._conns[conn] = None

    def _forget(self, conn: Conn) -> None:
        del self._conns[conn]
        if not self._conns:
            self._none_open.set()

    async def wait(self) -> None:
        """Wait until no upgraded connection is open. A checkpoint, also if none is.

        Another may be upgraded before you run again.
        """
        await self._none_open.wait()

    def __repr__(self) -> str:
        return f"<HijackTracker of {self.count} open connections>"
