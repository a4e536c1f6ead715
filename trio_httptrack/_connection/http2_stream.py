"""One HTTP/2 stream: the way between an exchange and the client (RFC 9113, 5.1).

A stream whose handler does not read keeps no other waiting. What comes for it waits here, in one
piece, and its window stays closed until the handler has taken it: so a stream never keeps more than
its window, in however many frames it comes, and the reader never waits for a handler. The
connection's window opens at once, for it belongs to all streams.

A stream is over for us when its response is written, or it is reset by either side. A client that
is still sending its request then is told with NO_ERROR that it may stop (8.1). Its handler may go
on after that, and still counts as one of the connection's.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol
from urllib.parse import unquote

import trio

from .._states import PATH_LENGTH, RequestInFlight
from . import websocket
from .errors import UnexpectedMessage
from .exchange import (
    REQUEST,
    TRAILERS,
    Event,
    Exchange,
    HttpExchange,
    Scope,
    base_scope,
    validated,
)
from .http1_rules import is_served
from .http2_compression import header_block
from .http2_frames import (
    CANCEL,
    DEFAULT_WINDOW,
    FLOW_CONTROL_ERROR,
    INTERNAL_ERROR,
    MAX_WINDOW,
    NO_ERROR,
    PROTOCOL_ERROR,
    STREAM_CLOSED,
    StreamFailure,
    reset_frame,
    window_frame,
)
from .http2_headers import HeaderWriter, Request
from .http2_output import Outbox, Output
from .pace import SLOW_REQUEST, SLOW_RESPONSE, Pace
from .response_head import NO_CONTENT, remaining_length
from .settings import Headers
from .websocket import WebSocket
from .websocket_handshake import Handshake

WINDOW_STEP = 2**14  # return this much of a stream's window at once: a frame's default size


class Connection(websocket.Connection, Protocol):
    """What a stream needs of its connection."""

    def start(self, exchange: Exchange) -> None:
        """Run an exchange's application in a task of its own."""


class Http2(Protocol):
    """What a stream needs of HTTP/2."""

    output: Output
    header_writer: HeaderWriter

    @property
    def connection(self) -> Connection: ...

    def headers(self, stream_id: int, block: bytes, *, end: bool) -> bytes:
        """A header block in frames."""

    def flush(self) -> None:
        """Write what a handler has just queued."""

    def push(self, parent: Stream, fields: Headers) -> None:
        """Promise a response that was not requested, and make it, if the client wants any."""

    def watch(self, due: float) -> None:
        """See whether a client is too slow, then at the latest."""

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream whose client is of no use."""

    def window_opened(self) -> None:
        """A client that has had to wait for a handler can go on."""

    def response_done(self, stream: Stream) -> None:
        """A stream's response is not owed any more."""

    def forget(self, stream: Stream) -> None:
        """A stream is over."""


class Http2Exchange(HttpExchange):
    """A request and its response, and what only HTTP/2 can do beyond."""

    __slots__ = ()

    def _next(self) -> Event | None:
        if self._whole_body is not None:
            return super()._next()
        stream: Stream = self._stream
        return stream.next_event()

    def _send_extension(self, type_: str, event: Event) -> Awaitable[None]:
        stream: Stream = self._stream
        if type_ == "http.response.push":
            return self._push(stream, event)
        if type_ == "http.response.early_hint" and self._state is REQUEST:
            links = [(b"link", bytes(link).strip()) for link in event["links"]]
            return stream.send_interim(103, links)
        if type_ == "http.response.trailers" and self._state in (REQUEST, TRAILERS):
            return self._send_trailers(stream, event)
        raise UnexpectedMessage(type_, self._state)

    async def _push(self, stream: Stream, event: Event) -> None:
        path = event["path"]
        if not isinstance(path, str):
            raise TypeError(f"{path} should be a str")
        stream.push(path.encode("ascii"), validated(event["headers"]))

    async def _send_trailers(self, stream: Stream, event: Event) -> None:
        ends = not event.get("more_trailers", False)
        wanted = (b"te", b"trailers") in self.scope["headers"]
        headers = validated(event["headers"])
        if self._state is REQUEST:  # then they are all the headers that there are
            self._status, self._headers, self._trailers = 200, headers, True
            self._state = TRAILERS
            await stream.respond(200, headers, b"", not ends)
        elif wanted:
            stream.add_trailers(headers)
        if ends:
            await stream.write_body(b"", False)
            await self._complete()


