"""One HTTP/2 stream, between an exchange and the client (RFC 9113, 5.1).

A stream whose handler does not read must not block the others. So its input is buffered here, in
one piece, and its window stays closed until the handler has read the input. A stream buffers no
more than its window, in however many frames it comes, and the reader never waits for a handler.
The connection's window is returned at once, because it belongs to all streams.

A stream is closed when its response is written, or when either side resets it. If the client is
still sending its request then, a reset with NO_ERROR allows it to stop (8.1). The handler may
continue after that, and still counts as one of the connection's handlers.
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

WINDOW_STEP = 2**14  # bytes of a stream's window to return at once: a frame's default size


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
        """Return the frames of a header block."""

    def flush(self) -> None:
        """Write what a handler has queued."""

    def push(self, parent: Stream, fields: Headers) -> None:
        """Push a response that was not requested, unless the client forbids it."""

    def watch(self, due: float) -> None:
        """Check for slow streams at ``due``, or before that."""

    def reset(self, stream: Stream, code: int) -> None:
        """Reset a stream for a reason of our own."""

    def window_opened(self) -> None:
        """Note that a client that had to wait for a handler can send again."""

    def response_done(self, stream: Stream) -> None:
        """Note that a stream's response is written, or given up."""

    def forget(self, stream: Stream) -> None:
        """Remove a closed stream."""


class Http2Exchange(HttpExchange):
    """A request and its response, with the ASGI extensions that only HTTP/2 has."""

    __slots__ = ()

    def _next_event(self) -> Event | None:
        if self._whole_body is not None:
            return super()._next_event()
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
        last = not event.get("more_trailers", False)
        wanted = (b"te", b"trailers") in self.scope["headers"]
        headers = validated(event["headers"])
        if self._state is REQUEST:  # then they are all the headers of the response
            self._status, self._headers, self._trailers = 200, headers, True
            self._state = TRAILERS
            await stream.respond(200, headers, b"", not last)
        elif wanted:
            stream.add_trailers(headers)
        if last:
            await stream.write_body(b"", False)
            await self._complete()


