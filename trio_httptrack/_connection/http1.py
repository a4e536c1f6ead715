"""HTTP/1.x on one connection: one request at a time, until the connection closes or upgrades.

The reader runs :meth:`Http1.run`. It reads a request, starts its exchange, feeds the body to the
exchange, and then reads ahead. So it notices a disconnect while the response is in flight. A
pipelined request waits until that response is written. The exchange's own task writes the
response, through the methods of :class:`~.exchange.Stream`.

``request_head`` parses an ordinary head, and its body is read by its length. h11 parses every
other head. It gets a new connection object for each such request, and the bytes that it leaves
are read in the ordinary way again. Requests that h11 accepts and RFC 9112 forbids are refused here.

h11 writes no responses: ``response_head`` does.
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
    check_gaps,
    check_headers,
    error_status,
    is_http2_settings,
    is_served,
    split_target,
)
from .pace import Pace
from .request_head import read_request_head
from .response_head import UNTIL_CLOSE, ResponseHeads, remaining_length, tokens
from .settings import Headers
from .transport import Parts
from .websocket import WebSocket
from .websocket_handshake import Handshake

JOIN_LIMIT = 2**15  # bytes of a body that is joined with what goes out around it


class Connection(websocket.Connection, Protocol):
    """What HTTP/1 needs of its connection."""

    response_heads: ResponseHeads

    @property
    def last(self) -> bool:
        """Whether the response that begins now is the connection's last."""

    @property
    def unsent(self) -> int:
        """How many bytes the client's kernel has not received yet."""

    async def receive(self, *, mid_request: bool = False, pace: Pace | None = None) -> bytes:
        """Receive the next bytes; ``b""`` at the peer's EOF or if the connection was closed."""

    def write_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for; return the rest, which must be written next, or None."""

    async def write(self, parts: Parts) -> None:
        """Write everything, in order. A checkpoint only if it has to wait."""

    def parked(self, *, eof: bool) -> AbstractContextManager[object]:
        """Watch the socket while the reader waits for something other than bytes."""

    def begin_request(self) -> bool:
        """Count a request whose head was read; return whether to handle it."""

    def start(self, exchange: Exchange) -> None:
        """Run an exchange's application in a task of its own."""

    def set_close_reason(self, reason: str) -> None:
        """Set the reason for which the connection is about to close."""

    def become_idle(self) -> None:
        """Report that every request has its response."""

    def hijack(self) -> None:
        """Report that the connection does not speak HTTP any more."""

    async def finish(self, *, linger: bool, unexpected: bool = False) -> None:
        """Send EOF after the last response, and close the connection."""

    def close(self, reason: str | None = None, *, orderly: bool = False) -> None: ...

    async def upgrade_to_http2(self, headers: Headers, settings: bytes, data: bytes) -> None:
        """Respond to a request over HTTP/2, and run HTTP/2 from then on."""


