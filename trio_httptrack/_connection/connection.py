"""One accepted connection: its handshake, protocol, states, deadlines and its end.

Owns the socket, the state that trackers see, the deadline, and the nursery: one task reads and
hands what it reads to the protocol, and each exchange has a task of its own. Whatever the client
and the application do,

* states are reported as ``_states.TRANSITIONS`` allows, and exactly one of them is terminal;
* an error ends this connection and no other;
* once the socket is closed, nothing is left but a handler that is still working.

How an end comes about is written down in ``phases``. :meth:`Connection.close` is the only place
where a socket is closed. It is synchronous, so it can be called from anywhere, and closing a
socket wakes whatever reads or writes it; that is why writing may be shielded from cancellation
(an application that gives up on a ``send`` must not leave half a frame behind) and still always
ends.

Whoever has its ``Conn`` may close or drain it at any time, a tracker while it is told of a state
included. So after a state was reported the connection may be closed, whatever it was before.

No task waits for a deadline: the worker's timeouts tell a connection that its time is up. That
is not the end yet. The loop may have been busy, and bytes that came in time may lie in the socket
unread; so the reader looks once more, and only where nothing came does the connection close.

Our code here is protected from Ctrl-C. That is for the server's main task, which shuts down
because of it, and not for whichever connection happens to be running. An application's own
code can be interrupted as ever.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import trio

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
from .errors import TRAVELLING, split
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
    LEAVING,
    OPEN,
    OWN_END,
    PEER_END,
    Phase,
    after,
)
from .phases import CLOSED as GONE
from .response_head import ResponseHeads
from .settings import Headers, Settings
from .timeouts import Timeout
from .transport import Expired, Parts, Socket, TooSlow, Transport
from .websocket import WebSocket

LINGER_TIMEOUT = 2.0  # seconds, in a drain
REFUSAL_TIMEOUT = 1.0  # seconds for a client to read why it was refused
MAX_REFUSED = 64  # connections of a worker that wait for that


class Server(Protocol):
    """What a connection needs of the worker that has accepted it."""

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
        """The lifespan's, of which each request has a copy."""

    @property
    def drain_deadline_reached(self) -> bool:
        """Whether it is the end of a drain."""

    deadline: float
    """When its shutdown ends by force; infinity before it begins."""

    hijacked: int
    """Upgraded connections that are open."""

    @property
    def monitor(self) -> object:
        """What knows of all connections what they are doing."""

    def age_timeout(self) -> Timeout[Connection] | None:
        """That for a new connection's age, if there is one."""

    def track(self, conn: Conn, state: ConnState) -> None:
        """Change a state, and report it. What a tracker raises is logged.

        What a tracker causes, such as a close, is reported when all trackers know of what it was
        told.
        """

    def mark_request(self) -> None:
        """Count a request of any connection."""

    def forget(self, connection: Connection) -> None: ...

    def abort(self) -> None:
        """Close every connection now."""

    async def log_connection_error(self, error: BaseException, conn: Conn) -> None: ...

    async def log_application_error(self, error: BaseException, conn: Conn, path: str) -> None: ...

    async def log_flood(self, what: str, conn: Conn) -> None: ...

    async def log_timeout(self, request: RequestInFlight, conn: Conn) -> None: ...

    log_access: LogAccess | None