class Stream:
    """The state of a stream, and the bytes that wait for either side."""

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
        self.pace: Pace | None = None  # of the request's body, if there is a minimum rate
        self.outbox = Outbox(window, http2.connection.settings.min_response_rate)
        self.exchange: Exchange | None = None  # None while the request is queued
        self.in_flight = True  # its response is pending
        self.input_ended = False  # the request is complete
        self.closed = False  # nothing more is sent or received
        self._http2 = http2
        self._request = request
        self._input: bytes | bytearray = b""
        self._input_window = DEFAULT_WINDOW
        self._request_left = request.length  # bytes of the body to come, if it has a length
        self._response_left: int | None = None  # likewise
        self._consumed = 0  # bytes to return to the window
        self._end_delivered = False  # the application has received the end of the request
        self._changed: trio.Event | None = None  # set on input for a WebSocket
        self._end_queued = False  # the end of the response is queued, or written
        self._abandoned = False  # the response is incomplete, and ends with a reset
        self._released = False  # its WebSocket is closed; the client may still be sending
        self._trailers: Headers | None = None

    # The reader's side

    def receive(self, body: bytes, length: int, *, end: bool) -> None:
        """Handle a DATA frame that used ``length`` bytes of the window.

        Raises:
          StreamFailure: the frame is not allowed now, or is too long.
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
        """Complete the request: it has no body, or its trailers have come, which are dropped."""
        self.receive(b"", 0, end=True)

    def update_window(self, increment: int) -> None:
        """Change the client's window of this stream. ``increment`` may be negative.

        Raises:
          StreamFailure: the window would be too large.
        """
        self.outbox.window += increment
        if self.outbox.window > MAX_WINDOW:
            raise StreamFailure(FLOW_CONTROL_ERROR)
        self._http2.output.schedule(self)
        if isinstance(self.exchange, WebSocket):
            self.exchange.note_activity()

    def close(self) -> None:
        """Close the stream: it was reset, or its connection is closing."""
        self.closed = True
        self.pace = None
        self.outbox.close()
        self._on_input()
        if self.exchange is not None:
            self.exchange.disconnect()
            self.exchange.client_disconnected()
            self.exchange = None  # it refers to us: break the cycle

    @property
    def request_pending(self) -> bool:
        """Whether the client has to send the rest of the request, and the window allows it."""
        can_send = not self.input_ended and self._input_window > 0
        return can_send and isinstance(self.exchange, HttpExchange)

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
        """Return the part of the body that has come, if there is one."""
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
        queue_size = connection.settings.max_queue_size  # not used: the window is the limit
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
        """Feed the input to the WebSocket, in a task of its own because that may have to wait."""
        while not (self.closed or self._released):
            if self._input:
                data, self._input = bytes(self._input), b""
                await websocket.feed(data)
                self._return_window(len(data))
            elif self.input_ended:  # like a TCP FIN (RFC 8441, 5)
                websocket.disconnect()
                await self.release()
                websocket.client_disconnected()
            else:
                self._changed = trio.Event()
                await self._changed.wait()

    # exchange.Stream and websocket.Stream

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
            http2.output.add(frames + self.final_frames(), ends=self)
        elif more_body or not http2.output.add_response(self, frames, body):
            http2.output.add(frames)
            await self._write_body(body, more_body)
            return
        self._end_queued = True
        http2.flush()

    def _check_length(self, size: int, more_body: bool) -> None:
        """Check the body against its Content-Length, if there is one (RFC 9113, 8.1.1)."""
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
        """Add trailers, to be sent after the body: HTTP/2 has one section of them."""
        self._trailers = (self._trailers or []) + headers

    async def send_interim(self, status: int, headers: Headers) -> None:
        self._send_interim(status, headers)

    def _send_interim(self, status: int, headers: Headers) -> None:
        if not (self.closed or self._end_queued):
            block, _ = self._http2.header_writer.response(status, headers)
            self._http2.output.add(self._http2.headers(self.id, block, end=False))
            self._http2.flush()

    async def abandon(self) -> None:
        """Reset the stream after what was written, so that the response looks incomplete."""
        if not (self.closed or self._end_queued):
            self._abandoned = True
            self._queue_end(reset_frame(self.id, INTERNAL_ERROR))
            self._http2.output.schedule(self)
            self._http2.flush()

    def set_close_reason(self, reason: str) -> None:
        """Do nothing: the connection stays open."""

    def probe(self) -> None:
        """Do nothing: a client that disconnects resets the stream, or closes the connection."""

    def abort(self, reason: str) -> None:
        """Reset the stream. The connection stays open."""
        if not self.closed:
            self._http2.reset(self, CANCEL)

    def waiting(self) -> AbstractContextManager[object]:
        return nullcontext()

    @property
    def due(self) -> float:
        """When the client will be too slow, to send or to read."""
        paces = self.pace, self.outbox.pace
        return min((pace.due for pace in paces if pace is not None), default=float("inf"))

    @property
    def slow_reason(self) -> str:
        """The close reason for a client that is too slow."""
        reads_late = self.outbox.pace is not None and self.outbox.pace.due == self.due
        return SLOW_RESPONSE if reads_late else SLOW_REQUEST

    def snapshot(self) -> RequestInFlight:
        """Describe the request while it is queued."""
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
        if discard and self.outbox.size:  # the client may never open the window for it
            self._http2.reset(self, CANCEL)
            return
        self._on_input()
        if not self._end_queued:
            await self.write_body(b"", False)
        elif not (self.in_flight or self.closed):
            self._finish()

    # The output's side

    def final_frames(self) -> bytes:
        """Return the reset for a client that has not sent its whole request (RFC 9113, 8.1).

        A WebSocket gets no reset: its client is about to end the stream, and some clients treat a
        reset as an error.
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
