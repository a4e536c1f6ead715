"""One request and its response, as ASGI sees them: scope, receive, send.

An exchange is a task of its connection's nursery that runs the application. The protocol
below puts what the client sends into it, and takes from it what goes to the client, through
:class:`Stream`: HTTP/1, HTTP/2 and WebSockets are the same to an application. Four promises
are kept here:

* ``send`` and ``receive`` are checkpoints, so an application cannot freeze the loop;
* what is already there is handed over, also in a scope that was cancelled;
* nobody waits for an application that no longer reads: a disconnect needs no room in the
  queue, and what is put after the application's end is dropped;
* once the peer is gone, ``receive`` says so as often as it is called, and ``send`` raises an
  OSError.
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
from .errors import TRAVELLING, PeerGone, UnexpectedMessage, split
from .phases import Phase
from .response_head import NO_CONTENT, valid
from .settings import Headers, Settings

App = Callable[[Any, Any, Any], Awaitable[object]]
Scope = dict[str, Any]
Event = dict[str, Any]
LogAccess = Callable[[Scope, Event | None, float], Awaitable[None]]
"""Called with the scope, the response, if there was one, and its seconds."""


class Connection(Protocol):
    """What an exchange needs of its connection."""

    conn: Conn
    settings: Settings

    @property
    def state(self) -> dict[str, Any]:
        """The lifespan's, of which each request has a copy."""

    phase: Phase

    @property
    def cancelled(self) -> bool:
        """Whether the connection's tasks are to end now, whatever they are doing."""

    async def log_application_error(self, error: BaseException, path: str) -> None: ...

    async def log_timeout(self, request: RequestInFlight) -> None: ...

    log_access: LogAccess | None
    """None where nobody reads it."""


class Stream(Protocol):
    """What an exchange needs of its protocol: its own way to the client.

    Where the peer is gone all of these do nothing.
    """

    @property
    def id(self) -> int | None:
        """The number of an HTTP/2 stream."""

    @property
    def survives_disconnect(self) -> bool:
        """Whether a client that has ended its side may still read the response."""

    def waiting(self) -> AbstractContextManager[object]:
        """To be put around a wait of whoever hands over what the client sends."""

    async def respond(self, status: int, headers: Headers, body: bytes, more_body: bool) -> None:
        """Write the head with the first of the body.

        Raises:
          h11.LocalProtocolError: the response cannot be sent like this. Nothing was written.
        """

    async def write_body(self, body: bytes, more_body: bool) -> None:
        """Write more of the body."""

    async def inform(self, status: int, headers: Headers) -> None:
        """Write a response before the final one, such as early hints."""

    async def abandon(self) -> None:
        """Tell the client that nothing more will come of this response."""

    def note_reason(self, reason: str) -> None:
        """If the connection ends with this response, this is why."""

    def cut_off(self, reason: str) -> None:
        """End it now, in the middle of whatever it is."""

    def probe(self) -> None:
        """Find out whether a client that has ended its side still reads."""


