"""One accepted stream: handshake, protocol, states, deadlines, its end.

Stands where Hypercorn's ``TCPServer`` stood, between Hypercorn's protocol and the
stream, and owns what lies there: the socket, the state and the deadline. Whatever
the client and the application do,

* states are reported as ``TRANSITIONS`` allows, and exactly one of them is terminal;
* an error ends this connection and no other;
* once the socket is closed, nothing is left but a handler that is still working.

No task waits for a deadline: one cancel scope is around the whole conversation. The worker's
timeouts cancel it when the connection has rested too long; in a drain it has a deadline.

Hypercorn's protocols write an answer in many small parts. Code that is about to cause several
of them, with no checkpoint between, calls ``cork`` first and ``flush`` last: they leave in one
write.

:meth:`Connection.close` is the only place where a socket is closed. It is synchronous,
so it can be called from anywhere, and closing a socket wakes whoever reads or writes
it; that is why writing may be shielded from cancellation (an application that gives up
on a ``send`` must not leave half a frame behind) and still always ends.

Our code here is protected from Ctrl-C. That is for the server's main task, which shuts down
because of it, and not for whichever connection happens to be running. An application's own
code can be interrupted as ever.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.typing import AppWrapper, ConnectionState

from .._states import ACTIVE, CLOSED, HIJACKED, IDLE, NEW, TRANSITIONS, Conn, ConnState
from .errors import TRAVELLING, split
from .handler import Handler
from .protocol import Protocol
from .timeouts import Timeout
from .transport import Transport
from .websockets import WebSocket

if TYPE_CHECKING:
    from hypercorn.trio.worker_context import WorkerContext

    from .worker import Worker

LINGER_TIMEOUT = 2.0  # seconds
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Connection:
    """Await it to serve the stream until its end."""

    __slots__ = (
        "_app",
        "_config",
        "_conversation",
        "_corked",
        "_expiry",
        "_handlers",
        "_lifespan_state",
        "_lingering",
        "_nursery",
        "_protocol",
        "_talking",
        "_timeout",
        "_transport",
        "_unsent",
        "_worker",
        "closed",
        "conn",
        "draining",
        "gone",
        "upgrading",
    )

    _nursery: trio.Nursery

    def __init__(
        self,
        worker: Worker,
        app: AppWrapper,
        config: Config,
        _context: WorkerContext,  # Hypercorn's own; its end is the drain's to notice
        state: ConnectionState,
        stream: trio.SSLStream[trio.SocketStream] | trio.SocketStream,
    ) -> None:
        self._worker = worker
        self._app = app
        self._config = config
        self._lifespan_state = state
        self._transport = Transport(stream, worker.kernel)
        self._unsent: list[bytes] = []
        self._corked = False
        self._conversation = trio.CancelScope()
        self._timeout: Timeout | None = None
        self._expiry: str | None = None
        self._protocol: Protocol | None = None
        self._handlers: dict[Handler, None] = {}  # a set in the order of their requests
        self._talking = True
        self._lingering = False
        self.draining = False  # no request is to follow those that are on their way
        self.closed = False
        self.gone = False  # nothing can be written any more
        self.upgrading = False  # a handler is accepting a WebSocket over HTTP/1.1
        self.conn = Conn(
            self._transport.client,
            self._transport.server,
            tls=self._transport.tls,
            opened_at=trio.current_time(),
        )

    def __await__(self) -> Generator[Any, Any, None]:
        return self._run().__await__()

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        self._worker.connections.add(self)
        self._report(NEW)
        try:
            async with trio.open_nursery() as self._nursery:
                await self._contain(self._talk)
                self._talking = False
                self._leave_if_done()
        finally:
            self.close()
            self._worker.forget(self)

    # The conversation

    async def _talk(self) -> None:
        with self._conversation as conversation:
            alpn = await self._handshake()
            if not self.closed:
                await self._converse(alpn)
        if conversation.cancelled_caught:
            self.close(None if self.draining else self._expiry)
        await self._hang_up()

    async def _handshake(self) -> str | None:
        self._expire_after(self._worker.handshake_timeout, "tls_handshake_failed")
        try:
            return await self._transport.handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("tls_handshake_failed")
            return None

    async def _converse(self, alpn: str | None) -> None:
        self._expire_after(self._worker.keep_alive_timeout, "request_headers_timeout")
        if alpn == "h2":
            await self._start("h2")  # an HTTP/2 server speaks first
        data = await self._receive()
        # As many bytes as tell HTTP/2 from HTTP/1: Hypercorn recognises the preface too,
        # but takes it for a request and does not say when it is complete.
        while data and len(data) < len(H2_PREFACE) and H2_PREFACE.startswith(data):
            more = await self._receive()
            if not more:
                break
            data += more
        if not data:
            return
        prior_knowledge = data.startswith(H2_PREFACE)
        if self._protocol is None:
            await self._start("h2" if prior_knowledge else "http/1.1")
        if prior_knowledge:
            await self._handle(H2_PREFACE)
            self.conn.protocol = "h2"
            self._enter(ACTIVE)
            self._enter(IDLE)
            data = data[len(H2_PREFACE) :]
        while True:
            if data and not self._lingering:
                await self._handle(data)
            data = await self._receive()
            if not data:
                break
        if not self.gone:
            await self._handle(b"")  # HTTP/1 wants to know where the input ended

    async def _start(self, protocol: str) -> None:
        self._protocol = Protocol(
            self,
            self._app,
            self._config,
            self._worker.context,
            ConnectionState(self._lifespan_state),
            protocol,
        )
        await self._protocol.initiate()

    async def _handle(self, data: bytes) -> None:
        assert self._protocol is not None
        await self._protocol.handle(RawData(data))
        if self._protocol.idle:
            await self._rest()
        elif self._protocol.refused:
            self.close()

    async def _receive(self) -> bytes:
        """The next bytes; none at the peer's end, or if the socket was closed meanwhile."""
        try:
            if not self._config.read_timeout:
                return await self._transport.receive()
            with trio.move_on_after(self._config.read_timeout):
                return await self._transport.receive()
            self.close("read_timeout")
        except trio.BrokenResourceError:
            self.close(None if self._lingering else "connection_reset")
        except trio.ClosedResourceError:
            pass
        return b""

    async def _hang_up(self) -> None:
        """Tell the protocol, and with it the handlers, that nothing more will be read."""
        if self._protocol is None:
            return
        owed = any(not handler.written for handler in self._handlers)
        if self.gone or not (self._protocol.may_still_answer and owed):
            self.close()
            await self._protocol.hang_up()
        self._tell_handlers()

    async def leave_unanswered(self) -> None:
        """Called for an application that was told of the disconnect, and has ended by that."""
        if self._protocol is not None and not self._talking and self._protocol.may_still_answer:
            self.close()
            await self._protocol.hang_up()

    def parked(self) -> AbstractContextManager[None]:
        """To be put around every wait of the reader that is not for bytes.

        The peer's end is noticed all the same.
        """
        return self._transport.watch(self._peer_hung_up)

    def _peer_hung_up(self, reset: bool) -> None:
        if reset:
            self.close("connection_reset")
        self._tell_handlers()

    def _tell_handlers(self) -> None:
        for handler in self._handlers:
            handler.hang_up()

    # What Hypercorn's protocol calls: it takes the connection for its TaskGroup

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if event.data:
                self._unsent.append(event.data)
            if not self._corked:
                await self.flush()
        elif isinstance(event, Updated):
            if event.idle:
                await self._rest()
            else:
                self._enter(ACTIVE)
        elif isinstance(event, Closed):
            assert self._protocol is not None
            if self._protocol.still_receiving:
                await self.linger()
            else:
                self.close()

    def cork(self) -> None:
        """Keep what is written until it is flushed, or until something is written uncorked."""
        self._corked = True

    def uncork(self) -> None:
        self._corked = False

    async def flush(self) -> None:
        """Write what was kept. A checkpoint only if it has to wait."""
        self._corked = False
        if not self._unsent:
            return
        parts, self._unsent = self._unsent, []
        if self.gone:
            return
        if self.upgrading:
            self.upgrading = False
            self._enter(HIJACKED)  # these are the 101 response's bytes
        try:
            await self._transport.send(parts)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("connection_reset")

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        self.conn.protocol = "h2" if scope["http_version"] == "2" else "http/1.1"
        self.conn._count_request(scope["path"])
        scope["extensions"]["httptrack"] = self.conn
        handler = Handler(self, config, scope, send)
        stream = getattr(send, "__self__", None)
        if isinstance(stream, WSStream):
            handler.websocket = WebSocket(stream, self._worker.grace.websocket_code)
            if self.draining:
                self.spawn(handler.websocket.drain)
        self._handlers[handler] = None
        if self.gone:  # an HTTP/2 push, of an answer that came too late
            handler.hang_up()
        self._nursery.start_soon(self._run_handler, handler, app)
        return handler.put

    def spawn(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        self._nursery.start_soon(self._contain, func, *args)

    @trio.lowlevel.enable_ki_protection
    async def _run_handler(self, handler: Handler, app: AppWrapper) -> None:
        try:
            await self._contain(handler.run, app)
        finally:
            del self._handlers[handler]
        self._leave_if_done()

    async def log_application_error(self, error: BaseException, path: str) -> None:
        await self._worker.log_application_error(error, self.conn, path)

    # States and the end

    def _enter(self, state: ConnState) -> None:
        conn = self.conn
        if state not in TRANSITIONS[conn.state]:
            return
        conn.state = state
        conn.state_since = trio.current_time()
        if state is IDLE:
            self._expire_after(self._worker.keep_alive_timeout, "keep_alive_timeout")
        elif state is ACTIVE:
            self._wait_for(None)
            conn.protocol = conn.protocol or "http/1.1"  # HTTP/2 is known from its preface
            if self.draining:
                self._conversation.deadline = math.inf
                self._drain_protocol()
        self._report(state)

    async def _rest(self) -> None:
        """Every request has been answered."""
        if self.conn.state is ACTIVE:
            self._enter(IDLE)
            if self.draining:
                assert self._protocol is not None
                await self._protocol.say_goodbye()

    def _report(self, state: ConnState) -> None:
        try:
            self._worker.tracker.track(self.conn, state)
        except Exception as error:
            self._worker.log_error(error, "A tracker failed (%s %s)", self.conn, state)

    def _expire_after(self, timeout: Timeout, reason: str) -> None:
        """End the conversation unless something happens in time."""
        self._expiry = reason
        if self.draining:
            self._expire_in_drain()
        else:
            self._wait_for(timeout)

    def _expire_in_drain(self) -> None:
        """The same by the drain's own, shorter times. HTTP/2 ends by other rules."""
        self._wait_for(None)
        if self.conn.state is NEW:
            self._conversation.deadline = self.conn.opened_at + self._worker.grace.new
        elif self.conn.protocol != "h2":
            self._conversation.deadline = trio.current_time() + self._worker.grace.idle

    def _wait_for(self, timeout: Timeout | None) -> None:
        if self._timeout is not None:
            self._timeout.end(self)
        self._timeout = timeout
        if timeout is not None:
            timeout.begin(self)

    def expire(self) -> None:
        """End the conversation."""
        self._conversation.cancel()

    def drain(self) -> None:
        """Begin to end: no request is to follow those that are on their way."""
        if self.draining:
            return
        self.draining = True
        self.conn._mark_draining()
        if self.closed:
            return
        if self._lingering:
            self.spawn(self._do_not_linger)
            return
        if self.conn.state in (NEW, IDLE):
            self._expire_in_drain()
        if self.conn.state in (ACTIVE, IDLE):
            self._drain_protocol()
        for handler in self._handlers:
            if handler.websocket is not None:
                self.spawn(handler.websocket.drain)

    def _drain_protocol(self) -> None:
        assert self._protocol is not None
        self._protocol.drain()

    @property
    def grace(self) -> float:
        """For how many seconds it may rest in a drain."""
        return self._worker.grace.idle

    @property
    def path(self) -> str | None:
        """That of the oldest request in work, if there is one."""
        return next((handler.path for handler in self._handlers), None)

    def abort(self) -> None:
        """End now, whatever is in flight."""
        if self._lingering:
            self.close()  # it has been answered
        else:
            self.close("app_shutdown_timeout" if self._worker.late else "aborted_by_app")

    async def linger(self) -> None:
        """End our side, and read and discard until the client ends its own.

        It has its answer before it finished speaking. Were the socket closed now, the kernel
        would answer what is still on its way with a reset, and that can reach the client
        before the answer does, and destroy it (RFC 9112, 9.6).
        """
        if self.gone:
            return
        self._lingering = self.gone = True
        self._tell_handlers()
        self._expiry = None
        self._wait_for(self._worker.keep_alive_timeout)
        if self.draining:
            self.spawn(self._do_not_linger)
        await self._transport.finish()

    async def _do_not_linger(self) -> None:
        """In a drain: a client that reads has noticed our end by then."""
        await trio.sleep(LINGER_TIMEOUT)
        if not self._transport.unsent:
            self.expire()

    def close(self, reason: str | None = None) -> None:
        """Close the socket, wake who waits for it, and report CLOSED. Does nothing again."""
        if self.closed:
            return
        self.closed = self.gone = True
        self.conn.close_reason = reason
        self._transport.close()
        self._wait_for(None)
        self.expire()
        self.conn._mark_closed()
        self._enter(CLOSED)

    def _leave_if_done(self) -> None:
        """End when the reader and all handlers have: other tasks have nobody left to serve."""
        if not self._talking and not self._handlers:
            self.close()
            self._nursery.cancel_scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _contain(self, run: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run one of the connection's tasks; an error ends the connection, and nothing else."""
        try:
            await run(*args)
        except BaseException as error:
            travels, contained = split(error, TRAVELLING)
            if contained is not None:
                self.close("internal_error")
                await self._worker.log_contained(contained, self.conn)
            self._nursery.cancel_scope.cancel()
            if travels is not None:
                _, ends_all = split(travels, trio.Cancelled)
                (self if ends_all is None else self._worker).abort()
                raise travels from None
