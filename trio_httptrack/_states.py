"""The states of a connection, and the connection itself as trackers see it.

The states and their order are those of Go's ``net/http.ConnState``.
``TRANSITIONS`` is the whole state machine: a transition that it does not list is
never reported. So no state is reported twice in a row, and nothing follows a
terminal state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import Any, Protocol

import trio

from ._scoped import ScopedBlock

_ids = count(1)


class ConnState(IntEnum):
    """What a connection is doing, as Go's ``net/http.ConnState`` names it.

    >>> ConnState.IDLE < ConnState.CLOSED, str(ConnState.IDLE)
    (True, 'idle')
    """

    NEW = 0
    """Accepted; the headers of a first request, or the HTTP/2 preface, are not complete yet. A TLS
    handshake happens in this state."""

    ACTIVE = 1
    """At least one request is in flight: being read, handled or responded to."""

    IDLE = 2
    """Every request so far has its response; another may come (keep-alive)."""

    HIJACKED = 3
    """Upgraded: a WebSocket was accepted over HTTP/1.1. Terminal."""

    CLOSED = 4
    """The socket is closed. Terminal."""

    @property
    def terminal(self) -> bool:
        """Whether a connection reports no state after this one.

        >>> [str(state) for state in ConnState if state.terminal]
        ['hijacked', 'closed']
        """
        return self >= ConnState.HIJACKED

    def __str__(self) -> str:
        return self.name.lower()

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


# Code that runs for each request uses these names: looking up a member of the class is slower.
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
    """A request in flight at one instant; a snapshot never changes afterwards.

    >>> RequestInFlight(method="GET", path="/slow", started_at=12.5).response_begun
    False
    """

    method: str
    """The method, such as ``"GET"``. That of a WebSocket is ``"GET"`` over HTTP/1.1, and
    ``"CONNECT"`` over HTTP/2."""

    path: str
    """The path without its query, cut off after 200 characters. The client has chosen this
    text: do not trust it."""

    started_at: float
    """When the request's headers were complete, in seconds on Trio's clock."""

    stream_id: int | None = None
    """The ID of its HTTP/2 stream, ``>= 1``; None over HTTP/1.1."""

    response_begun: bool = False
    """Whether the application has begun its response, or accepted the WebSocket."""

    response_complete: bool = False
    """Whether the whole response is written, and only the handler still runs."""


class CancellableRequest(Protocol):
    """A request whose client may disconnect before its response is complete."""

    def cancel_on_disconnect(self, cancel_scope: trio.CancelScope, seconds: float) -> None:
        """Cancel the scope that many seconds after the client has gone, or from now if it has."""

    def forget(self, cancel_scope: trio.CancelScope) -> None:
        """Do not cancel the scope any more."""


class ConnControls(Protocol):
    """The server's side of a :class:`Conn`, which acts on the connection."""

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
    """One connection: its identity, its state, and methods that close it.

    A live object: the server changes it while the connection is open. Trackers and applications
    read it, and may close it. Use it in Trio's thread only. Two connections are never equal, so a
    ``Conn`` can be a dictionary key. The server makes them. Make one yourself to test a tracker:
    it has no socket, but everything else that one of the server's has:

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
    """The number of the connection on its server, from 1. Each worker process counts its own, and
    so does each server in a process. Connections that you make yourself are counted apart."""

    client: tuple[str, int] | None
    """The peer's address and port; None for a Unix socket, or if the peer disconnected before
    the server could read its address."""

    server: tuple[str, int] | None
    """The server's address and port; None for a Unix socket."""

    tls: bool
    """Whether the connection uses TLS."""

    protocol: str | None
    """``"http/1.1"`` (also for an HTTP/1.0 client) or ``"h2"``; None until it is known."""

    requests: int
    """Requests that reached the application so far, ``>= 0``. Server pushes and WebSockets
    count."""

    path: str | None
    """The path of the last request, without its query, cut off after 200 characters; None before
    the first request. The client has chosen this text: do not trust it."""

    opened_at: float
    """When the connection was accepted, in seconds on Trio's clock."""

    state: ConnState
    """The state that was reported last."""

    state_since: float
    """When that state began, in seconds on Trio's clock."""

    close_reason: str | None
    """Why the connection was closed; None if it is open, or was closed normally.

    It is set when closing begins. It is the argument of :meth:`close`, or one of these names. Where
    Kestrel's ``error.type`` has a name for it, that is used.

    * ``tls_handshake_failed``
    * ``request_headers_timeout``: no request within ``keep_alive_timeout`` of the accept, or of the
      end of the TLS handshake
    * ``keep_alive_timeout``, ``read_timeout``, ``websocket_ping_timeout``, ``max_connection_age``:
      as the settings of these names say
    * ``request_timeout``: the handler was too slow
    * ``min_request_body_data_rate``, ``min_response_data_rate``: the client was too slow
    * ``max_concurrent_connections_exceeded``, ``max_client_connections_exceeded``: refused by a
      :class:`ConnLimit`
    * ``connection_reset``
    * ``enhance_your_calm``: a flood over HTTP/2, see the log
    * ``app_shutdown_timeout``: closed by force after ``graceful_timeout``
    * ``aborted_by_app``: the surrounding Trio scope was cancelled
    * ``internal_error``: see the log
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
        # Made by the first task that waits: most connections need none.
        self._closed: trio.Event | None = None
        self._draining: trio.Event | None = None
        self._when_closed: tuple[Callable[[Conn], None], ...] = ()
        self._controls: ConnControls | None = None  # None if no server has made this Conn

    @property
    def exchanges(self) -> tuple[RequestInFlight, ...]:
        """The requests in flight, the oldest first.

        A request is listed until its handler has returned. WebSockets are included. Over HTTP/2,
        so are requests that wait because ``h2_max_concurrent_streams`` handlers already run. Each
        access makes a new tuple.

        >>> Conn().exchanges
        ()
        """
        return () if self._controls is None else self._controls.requests_in_flight()

    def close(self, reason: str) -> None:
        """Close the connection now, whatever it is doing.

        Call it from anywhere in Trio's thread: in a tracker at any state (at NEW, before anything
        is read), in a handler, or in another task. Not a checkpoint. A second call does nothing.
        To a handler, the client has disconnected. Data that the client has not received yet may be
        lost; :meth:`drain` loses nothing.

        Args:
          reason: the :attr:`close_reason`. Metrics count by it, so use a few constant names.

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

        The server sends what the protocol provides: ``Connection: close``, GOAWAY, or a close
        frame with ``drain_websocket_code``. It keeps an idle connection for ``drain_idle_timeout``
        seconds, because a request may be arriving. It keeps a new connection until it is
        ``drain_new_timeout`` seconds old. :attr:`draining` is set at once. Nothing is closed by
        force: an endless response goes on. Not a checkpoint. A second call does nothing.

        >>> conn = Conn()
        >>> conn.drain()
        >>> conn.draining.is_set()
        True
        """
        if self._controls is not None:
            self._controls.drain()
        else:
            self._mark_draining()

    def cancel_on_disconnect(
        self, scope: Mapping[str, Any], seconds: float = 0
    ) -> AbstractContextManager[trio.CancelScope]:
        """Cancel the block when the client of this request has gone.

        It works like ``trio.move_on_after``, with the disconnect in place of a timeout. Use it in a
        handler, or in a middleware around it, if the work is useless without the client::

            conn = scope["extensions"]["httptrack"]
            with conn.cancel_on_disconnect(scope):
                report = await make_report()

        The client has gone when its connection, or its HTTP/2 stream, was closed or reset. A client
        that only closed its own side of an HTTP/1.1 connection may still read. TCP does not
        distinguish the two. To find out, the server sends such a client a ``100 Continue``, which
        any client may ignore: if the client does not read any more, its system responds with a
        reset. A ``100`` cannot be sent to an HTTP/1.0 client, or after a response has begun. Then
        the next write finds out.

        The setting ``cancel_on_disconnect`` does the same for all requests, without a block.

        Args:
          scope: the request's ASGI scope, or a copy of it.
          seconds: how long to wait after the client has gone, ``>= 0``. In this time the handler
            can notice by itself.

        Raises:
          ValueError: the scope does not belong to a request in flight on this connection.

        >>> with Conn().cancel_on_disconnect({}) as cancel_scope:
        ...     pass
        >>> cancel_scope.cancelled_caught
        False
        """
        controls = self._controls
        request: CancellableRequest = (
            _RequestWithoutServer(self) if controls is None else controls.find(scope)
        )

        def enter(cancel_scope: trio.CancelScope) -> None:
            request.cancel_on_disconnect(cancel_scope, seconds)

        return ScopedBlock(enter, request.forget)

    @property
    def draining(self) -> trio.Event:
        """An event that is set when the connection drains.

        It drains when its server shuts down, when it is older than ``max_connection_age``, after
        :meth:`drain`, and over HTTP/2 after ``keep_alive_max_requests``.

        A handler that would run for ever, such as one of server-sent events, waits for it and
        returns: ``await scope["extensions"]["httptrack"].draining.wait()``. At a shutdown it has
        ``graceful_timeout`` seconds to return. (The handler of a WebSocket waits for
        ``websocket.disconnect``, as usual.)

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
        self.path = path[:PATH_LENGTH]  # kept as long as the connection, so its size is limited

    def _mark_draining(self) -> None:
        self._is_draining = True
        if self._draining is not None:
            self._draining.set()

    async def wait_closed(self) -> None:
        """Wait until the connection's socket is closed, even if the connection was hijacked.

        Always a checkpoint.
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
        """Close the connection before anything is read, with a response if possible.

        Return whether this call has closed it.
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
        """The socket, to query the kernel about it; None if there is none."""
        return None if self._controls is None else self._controls.socket

    @property
    def _monitor(self) -> object:
        """The monitor of the worker; None if there is none."""
        return None if self._controls is None else self._controls.monitor

    @property
    def _peer(self) -> str | None:
        """The client's address and port, as in a URL."""
        if self.client is None:
            return None
        host, port = self.client
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __deepcopy__(self, memo: object) -> Conn:
        return self  # so that a deep copy of an ASGI scope has the same Conn

    def __str__(self) -> str:
        return " ".join(filter(None, ("conn", str(self.id), self._peer or "-", self.protocol)))

    def __repr__(self) -> str:
        return f"<C{str(self)[1:]} {self.state}>"


def cancel_after(cancel_scope: trio.CancelScope, seconds: float) -> None:
    """Cancel the scope after that many seconds, unless its deadline is earlier."""
    if seconds <= 0:
        cancel_scope.cancel()
    else:
        deadline = trio.current_time() + seconds
        cancel_scope.deadline = min(cancel_scope.deadline, deadline)


class _RequestWithoutServer:
    """A request on a connection that has no server, or is closed."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self._forgotten = False

    def cancel_on_disconnect(self, cancel_scope: trio.CancelScope, seconds: float) -> None:
        def cancel(_: Conn) -> None:
            if not self._forgotten:
                cancel_after(cancel_scope, seconds)

        self._conn._call_when_closed(cancel)

    def forget(self, cancel_scope: trio.CancelScope) -> None:
        self._forgotten = True
