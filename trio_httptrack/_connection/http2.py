"""HTTP/2 on one connection (RFC 9113): reading frames, and closing the connection.

The reader runs :meth:`Http2.run`. It reads frames, opens a stream for each request
(``http2_stream``) and runs the stream's handler, if the number of handlers allows it.
``http2_output`` writes frames, ``http2_frames`` encodes and decodes them, and ``http2_headers``
does the same for header sections.

h2 is not used: it takes longer for a request and its response than everything else together.
Tests compare the two on arbitrary frames.

Limits protect the server from its clients (RFC 9113, 10.5):

* *Handlers*: each counts against ``h2_max_streams`` until it returns, even if its stream was reset,
  by either side and for any reason. Requests beyond that are queued. Too many queued requests are
  a flood, as in Go.
* *Frames without payload* (settings, pings, priorities, windows, resets, empty frames) may take
  ``h2_max_overhead`` bytes in ten seconds, in addition to eight times the payload. Beyond that
  they are a flood. (nginx has the same rule, with 8 MiB for the whole life of a connection.)
* *Header blocks* are limited in their bytes and in their frames.
* *A client that does not read* is not read from while too much waits to be written to it.
* *Bodies* are limited by flow control.

A flood closes the connection with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

import math
from base64 import urlsafe_b64decode
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from .._states import ACTIVE, IDLE, Conn, RequestInFlight
from . import http2_stream
from .http2_compression import DEFAULT_TABLE_SIZE, NO_TABLE, header_block
from .http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    ENABLE_CONNECT_PROTOCOL,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HAS_PRIORITY,
    HEADER,
    HEADER_SIZE,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW,
    NO_ERROR,
    NUMBER,
    PING,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    ConnectionFailure,
    StreamFailure,
    frame,
    goaway_frame,
    header_frames,
    parse_settings,
    reset_frame,
    settings_frame,
    strip_padding,
    window_frame,
)
from .http2_headers import HeaderReader, HeaderWriter, trusted_request
from .http2_output import Output
from .http2_stream import Stream
from .settings import Headers
from .transport import Parts

WINDOW_STEP = DEFAULT_WINDOW // 2  # bytes of the connection's window to return at once
MAX_QUEUED = 4  # queued requests, as a multiple of h2_max_streams, as in Go
MAX_CONTINUATIONS = 64  # frames of one header block, as in h2
MAX_REMEMBERED = 10  # streams that we closed early, as a multiple of h2_max_streams
OVERHEAD_PERIOD = 10.0  # seconds
GOAWAY_TIMEOUT = 2.0  # seconds for a client to read why its connection closes
RESET_COST = 2**8  # bytes of overhead for a reset that the client makes us send


class Connection(http2_stream.Connection, Protocol):
    """What HTTP/2 needs of its connection."""

    conn: Conn
    header_writer: HeaderWriter

    @property
    def last(self) -> bool:
        """Whether the current request is the connection's last."""

    @property
    def handlers(self) -> int:
        """How many handlers are running."""

    async def receive(self, *, mid_request: bool = False) -> bytes:
        """Receive the next bytes; ``b""`` at the peer's EOF or if the connection was closed."""

    def write_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for; return the rest, which must be written next, or None."""

    async def write(self, parts: Parts) -> None:
        """Write everything, in order. A checkpoint only if it has to wait."""

    def parked(self, *, eof: bool) -> AbstractContextManager[object]:
        """Watch the socket while the reader waits for something other than bytes."""

    def begin_request(self) -> bool:
        """Count a request whose head was read; return whether to handle it."""

    def become_idle(self) -> None:
        """Report that every request has its response."""

    def drain(self) -> None:
        """Let the requests in flight finish, and then close the connection."""

    def close_if_overdue(self) -> None:
        """Close the connection if it has been idle for too long."""

    async def finish(self, *, linger: bool, reason: str | None = None) -> None:
        """Send EOF after the last response, and close the connection."""

    def close(self, reason: str | None = None, *, orderly: bool = False) -> None: ...

    async def log_flood(self, what: str) -> None: ...


class Http2:
    """Reads frames, and manages the streams."""

    __slots__ = (
        "_closed_early",
        "_consumed",
        "_context",
        "_draining",
        "_header_block",
        "_header_prefix",
        "_highest_id",
        "_in_flight",
        "_last_promised_id",
        "_last_stream_id",
        "_max_pushes",
        "_overhead",
        "_overhead_since",
        "_partial_frame",
        "_payload",
        "_preface_received",
        "_push_enabled",
        "_queue",
        "_reader",
        "_settings_received",
        "_skipped_ids",
        "_stream_opened",
        "_stream_window",
        "_streams",
        "_untimed_read",
        "_watch",
        "_window",
        "connection",
        "header_writer",
        "output",
    )

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.output = Output(connection)
        self.header_writer = connection.header_writer
        self._reader = HeaderReader(connection.settings.h2_max_header_list_size)
        self._streams: dict[int, Stream] = {}
        self._in_flight = 0  # streams whose response is pending
        self._queue: deque[Stream] = deque()  # requests that wait until a handler is done
        self._closed_early: dict[int, None] = {}  # streams that we closed before the client did
        self._highest_id = 0  # of the streams that the client has opened
        self._last_promised_id = 0  # of the streams that we have pushed
        self._preface_received = False
        self._settings_received = False  # the first SETTINGS frame
        self._partial_frame = b""  # an incomplete frame
        self._header_block: tuple[int, int, list[bytes]] | None = None  # an incomplete one
        self._header_prefix = NO_TABLE  # goes before our first header block
        self._skipped_ids: deque[tuple[int, int]] = deque(maxlen=16)  # gaps in the stream IDs
        self._push_enabled = True
        self._max_pushes = MAX_STREAM_ID
        self._stream_window = DEFAULT_WINDOW  # the client's, for each new stream
        self._window = DEFAULT_WINDOW  # ours, for all streams together
        self._consumed = 0  # bytes to return to our window
        self._untimed_read: trio.CancelScope | None = None  # a read without read_timeout
        self._overhead = self._payload = 0  # bytes
        self._overhead_since = trio.current_time()
        self._watch: trio.CancelScope | None = None  # until the first stream may be too slow
        self._draining = False
        self._stream_opened = trio.Event()  # during a drain
        self._last_stream_id: int | None = None  # the last one that is handled, once it is certain

    async def initiate(self, headers: Headers | None = None, settings: bytes = b"") -> None:
        """Send the server's SETTINGS.

        Args:
          headers: those of the HTTP/1.1 request that upgraded the connection, which is stream 1.
          settings: its ``HTTP2-Settings``.
        """
        ours = self.connection.settings
        self._context = trio.lowlevel.current_task().context
        self.output.add(
            settings_frame(
                {
                    HEADER_TABLE_SIZE: DEFAULT_TABLE_SIZE,
                    ENABLE_PUSH: 0,
                    INITIAL_WINDOW_SIZE: DEFAULT_WINDOW,
                    MAX_FRAME_SIZE: ours.h2_max_frame_size,
                    ENABLE_CONNECT_PROTOCOL: 1,
                    MAX_CONCURRENT_STREAMS: ours.h2_max_streams,
                    MAX_HEADER_LIST_SIZE: ours.h2_max_header_list_size,
                }
            )
        )
        if headers is not None:
            try:
                self._apply(urlsafe_b64decode(settings + b"=" * (-len(settings) % 4)))
            except (ValueError, ConnectionFailure):
                self.connection.close()  # invalid settings
                return
            self._highest_id = 1
            stream = Stream(self, 1, trusted_request(headers), self._stream_window)
            stream.end_input()
            self._start(stream)
            if self.connection.last:
                self.connection.drain()
        self.output.flush()
        self.connection.spawn(self.output.run)

    async def run(self, data: bytes) -> None:
        """Read and handle frames until nothing more can be read."""
        connection, output = self.connection, self.output
        read_timeout = connection.settings.read_timeout
        while True:
            try:
                self._receive(data)
            except ConnectionFailure as failure:
                await self._fail(failure)
            output.flush()
            if output.congested or not self._headers_incomplete:
                connection.close_if_overdue()
            while output.congested and connection.phase.reads:
                with connection.parked(eof=True):
                    await output.wait_for_change()
                connection.close_if_overdue()
            data = await (self._read_in_time() if read_timeout else connection.receive())
            if not data:
                break
        connection.close(orderly=not self._streams)
        self._close_streams()

    async def _read_in_time(self) -> bytes:
        """Read, with ``read_timeout`` while the client has to send the rest of a request."""
        while True:
            mid_request = self._mid_request
            with trio.CancelScope() as scope:
                self._untimed_read = None if mid_request else scope
                return await self.connection.receive(mid_request=mid_request)

    def window_opened(self) -> None:
        if self._untimed_read is not None:
            self._untimed_read.cancel()

    @property
    def _headers_incomplete(self) -> bool:
        """Whether a request's headers are incomplete."""
        partial = self._partial_frame
        return self._header_block is not None or (len(partial) > 3 and partial[3] == HEADERS)

    @property
    def _mid_request(self) -> bool:
        """Whether the client has to send the rest of a request, and flow control allows it."""
        streams = self._streams.values()
        return self._headers_incomplete or any(stream.request_pending for stream in streams)

    def _close_streams(self) -> None:
        for stream in tuple(self._streams.values()):
            stream.close()
        self._streams.clear()
        self._queue.clear()

    async def _fail(self, failure: ConnectionFailure) -> None:
        """Send GOAWAY with an error, and close the connection (RFC 9113, 5.4.1)."""
        connection, reason = self.connection, None
        self._close_streams()
        if failure.code == ENHANCE_YOUR_CALM:
            reason = "enhance_your_calm"
            await connection.log_flood(str(failure))
        self.send_goaway(failure.code, str(failure))
        with connection.parked(eof=True), trio.move_on_after(GOAWAY_TIMEOUT):
            while not self.output.empty:
                await self.output.wait_for_change()
        if self.output.empty:
            # The client is probably still sending. A reset for that would destroy the GOAWAY.
            await connection.finish(linger=True, reason=reason)
        else:
            connection.close(reason)

    # Frames

    def _receive(self, data: bytes) -> None:
        if self._partial_frame:
            data = self._partial_frame + data
        start, end = 0, len(data)
        if not self._preface_received:
            if not data.startswith(PREFACE[:end]):
                raise ConnectionFailure(PROTOCOL_ERROR, "invalid connection preface")
            if end >= len(PREFACE):
                self._preface_received = True
                start = len(PREFACE)
        connection = self.connection
        max_size = connection.settings.h2_max_frame_size
        while self._preface_received and end - start >= HEADER_SIZE and connection.phase.reads:
            high, low, kind, flags, stream_id = HEADER.unpack_from(data, start)
            length = high << 16 | low
            if length > max_size:
                raise ConnectionFailure(FRAME_SIZE_ERROR, "frame too large")
            begin = start + HEADER_SIZE
            if begin + length > end:
                break
            start = begin + length
            payload = data[begin:start]
            stream_id &= MAX_STREAM_ID
            if (self._header_block is not None) != (kind == CONTINUATION):
                raise ConnectionFailure(PROTOCOL_ERROR, "unexpected or missing CONTINUATION")
            if not self._settings_received and kind != SETTINGS:
                raise ConnectionFailure(PROTOCOL_ERROR, "the first frame is not SETTINGS")
            try:
                if kind == HEADERS:
                    self._receive_headers(flags, stream_id, payload)
                elif kind == CONTINUATION:
                    self._receive_continuation(flags, stream_id, payload)
                elif kind == DATA:
                    self._receive_data(flags, stream_id, payload)
                else:
                    self._count_overhead(HEADER_SIZE + length)
                    if kind in HANDLERS:
                        HANDLERS[kind](self, flags, stream_id, payload)
            except StreamFailure as failure:
                self._reset(stream_id, failure.code)
        self._partial_frame = data[start:]

    def _count_overhead(self, size: int) -> None:
        """Count bytes of frames without payload."""
        self._overhead += size
        limit = self.connection.settings.h2_max_overhead
        if self._overhead > limit + 8 * (self._payload + self.output.body_bytes):
            now = trio.current_time()
            if now - self._overhead_since <= OVERHEAD_PERIOD:
                raise ConnectionFailure(
                    ENHANCE_YOUR_CALM, "too many frames without payload, or resets"
                )
            self._overhead, self._payload, self.output.body_bytes = size, 0, 0
            self._overhead_since = now

    def _reset(self, stream_id: int, code: int) -> None:
        """Reset a stream because of a client's error."""
        self.output.add(reset_frame(stream_id, code))
        stream = self._streams.get(stream_id)
        if stream is None:
            self._remember_closed(stream_id)
        else:
            self._drop(stream)
        self._count_overhead(RESET_COST)

    def _drop(self, stream: Stream) -> None:
        self.response_done(stream)
        self.forget(stream)
        stream.close()

    def _remember_closed(self, stream_id: int) -> None:
        """Remember a stream that we have closed: the client may not know that yet."""
        self._closed_early[stream_id] = None
        if len(self._closed_early) > MAX_REMEMBERED * self.connection.settings.h2_max_streams:
            del self._closed_early[next(iter(self._closed_early))]

    def _is_idle(self, stream_id: int) -> bool:
        """Return whether a stream was never opened."""
        return stream_id > (self._highest_id if stream_id % 2 else self._last_promised_id)

    def _find(self, stream_id: int, what: str) -> Stream | None:
        """Return a frame's stream, or None if it was closed."""
        if not stream_id:
            raise ConnectionFailure(PROTOCOL_ERROR, f"{what} on stream 0")
        stream = self._streams.get(stream_id)
        if stream is None and self._is_idle(stream_id):
            raise ConnectionFailure(PROTOCOL_ERROR, f"{what} on an idle stream")
        return stream

    def _receive_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        body = strip_padding(flags, payload)
        stream = self._find(stream_id, "DATA")
        if not stream_id % 2:
            raise ConnectionFailure(PROTOCOL_ERROR, "DATA on a pushed stream")
        self._window -= length
        if self._window < 0:
            raise ConnectionFailure(FLOW_CONTROL_ERROR, "DATA exceeds the connection's window")
        self._consumed += length
        if self._consumed >= WINDOW_STEP:
            self.output.add(window_frame(0, self._consumed))
            self._window += self._consumed
            self._consumed = 0
        end = bool(flags & END_STREAM)
        if stream is None:
            if stream_id not in self._closed_early:
                raise ConnectionFailure(STREAM_CLOSED, "DATA on a closed stream")
            self._count_overhead(HEADER_SIZE)  # the window limits the rest
            return
        if body or end:
            self._payload += len(body)
        else:
            self._count_overhead(HEADER_SIZE + length)
        stream.receive(body, length, end=end)

    def _receive_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id % 2:
            raise ConnectionFailure(PROTOCOL_ERROR, "HEADERS on a stream that is not the client's")
        block = strip_padding(flags, payload)
        if flags & HAS_PRIORITY:
            if len(block) < 5:
                raise ConnectionFailure(FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            self._check_priority(stream_id, block)
            block = block[5:]
        if flags & END_HEADERS:
            self._receive_block(flags, stream_id, block)
        else:
            self._header_block = flags, stream_id, [block]

    def _receive_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        assert self._header_block is not None
        first_flags, first_id, parts = self._header_block
        if stream_id != first_id:
            raise ConnectionFailure(PROTOCOL_ERROR, "CONTINUATION on another stream")
        parts.append(payload)
        size = self.connection.settings.h2_max_header_list_size
        if len(parts) > MAX_CONTINUATIONS or sum(map(len, parts)) > size:
            raise ConnectionFailure(ENHANCE_YOUR_CALM, "headers too large")
        if flags & END_HEADERS:
            self._header_block = None
            self._receive_block(first_flags, stream_id, b"".join(parts))

    def _receive_block(self, flags: int, stream_id: int, block: bytes) -> None:
        """Handle a complete header block."""
        end = bool(flags & END_STREAM)
        if stream_id > self._highest_id:
            if stream_id > self._highest_id + 2:
                self._skipped_ids.append((self._highest_id, stream_id))
            self._highest_id = stream_id
            self._open(stream_id, block, end=end)
            return
        stream = self._streams.get(stream_id)
        if stream is not None and end and not stream.input_ended:
            self._reader.check_trailers(block)
            stream.end_input()
            return
        self._reader.skip(block)
        if stream is not None:
            raise StreamFailure(STREAM_CLOSED if stream.input_ended else PROTOCOL_ERROR)
        if any(before < stream_id < after for before, after in self._skipped_ids):
            raise ConnectionFailure(PROTOCOL_ERROR, "a new stream with a lower ID than the last")
        if stream_id not in self._closed_early:
            raise ConnectionFailure(STREAM_CLOSED, "HEADERS on a closed stream")
        self._count_overhead(HEADER_SIZE + len(block))

    def _open(self, stream_id: int, block: bytes, *, end: bool) -> None:
        connection = self.connection
        request = self._reader.request(block)
        if self._last_stream_id is not None or self._at_stream_limit:
            raise StreamFailure(REFUSED_STREAM)
        if self._draining:
            self._stream_opened.set()
        stream = Stream(self, stream_id, request, self._stream_window)
        if end:
            stream.end_input()
        self._payload += len(block)
        self._start(stream)
        if connection.last:
            connection.drain()

    @property
    def _at_stream_limit(self) -> bool:
        """Whether the client has its maximum number of streams. Pushed streams do not count."""
        streams, max_streams = self._streams, self.connection.settings.h2_max_streams
        return (
            len(streams) >= max_streams
            and sum(stream_id % 2 for stream_id in streams) >= max_streams
        )

    def _start(self, stream: Stream) -> None:
        """Run a stream's handler, or queue it if there are too many."""
        if not self.connection.begin_request():
            return
        self._streams[stream.id] = stream
        self._in_flight += 1
        max_streams = self.connection.settings.h2_max_streams
        if self.connection.handlers < max_streams:
            stream.run()
            return
        self._queue.append(stream)
        if len(self._queue) > MAX_QUEUED * max_streams:
            raise ConnectionFailure(ENHANCE_YOUR_CALM, "requests reset faster than handlers return")

    def handler_done(self) -> None:
        """Run queued handlers, because one is done."""
        connection, max_streams = self.connection, self.connection.settings.h2_max_streams
        while self._queue and connection.phase.reads and connection.handlers < max_streams:
            stream = self._queue.popleft()
            if not stream.closed:
                # Without the context variables of the handler that is done.
                self._context.copy().run(stream.run)

    def waiting_requests(self) -> list[RequestInFlight]:
        """Return the queued requests."""
        return [stream.snapshot() for stream in self._queue if not stream.closed]

    def watch(self, due: float) -> None:
        """Check for slow streams at ``due``, or before that."""
        if self._watch is None:
            self._watch = trio.CancelScope(deadline=due)
            self.connection.spawn(self._watch_paces)
        elif due < self._watch.deadline:
            self._watch.deadline = due

    async def _watch_paces(self) -> None:
        """Reset each stream whose client is too slow. The others continue."""
        while self._watch is not None:
            with self._watch:
                await trio.sleep_forever()
            now, reason = trio.current_time(), None
            await self.connection.read_pending()
            for stream in tuple(self._streams.values()):
                if stream.due <= now:
                    reason = stream.slow_reason
                    self.reset(stream, ENHANCE_YOUR_CALM)
            due = min((stream.due for stream in self._streams.values()), default=math.inf)
            self._watch = None if due == math.inf else trio.CancelScope(deadline=due)
            if reason is not None and not self._in_flight:
                self.send_goaway(ENHANCE_YOUR_CALM, "data rate too low")
                await self.connection.finish(linger=True, reason=reason)

    def reset(self, stream: Stream, code: int) -> None:
        """Reset a stream for a reason of our own."""
        self.output.add(reset_frame(stream.id, code))
        self._drop(stream)
        self.output.flush()

    def _check_priority(self, stream_id: int, payload: bytes) -> None:
        if NUMBER.unpack_from(payload)[0] & MAX_STREAM_ID == stream_id:
            raise ConnectionFailure(PROTOCOL_ERROR, "a stream depends on itself")

    def _receive_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFailure(PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise ConnectionFailure(FRAME_SIZE_ERROR, "PRIORITY of the wrong length")
        self._check_priority(stream_id, payload)

    def _receive_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self._find(stream_id, "RST_STREAM")
        if len(payload) != NUMBER.size:
            raise ConnectionFailure(FRAME_SIZE_ERROR, "RST_STREAM of the wrong length")
        if stream is not None:
            self._drop(stream)
        self._closed_early.pop(stream_id, None)

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFailure(FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        self._settings_received = True
        self._apply(payload)
        self.output.add(frame(SETTINGS, ACK, 0))

    def _apply(self, payload: bytes) -> None:
        window = self._stream_window
        for setting, value in parse_settings(payload):
            if setting == ENABLE_PUSH:
                self._push_enabled = bool(value)
            elif setting == MAX_CONCURRENT_STREAMS:
                self._max_pushes = value
            elif setting == MAX_FRAME_SIZE:
                self.output.max_frame_size = value
            elif setting == INITIAL_WINDOW_SIZE:
                window = value
        if window != self._stream_window:
            more, self._stream_window = window - self._stream_window, window
            for stream in self._streams.values():
                try:
                    stream.update_window(more)
                except StreamFailure:
                    raise ConnectionFailure(FLOW_CONTROL_ERROR, "window too large") from None

    def _receive_push(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ConnectionFailure(PROTOCOL_ERROR, "a client cannot push")

    def _receive_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFailure(FRAME_SIZE_ERROR, "PING of the wrong length")
        if not flags & ACK:
            self.output.add(frame(PING, ACK, 0, payload))

    def _receive_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Close the connection, because the client opens no more streams.

        But in a drain, the client's GOAWAY may be a response to ours. Then the client waits for
        its responses.
        """
        if stream_id:
            raise ConnectionFailure(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 2 * NUMBER.size:
            raise ConnectionFailure(FRAME_SIZE_ERROR, "GOAWAY of the wrong length")
        (code,) = NUMBER.unpack_from(payload, NUMBER.size)
        if self._draining and code == NO_ERROR and self._in_flight:
            self._last_stream_id = self._highest_id  # both sides know that
        else:
            self.connection.close(orderly=not self._streams)

    def _receive_window(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != NUMBER.size:
            raise ConnectionFailure(FRAME_SIZE_ERROR, "WINDOW_UPDATE of the wrong length")
        increment = NUMBER.unpack(payload)[0] & MAX_STREAM_ID
        if not stream_id:
            if not increment:
                raise ConnectionFailure(PROTOCOL_ERROR, "WINDOW_UPDATE with an increment of 0")
            if self.output.window + increment > MAX_WINDOW:
                raise ConnectionFailure(FLOW_CONTROL_ERROR, "window too large")
            self.output.update_window(increment)
            return
        stream = self._find(stream_id, "WINDOW_UPDATE")
        if stream is not None:
            if not increment:
                raise StreamFailure(PROTOCOL_ERROR)
            stream.update_window(increment)

    # What streams call

    def headers(self, stream_id: int, block: bytes, *, end: bool) -> bytes:
        """Return the frames of a header block."""
        return header_frames(
            stream_id, self._with_prefix(block), self.output.max_frame_size, end=end
        )

    def _with_prefix(self, block: bytes) -> bytes:
        prefix, self._header_prefix = self._header_prefix, b""
        return prefix + block

    def flush(self) -> None:
        """Write what a handler has queued: at once if it is the only handler, or else soon."""
        if self.connection.handlers > 1:
            self.output.flush_later()
        else:
            self.output.flush()

    def push(self, parent: Stream, fields: Headers) -> None:
        """Push a response that was not requested, unless the client forbids it."""
        pushes = sum(not stream_id % 2 for stream_id in self._streams)
        if (
            not self._push_enabled
            or not parent.id % 2
            or pushes >= self._max_pushes
            or self.connection.handlers >= self.connection.settings.h2_max_streams
            or self._last_promised_id + 2 > MAX_STREAM_ID
        ):
            return
        own = self.connection.settings.server_headers("h2")
        self._last_promised_id += 2
        block = NUMBER.pack(self._last_promised_id) + self._with_prefix(
            header_block([*fields, *own])
        )
        size = self.output.max_frame_size
        self.output.add(header_frames(parent.id, block, size, end=False, kind=PUSH_PROMISE))
        request = trusted_request([*fields, *own])
        stream = Stream(self, self._last_promised_id, request, self._stream_window)
        stream.end_input()
        self._start(stream)
        self.flush()

    def response_done(self, stream: Stream) -> None:
        """Note that a stream's response is written, or given up."""
        if stream.in_flight:
            stream.in_flight = False
            self._in_flight -= 1
            if not self._in_flight:
                self.connection.become_idle()
                if self._draining:
                    self._refuse_new_streams()

    def forget(self, stream: Stream) -> None:
        """Remove a closed stream."""
        self.output.forget(stream)
        self._streams.pop(stream.id, None)
        if not stream.input_ended:
            self._remember_closed(stream.id)

    # Drain and close

    def drain(self) -> None:
        """Close the connection as soon as every stream has its response.

        RFC 9113 (6.8) recommends two GOAWAYs: the first forbids new streams, and the second names
        the last stream. But many clients react to the first by failing their requests in flight,
        or the next request (h2, and so httpx, cannot read on). They lose nothing if GOAWAY comes
        when nothing is in flight. So GOAWAY waits until the connection is idle, and follows the
        last response at once. There are two GOAWAYs only if the connection is still active after
        ``drain_idle_timeout``, and the client opens another stream: the first GOAWAY forbids new
        streams, and after another ``drain_idle_timeout`` they are refused.
        """
        if not self._draining:
            self._draining = True
            self.connection.spawn(self._drain)

    async def _drain(self) -> None:
        connection = self.connection
        await trio.sleep(connection.settings.drain_idle_timeout)
        if connection.conn.state is ACTIVE:
            await self._stream_opened.wait()
            if self._last_stream_id is None:  # otherwise GOAWAY has been sent meanwhile
                self.output.add(goaway_frame(MAX_STREAM_ID, NO_ERROR))
                self.output.flush()
                await trio.sleep(connection.settings.drain_idle_timeout)
        self._refuse_new_streams()

    def _refuse_new_streams(self) -> None:
        """Send the final GOAWAY, refuse new streams, and close the connection if it is idle."""
        if self._last_stream_id is None:
            self._last_stream_id = self._highest_id
            self.send_goaway()
        if self.connection.conn.state is IDLE:
            self.connection.spawn(self._finish)

    def send_goaway(self, code: int = NO_ERROR, message: str = "") -> None:
        """Send GOAWAY: the last stream that was handled, and why no others are."""
        # The ID must not rise from one GOAWAY to the next.
        last = self._highest_id if self._last_stream_id is None else self._last_stream_id
        self.output.add(goaway_frame(last, code, message))
        self.output.flush()

    async def _finish(self) -> None:
        self.output.flush()
        while not self.output.empty:
            await self.output.wait_for_change()
        await self.connection.finish(linger=True)


HANDLERS: dict[int, Callable[[Http2, int, int, bytes], None]] = {
    PRIORITY: Http2._receive_priority,
    RST_STREAM: Http2._receive_reset,
    SETTINGS: Http2._receive_settings,
    PUSH_PROMISE: Http2._receive_push,
    PING: Http2._receive_ping,
    GOAWAY: Http2._receive_goaway,
    WINDOW_UPDATE: Http2._receive_window,
}
