"""One accepted connection: its handshake, protocol, states, deadlines and close.

A :class:`Connection` owns the socket, the state that trackers see, the deadline, and a nursery.
One task reads and passes the bytes to the protocol. Each exchange has a task of its own. Whatever
the client and the application do,

* states are reported as ``_states.TRANSITIONS`` allows, and exactly one of them is terminal;
* an error closes this connection and no other;
* once the socket is closed, only handlers that are still working remain.

``phases`` defines how a connection closes. :meth:`Connection.close` is the only place where a
socket is closed. It is synchronous, so it can be called from anywhere. Closing a socket wakes the
tasks that read or write it. That is why a write may be shielded from cancellation (an application
that cancels a ``send`` must not leave half a frame behind) and still always returns.

Anybody who has the ``Conn`` may close or drain it at any time, even a tracker while a state is
reported to it. So after each report the connection may be closed, whatever it was before.

No task waits for a deadline: the worker's timeouts call :meth:`Connection.expire`. That does not
close the connection at once. If the loop was busy, bytes that came in time may be in the socket,
unread. So the reader reads once more, and the connection closes only if nothing was there.

The code here is protected from Ctrl-C, which is for the server's main task: it shuts down the
server. It must not hit the connection that happens to be running. An application's own code can
be interrupted as usual.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol

import trio

from .._scoped import ScopedBlock
from .._states import (
    ACTIVE,
    CLOSED,
    HIJACKED,
    IDLE,
    NEW,
    Conn,
    ConnState,
    RequestInFlight,
)
from .errors import PROPAGATING, split
from .exchange import App, Exchange, LogAccess
from .http1 import Http1
from .http2 import Http2
from .http2_frames import PREFACE
from .http2_headers import HeaderWriter
from .kernel import Kernel
from .lanes import Lane
from .pace import SLOW_REQUEST, SLOW_RESPONSE, Pace
from .phases import (
    CLOSE,
    DRAIN,
    DRAINING,
    HALF_CLOSED,
    LINGERING_IN_DRAIN,
    OPEN,
    OWN_EOF,
    PEER_EOF,
    Phase,
    after,
)
from .phases import CLOSED as CLOSED_PHASE
from .response_head import ResponseHeads
from .settings import Headers, Settings
from .timeouts import Timeout
from .transport import Expired, Parts, Socket, TooSlow, Transport
from .websocket import WebSocket

LINGER_TIMEOUT = 2.0  # seconds, in a drain
REFUSAL_TIMEOUT = 1.0  # seconds for a client to read why it was refused
MAX_REFUSED = 64  # connections of a worker that linger after a refusal


class Server(Protocol):
    """What a connection needs of the worker that accepted it."""

    settings: Settings
    app: App
    kernel: Kernel
    connections: set[Connection]
    conn_ids: Iterator[int]
    response_heads: ResponseHeads
    header_writer: HeaderWriter
    handshake_timeout: Timeout[Connection]
    keep_alive_timeout: Timeout[Connection]
    drain_idle_timeout: Timeout[Connection]
    refusal_timeout: Timeout[Connection]
    request_timeout: Timeout[Exchange] | None
    websocket_ping_timeout: Timeout[WebSocket] | None

    @property
    def state(self) -> dict[str, Any]:
        """The state of the lifespan. Each request gets a copy."""

    @property
    def drain_deadline_reached(self) -> bool:
        """Whether the grace period of a drain is over."""

    deadline: float
    """When the grace period of a drain is over; infinity before the drain."""

    hijacked: int
    """Upgraded connections that are open."""

    @property
    def monitor(self) -> object:
        """The monitor of all connections."""

    def age_timeout(self) -> Timeout[Connection] | None:
        """Return the timeout for a new connection's age, if there is one."""

    def track(self, conn: Conn, state: ConnState) -> None:
        """Change a state, and report it. An exception of a tracker is logged.

        A transition that a tracker causes, such as a close, is reported after all trackers have
        received the one before it.
        """

    def mark_request(self) -> None:
        """Count a request."""

    def forget(self, connection: Connection) -> None: ...

    def abort(self) -> None:
        """Close every connection now."""

    async def log_connection_error(self, error: BaseException, conn: Conn) -> None: ...

    async def log_application_error(self, error: BaseException, conn: Conn, path: str) -> None: ...

    async def log_flood(self, what: str, conn: Conn) -> None: ...

    async def log_timeout(self, request: RequestInFlight, conn: Conn) -> None: ...

    log_access: LogAccess | None