class Stream:
    """What one side has sent and the other has not taken yet, and how far the stream has come."""

    __slots__ = (
        "_abandoned",
        "_changed",
        "_consumed",
        "_end_delivered",
        "_end_queued",
        "_http2",
        "_input",
        "_input_window",
        "_released",
        "_request",
        "_request_left",
        "_response_left",
        "_trailers",
        "closed",
        "exchange",
        "id",
        "in_flight",
        "input_ended",
        "outbox",
        "pace",
        "started",
    )

    survives_disconnect = False

    def __init__(self, http2: Http2, stream_id: int, request: Request, window: int) -> None:
        self.id = stream_id
        self.started = trio.current_time()
        self.pace: Pace | None = None  # that the request's body has to keep
        self.outbox = Outbox(window, http2.connection.settings.min_response_rate)
        self.exchange: Exchange | None = None  # until it has its turn
        self.in_flight = True  # its response is owed
        self.input_ended = False  # the request is complete
        self.closed = False  # nothing more is sent or received
        self._http2 = http2
        self._request = request
        self._input: bytes | bytearray = b""
        self._input_window = DEFAULT_WINDOW
        self._request_left = request.length  # of the body, where its length was announced
        self._response_left: int | None = None  # of the response's, likewise
        self._consumed = 0  # bytes to give back to the window
        self._end_delivered = False  # that the request is complete
        self._changed: trio.Event | None = None  # what a WebSocket waits for
        self._end_queued = False  # the end of the response is queued, or was written
        self._abandoned = False  # by a reset
        self._released = False  # its WebSocket is over, whatever the client still sends
        self._trailers: Headers | None = None

    # The reader's side

    def receive(self, body: bytes, length: int, *, end: bool) -> None:
        """A DATA frame has come, that took so much of the window.

        Raises:
          StreamFailure: it must not come, or not be so long.
        """
        if self.input_ended:
            raise StreamFailure(STREAM_CLOSED)
        self._input_window -= length
        if self._input_window < 0:
            raise StreamFailure(FLOW_CONTROL_ERROR)
        if self._request_left is not None:
            self._request_left -= len(body)
            if self._request_left < 0 or (end and self._request_left):
                raise StreamFailure(PROTOCOL_ERROR)
        self._return_window(length - len(body))  # its padding
        if self._input:
            if type(self._input) is bytes:
                self._input = bytearray(self._input)
            self._input += body
        else:
            self._input = body
        self.input_ended = end
        if self.pace is not None:
            self.pace.moved += length
            if end:
                self.pace = None
            elif self._input_window <= 0:
                self.pace.pause(trio.current_time())
        self._on_input()

    def end_input(self) -> None:
        """The request is complete: its head was all, or trailers have come, which nobody reads."""
        self.receive(b"", 0, end=True)

    def grow(self, increment: int) -> None:
        """The client takes so many more bytes of this stream, or so many less.

        Raises:
          StreamFailure: the window would be larger than any may be.
        """
        self.outbox.window += increment
        if self.outbox.window > MAX_WINDOW:
            raise StreamFailure(FLOW_CONTROL_ERROR)
        self._http2.output.schedule(self)
        if isinstance(self.exchange, WebSocket):
            self.exchange.note_activity()

    def close(self) -> None:
        """It was reset, or its connection has ended: nothing more comes or goes."""
        self.closed = True
        self.pace = None
        self.outbox.close()
        self._on_input()
        if self.exchange is not None:
            self.exchange.disconnect()
            self.exchange.client_disconnected()
            self.exchange = None  # which knows us: break the cycle

    @property
    def request_pending(self) -> bool:
        """Whether the rest of the request is for the client to send, not for us to read."""
        owes = not self.input_ended and self._input_window > 0
        return owes and isinstance(self.exchange, HttpExchange)

    def _on_input(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        if isinstance(self.exchange, HttpExchange):
            self.exchange.notify()

    def _return_window(self, length: int) -> None:
        self._consumed += length
        if self._consumed >= WINDOW_STEP and not (self.input_ended or self.closed):
            self._http2.output.add(window_frame(self.id, self._consumed))
            self._http2.output.flush_later()
            self._input_window += self._consumed
            self._consumed = 0
            if self.pace is not None:
                self.pace.resume(trio.current_time())
                self._http2.watch(self.pace.due)
            self._http2.window_opened()

    def next_event(self) -> Event | None:
        """What has come of the body, for its handler."""
        if not self._input and (self._end_delivered or not self.input_ended):
            return None
        body, self._input = bytes(self._input), b""
        self._return_window(len(body))
        self._end_delivered = self.input_ended
        return {"type": "http.request", "body": body, "more_body": not self.input_ended}

    # The handler

    def run(self) -> None:
        """Start the handler."""
        connection, request = self._http2.connection, self._request
        scope = base_scope(connection, request.path, request.query, list(request.headers), "2")
        if request.protocol is not None:
            self._run_websocket(scope)
            return
        scope["type"] = "http"
        scope["method"] = request.method
        extensions = scope["extensions"]
        extensions["http.response.trailers"] = {}
        extensions["http.response.push"] = {}
        extensions["http.response.early_hint"] = {}
        body = None
        if self.input_ended and not self._input:
            body, self._end_delivered = b"", True
        queue_size = connection.settings.max_queue_size  # of no use here: the window is the limit
        exchange = Http2Exchange(connection, self, scope, queue_size, self.started, body=body)
        self.exchange = exchange
        rate = connection.settings.min_request_rate
        if rate is not None and not self.input_ended:
            self.pace = Pace(rate)
            if self._input_window > 0:
                self.pace.resume(trio.current_time())
                self._http2.watch(self.pace.due)
        if not is_served(request.headers, connection.settings):
            connection.spawn(exchange.respond_with_error, 404)
            return
        if request.expects_100 and body is None:
            self._send_interim(100, [])
        connection.start(exchange)

    def _run_websocket(self, scope: Scope) -> None:
        connection, request = self._http2.connection, self._request
        limit = connection.settings.websocket_max_message_size
        handshake = Handshake(request.headers, "2", limit)
        WebSocket.complete_scope(scope, handshake)
        self.exchange = websocket = WebSocket(connection, self, scope, handshake, self.started)
        if request.protocol != b"websocket":
            connection.spawn(self._refuse, websocket, 501)  # RFC 9220, 3
        elif not is_served(request.headers, connection.settings):
            connection.spawn(self._refuse, websocket, 404)
        elif websocket.open():
            connection.start(websocket)
            connection.spawn(self._feed, websocket)
        else:
            connection.spawn(self._refuse, websocket, 400)

    async def _refuse(self, websocket: WebSocket, status: int) -> None:
        await websocket.respond_with_error(status)
        await self.release()

    async def _feed(self, websocket: WebSocket) -> None:
        """Hand over what comes. A task of its own, because that may have to wait."""
        while not (self.closed or self._released):
            if self._input:
                data, self._input = bytes(self._input), b""
                await websocket.feed(data)
                self._return_window(len(data))
            elif self.input_ended:  # which stands for the end of a connection (RFC 8441, 5)
                websocket.disconnect()
                await self.release()
                websocket.client_disconnected()
            else:
                self._changed = trio.Event()
                await self._changed.wait()

    # The exchange's side: exchange.Stream and websocket.Stream

    async def respond(self, status: int, headers: Headers, body: bytes, more_body: bool) -> None:
        if self.closed:
            return
        http2 = self._http2
        block, length = http2.header_writer.response(status, headers)
        if status not in NO_CONTENT and self._request.method != "HEAD":
            self._response_left = length
        self._check_length(len(body), more_body)
        end = not (body or more_body)
        frames = http2.headers(self.id, block, end=end)
        if end:
            http2.output.add(frames + self.tail(), ends=self)
        elif more_body or not http2.output.add_whole(self, frames, body):
            http2.output.add(frames)
            await self._write_body(body, more_body)
            return
        self._end_queued = True
        http2.flush()

    def _check_length(self, size: int, more_body: bool) -> None:
        """Hold the body against its Content-Length, if there is one (RFC 9113, 8.1.1)."""
        if self._response_left is not None:
            self._response_left = remaining_length(self._response_left, size, more_body)

    async def write_body(self, body: bytes, more_body: bool) -> None:
        if not (self.closed or self._end_queued):
            self._check_length(len(body), more_body)
            await self._write_body(body, more_body)

    async def _write_body(self, body: bytes, more_body: bool) -> None:
        if body:
            self.outbox.add(body)
        if not more_body:
            trailers = self._trailers
            self._queue_end(
                b""
                if trailers is None
                else self._http2.headers(self.id, header_block(trailers), end=True)
            )
        self._http2.output.schedule(self)
        self._http2.flush()
        pace = self.outbox.pace
        if pace is not None and self.outbox.size:
            self._http2.watch(pace.due)
        await self.outbox.wait_for_room()

    def _queue_end(self, frames: bytes) -> None:
        self._end_queued = True
        self.outbox.end = frames

    def add_trailers(self, headers: Headers) -> None:
        """They are sent when the response ends: HTTP/2 has one section of them."""
        self._trailers = (self._trailers or []) + headers

    async def send_interim(self, status: int, headers: Headers) -> None:
        self._send_interim(status, headers)

    def _send_interim(self, status: int, headers: Headers) -> None:
        if not (self.closed or self._end_queued):
            block, _ = self._http2.header_writer.response(status, headers)
            self._http2.output.add(self._http2.headers(self.id, block, end=False))
            self._http2.flush()

    async def abandon(self) -> None:
        """Reset it behind what was written, so that the client knows that this is not all."""
        if not (self.closed or self._end_queued):
            self._abandoned = True
            self._queue_end(reset_frame(self.id, INTERNAL_ERROR))
            self._http2.output.schedule(self)
            self._http2.flush()

    def set_close_reason(self, reason: str) -> None:
        """The connection goes on."""

    def probe(self) -> None:
        """A stream that has ended was reset, or its connection is gone."""

    def abort(self, reason: str) -> None:
        """Give up this stream. The connection goes on."""
        if not self.closed:
            self._http2.reset(self, CANCEL)

    def waiting(self) -> AbstractContextManager[object]:
        return nullcontext()

    @property
    def due(self) -> float:
        """When its client would be too slow, to send or to read."""
        paces = self.pace, self.outbox.pace
        return min((pace.due for pace in paces if pace is not None), default=float("inf"))

    @property
    def slow_reason(self) -> str:
        """Which of the two it is."""
        reads_late = self.outbox.pace is not None and self.outbox.pace.due == self.due
        return SLOW_RESPONSE if reads_late else SLOW_REQUEST

    def snapshot(self) -> RequestInFlight:
        """What it is, while it waits for its handler's turn."""
        request = self._request
        return RequestInFlight(
            method=request.method,
            path=unquote(request.path.decode("ascii"))[:PATH_LENGTH],
            started_at=self.started,
            stream_id=self.id,
        )

    def push(self, path: bytes, headers: Headers) -> None:
        if self.closed or self._end_queued or self.exchange is None:
            return
        scope = self.exchange.scope
        fields = [(b":method", b"GET"), (b":path", path), (b":scheme", scope["scheme"].encode())]
        fields += [(b":authority", value) for name, value in scope["headers"] if name == b"host"]
        self._http2.push(self, fields + headers)

    async def accept(self, status: int, headers: Headers) -> None:
        await self.send_interim(status, headers)

    async def write_data(self, data: bytes) -> None:
        await self.write_body(data, True)

    async def end_data(self) -> None:
        await self.write_body(b"", False)

    async def release(self, *, linger: bool = False, discard: bool = False) -> None:
        self._released = True
        if discard and self.outbox.size:  # for which there may never be a window
            self._http2.reset(self, CANCEL)
            return
        self._on_input()
        if not self._end_queued:
            await self.write_body(b"", False)
        elif not (self.in_flight or self.closed):
            self._finish()

    # The output's side

    def tail(self) -> bytes:
        """A client that has not sent its whole request need not go on (RFC 9113, 8.1).

        One that has not ended its WebSocket is about to, and for some a reset would be an error.
        """
        if self.input_ended or self._abandoned or isinstance(self.exchange, WebSocket):
            return b""
        return reset_frame(self.id, NO_ERROR)

    def sent(self) -> None:
        if not self.closed:
            if self.exchange is not None:
                self.exchange.response_written()
            self._http2.response_done(self)
            if self._released or not isinstance(self.exchange, WebSocket):
                self._finish()

    def _finish(self) -> None:
        self.closed = True
        self.exchange = None
        self._http2.forget(self)