class Connection:
    """Serves an accepted socket until its end."""

    __slots__ = (
        "__weakref__",
        "_age",
        "_all_exchanges_ended",
        "_exchanges",
        "_expiry",
        "_free_lanes",
        "_http1",
        "_http2",
        "_nursery",
        "_overdue",
        "_parked",
        "_request_timeout",
        "_server",
        "_timeout",
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
        self._nursery: trio.Nursery | None = None  # while it runs
        self._http1: Http1 | None = None
        self._http2: Http2 | None = None
        self._exchanges: dict[Exchange, None] = {}  # a set in the order of their requests
        self._all_exchanges_ended: trio.Event | None = None
        self._free_lanes: list[Lane] = []
        self._timeout: Timeout[Connection] | None = None
        self._age: Timeout[Connection] | None = None
        self._expiry: str | None = None  # the reason for closing, when it is overdue
        self._overdue = False
        self._parked: trio.CancelScope | None = None
        self.phase: Phase = OPEN
        self.requests_left = server.settings.keep_alive_max_requests
        self.conn = Conn(
            client, address, tls=ssl_context is not None, opened_at=trio.current_time()
        )
        self.conn.id = next(server.conn_ids)  # instead of that of one made by hand
        self.conn._controls = self
        server.connections.add(self)
        self._enter(NEW)
        if self.phase.reads:
            self._age = server.age_timeout()
            if self._age is not None:
                self._age.begin(self, self.conn.opened_at)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Serve it. Must be run once, even if cancelled: it closes the socket.

        But need not be where the phase does not read: a tracker has closed it, or refused it.
        """
        try:
            async with trio.open_nursery() as self._nursery:
                if self.phase is DRAINING:  # since before there was a task for it
                    self._drain()
                await self._contain(self._serve)
                # A handler may go on when nothing can be read any more: its client may still
                # read, or it has something of its own to finish. Everything else in the nursery
                # (pings, a drain's timers) serves the connection, and would keep a dead one alive.
                if self._exchanges:
                    self._all_exchanges_ended = trio.Event()
                    await self._all_exchanges_ended.wait()
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
        # They know us, too. Break the cycles, so that all is freed at once.
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
            await self._speak(alpn)
        await self._read_all()

    async def _handshake(self) -> str | None:
        self._wait_for(self._server.handshake_timeout, "tls_handshake_failed", trio.current_time())
        try:
            return await self._transport.handshake()
        except (Expired, trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("tls_handshake_failed")
            return None

    async def _speak(self, alpn: str | None) -> None:
        """Find out which protocol it is, and speak it until nothing more can be read."""
        if alpn == "h2":
            await self._start_http2()  # its server speaks first
        data = await self.receive()
        # As many bytes as tell HTTP/2 from HTTP/1.
        while data and len(data) < len(PREFACE) and PREFACE.startswith(data):
            more = await self.receive(owed=True)
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
            self.rest()
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
        """Respond to a request over HTTP/2, and go on with that until the end."""
        self._http1 = None
        self.conn.protocol = "h2"
        await self._start_http2(headers, settings)
        assert self._http2 is not None
        await self._http2.run(data)

    async def receive(self, *, owed: bool = False, pace: Pace | None = None) -> bytes:
        """The next bytes; none at the peer's end, or if the connection was closed meanwhile.

        Args:
          owed: whether they belong to a request that has begun, so that ``read_timeout`` holds.
          pace: that of the request's body, if it has one to keep.
        """
        while True:
            # Each exception below is an end, and where there is one, there may have been another
            # before: closing the socket is what wakes a reader, so ClosedResourceError means that
            # somebody else has seen to everything already.
            try:
                if owed and (self.settings.read_timeout or pace is not None):
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
            reason, self._expiry = self._expiry, reason
            self._transport.expire()
            data = await self._transport.receive()
            self._expiry = reason
            if not self._overdue:  # else the connection's own deadline has passed, too
                self._transport.renew()
        if pace is not None:
            pace.pause(trio.current_time())
            pace.moved += len(data)
        return data

    async def look_again(self) -> None:
        """Let the reader handle what has come, whether or not it knows of it.

        Where the loop was busy, a deadline may be seen before the bytes that came in time for it.
        """
        self._transport.look_again()
        for _ in range(2):  # the reader runs in the next scheduler step, maybe behind us
            await trio.lowlevel.checkpoint()

    async def _read_all(self) -> None:
        """The reader has ended: nothing more will come of the client.

        Close first, tell the handlers then: what they do in response must find the connection
        as it will stay, or a ``send`` would be written to a socket that is about to close.
        """
        owes = self._http1 is not None and self._http1.owes_response
        if self.phase.reads and owes and not self._transport.cut_off:
            self.phase = after(self.phase, PEER_END)
        else:
            self.close(orderly=not self._exchanges)
        for exchange in self._exchanges:
            exchange.disconnect()
        if self.phase is HALF_CLOSED:
            with self.parked(end=False):  # the client may still vanish
                await trio.sleep_forever()

    @contextmanager
    def parked(self, *, end: bool) -> Iterator[None]:
        """To be put around every wait of the reader that is not for bytes.

        A reset is noticed all the same, and ends the wait.

        Args:
          end: whether a mere end of the client's side is noticed, too. Not where what came before
            it has still to be handed over: the reader will find it behind that.
        """
        told = self._peer_hung_up if end else self._peer_reset
        with trio.CancelScope() as self._parked, self._transport.watch(told):
            if self.phase is GONE:
                self._parked.cancel()
            yield
        self._parked = None

    def _peer_reset(self, reset: bool) -> None:
        if reset:
            self._peer_hung_up(reset)
        else:
            for exchange in self._exchanges:
                exchange.note_end()

    def _peer_hung_up(self, reset: bool) -> None:
        if reset:
            self.close("connection_reset")
        for exchange in self._exchanges:
            exchange.disconnect()

    # What protocols and exchanges call

    @property
    def cancelled(self) -> bool:
        """Whether the connection's tasks are to end now, whatever they are doing."""
        return self._nursery is not None and self._nursery.cancel_scope.cancel_called

    @property
    def shutting_down(self) -> bool:
        """Whether all connections of the server drain, which has a deadline of its own."""
        return self._server.deadline < float("inf")

    @property
    def last(self) -> bool:
        """Whether the response that begins now is the connection's last."""
        return self.requests_left <= 0 or self.conn._is_draining

    @property
    def state(self) -> dict[str, Any]:
        return self._server.state

    def write_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for. What is left, if anything is, must be written next."""
        if not self.phase.writes:
            return None
        try:
            return self._transport.send_now(parts)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("connection_reset")
            return None

    async def write(self, parts: Parts) -> None:
        """Write, in order. Not a checkpoint unless it has to wait."""
        if self.phase.writes:
            try:
                await self._transport.send(parts)
            except TooSlow:
                self.close(SLOW_RESPONSE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.close("connection_reset")

    @property
    def progress(self) -> int:
        """Changes whenever the client has made room for what waits to be written."""
        return self._transport.progress

    @property
    def unsent(self) -> int:
        """How many bytes the client's system has not taken yet."""
        return self._transport.unsent

    def begin_request(self) -> bool:
        """A request's head has been read. Returns whether it is to be handled.

        It is not if a tracker, told that the connection is active, has closed it.
        """
        self.requests_left -= 1
        self.activate()
        self._server.mark_request()
        return self.phase.reads

    def activate(self) -> None:
        """There is a request in flight."""
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
        """Run it where it can be cancelled by itself."""
        if self._free_lanes:
            lane = self._free_lanes.pop()
            lane.start(exchange, self._run_exchange)
        else:
            lane = Lane(exchange, self._free_lanes)
            assert self._nursery is not None
            self._nursery.start_soon(self._run_lane, lane, name="trio_httptrack exchange")
        exchange.limit = lane.scope
        if self._request_timeout is not None:
            self._request_timeout.begin(exchange, trio.current_time())
        if self.settings.cancel_on_disconnect is not None:
            exchange.cancel_when_gone(lane.scope, self.settings.cancel_on_disconnect)

    @trio.lowlevel.enable_ki_protection
    async def _run_lane(self, lane: Lane) -> None:
        try:
            await lane.run(self._run_exchange)
            if lane.exchange is not None:  # it was cancelled, and has still to be ended
                await lane.exchange.end()
        except BaseException as error:
            await self._fail(error)
        finally:
            if lane.exchange is not None:
                self._handler_ended(lane.exchange)

    def _disarm(self, exchange: Exchange, lane: Lane) -> bool:
        """Its handler has ended: the lane is another one's next. Returns whether it was cancelled.

        The exchange may learn much later that its client has gone, as that of a WebSocket does.
        """
        if lane.scope.cancel_called:
            return True
        exchange.forget(lane.scope)
        if lane.scope.deadline < float("inf"):
            lane.scope.deadline = float("inf")
        return False

    def spawn(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run something that ends, at the latest, with the connection."""
        assert self._nursery is not None
        self._nursery.start_soon(self._contain, func, *args)

    @trio.lowlevel.enable_ki_protection
    async def _run_exchange(self, exchange: Exchange, lane: Lane | None = None) -> None:
        # As few coroutines around the application's as there can be: each is passed through
        # whenever the application waits for something.
        cancelled = False  # with its lane, which ends it then
        try:
            try:
                await exchange.call(self._server.app)
            except BaseException as error:
                await exchange.fail(error)
            cancelled = lane is not None and self._disarm(exchange, lane)
            if not cancelled:
                await exchange.end()
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
                    lane.end(more=self.phase.reads)
                self._handler_ended(exchange)

    def _handler_ended(self, exchange: Exchange) -> None:
        del self._exchanges[exchange]
        if self._request_timeout is not None:
            self._request_timeout.end(exchange)
        if self._http2 is not None:
            self._http2.handler_ended()
        if self._all_exchanges_ended is not None and not self._exchanges:
            self._all_exchanges_ended.set()

    def rest(self) -> None:
        """Every request has its response."""
        if self.phase is HALF_CLOSED:
            self.close(orderly=True)
        elif self.conn.state is ACTIVE:
            self._enter(IDLE)
            if self.phase.reads:
                self._wait_for(
                    self._server.keep_alive_timeout, "keep_alive_timeout", self.conn.state_since
                )

    def hijack(self) -> None:
        """It does not speak HTTP any more."""
        if self.conn.state is ACTIVE:
            self._server.hijacked += 1
            self._enter(HIJACKED)

    async def log_application_error(self, error: BaseException, path: str) -> None:
        await self._server.log_application_error(error, self.conn, path)

    async def log_flood(self, what: str) -> None:
        await self._server.log_flood(what, self.conn)

    async def log_timeout(self, request: RequestInFlight) -> None:
        await self._server.log_timeout(request, self.conn)

    def note_reason(self, reason: str) -> None:
        """The connection ends soon, and this is why."""
        if self.phase.writes:
            self.conn.close_reason = reason

    @property
    def handlers(self) -> int:
        """How many exchanges have an application that runs."""
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
        """The exchange of a scope, or of a shallow copy of it."""
        for exchange in self._exchanges:
            own = exchange.scope
            if own is scope or any(
                name in scope and scope[name] is own.get(name) for name in ("extensions", "headers")
            ):
                return exchange
        raise ValueError(f"this scope is not of a request in flight on {self.conn}")

    def refuse(self, status: int, reason: str, retry_after: int) -> bool:
        """Turn it away before anything was read; return whether that was still to be done.

        It never gets a task, which would cost several times as much as all of this. What the
        client sends is thrown away for a short time: were the socket closed at once, a reset for
        its request could destroy the response. Under TLS it is just closed.
        """
        if not self.phase.reads:
            return False
        self.conn.close_reason = reason
        if not self.conn.tls:
            with suppress(trio.BrokenResourceError):  # it was refused, whether or not it is there
                self._transport.send_now([self.response_heads.refusal(status, retry_after)])
            timeout = self._server.refusal_timeout
            if self.phase is OPEN and len(timeout) < MAX_REFUSED:
                self.phase = after(self.phase, OWN_END)
                self._timeout = timeout
                timeout.begin(self, trio.current_time())
                self._transport.discard(self.close)
                return True
        self.close(reason)
        return True

    # States and deadlines

    def _enter(self, state: ConnState) -> None:
        """Report a state, which must be one that ``TRANSITIONS`` has."""
        self._server.track(self.conn, state)

    def _wait_for(self, timeout: Timeout[Connection], reason: str | None, now: float) -> None:
        """Close the connection unless it becomes active in time.

        In a drain its own, shorter times hold, and HTTP/2 ends by other rules.
        """
        if self._overdue:  # what it waited for before came in time
            self._overdue = False
            self._transport.renew()
        if self.phase is DRAINING:
            self._expiry = None
            if self.conn.state is NEW:
                return  # there is one deadline for all that may come before a request
            if self.conn.protocol == "h2":
                self._forget_timeout()
                return
            timeout = self._server.drain_idle_timeout
        else:
            self._expiry = reason
        if self._timeout is not timeout:
            self._forget_timeout()
            self._timeout = timeout
        timeout.begin(self, now)

    def _forget_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.end(self)
            self._timeout = None

    def expire(self) -> None:
        """Its time is up: close it, unless something has come.

        Timeouts are not taken back when a connection becomes active, because that would cost
        each request. So this may be about a rest that has ended since, and is then ignored.

        Nor does it close anything itself. When the loop was busy, the deadline and the next
        request may both have come, and the order in which we learn of them says nothing about
        the order in which they came. The reader decides: it is woken, reads once more, and only
        if nothing is there, the connection is closed. What it reads may be a part of a request
        only; the next read that would have to wait ends the connection then.
        """
        if self.phase.discards:
            self.close()
        elif self.conn.state is NEW or self.conn.state is IDLE:
            self._overdue = True
            if self._parked is not None:
                self._parked.cancel()
            self._transport.expire()

    def close_if_overdue(self) -> None:
        """Close it, if it has rested for too long.

        For a reader that never has to wait, because something comes all the time, or that waits
        for something else than bytes. What has come is not a request, or it would not rest.
        """
        if self._overdue:
            self._close_expired()

    def _close_expired(self) -> None:
        if self._http2 is not None:
            self._http2.send_goaway()
        elif self._http1 is not None and self._expiry == SLOW_REQUEST:
            self._http1.refuse_slow_request()
        # A response without a length must not look as if it were complete.
        cut = any(exchange.begun and not exchange.complete for exchange in self._exchanges)
        self.close(self._expiry, orderly=not cut)

    # The end

    def grow_old(self) -> None:
        """It has reached its age."""
        self.drain("max_connection_age")

    def drain(self, reason: str | None = None) -> None:
        """Begin to end: no request is to follow those that are on their way."""
        if self.phase is GONE:
            return
        if self._nursery is None and self.phase.discards:  # it was refused
            self.close()
            return
        self.conn.close_reason = self.conn.close_reason or reason
        was, self.phase = self.phase, after(self.phase, DRAIN)
        if self.phase is was is DRAINING:
            return  # a connection that has had its share of requests drains before its server does
        self.conn._mark_draining()
        if self.phase is LEAVING and was is not LEAVING:
            self.spawn(self._leave)
        elif self.phase is DRAINING and self._nursery is not None:
            self._drain()

    def _drain(self) -> None:
        if self.conn.state is NEW:
            self._forget_timeout()
            self.spawn(self._expire_new)
        elif self.conn.state is IDLE:
            self._wait_for(self._server.drain_idle_timeout, None, trio.current_time())
        if self._http2 is not None and self.conn.state is not NEW:
            self._http2.drain()
        for exchange in self._exchanges:
            if exchange.drains:
                self.spawn(exchange.drain)

    async def _expire_new(self) -> None:
        await trio.sleep_until(self.conn.opened_at + self.settings.drain_new_timeout)
        if self.conn.state is NEW:
            self._expiry = None
            self.expire()

    async def finish(
        self, *, linger: bool, surprise: bool = False, reason: str | None = None
    ) -> None:
        """There is no more to write: end our side, and the connection.

        Args:
          linger: whether the client is still sending: what it has not read yet when we close, a
            reset destroys.
          surprise: whether it may be. Then that matters only while the response is on its way,
            and most connections need not be kept for it.
          reason: for which the connection closes, if there is one.
        """
        if not self.phase.writes:
            return
        self.conn.close_reason = reason or self.conn.close_reason
        linger = linger or (surprise and self._transport.in_flight > 0)
        if self.phase is HALF_CLOSED or not linger:
            self.close(orderly=True)
            return
        self.phase = after(self.phase, OWN_END)
        for exchange in self._exchanges:
            exchange.disconnect()
        self._forget_timeout()
        self._timeout = self._server.keep_alive_timeout
        self._timeout.begin(self, trio.current_time())
        if self.phase is LEAVING:
            self.spawn(self._leave)
        await self._transport.finish()

    async def _leave(self) -> None:
        """In a drain, a client that reads has noticed our end after a short time."""
        await trio.sleep(LINGER_TIMEOUT)
        if not self._transport.unsent:
            self.close()

    def abort(self) -> None:
        """End now, whatever is in flight."""
        if self.phase.discards:
            self.close()  # it has had its response
        else:
            self.close(
                "app_shutdown_timeout" if self._server.drain_deadline_reached else "aborted_by_app"
            )

    def close(self, reason: str | None = None, *, orderly: bool = False) -> None:
        """Close the socket, wake what waits for it, and report CLOSED. Does nothing again.

        Args:
          orderly: whether nothing is cut off, so that TLS may say so.
        """
        if self.phase is GONE:
            return
        # The phase is first: all that is woken or called below must find the connection closed,
        # and a tracker that closes it again must find nothing to do. The report is last, because
        # a tracker may look at anything, and it must be the last word (``wait_closed`` included).
        was, self.phase = self.phase, after(self.phase, CLOSE)
        conn = self.conn
        if not (was.discards and conn.close_reason):  # for which the end has begun
            conn.close_reason = reason or conn.close_reason
        self._transport.close(orderly=orderly)
        self._forget_timeout()
        if self._age is not None:
            self._age.end(self)
        if self._parked is not None:
            self._parked.cancel()
        for exchange in self._exchanges:
            exchange.lose_client()
        conn._mark_closed()
        if conn.state is not HIJACKED:
            self._enter(CLOSED)
        else:
            self._server.hijacked -= 1
        if self._nursery is None:
            self._forget()

    @trio.lowlevel.enable_ki_protection
    async def _contain(self, run: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run one of the connection's tasks."""
        try:
            await run(*args)
        except BaseException as error:
            await self._fail(error)

    async def _fail(self, error: BaseException) -> None:
        """One of the connection's tasks has failed: that ends the connection, and nothing else."""
        travels, contained = split(error, TRAVELLING)
        if contained is not None:
            self.close("internal_error")
            await self._server.log_connection_error(contained, self.conn)
        # With the transport closed, even a shielded write returns; so the nursery ends soon.
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        if travels is not None:
            # A cancellation that came from outside is for this connection, and for those of the
            # same server by their own nurseries. Ctrl-C and sys.exit end the server: its other
            # connections must not wait in shielded writes until it has found its way out.
            ends_all = split(travels, trio.Cancelled)[1]
            (self if ends_all is None else self._server).abort()
            try:
                raise travels from None
            finally:
                del error, travels, ends_all  # whose traceback has this frame: break the cycle