class Connection:
    """Serves an accepted socket until it is closed."""

    __slots__ = (
        "__weakref__",
        "_age_timeout",
        "_all_exchanges_done",
        "_exchanges",
        "_free_lanes",
        "_http1",
        "_http2",
        "_nursery",
        "_overdue",
        "_parked",
        "_request_timeout",
        "_server",
        "_timeout",
        "_timeout_reason",
        "_transport",
        "conn",
        "header_writer",
        "log_access",
        "phase",
        "requests_left",
        "response_heads",
        "settings",
        "websocket_ping_timeout",
    )

    def __init__(
        self,
        server: Server,
        socket: Socket,
        ssl_context: ssl.SSLContext | None,
        client: tuple[str, int] | None,
        address: tuple[str, int] | None,
    ) -> None:
        self._server = server
        self.settings = server.settings
        self.response_heads = server.response_heads
        self.header_writer = server.header_writer
        self.log_access = server.log_access
        self.websocket_ping_timeout = server.websocket_ping_timeout
        self._request_timeout = server.request_timeout
        self._transport = Transport(
            socket, server.kernel, ssl_context, server.settings.min_response_rate
        )
        self._nursery: trio.Nursery | None = None  # None unless run() is running
        self._http1: Http1 | None = None
        self._http2: Http2 | None = None
        self._exchanges: dict[Exchange, None] = {}  # a set, in the order of requests
        self._all_exchanges_done: trio.Event | None = None
        self._free_lanes: list[Lane] = []
        self._timeout: Timeout[Connection] | None = None
        self._age_timeout: Timeout[Connection] | None = None
        self._timeout_reason: str | None = None  # the close reason if the timeout expires
        self._overdue = False
        self._parked: trio.CancelScope | None = None
        self.phase: Phase = OPEN
        self.requests_left = server.settings.keep_alive_max_requests
        self.conn = Conn(
            client, address, tls=ssl_context is not None, opened_at=trio.current_time()
        )
        self.conn.id = next(server.conn_ids)  # replaces the ID of a Conn made by hand
        self.conn._controls = self
        server.connections.add(self)
        self._enter(NEW)
        if self.phase.reads:
            self._age_timeout = server.age_timeout()
            if self._age_timeout is not None:
                self._age_timeout.start(self, self.conn.opened_at)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Serve the connection. Must be run once, even if cancelled: it closes the socket.

        It need not be run if the phase does not read: a tracker has closed or refused the
        connection.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                if self.phase is DRAINING:  # the drain began before this task
                    self._drain()
                await self._contain(self._serve)
                # A handler may go on when nothing can be read any more: its client may still
                # read, or it has work of its own to finish. Everything else in the nursery
                # (pings, a drain's timers) serves the connection, and would keep a dead one open.
                if self._exchanges:
                    self._all_exchanges_done = trio.Event()
                    await self._all_exchanges_done.wait()
                self.close(orderly=True)
                for lane in self._free_lanes:
                    lane.close()
                self._nursery.cancel_scope.cancel()
        finally:
            self.close()
            self._nursery = None
            self._forget()

    def _forget(self) -> None:
        self._server.forget(self)
        # These refer to us, too. Break the cycles, so that everything is freed at once.
        self._http1 = self._http2 = None
        self._free_lanes.clear()
        self.conn._controls = None

    # The reader

    async def _serve(self) -> None:
        alpn = await self._handshake() if self.conn.tls and self.phase.reads else None
        if self.phase.reads:
            self._wait_for(
                self._server.keep_alive_timeout, "request_headers_timeout", trio.current_time()
            )
            await self._run_protocol(alpn)
        await self._reader_done()

    async def _handshake(self) -> str | None:
        self._wait_for(self._server.handshake_timeout, "tls_handshake_failed", trio.current_time())
        try:
            return await self._transport.handshake()
        except (Expired, trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("tls_handshake_failed")
            return None

    async def _run_protocol(self, alpn: str | None) -> None:
        """Detect the protocol, and run it until nothing more can be read."""
        if alpn == "h2":
            await self._start_http2()  # the server sends its settings first
        data = await self.receive()
        # Read enough bytes to tell HTTP/2 from HTTP/1.
        while data and len(data) < len(PREFACE) and PREFACE.startswith(data):
            more = await self.receive(mid_request=True)
            if not more:
                break
            data += more
        if not data:
            return
        if data.startswith(PREFACE):
            self.conn.protocol = "h2"
            if self._http2 is None:
                await self._start_http2()
            self.activate()
            self.become_idle()
        if self._http2 is not None:
            await self._http2.run(data)
        else:
            self._http1 = Http1(self)
            await self._http1.run(data)

    async def _start_http2(self, headers: Headers | None = None, settings: bytes = b"") -> None:
        self._http2 = Http2(self)
        if self.phase is DRAINING and self.conn.state is ACTIVE:
            self._http2.drain()
        await self._http2.initiate(headers, settings)

    async def upgrade_to_http2(self, headers: Headers, settings: bytes, data: bytes) -> None:
        """Respond to a request over HTTP/2, and run HTTP/2 from then on."""
        self._http1 = None
        self.conn.protocol = "h2"
        await self._start_http2(headers, settings)
        assert self._http2 is not None
        await self._http2.run(data)

    async def receive(self, *, mid_request: bool = False, pace: Pace | None = None) -> bytes:
        """Receive the next bytes; ``b""`` at the peer's EOF or if the connection was closed.

        Args:
          mid_request: whether a request is incomplete, so that ``read_timeout`` applies.
          pace: the pace of the request's body, if it has a minimum rate.
        """
        while True:
            # Each exception below means a close. ClosedResourceError says that somebody else has
            # closed the connection, which woke this reader: then there is nothing left to do.
            try:
                if mid_request and (self.settings.read_timeout or pace is not None):
                    data = await self._receive_in_time(pace)
                else:
                    data = await self._transport.receive()
            except Expired:
                self._close_expired()
                return b""
            except trio.BrokenResourceError:
                self.close(None if self.phase.discards else "connection_reset")
                return b""
            except trio.ClosedResourceError:
                return b""
            if not data or not self.phase.discards:
                return data

    async def _receive_in_time(self, pace: Pace | None) -> bytes:
        now = trio.current_time()
        reason: str | None = "read_timeout"
        due = now + (self.settings.read_timeout or float("inf"))
        if pace is not None:
            pace.resume(now)
            if pace.due < due:
                due, reason = pace.due, SLOW_REQUEST
        with trio.CancelScope(deadline=due) as scope:
            data = await self._transport.receive()
        if scope.cancelled_caught:
            reason, self._timeout_reason = self._timeout_reason, reason
            self._transport.expire()
            data = await self._transport.receive()
            self._timeout_reason = reason
            if not self._overdue:  # otherwise the connection's own deadline has passed, too
                self._transport.renew()
        if pace is not None:
            pace.pause(trio.current_time())
            pace.moved += len(data)
        return data

    async def read_pending(self) -> None:
        """Let the reader handle the bytes that are in the socket already.

        After the loop was busy, a deadline may be noticed before the bytes that came in time.
        """
        self._transport.retry_read()
        for _ in range(2):  # the reader runs in the next scheduler step, maybe after this task
            await trio.lowlevel.checkpoint()

    async def _reader_done(self) -> None:
        """Half-close or close the connection: the client will send nothing more.

        The phase changes before the handlers are notified. Otherwise the ``send`` of a handler
        that reacts to the disconnect would be written to a socket that is about to close.
        """
        response_pending = self._http1 is not None and self._http1.response_pending
        if self.phase.reads and response_pending and not self._transport.truncated:
            self.phase = after(self.phase, PEER_EOF)
        else:
            self.close(orderly=not self._exchanges)
        for exchange in self._exchanges:
            exchange.disconnect()
        if self.phase is HALF_CLOSED:
            with self.parked(eof=False):  # the client may still vanish
                await trio.sleep_forever()

    def parked(self, *, eof: bool) -> ScopedBlock:
        """Watch the socket while the reader waits for something other than bytes.

        Every such wait of the reader must be in this block. A reset of the connection cancels it.

        Args:
          eof: whether the client's EOF counts as a disconnect, too. It must not if input before
            the EOF has yet to be delivered: the reader finds the EOF after it.
        """

        def enter(scope: trio.CancelScope) -> None:
            self._parked = scope
            self._transport.watch(self._peer_hung_up if eof else self._peer_reset)
            if self.phase is CLOSED_PHASE:
                scope.cancel()

        def leave(_: trio.CancelScope) -> None:
            self._transport.unwatch()
            self._parked = None

        return ScopedBlock(enter, leave)

    def _peer_reset(self, reset: bool) -> None:
        if reset:
            self._peer_hung_up(reset)
        else:
            for exchange in self._exchanges:
                exchange.note_eof()

    def _peer_hung_up(self, reset: bool) -> None:
        if reset:
            self.close("connection_reset")
        for exchange in self._exchanges:
            exchange.disconnect()

    # What protocols and exchanges call

    @property
    def cancelled(self) -> bool:
        """Whether the connection's tasks are cancelled."""
        return self._nursery is not None and self._nursery.cancel_scope.cancel_called

    @property
    def shutting_down(self) -> bool:
        """Whether the whole server drains, which has a deadline of its own."""
        return self._server.deadline < float("inf")

    @property
    def last(self) -> bool:
        """Whether the response that begins now is the connection's last."""
        return self.requests_left <= 0 or self.conn._is_draining

    @property
    def state(self) -> dict[str, Any]:
        return self._server.state

    def write_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for; return the rest, which must be written next, or None."""
        if not self.phase.writes:
            return None
        try:
            return self._transport.send_now(parts)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("connection_reset")
            return None

    async def write(self, parts: Parts) -> None:
        """Write everything, in order. A checkpoint only if it has to wait."""
        if self.phase.writes:
            try:
                await self._transport.send(parts)
            except TooSlow:
                self.close(SLOW_RESPONSE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.close("connection_reset")

    @property
    def progress(self) -> int:
        """A number that changes whenever the client makes room for a write that waits."""
        return self._transport.progress

    @property
    def unsent(self) -> int:
        """How many bytes the client's kernel has not received yet."""
        return self._transport.unsent

    def begin_request(self) -> bool:
        """Count a request whose head was read; return whether to handle it.

        It is not handled if a tracker has closed the connection when it became active.
        """
        self.requests_left -= 1
        self.activate()
        self._server.mark_request()
        return self.phase.reads

    def activate(self) -> None:
        """Report that a request is in flight."""
        conn = self.conn
        if conn.state is not NEW and conn.state is not IDLE:
            return
        self._overdue = False
        self._transport.renew()
        if conn.protocol is None:  # HTTP/2 is known from its preface
            conn.protocol = "http/1.1"
        if self._http2 is not None and self.phase is DRAINING:
            self._http2.drain()
        self._enter(ACTIVE)

    def start(self, exchange: Exchange) -> None:
        """Run an exchange's application in a task of its own."""
        self.conn._count_request(exchange.path)
        self._exchanges[exchange] = None
        if exchange.drains and self.phase is DRAINING:
            self.spawn(exchange.drain)
        if self._request_timeout is None and self.settings.cancel_on_disconnect is None:
            assert self._nursery is not None
            self._nursery.start_soon(self._run_exchange, exchange, name="trio_httptrack exchange")
        else:
            self._start_in_lane(exchange)

    def _start_in_lane(self, exchange: Exchange) -> None:
        """Run an exchange's application in a lane, where it can be cancelled on its own."""
        if self._free_lanes:
            lane = self._free_lanes.pop()
            lane.start(exchange, self._run_exchange)
        else:
            lane = Lane(exchange, self._free_lanes)
            assert self._nursery is not None
            self._nursery.start_soon(self._run_lane, lane, name="trio_httptrack exchange")
        exchange.cancel_scope = lane.scope
        if self._request_timeout is not None:
            self._request_timeout.start(exchange, trio.current_time())
        if self.settings.cancel_on_disconnect is not None:
            exchange.cancel_on_disconnect(lane.scope, self.settings.cancel_on_disconnect)

    @trio.lowlevel.enable_ki_protection
    async def _run_lane(self, lane: Lane) -> None:
        try:
            await lane.run(self._run_exchange)
            if lane.exchange is not None:  # it was cancelled, and is not finished yet
                await lane.exchange.finish()
        except BaseException as error:
            await self._fail(error)
        finally:
            if lane.exchange is not None:
                self._handler_done(lane.exchange)

    def _detach_lane(self, exchange: Exchange, lane: Lane) -> bool:
        """Detach a lane from an exchange whose handler is done; return whether it was cancelled.

        Another exchange may use the lane next. This exchange may learn much later that its client
        has disconnected, as that of a WebSocket does, and must not cancel the lane then.
        """
        if lane.scope.cancel_called:
            return True
        exchange.forget(lane.scope)
        if lane.scope.deadline < float("inf"):
            lane.scope.deadline = float("inf")
        return False

    def spawn(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task that is cancelled, at the latest, when the connection is done."""
        assert self._nursery is not None
        self._nursery.start_soon(self._contain, func, *args)

    @trio.lowlevel.enable_ki_protection
    async def _run_exchange(self, exchange: Exchange, lane: Lane | None = None) -> None:
        # As few coroutines around the application's as possible: each costs time whenever the
        # application waits for something.
        cancelled = False  # with its lane, which finishes the exchange then
        try:
            try:
                await exchange.call(self._server.app)
            except BaseException as error:
                await exchange.fail(error)
            cancelled = lane is not None and self._detach_lane(exchange, lane)
            if not cancelled:
                await exchange.finish()
        except BaseException as error:
            cancelled = (
                lane is not None
                and lane.scope.cancel_called
                and split(error, trio.Cancelled)[1] is None
            )
            if cancelled:
                raise
            await self._fail(error)
        finally:
            if not cancelled:
                if lane is not None:
                    lane.handler_done(more=self.phase.reads)
                self._handler_done(exchange)

    def _handler_done(self, exchange: Exchange) -> None:
        del self._exchanges[exchange]
        if self._request_timeout is not None:
            self._request_timeout.cancel(exchange)
        if self._http2 is not None:
            self._http2.handler_done()
        if self._all_exchanges_done is not None and not self._exchanges:
            self._all_exchanges_done.set()

    def become_idle(self) -> None:
        """Report that every request has its response."""
        if self.phase is HALF_CLOSED:
            self.close(orderly=True)
        elif self.conn.state is ACTIVE:
            self._enter(IDLE)
            if self.phase.reads:
                self._wait_for(
                    self._server.keep_alive_timeout, "keep_alive_timeout", self.conn.state_since
                )

    def hijack(self) -> None:
        """Report that the connection does not speak HTTP any more."""
        if self.conn.state is ACTIVE:
            self._server.hijacked += 1
            self._enter(HIJACKED)

    async def log_application_error(self, error: BaseException, path: str) -> None:
        await self._server.log_application_error(error, self.conn, path)

    async def log_flood(self, what: str) -> None:
        await self._server.log_flood(what, self.conn)

    async def log_timeout(self, request: RequestInFlight) -> None:
        await self._server.log_timeout(request, self.conn)

    def set_close_reason(self, reason: str) -> None:
        """Set the reason for which the connection is about to close."""
        if self.phase.writes:
            self.conn.close_reason = reason

    @property
    def handlers(self) -> int:
        """How many handlers are running."""
        return len(self._exchanges)

    # What its Conn calls

    def requests_in_flight(self) -> tuple[RequestInFlight, ...]:
        requests = [exchange.snapshot() for exchange in self._exchanges]
        if self._http2 is not None:
            requests += self._http2.waiting_requests()
        return tuple(requests)

    @property
    def socket(self) -> object:
        return self._transport.socket

    @property
    def monitor(self) -> object:
        return self._server.monitor

    def find(self, scope: Mapping[str, Any]) -> Exchange:
        """Return the exchange of a scope, or of a shallow copy of it."""
        for exchange in self._exchanges:
            own = exchange.scope
            if own is scope or any(
                name in scope and scope[name] is own.get(name) for name in ("extensions", "headers")
            ):
                return exchange
        raise ValueError(f"this scope is not of a request in flight on {self.conn}")

    def refuse(self, status: int, reason: str, retry_after: int) -> bool:
        """Refuse the connection before anything is read; return False if it is closed already.

        A refused connection never gets a task, which would cost several times as much as all of
        this. The client's input is discarded for a short time: if the socket were closed at once,
        a reset for the request could destroy the response. Under TLS it is just closed.
        """
        if not self.phase.reads:
            return False
        self.conn.close_reason = reason
        if not self.conn.tls:
            with suppress(trio.BrokenResourceError):  # it is refused, even if it has gone
                self._transport.send_now([self.response_heads.refusal(status, retry_after)])
            timeout = self._server.refusal_timeout
            if self.phase is OPEN and len(timeout) < MAX_REFUSED:
                self.phase = after(self.phase, OWN_EOF)
                self._timeout = timeout
                timeout.start(self, trio.current_time())
                self._transport.discard(self.close)
                return True
        self.close(reason)
        return True

    # States and deadlines

    def _enter(self, state: ConnState) -> None:
        """Report a state, which ``TRANSITIONS`` must allow."""
        self._server.track(self.conn, state)

    def _wait_for(self, timeout: Timeout[Connection], reason: str | None, now: float) -> None:
        """Close the connection unless it becomes active in time.

        A drain has shorter timeouts of its own, and other rules for HTTP/2.
        """
        if self._overdue:  # the deadline before this one was met
            self._overdue = False
            self._transport.renew()
        if self.phase is DRAINING:
            self._timeout_reason = None
            if self.conn.state is NEW:
                return  # one deadline covers everything before the first request
            if self.conn.protocol == "h2":
                self._forget_timeout()
                return
            timeout = self._server.drain_idle_timeout
        else:
            self._timeout_reason = reason
        if self._timeout is not timeout:
            self._forget_timeout()
            self._timeout = timeout
        timeout.start(self, now)

    def _forget_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel(self)
            self._timeout = None

    def expire(self) -> None:
        """Close the connection if nothing has arrived before its deadline.

        A timeout is not cancelled when the connection becomes active, because that would cost
        each request. So the idle time that this is about may be over. Then it is ignored.

        This method does not close the connection itself. If the loop was busy, both the deadline
        and the next request may have come, and we do not learn which came first. So the reader is
        woken and reads once more. The connection closes only if nothing is there. If the reader
        gets a part of a request, the connection closes at the next read that would have to wait.
        """
        if self.phase.discards:
            self.close()
        elif self.conn.state is NEW or self.conn.state is IDLE:
            self._overdue = True
            if self._parked is not None:
                self._parked.cancel()
            self._transport.expire()

    def close_if_overdue(self) -> None:
        """Close the connection if it has been idle for too long.

        This is for a reader that never has to wait, because bytes come all the time, or that waits
        for something other than bytes. Those bytes are no request, or it would not be idle.
        """
        if self._overdue:
            self._close_expired()

    def _close_expired(self) -> None:
        if self._http2 is not None:
            self._http2.send_goaway()
        elif self._http1 is not None and self._timeout_reason == SLOW_REQUEST:
            self._http1.refuse_slow_request()
        # An incomplete response without a length must not look complete.
        incomplete = any(exchange.begun and not exchange.complete for exchange in self._exchanges)
        self.close(self._timeout_reason, orderly=not incomplete)

    # Drain and close

    def drain_at_max_age(self) -> None:
        """Drain the connection, because it has reached its maximum age."""
        self.drain("max_connection_age")

    def drain(self, reason: str | None = None) -> None:
        """Let the requests in flight finish, and then close the connection."""
        if self.phase is CLOSED_PHASE:
            return
        if self._nursery is None and self.phase.discards:  # it was refused
            self.close()
            return
        self.conn.close_reason = self.conn.close_reason or reason
        was, self.phase = self.phase, after(self.phase, DRAIN)
        if self.phase is was is DRAINING:
            return  # it has been draining, for a reason of its own
        self.conn._mark_draining()
        if self.phase is LINGERING_IN_DRAIN and was is not LINGERING_IN_DRAIN:
            self.spawn(self._linger_in_drain)
        elif self.phase is DRAINING and self._nursery is not None:
            self._drain()

    def _drain(self) -> None:
        if self.conn.state is NEW:
            self._forget_timeout()
            self.spawn(self._enforce_new_deadline)
        elif self.conn.state is IDLE:
            self._wait_for(self._server.drain_idle_timeout, None, trio.current_time())
        if self._http2 is not None and self.conn.state is not NEW:
            self._http2.drain()
        for exchange in self._exchanges:
            if exchange.drains:
                self.spawn(exchange.drain)

    async def _enforce_new_deadline(self) -> None:
        """Close the connection if it sends no request by its deadline in a drain."""
        await trio.sleep_until(self.conn.opened_at + self.settings.drain_new_timeout)
        if self.conn.state is NEW:
            self._timeout_reason = None
            self.expire()

    async def finish(
        self, *, linger: bool, unexpected: bool = False, reason: str | None = None
    ) -> None:
        """Send EOF after the last response, and close the connection.

        Args:
          linger: whether the client is still sending. Then closing at once would cause a reset,
            which would destroy what the client has not read yet.
          unexpected: whether the client does not expect the close, and so may be sending. Then the
            connection lingers only if the response is still in flight, which is rare.
          reason: the close reason, if there is one.
        """
        if not self.phase.writes:
            return
        self.conn.close_reason = reason or self.conn.close_reason
        linger = linger or (unexpected and self._transport.in_flight > 0)
        if self.phase is HALF_CLOSED or not linger:
            self.close(orderly=True)
            return
        self.phase = after(self.phase, OWN_EOF)
        for exchange in self._exchanges:
            exchange.disconnect()
        self._forget_timeout()
        self._timeout = self._server.keep_alive_timeout
        self._timeout.start(self, trio.current_time())
        if self.phase is LINGERING_IN_DRAIN:
            self.spawn(self._linger_in_drain)
        await self._transport.send_eof()

    async def _linger_in_drain(self) -> None:
        """Close the connection soon, if the client has received everything."""
        await trio.sleep(LINGER_TIMEOUT)
        if not self._transport.unsent:
            self.close()

    def abort(self) -> None:
        """Close the connection now, whatever is in flight."""
        if self.phase.discards:
            self.close()  # the response was sent
        else:
            self.close(
                "app_shutdown_timeout" if self._server.drain_deadline_reached else "aborted_by_app"
            )

    def close(self, reason: str | None = None, *, orderly: bool = False) -> None:
        """Close the socket, wake the tasks that wait for it, and report CLOSED. Idempotent.

        Args:
          orderly: whether nothing is truncated, so that TLS may send ``close_notify``.
        """
        if self.phase is CLOSED_PHASE:
            return
        # The phase changes first: everything that is woken or called below must find the
        # connection closed, and a tracker that closes it again must find nothing to do. The
        # report comes last (even after ``wait_closed`` is released), because a tracker may look
        # at anything.
        was, self.phase = self.phase, after(self.phase, CLOSE)
        conn = self.conn
        if not (was.discards and conn.close_reason):  # which is why it began to close
            conn.close_reason = reason or conn.close_reason
        self._transport.close(orderly=orderly)
        self._forget_timeout()
        if self._age_timeout is not None:
            self._age_timeout.cancel(self)
        if self._parked is not None:
            self._parked.cancel()
        for exchange in self._exchanges:
            exchange.client_disconnected()
        conn._mark_closed()
        if conn.state is not HIJACKED:
            self._enter(CLOSED)
        else:
            self._server.hijacked -= 1
        if self._nursery is None:
            self._forget()

    @trio.lowlevel.enable_ki_protection
    async def _contain(self, run: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run one of the connection's tasks, and handle its errors."""
        try:
            await run(*args)
        except BaseException as error:
            await self._fail(error)

    async def _fail(self, error: BaseException) -> None:
        """Close the connection, and nothing else, because one of its tasks has failed."""
        propagating, contained = split(error, PROPAGATING)
        if contained is not None:
            self.close("internal_error")
            await self._server.log_connection_error(contained, self.conn)
        # With the transport closed, even a shielded write returns, so the nursery exits soon.
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        if propagating is not None:
            # A cancellation from outside is for this connection; the server's other connections
            # get it through their own nurseries. Ctrl-C and sys.exit() stop the server: its other
            # connections must not wait in shielded writes while the exception propagates.
            stops_server = split(propagating, trio.Cancelled)[1]
            (self if stops_server is None else self._server).abort()
            try:
                raise propagating from None
            finally:
                # Their tracebacks refer to this frame: break the cycle.
                del error, propagating, stops_server
