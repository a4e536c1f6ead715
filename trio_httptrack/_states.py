"""The states of a connection, and the connection itself as trackers see it.

The states and the order in which they follow each other are those of Go's
``net/http.ConnState``. ``TRANSITIONS`` is the whole state machine: what it does
not list is never reported, so no state is reported twice in a row and nothing
follows a terminal state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Any, Protocol

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInFlight:
    """A request at one instant; a snapshot never changes afterwards.

    >>> RequestInFlight(method="GET", path="/slow", started_at=12.5).response_begun
    False
    """

    method: str
    """Such as ``"GET"``, which is also how a WebSocket is requested over HTTP/1.1; over HTTP/2
    that is ``"CONNECT"``."""

    path: str
    """Without its query, cut off after 200 characters. It is the client's own text."""

    started_at: float
    """When its headers had been read, in seconds on Trio's clock."""

    stream_id: int | None = None
    """The number of its HTTP/2 stream, ``>= 1``; None over HTTP/1.1."""

    response_begun: bool = False
    """Whether the application has begun its response, or accepted the WebSocket."""

    response_complete: bool = False
    """Whether the whole response is written, and only the handler goes on."""


class CancellableRequest(Protocol):
    """A request whose client may leave before its response is complete."""

    def cancel_when_gone(self, cancel_scope: trio.CancelScope, seconds: float) -> None:
        """Cancel it so many seconds after the client has gone; soon, if it has already."""

    def forget(self, cancel_scope: trio.CancelScope) -> None:
        """Do not cancel it any more."""


class ConnControls(Protocol):
    """The server's side of a :class:`Conn`, which can act on it."""

    def close(self, reason: str, /) -> None: ...
    def drain(self) -> None: ...
    def refuse(self, status: int, reason: str, retry_after: int) -> bool: ...
    def requests_in_flight(self) -> tuple[RequestInFlight, ...]: ...
    @property
    def socket(self) -> object: ...
    @property
    def monitor(self) -> object: ...
    def find(self, scope: Mapping[str, Any]) -> CancellableRequest: ...