def base_scope(
    connection: Connection, path: bytes, query: bytes, headers: Headers, http_version: str
) -> Scope:
    """What the scopes of requests and WebSockets have in common."""
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
        "_changed",
        "_connection",
        "_disconnect",
        "_ended",
        "_events",
        "_failed",
        "_gone",
        "_lost",
        "_max_queue_size",
        "_peer_ended",
        "_started",
        "_stream",
        "_timed_out",
        "_told",
        "_when_gone",
        "limit",
        "method",
        "path",
        "scope",
    )

    disconnected: Event
    """What an application is told where nobody knows better."""

    drains = False
    """Whether it has to be told when the connection drains."""

    def __init__(
        self,
        connection: Connection,
        stream: Any,
        scope: Scope,
        max_queue_size: int,
        method: str,
        started: float,
    ) -> None:
        self.scope = scope  # which the application may change
        self.path: str = scope["path"]
        self.method = method
        self._connection = connection
        self._stream = stream
        self._max_queue_size = max_queue_size
        self._events: deque[Event] | None = None  # made when there is one: many have none
        self._changed: trio.Event | None = None  # what somebody waits for
        self._disconnect: Event | None = None
        self._told = False  # that the peer has gone
        self._ended = False
        self._failed = False
        self._timed_out = False
        self._lost = 0  # the status code of a response that was not the application's
        self._peer_ended = False  # perhaps behind what the application has not taken
        self._gone = False  # the client is, and the response was not complete
        self._when_gone: dict[trio.CancelScope, float] | None = None  # what it cancels, and when
        self.limit: trio.CancelScope | None = None
        """What is around the application, where it may have to be cancelled."""

        self._started = started

    def snapshot(self) -> RequestInFlight:
        """What it is doing now."""
        return RequestInFlight(
            method=self.method,
            path=self.path[:PATH_LENGTH],
            started_at=self._started,
            stream_id=self._stream.id,
            response_begun=self.begun,
            response_complete=self.idle,
        )

    # The protocol's side

    @property
    def full(self) -> bool:
        """Whether the next ``put`` would wait for the application."""
        return self._events is not None and len(self._events) >= max(1, self._max_queue_size)

    async def put(self, event: Event) -> None:
        """Give the application its next event, when there is room.

        Not a checkpoint if there is: what was read together is put before the application
        runs, and a request that is complete is not taken for one that is not.
        """
        if self.full:
            with self._stream.waiting():
                while self.full and self._disconnect is None and not self._ended:
                    await self._change()
        self.add(event)

    def add(self, event: Event) -> None:
        """Give the application its next event, whether or not there is room."""
        if self._disconnect is None and not self._ended:
            if self._events is None:
                self._events = deque()
            self._events.append(event)
            self.notify()

    def disconnect(self, event: Event | None = None) -> None:
        """Let the application know that no event follows. The first one says why."""
        if self._disconnect is None:
            self._disconnect = event or self.disconnected
            self.notify()
            self.note_end()

    def note_end(self) -> None:
        """The client sends no more. If something is to be cancelled, find out if it reads."""
        self._peer_ended = True
        if self._when_gone and not (self._lost or self._ended or self.idle):
            self._stream.probe()

    def finished(self) -> None:
        """The whole response is written."""

    def lose(self, status: int) -> None:
        """Its response is given up: its client is told something else."""
        self._lost = status
        self.disconnect()
        self.lose_client()

    def lose_client(self) -> None:
        """Nobody reads the response any more."""
        if not (self._gone or self.idle):
            self._gone = True
            if self._when_gone:
                for cancel_scope, seconds in self._when_gone.items():
                    cancel_after(cancel_scope, seconds)

    def cancel_when_gone(self, cancel_scope: trio.CancelScope, seconds: float) -> None:
        """Cancel it so many seconds after the client has gone; soon, if it has already."""
        if self._when_gone is None:
            self._when_gone = {}
        self._when_gone[cancel_scope] = seconds
        if self._gone:
            cancel_after(cancel_scope, seconds)
        elif self._peer_ended:
            self.note_end()

    def time_out(self) -> None:
        """Its handler has taken too long, if somebody still waits for it."""
        if self.limit is not None and not (self._ended or self.idle):
            self._timed_out = True
            self.limit.cancel()
            if self._committed:  # it may be writing, which nothing but the end stops
                self._stream.cut_off("request_timeout")

    def forget(self, cancel_scope: trio.CancelScope) -> None:
        """Do not cancel it any more."""
        if self._when_gone is not None:
            self._when_gone.pop(cancel_scope, None)

    @property
    def _cancelled(self) -> bool:
        """Whether its time is up, or that of a block in it."""
        if self.limit is not None and self.limit.cancel_called:
            return True
        return self._gone and any(scope.cancel_called for scope in self._when_gone or ())

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def notify(self) -> None:
        """There is something new for whoever waits."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    # The application's side

    def _next(self) -> Event | None:
        """The next event before the disconnect, if there is one."""
        if self._events:
            event = self._events.popleft()
            self.notify()
            return event
        return None

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Event:
        """Called by the application.

        An application may poll: call this in a scope that it has cancelled, and take what is
        there. So an event that is there comes before a cancellation. Only the disconnect, which
        is there for ever, gives way where the connection is cancelled, or we have cancelled this
        handler: else an application that ignores it could not be stopped.
        """
        while True:
            event = self._next()
            if event is None and self._disconnect is not None:
                if self._connection.cancelled or self._cancelled:
                    await trio.lowlevel.checkpoint()
                self._told = True
                self.notify()
                event = dict(self._disconnect)
            if event is not None:
                if trio.current_effective_deadline() > float("-inf"):
                    await checkpoint_if_cancelled()
                await cancel_shielded_checkpoint()
                return event
            await self._change()

    @trio.lowlevel.enable_ki_protection
    async def send(self, event: Event) -> None:
        """Called by the application.

        Raises:
          PeerGone: the connection, or this stream of it, ended before the response did.
          UnexpectedMessage: ASGI does not allow this here.
        """
        await checkpoint_if_cancelled()
        try:
            if self._ended:
                raise UnexpectedMessage(event["type"], "after the application had returned")
            sending = self._send(event)
            if sending is not None:
                await sending
        finally:  # also where the event is refused: the application may try again for ever
            await cancel_shielded_checkpoint()

    def _send(self, event: Event) -> Awaitable[None] | None:
        """Return what is to be awaited, if anything is."""
        raise NotImplementedError

    async def drain(self) -> None:
        """The connection drains, or did already when this exchange began."""
        raise NotImplementedError

    # The task, step by step

    @trio.lowlevel.disable_ki_protection
    async def call(self, app: App) -> None:
        """Run the application."""
        await app(self.scope, self.receive, self.send)

    async def fail(self, error: BaseException) -> None:
        """Handle what the application raised; what is meant for more than it is raised again."""
        travels, rest = split(error, TRAVELLING)
        if rest is not None:
            _, rest = split(rest, PeerGone)
        if rest is not None:
            self._failed = True
            await self._connection.log_application_error(rest, self.path)
        if travels is not None:
            self._ended = True
            try:
                raise travels from None
            finally:
                del error, travels  # whose traceback has this frame: break the cycle

    async def end(self) -> None:
        """The application has ended: see that its client is not left waiting."""
        self._ended = True
        if not self.complete:
            self.notify()
            if self._timed_out:
                await self._connection.log_timeout(self.snapshot())
                self._stream.note_reason("request_timeout")
            await self._end()
            self.disconnect()  # for a task that the application has left behind

    @property
    def complete(self) -> bool:
        """Whether everything is written: nothing is owed any more."""
        return False

    @property
    def begun(self) -> bool:
        """Whether the application has begun to respond."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether nothing more is to be expected of the application."""
        raise NotImplementedError

    @property
    def _committed(self) -> bool:
        """Whether it is too late for another response."""
        return self.begun

    async def _end(self) -> None:
        raise NotImplementedError

    async def _log(self, response: Event | None) -> None:
        log_access = self._connection.log_access
        if log_access is not None:
            await log_access(self.scope, response, trio.current_time() - self._started)