class Http1:
    """Reads requests and writes responses: the ``exchange.Stream`` of each exchange."""

    __slots__ = (
        "_connection",
        "_exchange",
        "_framing",
        "_http11",
        "_input_discarded",
        "_is_head",
        "_keep_alive",
        "_pace",
        "_probed",
        "_request_incomplete",
        "_response_started",
        "_response_written",
        "_unexpected_close",
        "_upgrading",
    )

    id = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._exchange: Exchange | None = None  # until its response is written
        self._request_incomplete = False  # a part of its request's body is missing
        self._keep_alive = True  # another request may follow it
        self._http11 = True
        self._is_head = False
        self._upgrading = False  # it is a WebSocket, or a request for one
        self._response_started = False
        self._framing = 0  # bytes of the response's body to come, or a constant of response_head
        self._pace: Pace | None = None  # of its request's body, if there is a minimum rate
        self._probed = False  # its client was sent an interim response as a probe
        self._unexpected_close = False  # the client did not know that this response is the last
        self._input_discarded = False  # input has come that nobody will read
        self._response_written: trio.Event | None = None  # if the reader waits for it

    @property
    def response_pending(self) -> bool:
        """Whether a client that has sent EOF still gets a response."""
        return self._exchange is not None and not self._upgrading

    # The reader

    async def run(self, data: bytes) -> None:
        """Handle requests until nothing more can be read. ``data`` was read already."""
        connection, settings = self._connection, self._connection.settings
        while True:
            if not data:
                # Read even while a response is in flight, to notice a disconnect. But read only
                # once: a client that pipelines without end must fill its own buffers.
                data = await connection.receive()
                if not data:
                    return
            # Check this first: if the connection is closing, a handler may still be running, and
            # the wait for its response would return at once, again and again.
            if not connection.phase.reads:
                data = b""
                continue
            if self._exchange is not None:
                # A pipelined request waits for the response before it. Input after the last
                # request is discarded: an error in it must not cost the client that response.
                if self._keep_alive:
                    await self._wait_for_response()
                else:
                    self._input_discarded, data = True, b""
                continue
            head = None
            if not settings.raw_header_names:
                head = read_request_head(data, settings.max_head_size)
            try:
                if head is None:
                    data = await self._parse_with_h11(data)
                else:
                    method, target, headers, length, self._keep_alive, end = head
                    body = data[end : end + length]
                    data = data[end + length :]
                    self._http11 = True
                    raw_path, _, query = target.partition(b"?")
                    missing = length - len(body)
                    await self._start_exchange(
                        method, raw_path, query, headers, "1.1", None if missing else body
                    )
                    if missing:
                        data = await self._read_sized_body(body, missing)
            except Refused as refused:
                await self._refuse(refused.status)
                data = b""

    async def _read_sized_body(self, body: bytes, missing: int) -> bytes:
        """Read the rest of a body whose length is known; return the bytes after it."""
        exchange = self._exchange
        if body:
            self._count_body(body)
            await self._feed_body(exchange, body, True)
        rest = b""
        while missing:
            data = await self._connection.receive(mid_request=True, pace=self._pace)
            if not data:
                await self._request_truncated()
                return b""
            body, rest = data[:missing], data[missing:]
            missing -= len(body)
            await self._feed_body(exchange, body, missing > 0)
        return rest

    def _count_body(self, data: bytes) -> None:
        """Count the bytes of a body that came with its head for its pace, too."""
        if self._pace is not None:
            self._pace.moved += len(data)

    async def _feed_body(self, exchange: Exchange | None, body: bytes, more: bool) -> None:
        if not more:
            self._request_incomplete = False
        if exchange is None or self._exchange is not exchange:
            self._input_discarded = True  # the response was complete before the request
        else:
            await exchange.put({"type": "http.request", "body": body, "more_body": more})

    async def _start_exchange(
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
        self._is_head = method == "HEAD"
        self._request_incomplete = body is None
        if body is None and settings.min_request_rate is not None:
            self._pace = Pace(settings.min_request_rate)
        self._response_started = self._probed = False
        # An HTTP/1 connection becomes active with each request.
        started = connection.conn.state_since
        exchange = HttpExchange(
            connection, self, scope, settings.max_queue_size, started, body=body
        )
        self._exchange = exchange
        if not is_served(headers, settings):
            await exchange.respond_with_error(404)
        else:
            connection.start(exchange)

    async def _wait_for_response(self) -> None:
        """Wait until the response in flight is written."""
        self._response_written = trio.Event()
        with self._connection.parked(eof=True):
            await self._response_written.wait()

    async def _refuse(self, status: int) -> None:
        """Respond to an invalid request, or to one that cannot be handled."""
        # What follows cannot be parsed either, and the client is probably still sending it. So
        # linger, or the reset for it destroys this response.
        self._input_discarded = True
        if self._exchange is not None:
            # This response may have to wait for room, and the handler may respond meanwhile. There
            # must not be two responses.
            self._exchange.disconnect_with_status(status)
            if self._response_started:
                await self._connection.finish(linger=True)
                return
            self._exchange = None
        else:
            self._keep_alive = True  # a last request before this one does not matter any more
        self._request_incomplete = self._is_head = False
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self.respond(status, headers, b"", False)

    def refuse_slow_request(self) -> None:
        """Respond with 408 to a request whose body is too slow, unless a response has started.

        The connection does not linger after that: it would give the client more time.
        """
        if self._exchange is not None and not self._response_started:
            self._exchange.disconnect_with_status(408)
            self._response_started = True
            self._connection.write_now([self._connection.response_heads.refusal(408)])

    async def _request_truncated(self) -> None:
        """Respond with 400 to a client that has sent EOF in the middle of a request."""
        if (
            self._connection.phase.reads
            and not self._response_started
            and self._exchange is not None
        ):
            await self._refuse(400)

    # Requests that are not ordinary, by h11

    async def _parse_with_h11(self, data: bytes) -> bytes:
        """Read one request with h11; return the bytes after it."""
        connection = self._connection
        while data in (b"\r", b"\r\n", b"\r\n\r"):
            more = await connection.receive()
            if not more:
                return b""
            data += more
        if data.startswith(b"\r\n"):  # RFC 9112, 2.2: ignore one empty line
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
                raise Refused(
                    error_status(error, data, connection.settings.max_head_size)
                ) from None
            if isinstance(event, h11.Request):
                request = event
            elif not connection.phase.reads or isinstance(event, h11.ConnectionClosed):
                return b""
            else:
                more = await connection.receive(mid_request=True)
                reader.receive_data(more)
                data += more
        return await self._handle_h11_request(reader, request, data)

    async def _handle_h11_request(
        self, reader: h11.Connection, request: h11.Request, head: bytes
    ) -> bytes:
        """Start the exchange of a request that h11 has parsed, and feed it."""
        connection, settings = self._connection, self._connection.settings
        if not request.http_version.startswith(b"1."):
            raise Refused(505)
        self._http11 = request.http_version > b"1.0"
        headers = list(request.headers)
        check_headers(headers, head, self._http11)
        method = request.method.decode("ascii").upper()
        authority, path, query = split_target(method, request.target)
        connection_options = {
            token for name, value in headers if name == b"connection" for token in tokens(value)
        }
        self._keep_alive = self._http11 and b"close" not in connection_options
        if method == "HEAD" and request.method != b"HEAD":
            # Applications get the method in upper case. In lower case it is another method, and a
            # proxy may expect a body in this response. The next response must not be taken for it.
            self._keep_alive = False
        upgrade = b""
        if self._http11 and b"upgrade" in connection_options:
            upgrade = next((value for name, value in headers if name == b"upgrade"), b"").lower()
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
        length = next((int(value) for name, value in headers if name == b"content-length"), 0)
        chunked = any(name == b"transfer-encoding" for name, _ in headers)
        http2_settings = [value for name, value in headers if name == b"http2-settings"]
        data = reader.trailing_data[0]
        if settings.raw_header_names:
            headers = request.headers.raw_items()
        if authority is not None:  # RFC 9112, 3.2.2: it replaces the Host header
            headers = [header for header in headers if header[0].lower() != b"host"]
            headers.insert(0, (b"host", authority))
        if upgrade == b"websocket" and method == "GET":
            await self._upgrade_to_websocket(path, query, headers, data)
            return b""
        # RFC 7540, 3.2. A request with a body is not upgraded: the body would have to be read
        # before the response.
        if (
            upgrade == b"h2c"
            and settings.h2c_upgrade
            and not connection.conn.tls
            and b"http2-settings" in connection_options
            and self._keep_alive
            and len(http2_settings) == 1
            and is_http2_settings(http2_settings[0])
            and not framed
        ):
            target = path + b"?" + query if b"?" in request.target else path
            await self._upgrade_to_http2(request.method, target, headers, http2_settings[0], data)
            return b""
        body, data = (None, data) if chunked else (data[:length], data[length:])
        missing = 0 if body is None else length - len(body)
        expects = reader.they_are_waiting_for_100_continue
        version = "1.1" if self._http11 else "1.0"
        complete = body is not None and not missing
        await self._start_exchange(
            method, path, query, headers, version, body if complete else None
        )
        if expects and not self._response_started:
            await connection.write([connection.response_heads.interim(100)])
        if body is None:
            return await self._read_chunked_body(data)
        return await self._read_sized_body(body, missing) if missing else data

    async def _read_chunked_body(self, data: bytes) -> bytes:
        """Read a chunked body; return the bytes after it."""
        exchange = self._exchange
        self._count_body(data)
        chunks = Chunked(self._connection.settings.max_head_size)
        while True:
            for body in chunks.feed(data):
                await self._feed_body(exchange, body, True)
            if chunks.complete:
                await self._feed_body(exchange, b"", False)
                return chunks.rest
            data = await self._connection.receive(mid_request=True, pace=self._pace)
            if not data:
                await self._request_truncated()
                return b""

    # exchange.Stream

    async def respond(self, status: int, headers: Headers, body: bytes, more_body: bool) -> None:
        connection = self._connection
        # RFC 9112, 9.6: a server that does not read the whole request announces the close.
        last = connection.last or self._request_incomplete or self._upgrading
        head, framing, closes = connection.response_heads.render(
            status,
            headers,
            http11=self._http11,
            to_head=self._is_head,
            last=last,
            client_closes=not self._keep_alive,
        )
        self._framing = framing
        parts = self._frame_body(body, more_body)
        self._response_started = True
        if closes and self._keep_alive:
            # The server chose to close: the client may have sent its next request already.
            self._unexpected_close = True
            self._keep_alive = False
        if len(body) <= JOIN_LIMIT:
            parts = [b"".join((head, *parts))]
        else:
            parts.insert(0, head)
        rest = connection.write_now(parts)
        if rest is not None:
            await connection.write(rest)
        if not more_body:
            await self._finish_response()

    async def send_interim(self, status: int, headers: Headers) -> None:
        if self._http11:
            response = self._connection.response_heads.interim(status, headers)
            await self._connection.write([response])

    async def write_body(self, body: bytes, more_body: bool) -> None:
        parts = self._frame_body(body, more_body)
        if parts:
            rest = self._connection.write_now(parts)
            if rest is not None:
                await self._connection.write(rest)
        if not more_body:
            await self._finish_response()

    def _frame_body(self, body: bytes, more_body: bool) -> list[bytes | memoryview]:
        """Return a part of the body with its framing."""
        if self._framing >= 0:
            self._framing = remaining_length(self._framing, len(body), more_body)
            return [body] if body else []
        if self._framing == UNTIL_CLOSE:
            return [body] if body else []
        end = b"" if more_body else b"0\r\n\r\n"
        if not body:
            return [end] if end else []
        if len(body) <= JOIN_LIMIT:
            return [b"%x\r\n%b\r\n%b" % (len(body), body, end)]
        return [b"%x\r\n" % len(body), body, b"\r\n" + end]

    async def _finish_response(self) -> None:
        """Change the connection's state after the whole response is written.

        The state does not wait for the handler: it may go on after its response, and the client
        need not wait for that.
        """
        if self._exchange is not None:  # first, because a close reads this
            self._exchange.response_written()
        self._exchange = None
        connection = self._connection
        if not self._keep_alive:
            pipelined = self._response_written is not None
            await connection.finish(
                linger=self._request_incomplete or self._input_discarded or pipelined,
                unexpected=self._unexpected_close,
            )
        else:
            connection.become_idle()
        if self._response_written is not None:
            self._response_written.set()
            self._response_written = None

    async def abandon(self) -> None:
        if self._exchange is not None:
            self._exchange = None
            self._connection.close()

    def set_close_reason(self, reason: str) -> None:
        self._connection.set_close_reason(reason)

    def probe(self) -> None:
        """Find out whether a client that has sent EOF still reads.

        A client that has closed and a client that has half-closed look the same in TCP until they
        are sent something. Then the kernel of a client that has closed responds with a reset.
        Before the response only an interim response can be sent. A client that does not expect a
        100 may discard it (RFC 9110, 15.2.1), and all do.
        """
        connection = self._connection
        if self._http11 and not (self._response_started or self._probed or connection.unsent):
            self._probed = True
            connection.write_now([connection.response_heads.interim(100)])

    @property
    def survives_disconnect(self) -> bool:
        return not self._upgrading

    def waiting(self) -> AbstractContextManager[object]:
        return self._connection.parked(eof=False)

    # Upgrades

    async def _upgrade_to_websocket(
        self, path: bytes, query: bytes, headers: Headers, data: bytes
    ) -> None:
        connection = self._connection
        if not connection.begin_request():
            return
        handshake = Handshake(headers, "1.1", connection.settings.websocket_max_message_size)
        scope = base_scope(connection, path, query, headers, "1.1")
        WebSocket.complete_scope(scope, handshake)
        self._upgrading = True
        self._is_head = False
        self._response_started = False
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
        self._response_started = True
        await self._connection.write([response])

    async def write_data(self, data: bytes) -> None:
        await self._connection.write([data])

    async def end_data(self) -> None:
        """Do nothing: EOF follows."""

    async def release(self, *, linger: bool = False, discard: bool = False) -> None:
        self._exchange = None
        await self._connection.finish(linger=linger)

    def abort(self, reason: str) -> None:
        self._connection.close(reason)

    async def _upgrade_to_http2(
        self, method: bytes, target: bytes, fields: Headers, settings: bytes, data: bytes
    ) -> None:
        """Upgrade to HTTP/2 (RFC 7540, 3.2): the request becomes stream 1."""
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
