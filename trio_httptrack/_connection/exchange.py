"""One request and its response, as ASGI sees them: scope, receive, send.

An exchange is a task of its connection's nursery that runs the application. The protocol below
it puts the client's events into the exchange. The exchange writes its response to the protocol
through :class:`Stream`. So HTTP/1, HTTP/2 and WebSockets look the same to an application. Four
promises are kept here:

* ``send`` and ``receive`` are checkpoints, so an application cannot freeze the loop.
* An event that is already there is delivered, even in a cancelled scope.
* Nothing waits for an application that no longer reads: a disconnect needs no room in the queue,
  and events that are put after the application is done are dropped.
* After the client has disconnected, each ``receive`` returns the disconnect, and ``send`` raises
  an OSError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol
from urllib.parse import unquote

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from .._states import PATH_LENGTH, Conn, RequestInFlight, cancel_after
from .errors import PROPAGATING, ClientDisconnected, UnexpectedMessage, split
from .phases import Phase
from .response_head import NO_CONTENT, validate
from .settings import Headers, Settings

App = Callable[[Any, Any, Any], Awaitable[object]]
Scope = dict[str, Any]
Event = dict[str, Any]
LogAccess = Callable[[Scope, Event | None, float], Awaitable[None]]
"""Called with the scope, the response, if there was one, and its duration in seconds."""


class Connection(Protocol):
    """What an exchange needs of its connection."""

    conn: Conn
    settings: Settings

    @property
    def state(self) -> dict[str, Any]:
        """The state of the lifespan. Each request gets a copy."""

    phase: Phase

    @property
    def cancelled(self) -> bool:
        """Whether the connection's tasks are cancelled."""

    async def log_application_error(self, error: BaseException, path: str) -> None: ...

    async def log_timeout(self, request: RequestInFlight) -> None: ...

    log_access: LogAccess | None
    """None if there is no access log."""


class Stream(Protocol):
    """What an exchange needs of its protocol, to write to the client.

    After the peer has disconnected, these methods do nothing.
    """

    @property
    def id(self) -> int | None:
        """The ID of an HTTP/2 stream."""

    @property
    def survives_disconnect(self) -> bool:
        """Whether a client that has sent EOF may still read the response."""

    def waiting(self) -> AbstractContextManager[object]:
        """Watch the socket while the reader waits for the application."""

    async def respond(self, status: int, headers: Headers, body: bytes, more_body: bool) -> None:
        """Write the head, and the first part of the body.

        Raises:
          h11.LocalProtocolError: the response is invalid. Nothing was written.
        """

    async def write_body(self, body: bytes, more_body: bool) -> None:
        """Write more of the body."""

    async def send_interim(self, status: int, headers: Headers) -> None:
        """Write an interim response, such as early hints."""

    async def abandon(self) -> None:
        """Leave the response incomplete, in a way that the client notices."""

    def set_close_reason(self, reason: str) -> None:
        """Set the reason, in case the connection closes with this response."""

    def abort(self, reason: str) -> None:
        """Terminate the stream, or the connection, at once."""

    def probe(self) -> None:
        """Find out whether a client that has sent EOF still reads."""


def base_scope(
    connection: Connection, path: bytes, query: bytes, headers: Headers, http_version: str
) -> Scope:
    """Return what the scopes of requests and WebSockets have in common."""
    conn = connection.conn
    return {
        "http_version": http_version,
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "scheme": "https" if conn.tls else "http",
        "path": unquote(path.decode("ascii")) if b"%" in path else path.decode("ascii"),
        "raw_path": path,
        "query_string": query,
        "root_path": connection.settings.root_path,
        "headers": headers,
        "client": conn.client,
        "server": conn.server,
        "state": connection.state.copy(),
        "extensions": {"httptrack": conn},
    }