CLIENT_CLOSED_REQUEST = 499  # nginx's status code, for the access log only

REQUEST, HELD, RESPONSE, TRAILERS, COMPLETE = (
    "before the response",
    "while its head waits for the body",
    "in the response's body",
    "before the response's trailers",
    "after the response",
)


class HttpExchange(Exchange):
    """A request and its response.

    A response's head waits for its body's first event, as ASGI asks for: both leave in one
    write, and where the body never comes the response can still be a 500.
    """

    __slots__ = ("_finished", "_headers", "_state", "_status", "_trailers", "_whole")

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
        self._whole = body  # all of it, if it is known from the start
        self._state = REQUEST
        self._status = 0
        self._headers: Headers = []
        self._trailers = False
        self._finished = False  # and written: it is complete before that

    @property
    def complete(self) -> bool:
        return self._state is COMPLETE

    @property
    def begun(self) -> bool:
        return self._state is not REQUEST

    @property
    def idle(self) -> bool:
        return self._finished

    @property
    def _committed(self) -> bool:
        return self._state is not REQUEST and self._state is not HELD

    def _next(self) -> Event | None:
        if self._whole is not None:
            body, self._whole = self._whole, None
            return {"type": "http.request", "body": body, "more_body": False}
        return super()._next()

    def _send(self, event: Event) -> Awaitable[None] | None:
        state = self._state
        if state is not COMPLETE and not self._can_respond:
            raise PeerGone(self._connection.conn)
        type_ = event["type"]
        if type_ == "http.response.body" and (state is HELD or state is RESPONSE):
            return self._send_body(event.get("body", b""), event.get("more_body", False))
        if type_ != "http.response.start" or state is not REQUEST:
            return self._send_extension(type_, event)
        status = int(event["status"])
        if not 200 <= status < 1000:
            return self._inform(status, event)
        self._status = status
        # Copies: what the application does to its event later changes nothing.
        self._headers = list(event.get("headers", ()))
        self._trailers = event.get("trailers", False)
        self._state = HELD
        return None

    def _send_extension(self, type_: str, event: Event) -> Awaitable[None]:
        """What HTTP/2 has beyond."""
        raise UnexpectedMessage(type_, self._state)

    async def _inform(self, status: int, event: Event) -> None:
        """The final response follows."""
        if not 100 < status < 200 or status == 101:
            raise ValueError(f"a response cannot have the status {status}")
        await self._stream.inform(status, validated(event.get("headers", ())))

    async def _send_body(self, body: Any, more_body: bool) -> None:
        if type(body) is not bytes:
            body = bytes(body)
        if self._status in NO_CONTENT or self.method == "HEAD":
            body = b""
        more = more_body or self._trailers
        state = self._state
        # Before anything waits for room: another task of the application may send meanwhile.
        self._state = COMPLETE if not more else RESPONSE if more_body else TRAILERS
        try:
            if state is HELD:
                await self._stream.respond(self._status, self._headers, body, more)
            else:
                await self._stream.write_body(body, more)
        except Exception:
            # Nothing was written: there may be another try, or a 500. A cancellation is no such
            # case. It comes where all is queued, and the application waits for room.
            self._state = REQUEST if state is HELD else state
            raise
        if not more:
            await self._complete()

    def finished(self) -> None:
        self._finished = True

    async def _complete(self) -> None:
        self._state = COMPLETE
        self._finished = True
        self.disconnect()
        if self._gone:
            await self._log_incomplete()
        elif self._connection.log_access is not None:
            await self._log({"status": self._status, "headers": self._headers})

    async def _log_incomplete(self, *, gave_up: bool = False) -> None:
        left = (self._gone or gave_up) and not self._timed_out
        status = self._lost or (CLIENT_CLOSED_REQUEST if left else None)
        await self._log({"status": status, "headers": []} if status else None)

    async def respond_with_error(self, status: int) -> None:
        """Respond for the application."""
        self._status = status
        self._headers = []
        self._state = COMPLETE
        self.disconnect()
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self._stream.respond(status, headers, b"", False)
        await self._log({"status": status, "headers": []})

    async def _end(self) -> None:
        unanswered = self._state is REQUEST or self._state is HELD
        failed = self._failed or self._timed_out
        gave_up = self._told and self._state is REQUEST and not failed
        if unanswered and not gave_up and self._can_respond:
            await self.respond_with_error(504 if self._timed_out else 500)
        else:
            # A client that has gone gets nothing; one that has had a part must see the rest fail.
            self._state, self._finished = COMPLETE, True
            await self._stream.abandon()
            await self._log_incomplete(gave_up=self._told and not failed)

    @property
    def _can_respond(self) -> bool:
        return self._connection.phase.writes and (
            self._disconnect is None or (self._stream.survives_disconnect and not self._lost)
        )


def validated(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers that can be sent, over HTTP/2 as well: a proxy may send them on over HTTP/1."""
    return [valid(header) for header in headers]
