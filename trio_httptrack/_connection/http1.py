"""HTTP/1.x on one connection: one request after the other, until it ends or is upgraded.

The reader runs :meth:`Http1.run`. It reads a request, starts its exchange, feeds the exchange
with the body, and then reads ahead: that is how a client's end is noticed while a response is
being made, and a pipelined request waits there until it has its turn. The exchange's own task
writes the response, through the methods of :class:`~.exchange.Stream`.

An ordinary head is read by ``request_head``, and its body by counting. Everything else is h11's:
it gets all the bytes of that one request, from the first to the last, and what it found behind
them is read again in the ordinary way. What h11 lets pass and RFC 9112 does not is refused here.

Responses are ours alone (``response_head``); h11 never hears of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import h11
import trio

from . import websocket
from .chunked import Chunked
from .exchange import Exchange, HttpExchange, base_scope
from .http1_rules import (
    Refused,
    are_http2_settings,
    check_gaps,
    check_headers,
    is_served,
    split_target,
    status_of,
)
from .pace import Pace
from .request_head import read_request_head
from .response_head import UNTIL_CLOSE, ResponseHeads, left_of, tokens
from .settings import Headers
from .transport import Parts
from .websocket import WebSocket
from .websocket_handshake import Handshake

SMALL = 2**15  # bytes: copied into one piece rather than written from where they are


class Connection(websocket.Connection, Protocol):
    """What HTTP/1 needs of its connection."""

    response_heads: ResponseHeads

    @property
    def last(self) -> bool:
        """Whether the response that begins now is the connection's last."""

    @property
    def unsent(self) -> int:
        """How many bytes the client's system has not taken yet."""

    async def receive(self, *, owed: bool = False, pace: Pace | None = None) -> bytes:
        """The next bytes; none at the peer's end, or if the connection was closed."""

    def write_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for. What is left, if anything is, must be written next."""

    async def write(self, parts: Parts) -> None:
        """Write, in order. Not a checkpoint unless it has to wait."""

    def parked(self, *, end: bool) -> AbstractContextManager[object]:
        """To be put around every wait of the reader that is not for bytes."""

    def begin_request(self) -> bool:
        """A request's head has been read. Returns whether it is to be handled."""

    def start(self, exchange: Exchange) -> None:
        """Run an exchange's application in a task of its own."""

    def note_reason(self, reason: str) -> None:
        """The connection ends soon, and this is why."""

    def rest(self) -> None:
        """Every request has its response."""

    def hijack(self) -> None:
        """It does not speak HTTP any more."""

    async def finish(self, *, linger: bool, surprise: bool = False) -> None:
        """There is no more to write: end our side, and the connection."""

    def close(self, reason: str | None = None, *, orderly: bool = False) -> None: ...

    async def upgrade_to_http2(self, headers: Headers, settings: bytes, data: bytes) -> None:
        """Respond to a request over HTTP/2, and go on with that until the end."""