class Conn:
    """One connection's identity, what is known about it now, and the means to end it.

    A live object: the server changes it as the connection goes on, trackers and
    applications read it, and may close it. Use it in Trio's thread only. Two connections are
    never equal, so a ``Conn`` can be a dictionary key. The server makes them; make one yourself
    to test a tracker. It has no socket, and all else that the server's have:

    >>> conn = Conn(client=("192.0.2.7", 4711))
    >>> print(conn.client, conn.state)
    ('192.0.2.7', 4711) new
    >>> conn.close("not_today")
    >>> print(conn.state, conn.close_reason)
    closed not_today
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_controls",
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
    """Counts the connections of its server from 1. Each worker process, and each server in a
    process, counts its own; so does the process the connections that were made by hand."""

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

    Set when its end begins. It is what :meth:`close` was given, or a name of ours. Ours are
    those of Kestrel's ``error.type`` where it has one:
    ``tls_handshake_failed``; ``request_headers_timeout`` (no request within
    ``keep_alive_timeout`` of its start, or of its TLS handshake's end); ``keep_alive_timeout``;
    ``read_timeout``; ``min_request_body_data_rate`` and ``min_response_data_rate`` (the client
    was too slow); ``request_timeout`` (the handler was); ``max_connection_age``;
    ``websocket_ping_timeout``; ``max_concurrent_connections_exceeded`` and
    ``max_client_connections_exceeded`` (refused by a :class:`ConnLimit`);
    ``connection_reset``; ``enhance_your_calm`` (a flood over HTTP/2, see the
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
        self._controls: ConnControls | None = None  # one that was made by hand has no server

    @property
    def exchanges(self) -> tuple[RequestInFlight, ...]:
        """The requests in flight, the oldest first, and whatever handlers still run.

        WebSockets are among them. Over HTTP/2 so are requests that wait for a handler to end,
        because ``h2_max_concurrent_streams`` handlers run already. Made anew each time.

        >>> Conn().exchanges
        ()
        """
        return () if self._controls is None else self._controls.requests_in_flight()

    def close(self, reason: str) -> None:
        """Close the connection now, whatever it is doing.

        May be called from anywhere in Trio's thread: by a tracker in any state (at NEW, before
        anything was read), by a handler, by another task. Not a checkpoint, and does nothing
        again. Handlers are told of it as of a client that has gone. What is on its way to the
        client may be lost; :meth:`drain` loses nothing.

        Args:
          reason: its :attr:`close_reason`. Metrics count by it, so use few and constant names.

        Raises:
          TypeError: ``reason`` is not a string.
          ValueError: it is empty.
        """
        if not isinstance(reason, str):
            raise TypeError(f"a reason is a short name such as 'banned', not {reason!r}")
        if not reason:
            raise ValueError("a reason must not be empty")
        if self._controls is not None:
            self._controls.close(reason)
        elif not self._is_closed:
            self.close_reason = reason
            if self.state is not ConnState.HIJACKED:
                self.state = ConnState.CLOSED
            self._mark_closed()

    def drain(self) -> None:
        """Close the connection when the requests in flight have their responses.

        The client is told as its protocol has it: by ``Connection: close``, a GOAWAY, or a close
        frame with ``drain_websocket_code``. An idle connection is kept for ``drain_idle_timeout``
        seconds, for a request that is on its way, and a new one until it is
        ``drain_new_timeout`` seconds old. :attr:`draining` is set at once. Nothing is closed by
        force: a response without an end goes on. Not a checkpoint, and does nothing again.

        >>> conn = Conn()
        >>> conn.drain()
        >>> conn.draining.is_set()
        True
        """
        if self._controls is not None:
            self._controls.drain()
        else:
            self._mark_draining()

    @contextmanager
    def cancel_on_disconnect(
        self, scope: Mapping[str, Any], seconds: float = 0
    ) -> Iterator[trio.CancelScope]:
        """Cancel the block when the client of this request has gone.

        Much as ``trio.move_on_after`` does when the time is up. For a handler, or a
        middleware around it, whose work is of no use to anybody else::

            conn = scope["extensions"]["httptrack"]
            with conn.cancel_on_disconnect(scope):
                report = await make_report()

        The client has gone when its connection was closed or reset, or its HTTP/2 stream was; not
        when it has only ended its own side of an HTTP/1.1 connection, and may still read. TCP
        does not say which of the two it was. To find out, such a client is sent a ``100
        Continue``, which every client may discard: if nobody reads any more, its system responds
        with a reset. Where a ``100`` cannot be sent, to an HTTP/1.0 client or in a response that
        has begun, the next write finds out.

        For all requests, without a block, there is the setting ``cancel_on_disconnect``.

        Args:
          scope: the request's ASGI scope, or a copy of it.
          seconds: how long to wait after the client has gone, ``>= 0``: so long the handler may
            notice by itself.

        Raises:
          ValueError: the scope is not of a request in flight on this connection.

        >>> with Conn().cancel_on_disconnect({}) as cancel_scope:
        ...     pass
        >>> cancel_scope.cancelled_caught
        False
        """
        controls = self._controls
        request: CancellableRequest = (
            _RequestWithoutServer(self) if controls is None else controls.find(scope)
        )
        with trio.CancelScope() as cancel_scope:
            request.cancel_when_gone(cancel_scope, seconds)
            try:
                yield cancel_scope
            finally:
                request.forget(cancel_scope)

    @property
    def draining(self) -> trio.Event:
        """Set when the connection is to end soon: its server shuts down, it is older than
        ``max_connection_age``, :meth:`drain` was called, or, over HTTP/2, it has had its share
        of requests.

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
        if self._is_closed:
            callback(self)
        else:
            self._when_closed += (callback,)

    def _refuse(self, status: int, reason: str, retry_after: int) -> bool:
        """Close it before anything was read, with a response if it can be given one.

        Returns whether it is this call that has done so.
        """
        if self._controls is not None:
            return self._controls.refuse(status, reason, retry_after)
        was_open = not self._is_closed
        self.close(reason)
        return was_open

    def _mark_closed(self) -> None:
        self._is_closed = True
        if self._closed is not None:
            self._closed.set()
        for callback in self._when_closed:
            callback(self)

    @property
    def _socket(self) -> object:
        """Its socket, for what the kernel knows of it; None if it has none."""
        return None if self._controls is None else self._controls.socket

    @property
    def _monitor(self) -> object:
        """That of its worker, which knows what all connections are doing."""
        return None if self._controls is None else self._controls.monitor

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


def cancel_after(cancel_scope: trio.CancelScope, seconds: float) -> None:
    """Cancel it after so many seconds, unless it is cancelled earlier."""
    if seconds <= 0:
        cancel_scope.cancel()
    else:
        deadline = trio.current_time() + seconds
        cancel_scope.deadline = min(cancel_scope.deadline, deadline)


class _RequestWithoutServer:
    """A request on a connection that has no server, or has ended."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self._forgotten = False

    def cancel_when_gone(self, cancel_scope: trio.CancelScope, seconds: float) -> None:
        def cancel(_: Conn) -> None:
            if not self._forgotten:
                cancel_after(cancel_scope, seconds)

        self._conn._call_when_closed(cancel)

    def forget(self, cancel_scope: trio.CancelScope) -> None:
        self._forgotten = True