class Exchange:
    """A request, or a WebSocket, and the task that handles it."""

    __slots__ = (
        "_app_done",
        "_cancel_scopes",
        "_changed",
        "_client_gone",
        "_connection",
        "_disconnect",
        "_disconnect_delivered",
        "_error_status",
        "_events",
        "_failed",
        "_max_queue_size",
        "_peer_eof",
        "_started",
        "_stream",
        "_timed_out",
        "cancel_scope",
        "method",
        "path",
        "scope",
    )

    disconnected: Event
    """The disconnect event for an unknown cause."""

    drains = False
    """Whether :meth:`drain` is to be called when the connection drains."""

    def __init__(
        self,
        connection: Connection,
        stream: Any,
        scope: Scope,
        max_queue_size: int,
        method: str,
        started: float,
    ) -> None:
        self.scope = scope  # the application may change it
        self.path: str = scope["path"]
        self.method = method
        self._connection = connection
        self._stream = stream
        self._max_queue_size = max_queue_size
        self._events: deque[Event] | None = None  # created for the first event: many have none
        self._changed: trio.Event | None = None  # set by notify()
        self._disconnect: Event | None = None
        self._disconnect_delivered = False
        self._app_done = False
        self._failed = False
        self._timed_out = False
        self._error_status = 0  # the status code of our own response in place of the application's
        self._peer_eof = False  # perhaps after events that the application has not received yet
        self._client_gone = False  # it disconnected before the response was complete
        self._cancel_scopes: dict[trio.CancelScope, float] | None = None  # with their delays
        self.cancel_scope: trio.CancelScope | None = None
        """The scope around the application, if a setting may cancel it."""

        self._started = started

    def snapshot(self) -> RequestInFlight:
        """Describe the request as it is now."""
        return RequestInFlight(
            method=self.method,
            path=self.path[:PATH_LENGTH],
            started_at=self._started,
            stream_id=self._stream.id,
            response_begun=self.begun,
            response_complete=self.done,
        )

    # The protocol's side

    @property
    def full(self) -> bool:
        """Whether the next ``put`` has to wait for the application."""
        return self._events is not None and len(self._events) >= max(1, self._max_queue_size)

    async def put(self, event: Event) -> None:
        """Queue an event for the application, when there is room.

        Not a checkpoint if there is room: everything that was read together is queued before the
        application runs. So a complete request never looks incomplete.
        """
        if self.full:
            with self._stream.waiting():
                while self.full and self._disconnect is None and not self._app_done:
                    await self._wait_for_change()
        self.add(event)

    def add(self, event: Event) -> None:
        """Queue an event for the application, whether or not there is room."""
        if self._disconnect is None and not self._app_done:
            if self._events is None:
                self._events = deque()
            self._events.append(event)
            self.notify()

    def disconnect(self, event: Event | None = None) -> None:
        """Queue the last event. If this is called again, the first event stays."""
        if self._disconnect is None:
            self._disconnect = event or self.disconnected
            self.notify()
            self.note_eof()

    def note_eof(self) -> None:
        """Note that the client sends no more. If a disconnect cancels something, probe for it."""
        self._peer_eof = True
        if self._cancel_scopes and not (self._error_status or self._app_done or self.done):
            self._stream.probe()

    def response_written(self) -> None:
        """Note that the whole response is written."""

    def disconnect_with_status(self, status: int) -> None:
        """Disconnect the application: the client gets our error response instead."""
        self._error_status = status
        self.disconnect()
        self.client_disconnected()

    def client_disconnected(self) -> None:
        """Note that nobody reads the response any more."""
        if not (self._client_gone or self.done):
            self._client_gone = True
            if self._cancel_scopes:
                for cancel_scope, seconds in self._cancel_scopes.items():
                    cancel_after(cancel_scope, seconds)

    def cancel_on_disconnect(self, cancel_scope: trio.CancelScope, seconds: float) -> None:
        """Cancel a scope so many seconds after the client disconnects, or has disconnected."""
        if self._cancel_scopes is None:
            self._cancel_scopes = {}
        self._cancel_scopes[cancel_scope] = seconds
        if self._client_gone:
            cancel_after(cancel_scope, seconds)
        elif self._peer_eof:
            self.note_eof()

    def time_out(self) -> None:
        """Cancel a handler that has taken too long, if its client still waits for it."""
        if self.cancel_scope is not None and not (self._app_done or self.done):
            self._timed_out = True
            self.cancel_scope.cancel()
            if self._committed:  # it may be in a write, which only a close can stop
                self._stream.abort("request_timeout")

    def forget(self, cancel_scope: trio.CancelScope) -> None:
        """Do not cancel a scope any more."""
        if self._cancel_scopes is not None:
            self._cancel_scopes.pop(cancel_scope, None)

    @property
    def _cancelled(self) -> bool:
        """Whether the handler was cancelled, or a block in it."""
        if self.cancel_scope is not None and self.cancel_scope.cancel_called:
            return True
        return self._client_gone and any(scope.cancel_called for scope in self._cancel_scopes or ())

    async def _wait_for_change(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def notify(self) -> None:
        """Wake the tasks that wait for a change."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # The application's side

    def _next_event(self) -> Event | None:
        """Pop the next event before the disconnect, if there is one."""
        if self._events:
            event = self._events.popleft()
            self.notify()
            return event
        return None

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Event:
        """Return the next event. The application calls this.

        An application may poll: it calls this in a cancelled scope, and gets an event if there is
        one. So an event comes before a cancellation. The disconnect never runs out, so it gives
        way if the connection is cancelled, or if we have cancelled this handler. Otherwise an
        application that ignores the disconnect could not be stopped.
        """
        while True:
            event = self._next_event()
            if event is None and self._disconnect is not None:
                if self._connection.cancelled or self._cancelled:
                    await trio.lowlevel.checkpoint()
                self._disconnect_delivered = True
                self.notify()
                event = dict(self._disconnect)
            if event is not None:
                if trio.current_effective_deadline() > float("-inf"):
                    await checkpoint_if_cancelled()
                await cancel_shielded_checkpoint()
                return event
            await self._wait_for_change()

    @trio.lowlevel.enable_ki_protection
    async def send(self, event: Event) -> None:
        """Handle an event of the application. The application calls this.

        Raises:
          ClientDisconnected: the connection, or this stream of it, was closed before the response
            was complete.
          UnexpectedMessage: ASGI does not allow this event here.
        """
        await checkpoint_if_cancelled()
        try:
            if self._app_done:
                raise UnexpectedMessage(event["type"], "after the application had returned")
            sending = self._send(event)
            if sending is not None:
                await sending
        finally:  # even if the event is refused: the application may retry for ever
            await cancel_shielded_checkpoint()

    def _send(self, event: Event) -> Awaitable[None] | None:
        """Handle an event; return what is to be awaited, if anything is."""
        raise NotImplementedError

    async def drain(self) -> None:
        """React to a drain of the connection, which may have begun before this exchange."""
        raise NotImplementedError

    # The task, step by step

    @trio.lowlevel.disable_ki_protection
    async def call(self, app: App) -> None:
        """Run the application."""
        await app(self.scope, self.receive, self.send)

    async def fail(self, error: BaseException) -> None:
        """Log an exception of the application; raise the part that must propagate."""
        propagating, rest = split(error, PROPAGATING)
        if rest is not None:
            _, rest = split(rest, ClientDisconnected)
        if rest is not None:
            self._failed = True
            await self._connection.log_application_error(rest, self.path)
        if propagating is not None:
            self._app_done = True
            try:
                raise propagating from None
            finally:
                del error, propagating  # their tracebacks refer to this frame: break the cycle

    async def finish(self) -> None:
        """Complete or abandon the response when the application is done."""
        self._app_done = True
        if not self.complete:
            self.notify()
            if self._timed_out:
                await self._connection.log_timeout(self.snapshot())
                self._stream.set_close_reason("request_timeout")
            await self._finish()
            self.disconnect()  # for tasks that the application has left running

    @property
    def complete(self) -> bool:
        """Whether the application has sent its whole response."""
        return False

    @property
    def begun(self) -> bool:
        """Whether the application has begun to respond."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether the response is written, or the WebSocket closed, and only the handler runs."""
        raise NotImplementedError

    @property
    def _committed(self) -> bool:
        """Whether it is too late for an error response."""
        return self.begun

    async def _finish(self) -> None:
        raise NotImplementedError

    async def _log_access(self, response: Event | None) -> None:
        log_access = self._connection.log_access
        if log_access is not None:
            await log_access(self.scope, response, trio.current_time() - self._started)


CLIENT_CLOSED_REQUEST = 499  # nginx's status code, for the access log only

REQUEST, HELD, RESPONSE, TRAILERS, COMPLETE = (
    "before the response",
    "before the first part of the response's body",
    "in the response's body",
    "before the response's trailers",
    "after the response",
)


class HttpExchange(Exchange):
    """A request and its response.

    A response's head is held until the first event of its body, as ASGI requires. So both go out
    in one write, and if the body never comes, the response can still be a 500.
    """

    __slots__ = ("_headers", "_state", "_status", "_trailers", "_whole_body", "_written")

    disconnected = {"type": "http.disconnect"}  # noqa: RUF012

    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        scope: Scope,
        max_queue_size: int,
        started: float,
        *,
        body: bytes | None = None,
    ) -> None:
        super().__init__(connection, stream, scope, max_queue_size, scope["method"], started)
        self._whole_body = body  # if all of it was read with the head
        self._state = REQUEST
        self._status = 0
        self._headers: Headers = []
        self._trailers = False
        self._written = False  # the whole response is; its state is COMPLETE before that

    @property
    def complete(self) -> bool:
        return self._state is COMPLETE

    @property
    def begun(self) -> bool:
        return self._state is not REQUEST

    @property
    def done(self) -> bool:
        return self._written

    @property
    def _committed(self) -> bool:
        return self._state is not REQUEST and self._state is not HELD

    def _next_event(self) -> Event | None:
        if self._whole_body is not None:
            body, self._whole_body = self._whole_body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return super()._next_event()

    def _send(self, event: Event) -> Awaitable[None] | None:
        state = self._state
        if state is not COMPLETE and not self._can_respond:
            raise ClientDisconnected(self._connection.conn)
        type_ = event["type"]
        if type_ == "http.response.body" and (state is HELD or state is RESPONSE):
            return self._send_body(event.get("body", b""), event.get("more_body", False))
        if type_ != "http.response.start" or state is not REQUEST:
            return self._send_extension(type_, event)
        status = int(event["status"])
        if not 200 <= status < 1000:
            return self._send_interim(status, event)
        self._status = status
        # A copy: the application may change its event later.
        self._headers = list(event.get("headers", ()))
        self._trailers = event.get("trailers", False)
        self._state = HELD
        return None

    def _send_extension(self, type_: str, event: Event) -> Awaitable[None]:
        """Handle an event of an ASGI extension that only HTTP/2 has."""
        raise UnexpectedMessage(type_, self._state)

    async def _send_interim(self, status: int, event: Event) -> None:
        """Send an interim response."""
        if not 100 < status < 200 or status == 101:
            raise ValueError(f"a response cannot have the status {status}")
        await self._stream.send_interim(status, validated(event.get("headers", ())))

    async def _send_body(self, body: Any, more_body: bool) -> None:
        if type(body) is not bytes:
            body = bytes(body)
        if self._status in NO_CONTENT or self.method == "HEAD":
            body = b""
        more = more_body or self._trailers
        state = self._state
        # Before anything waits for room, because another task of the application may send then.
        self._state = COMPLETE if not more else RESPONSE if more_body else TRAILERS
        try:
            if state is HELD:
                await self._stream.respond(self._status, self._headers, body, more)
            else:
                await self._stream.write_body(body, more)
        except Exception:
            # Nothing was written, so the application may retry, or we send a 500. A cancellation
            # is different: it comes when everything is queued, and the application waits for room.
            self._state = REQUEST if state is HELD else state
            raise
        if not more:
            await self._complete()

    def response_written(self) -> None:
        self._written = True

    async def _complete(self) -> None:
        self._state = COMPLETE
        self._written = True
        self.disconnect()
        if self._client_gone:
            await self._log_incomplete()
        elif self._connection.log_access is not None:
            await self._log_access({"status": self._status, "headers": self._headers})

    async def _log_incomplete(self, *, gave_up: bool = False) -> None:
        client_closed = (self._client_gone or gave_up) and not self._timed_out
        status = self._error_status or (CLIENT_CLOSED_REQUEST if client_closed else None)
        await self._log_access({"status": status, "headers": []} if status else None)

    async def respond_with_error(self, status: int) -> None:
        """Respond in place of the application."""
        self._status = status
        self._headers = []
        self._state = COMPLETE
        self.disconnect()
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self._stream.respond(status, headers, b"", False)
        await self._log_access({"status": status, "headers": []})

    async def _finish(self) -> None:
        can_replace = self._state is REQUEST or self._state is HELD
        failed = self._failed or self._timed_out
        gave_up = self._disconnect_delivered and self._state is REQUEST and not failed
        if can_replace and not gave_up and self._can_respond:
            await self.respond_with_error(504 if self._timed_out else 500)
        else:
            # A client that has disconnected gets nothing. A client that has received a part of
            # the response must notice that it is incomplete.
            self._state, self._written = COMPLETE, True
            await self._stream.abandon()
            await self._log_incomplete(gave_up=self._disconnect_delivered and not failed)

    @property
    def _can_respond(self) -> bool:
        return self._connection.phase.writes and (
            self._disconnect is None
            or (self._stream.survives_disconnect and not self._error_status)
        )


def validated(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return headers that can be sent, even over HTTP/1: a proxy may forward them over it."""
    return [validate(header) for header in headers]