class Http1:
    """Reads requests, and is the way of each response."""

    __slots__ = (
        "_body_left",
        "_connection",
        "_exchange",
        "_framing",
        "_http11",
        "_keep_alive",
        "_overheard",
        "_pace",
        "_probed",
        "_responded",
        "_surprised",
        "_to_head",
        "_upgrading",
        "_written",
    )

    id = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._exchange: Exchange | None = None  # until its response is written
        self._body_left = False  # its request is not complete
        self._keep_alive = True  # another request may follow it
        self._http11 = True
        self._to_head = False
        self._upgrading = False  # it is a WebSocket, or wants to be
        self._responded = False  # the response has begun
        self._framing = 0  # how much of it is to come, as ``response_head`` says it
        self._pace: Pace | None = None  # that its body has to keep
        self._probed = False  # its client was sent something to see if it still reads
        self._surprised = False  # the client did not know that it would be its last
        self._overheard = False  # something has come that nobody will read
        self._written: trio.Event | None = None  # what the reader waits for

    @property
    def owes_response(self) -> bool:
        """Whether a client that has ended its side still gets something."""
        return self._exchange is not None and not self._upgrading

    # The reader

    async def run(self, data: bytes) -> None:
        """Handle requests until the end, beginning with what was read."""
        connection, settings = self._connection, self._connection.settings
        while True:
            if not data:
                # Also while a response is being made, to learn of the client's end. Not more than
                # one read: a client that pipelines without end must fill its own buffers.
                data = await connection.receive()
                if not data:
                    return
            # Before anything else is asked: where the connection is closing, a handler may still
            # be at work, and waiting for its response would never wait.
            if not connection.phase.reads:
                data = b""
                continue
            if self._exchange is not None:
                # It is not its turn. Behind a last request it never will be: it is discarded,
                # because an error of a client that has said enough must not cost its response.
                if self._keep_alive:
                    await self._response()
                else:
                    self._overheard, data = True, b""
                continue
            head = None
            if not settings.raw_header_names:
                head = read_request_head(data, settings.max_head_size)
            try:
                if head is None:
                    data = await self._unusual(data)
                else:
                    method, target, headers, length, self._keep_alive, end = head
                    body = data[end : end + length]
                    data = data[end + length :]
                    self._http11 = True
                    raw_path, _, query = target.partition(b"?")
                    missing = length - len(body)
                    await self._begin(
                        method, raw_path, query, headers, "1.1", None if missing else body
                    )
                    if missing:
                        data = await self._counted(body, missing)
            except Refused as refused:
                await self._refuse(refused.status)
                data = b""

    async def _counted(self, body: bytes, missing: int) -> bytes:
        """Read the rest of a body whose length is known; return what came behind it."""
        exchange = self._exchange
        if body:
            self._count(body)
            await self._feed(exchange, body, True)
        rest = b""
        while missing:
            data = await self._connection.receive(owed=True, pace=self._pace)
            if not data:
                await self._cut_off()
                return b""
            body, rest = data[:missing], data[missing:]
            missing -= len(body)
            await self._feed(exchange, body, missing > 0)
        return rest

    def _count(self, data: bytes) -> None:
        """What has come with the head counts for the body's pace, too."""
        if self._pace is not None:
            self._pace.moved += len(data)

    async def _feed(self, exchange: Exchange | None, body: bytes, more: bool) -> None:
        if not more:
            self._body_left = False
        if exchange is None or self._exchange is not exchange:
            self._overheard = True  # the response did not wait for it
        else:
            await exchange.put({"type": "http.request", "body": body, "more_body": more})

    async def _begin(
        self,
        method: str,
        path: bytes,
        query: bytes,
        headers: Headers,
        version: str,
        body: bytes | None,
    ) -> None:
        """Start the exchange of a request whose head has been read."""
        connection, settings = self._connection, self._connection.settings
        if not connection.begin_request():
            return
        scope = base_scope(connection, path, query, headers, version)
        scope["type"] = "http"
        scope["method"] = method
        self._to_head = method == "HEAD"
        self._body_left = body is None
        if body is None and settings.min_request_rate is not None:
            self._pace = Pace(settings.min_request_rate)
        self._responded = self._probed = False
        # A connection that speaks HTTP/1 becomes active anew with each request.
        started = connection.conn.state_since
        exchange = HttpExchange(
            connection, self, scope, settings.max_queue_size, started, body=body
        )
        self._exchange = exchange
        if not is_served(headers, settings):
            await exchange.respond_with_error(404)
        else:
            connection.start(exchange)

    async def _response(self) -> None:
        """Wait until the response in flight is written."""
        self._written = trio.Event()
        with self._connection.parked(end=True):
            await self._written.wait()

    async def _refuse(self, status: int) -> None:
        """Respond to what is no request, or not one that can be handled."""
        # What follows is not understood either, and the client is probably still sending it:
        # linger, or the reset for it destroys this response.
        self._overheard = True
        if self._exchange is not None:
            # Its handler may be about to respond, and this response may wait for room meanwhile.
            # There must not be two.
            self._exchange.lose(status)
            if self._responded:
                await self._connection.finish(linger=True)
                return
            self._exchange = None
        else:
            self._keep_alive = True  # else the client had a last request before
        self._body_left = self._to_head = False
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self.respond(status, headers, b"", False)

    def refuse_slow_request(self) -> None:
        """Its body comes too slowly: say so, if there is no response yet, before the end.

        The connection does not linger behind that: it would give the client the time that it
        must not have.
        """
        if self._exchange is not None and not self._responded:
            self._exchange.lose(408)
            self._responded = True
            self._connection.write_now([self._connection.response_heads.refusal(408)])

    async def _cut_off(self) -> None:
        """The client has ended its side in the middle of a request."""
        if self._connection.phase.reads and not self._responded and self._exchange is not None:
            await self._refuse(400)

    # The unusual, by h11

    async def _unusual(self, data: bytes) -> bytes:
        """Read one request with h11, and return what came behind it."""
        connection = self._connection
        while data in (b"\r", b"\r\n", b"\r\n\r"):
            more = await connection.receive()
            if not more:
                return b""
            data += more
        if data.startswith(b"\r\n"):  # RFC 9112, 2.2: one empty line is to be ignored
            if data.startswith(b"\r\n\r\n"):
                raise Refused(400)
            return data[2:]
        reader = h11.Connection(h11.SERVER, connection.settings.max_head_size)
        reader.receive_data(data)
        request = None
        while request is None:
            check_gaps(data)
            try:
                event = reader.next_event()
            except h11.RemoteProtocolError as error:
                raise Refused(status_of(error, data, connection.settings.max_head_size)) from None
            if isinstance(event, h11.Request):
                request = event
            elif not connection.phase.reads or isinstance(event, h11.ConnectionClosed):
                return b""
            else:
                more = await connection.receive(owed=True)
                reader.receive_data(more)
                data += more
        return await self._handle(reader, request, data)

    async def _handle(self, reader: h11.Connection, request: h11.Request, head: bytes) -> bytes:
        """Start the exchange of a request that h11 has read, and feed it."""
        connection, settings = self._connection, self._connection.settings
        if not request.http_version.startswith(b"1."):
            raise Refused(505)
        self._http11 = request.http_version > b"1.0"
        headers = list(request.headers)
        check_headers(headers, head, self._http11)
        method = request.method.decode("ascii").upper()
        authority, path, query = split_target(method, request.target)
        said = {
            token for name, value in headers if name == b"connection" for token in tokens(value)
        }
        self._keep_alive = self._http11 and b"close" not in said
        if method == "HEAD" and request.method != b"HEAD":
            # Applications see upper case only. In lower case it is another method, and a proxy
            # may expect a body where there is none: it must not take the next response for it.
            self._keep_alive = False
        upgrade = b""
        if self._http11 and b"upgrade" in said:
            upgrade = next((value for name, value in headers if name == b"upgrade"), b"").lower()
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
        length = next((int(value) for name, value in headers if name == b"content-length"), 0)
        chunked = any(name == b"transfer-encoding" for name, _ in headers)
        sent = [value for name, value in headers if name == b"http2-settings"]
        data = reader.trailing_data[0]
        if settings.raw_header_names:
            headers = request.headers.raw_items()
        if authority is not None:  # RFC 9112, 3.2.2: it replaces what Host says
            headers = [header for header in headers if header[0].lower() != b"host"]
            headers.insert(0, (b"host", authority))
        if upgrade == b"websocket" and method == "GET":
            await self._websocket(path, query, headers, data)
            return b""
        # RFC 7540, 3.2. A body would have to be read before the response.
        if (
            upgrade == b"h2c"
            and settings.h2c_upgrade
            and not connection.conn.tls
            and b"http2-settings" in said
            and self._keep_alive
            and len(sent) == 1
            and are_http2_settings(sent[0])
            and not framed
        ):
            target = path + b"?" + query if b"?" in request.target else path
            await self._h2c(request.method, target, headers, sent[0], data)
            return b""
        body, data = (None, data) if chunked else (data[:length], data[length:])
        missing = 0 if body is None else length - len(body)
        expects = reader.they_are_waiting_for_100_continue
        version = "1.1" if self._http11 else "1.0"
        complete = body is not None and not missing
        await self._begin(method, path, query, headers, version, body if complete else None)
        if expects and not self._responded:
            await connection.write([connection.response_heads.interim(100)])
        if body is None:
            return await self._chunked(data)
        return await self._counted(body, missing) if missing else data

    async def _chunked(self, data: bytes) -> bytes:
        """Read a chunked body; return what came behind it."""
        exchange = self._exchange
        self._count(data)
        chunks = Chunked(self._connection.settings.max_head_size)
        while True:
            for body in chunks.feed(data):
                await self._feed(exchange, body, True)
            if chunks.complete:
                await self._feed(exchange, b"", False)
                return chunks.rest
            data = await self._connection.receive(owed=True, pace=self._pace)
            if not data:
                await self._cut_off()
                return b""

    # The response: exchange.Stream

    async def respond(self, status: int, headers: Headers, body: bytes, more_body: bool) -> None:
        connection = self._connection
        # RFC 9112, 9.6: a server that does not read the whole request says that it closes.
        last = connection.last or self._body_left or self._upgrading
        head, framing, closes = connection.response_heads.render(
            status,
            headers,
            http11=self._http11,
            to_head=self._to_head,
            last=last,
            client_closes=not self._keep_alive,
        )
        self._framing = framing
        parts = self._framed(body, more_body)
        self._responded = True
        if closes and self._keep_alive:
            # It is we who close: the client may have sent its next request already.
            self._surprised = True
            self._keep_alive = False
        if len(body) <= SMALL:
            parts = [b"".join((head, *parts))]
        else:
            parts.insert(0, head)
        rest = connection.write_now(parts)
        if rest is not None:
            await connection.write(rest)
        if not more_body:
            await self._finish()

    async def inform(self, status: int, headers: Headers) -> None:
        if self._http11:
            response = self._connection.response_heads.interim(status, headers)
            await self._connection.write([response])

    async def write_body(self, body: bytes, more_body: bool) -> None:
        parts = self._framed(body, more_body)
        if parts:
            rest = self._connection.write_now(parts)
            if rest is not None:
                await self._connection.write(rest)
        if not more_body:
            await self._finish()

    def _framed(self, body: bytes, more_body: bool) -> list[bytes | memoryview]:
        """A part of the body as it is written."""
        if self._framing >= 0:
            self._framing = left_of(self._framing, len(body), more_body)
            return [body] if body else []
        if self._framing == UNTIL_CLOSE:
            return [body] if body else []
        end = b"" if more_body else b"0\r\n\r\n"
        if not body:
            return [end] if end else []
        if len(body) <= SMALL:
            return [b"%x\r\n%b\r\n%b" % (len(body), body, end)]
        return [b"%x\r\n" % len(body), body, b"\r\n" + end]

    async def _finish(self) -> None:
        """The whole response is written.

        The state changes here and not when the handler ends: a handler may do something after its
        response, and its client need not wait for that.
        """
        if self._exchange is not None:  # before the connection closes, and asks
            self._exchange.finished()
        self._exchange = None
        connection = self._connection
        if not self._keep_alive:
            pipelined = self._written is not None
            await connection.finish(
                linger=self._body_left or self._overheard or pipelined,
                surprise=self._surprised,
            )
        else:
            connection.rest()
        if self._written is not None:
            self._written.set()
            self._written = None

    async def abandon(self) -> None:
        if self._exchange is not None:
            self._exchange = None
            self._connection.close()

    def note_reason(self, reason: str) -> None:
        self._connection.note_reason(reason)

    def probe(self) -> None:
        """Find out whether a client that has ended its side still reads.

        TCP says the same of a client that has closed and of one that only sends no more, until it
        gets something: then the system of one that has closed responds with a reset. Before
        the response nothing but an interim one can be sent. A client that has not asked for a
        100 may discard it (RFC 9110, 15.2.1), and all do.
        """
        connection = self._connection
        if self._http11 and not (self._responded or self._probed or connection.unsent):
            self._probed = True
            connection.write_now([connection.response_heads.interim(100)])

    @property
    def survives_disconnect(self) -> bool:
        return not self._upgrading

    def waiting(self) -> AbstractContextManager[object]:
        return self._connection.parked(end=False)

    # Upgrades

    async def _websocket(self, path: bytes, query: bytes, headers: Headers, data: bytes) -> None:
        connection = self._connection
        if not connection.begin_request():
            return
        handshake = Handshake(headers, "1.1", connection.settings.websocket_max_message_size)
        scope = base_scope(connection, path, query, headers, "1.1")
        WebSocket.complete_scope(scope, handshake)
        self._upgrading = True
        self._to_head = False
        self._responded = False
        websocket = WebSocket(connection, self, scope, handshake, connection.conn.state_since)
        self._exchange = websocket
        if not is_served(headers, connection.settings):
            await websocket.respond_with_error(404)
        elif websocket.open():
            connection.start(websocket)
        else:
            await websocket.respond_with_error(400)
        while True:
            if data:
                await websocket.feed(data)
            data = await connection.receive()
            if not data:
                return

    async def accept(self, status: int, headers: Headers) -> None:
        response = self._connection.response_heads.interim(status, headers)
        self._connection.hijack()
        self._responded = True
        await self._connection.write([response])

    async def write_data(self, data: bytes) -> None:
        await self._connection.write([data])

    async def end_data(self) -> None:
        """The connection's end says so."""

    async def release(self, *, linger: bool = False, discard: bool = False) -> None:
        self._exchange = None
        await self._connection.finish(linger=linger)

    def cut_off(self, reason: str) -> None:
        self._connection.close(reason)

    async def _h2c(
        self, method: bytes, target: bytes, fields: Headers, settings: bytes, data: bytes
    ) -> None:
        """RFC 7540, 3.2: the request is responded to as stream 1."""
        connection = self._connection
        if not connection.begin_request():
            return
        own = connection.response_heads.own()
        switch = b"HTTP/1.1 101 \r\n%bconnection: upgrade\r\nupgrade: h2c\r\n\r\n" % own
        await connection.write([switch])
        headers = [(b":method", method), (b":path", target)]
        for raw_name, value in fields:
            name = raw_name.lower()
            if name == b"host":
                headers.append((b":authority", value))
            headers.append((name, value))
        await connection.upgrade_to_http2(headers, settings, data)
