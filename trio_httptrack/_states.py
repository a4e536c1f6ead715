"""The states of a connection, and the connection itself as trackers see it.

The states and the order in which they follow each other are those of Go's
``net/http.ConnState``. ``TRANSITIONS`` is the whole state machine: what it does
not list is never reported, so no state is reported twice in a row and nothing
follows a terminal state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from itertools import count

import trio

_ids = count(1)


class ConnState(IntEnum):
    """What a connection is doing, as Go's ``net/http.ConnState`` names it.

    >>> ConnState.IDLE < ConnState.CLOSED, str(ConnState.IDLE)
    (True, 'idle')
    """

    NEW = 0
    """Accepted; nothing that is HTTP has been read yet. A TLS handshake happens in this state."""

    ACTIVE = 1
    """At least one request is being read or answered."""

    IDLE = 2
    """Every request so far has been answered; the next one may come (keep-alive)."""

    HIJACKED = 3
    """Upgraded: a WebSocket was accepted over HTTP/1.1. Terminal."""

    CLOSED = 4
    """The socket is closed. Terminal."""

    @property
    def terminal(self) -> bool:
        """Whether this is the last state that a connection reports.

        >>> [str(state) for state in ConnState if state.terminal]
        ['hijacked', 'closed']
        """
        return self >= ConnState.HIJACKED

    def __str__(self) -> str:
        return self.name.lower()

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


# Looking up a class's member costs more than what is done with it on the way of each request.
NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState

TRANSITIONS: Mapping[ConnState, frozenset[ConnState]] = {
    NEW: frozenset({ACTIVE, CLOSED}),
    ACTIVE: frozenset({IDLE, HIJACKED, CLOSED}),
    IDLE: frozenset({ACTIVE, CLOSED}),
    HIJACKED: frozenset(),
    CLOSED: frozenset(),
}

PATH_LENGTH = 200


class Conn:
    """One connection's identity and what is known about it now.

    A live object: the server changes it as the connection goes on, trackers and
    applications only read it. Two connections are never equal, so a ``Conn`` can
    be a dictionary key. The server makes them; make one yourself to test a tracker:

    >>> conn = Conn(client=("192.0.2.7", 4711))
    >>> print(conn.client, conn.state)
    ('192.0.2.7', 4711) new
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_draining",
        "_is_closed",
        "_is_draining",
        "_when_closed",
        "client",
        "close_reason",
        "id",
        "opened_at",
        "path",
        "protocol",
        "requests",
        "server",
        "state",
        "state_since",
        "tls",
    )

    id: int
    """Counts the connections of this process from 1."""

    client: tuple[str, int] | None
    """The peer's address and port; None for a Unix socket, or if the peer had
    gone before it could be asked."""

    server: tuple[str, int] | None
    """Our address and port; None for a Unix socket."""

    tls: bool
    """Whether the connection is encrypted."""

    protocol: str | None
    """``"http/1.1"`` (also for an HTTP/1.0 client) or ``"h2"``; None until known."""

    requests: int
    """Requests that reached the application so far, ``>= 0``; pushes and WebSockets are some."""

    path: str | None
    """That of the last of them, without its query, cut off after 200 characters; None before
    the first. It is the client's own text."""

    opened_at: float
    """When it was accepted, in seconds on Trio's clock."""

    state: ConnState
    """The state reported last."""

    state_since: float
    """When that state began, in seconds on Trio's clock."""

    close_reason: str | None
    """Why it was closed, where that was not the normal end of a conversation.

    The names are those of Kestrel's ``error.type`` where it has one:
    ``tls_handshake_failed``; ``request_headers_timeout`` (no request within
    ``keep_alive_timeout`` of its start, or of its TLS handshake's end); ``keep_alive_timeout``;
    ``read_timeout``; ``connection_reset``; ``enhance_your_calm`` (a flood over HTTP/2, see the
    log); ``app_shutdown_timeout`` (cut off at the end of ``graceful_timeout``);
    ``aborted_by_app`` (the surrounding Trio scope was cancelled); ``internal_error`` (see the
    log).
    """

    def __init__(
        self,
        client: tuple[str, int] | None = None,
        server: tuple[str, int] | None = None,
        *,
        tls: bool = False,
        opened_at: float = 0.0,
    ) -> None:
        self.id = next(_ids)
        self.client = client
        self.server = server
        self.tls = tls
        self.protocol = None
        self.requests = 0
        self.path: str | None = None
        self.opened_at = self.state_since = opened_at
        self.state = ConnState.NEW
        self.close_reason = None
        self._is_closed = False
        self._is_draining = False
        # Made by the first who waits: most never do.
        self._closed: trio.Event | None = None
        self._draining: trio.Event | None = None
        self._when_closed: tuple[Callable[[Conn], None], ...] = ()

    @property
    def draining(self) -> trio.Event:
        """Set when the connection is to end soon, because its server shuts down, or, over
        HTTP/2, because it has had its share of requests.

        For a handler that would run for ever, such as one of server-sent events:
        ``await scope["extensions"]["httptrack"].draining.wait()``, and finish. It has until
        ``graceful_timeout`` seconds after the shutdown began. (A WebSocket's application
        waits for its ``websocket.disconnect``, as ever.)

        >>> Conn().draining.is_set()
        False
        """
        if self._draining is None:
            self._draining = trio.Event()
            if self._is_draining:
                self._draining.set()
        return self._draining

    def _count_request(self, path: str) -> None:
        self.requests += 1
        self.path = path[:PATH_LENGTH]  # it is kept for as long as the connection

    def _mark_draining(self) -> None:
        self._is_draining = True
        if self._draining is not None:
            self._draining.set()

    async def wait_closed(self) -> None:
        """Wait until the connection's socket is closed, hijacked or not.

        A checkpoint, also when the socket is closed already.
        """
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        if self._closed is None:
            self._closed = trio.Event()
        await self._closed.wait()

    def _call_when_closed(self, callback: Callable[[Conn], None]) -> None:
        self._when_closed += (callback,)

    def _mark_closed(self) -> None:
        self._is_closed = True
        if self._closed is not None:
            self._closed.set()
        for callback in self._when_closed:
            callback(self)

    @property
    def _peer(self) -> str | None:
        """The client's address and port, as in a URL."""
        if self.client is None:
            return None
        host, port = self.client
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __deepcopy__(self, memo: object) -> Conn:
        return self  # whoever copies an ASGI scope has it in there

    def __str__(self) -> str:
        return " ".join(filter(None, ("conn", str(self.id), self._peer or "-", self.protocol)))

    def __repr__(self) -> str:
        return f"<C{str(self)[1:]} {self.state}>"
