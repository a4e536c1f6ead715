"""HijackTracker: upgraded connections, until their sockets close.

HIJACKED is the last state that a connection reports, because from then on it is no longer the
HTTP server's. But its socket may stay open for hours. This tracker follows it until the socket
closes.
"""

from __future__ import annotations

import trio

from ._local import ProcessLocal
from ._states import HIJACKED, Conn, ConnState


class HijackTracker(ProcessLocal):
    """The upgraded connections, such as WebSockets over HTTP/1.1, until their sockets close.

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
        """Upgraded connections open now, ``>= 0``. Persistently high: clients stay connected, and
        a shutdown must send a close frame to each of them."""
        return len(self._conns)

    def connections(self) -> list[Conn]:
        """Return the upgraded connections that are open now, the oldest upgrade first."""
        return list(self._conns)

    def track(self, conn: Conn, state: ConnState) -> None:
        """Record one transition. Only HIJACKED matters. Not a checkpoint.

        ``conn`` must be a :class:`Conn`, because this tracker waits until it is closed.
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
        """Wait until no upgraded connection is open. Always a checkpoint.

        By the time you run, another connection may have been upgraded.
        """
        await self._none_open.wait()

    def __repr__(self) -> str:
        return f"<HijackTracker of {self.count} open connections>"
