"""What HTTP/2 needs beside Hypercorn's protocol, so that its streams do not harm each other.

* A request that Hypercorn could not handle is refused: its stream is reset, the others
  go on. Priorities are ignored, as RFC 9113 (5.3) allows: they cost memory for streams
  that are long finished, and clients no longer send them.
* A stream whose handler does not read keeps nobody waiting. Its input waits in
  :class:`Stream`, and its window stays closed until the handler has read; the
  connection's window opens at once, for it belongs to all streams.
* A handler that writes faster than its peer reads waits in :class:`StreamBuffer`.
* What several streams have to say at the same time is written at once, by :func:`send`.
* What arrives for a stream that was already answered is dropped, and a stream whose
  handler left its answer unfinished is reset, so that the client knows.
* A connection that drains answers its streams before it ends, and says so with GOAWAY
  (:meth:`Frames.drain`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import hyperframe.exceptions
import trio
from hypercorn.events import Closed, RawData
from hypercorn.protocol import h2 as hypercorn_h2
from hypercorn.protocol.events import Body, EndBody, Event, Response, StreamClosed
from hypercorn.protocol.h2 import BufferCompleteError, H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hyperframe.frame import GoAwayFrame
from priority.priority import DeadlockError, MissingStreamError

from .._states import ACTIVE, IDLE
from .handler import Handler
from .http1 import headers_are_decodable

if TYPE_CHECKING:
    from .connection import Connection

WRITE_SIZE = 2**16  # write at least so much at once, if there is so much
MAX_STREAM_ID = 2**31 - 1
WINDOW_STEP = 2**14  # return this much of a stream's window at once: a frame's default size


class StreamBuffer(hypercorn_h2.StreamBuffer):
    """An answer's bytes until they are sent. Hypercorn's lets a writer go on after any
    short write, however full it is; this one when it is nearly empty."""

    def __init__(self, protocol: H2Protocol) -> None:
        super().__init__(protocol.context.event_class)
        self._protocol = protocol

    async def drain(self) -> None:
        if not self._protocol.closed:  # else nobody empties it
            await super().drain()

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= hypercorn_h2.BUFFER_HIGH_WATER:
            if self._paused.is_set():  # else somebody waits for this event already
                await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < hypercorn_h2.BUFFER_LOW_WATER:
            await self._paused.set()
        return data

    async def written(self) -> None:
        """What was taken is on its way, and not before: an answer in work is no rest."""
        if not self.buffer:
            await self._is_empty.set()

    @property
    def finished(self) -> bool:
        """Whether the end of the answer is in the buffer, or past it."""
        return self._complete


class Turns:
    """Whose turn it is to send: each stream that has something, one after the other.

    Stands where Hypercorn has a ``PriorityTree``, and answers as that does.
    """

    def __init__(self) -> None:
        self._streams: set[int] = set()
        self._ready: OrderedDict[int, None] = OrderedDict()  # the first of them is the next

    def insert_stream(self, stream_id: int) -> None:
        self._streams.add(stream_id)

    def block(self, stream_id: int) -> None:
        self._ready.pop(stream_id, None)

    def unblock(self, stream_id: int) -> None:
        if stream_id not in self._streams:
            raise MissingStreamError
        self._ready[stream_id] = None

    def remove_stream(self, stream_id: int) -> None:
        self._streams.discard(stream_id)
        self._ready.pop(stream_id, None)

    def __next__(self) -> int:
        if not self._ready:
            raise DeadlockError
        stream_id = next(iter(self._ready))
        self._ready.move_to_end(stream_id)
        return stream_id


async def send(protocol: H2Protocol, connection: Connection) -> None:
    """Send what the streams' buffers hold, as far as the windows are open, until the end.

    Hypercorn's does one write for each frame; this one fills the connection first.
    """
    while not protocol.closed:
        connection.cork()
        size, sent, idle = 0, list[Any](), False
        try:
            while size < WRITE_SIZE:
                stream_id = next(protocol.priority)
                sent.append(protocol.stream_buffers[stream_id])
                size += await _send_frame(protocol, stream_id)
        except DeadlockError:
            idle = True
        await connection.flush()
        for buffer in sent:
            await buffer.written()
        if idle:
            await protocol.has_data.wait()
            await protocol.has_data.clear()
        else:
            await trio.lowlevel.checkpoint()


async def _send_frame(protocol: H2Protocol, stream_id: int) -> int:
    """Send one frame of a stream, if there is one; return its size. Not a checkpoint."""
    frames = protocol.connection
    buffer = protocol.stream_buffers[stream_id]
    data = b""
    try:
        window = frames.local_flow_control_window(stream_id)
        data = await buffer.pop(max(0, min(window, frames.max_outbound_frame_size)))
        if data or buffer.complete:
            frames.send_data(stream_id, data, end_stream=buffer.complete)
            await protocol._flush()
        else:
            protocol.priority.block(stream_id)
    except h2.exceptions.ProtocolError:  # the stream, or the connection, has ended meanwhile
        await buffer.close()
    if buffer.complete:
        _forget(protocol, stream_id)
    return len(data)


def _forget(protocol: H2Protocol, stream_id: int) -> None:
    protocol.stream_buffers.forget(stream_id)  # type: ignore[attr-defined]
    protocol.priority.remove_stream(stream_id)


class StreamBuffers(dict[int, hypercorn_h2.StreamBuffer]):
    """Hypercorn's dictionary of buffers, which become ours on their way in."""

    def __init__(self, protocol: H2Protocol) -> None:
        self._protocol = protocol
        self._none_left = trio.lowlevel.ParkingLot()

    def __setitem__(self, stream_id: int, buffer: hypercorn_h2.StreamBuffer) -> None:
        super().__setitem__(stream_id, StreamBuffer(self._protocol))

    def forget(self, stream_id: int) -> None:
        self.pop(stream_id, None)
        if not self:
            self._none_left.unpark_all()

    async def wait_for_none(self) -> None:
        """Wait until every answer has been written to its end."""
        while self:
            await self._none_left.park()


class Stream:
    """Hypercorn's stream, but its input does not make the other streams wait."""

    def __init__(self, protocol: H2Protocol, stream: HTTPStream | WSStream) -> None:
        self._protocol = protocol
        self._stream = stream
        self._input: deque[Event] = deque()
        self._lengths: deque[int] = deque()  # what each Body in the input took of the window
        self._fed = 0  # bytes to give back to the window
        self._feeding = False
        self.was_reset = False  # by the client, who reads no more of the answer

    @property
    def idle(self) -> bool:
        return self._stream.idle

    @property
    def closed(self) -> bool:
        """Answered without an application, or ended."""
        return self._stream.closed

    async def handle(self, event: Event) -> None:
        if isinstance(event, (Body, EndBody)) and self._would_wait(event):
            self._input.append(event)
            if not self._feeding:
                self._feeding = True
                self._protocol.task_group.spawn(self._feed)
        else:
            await self._stream.handle(event)
            if isinstance(event, StreamClosed):
                await self._finish()

    def _would_wait(self, event: Body | EndBody) -> bool:
        if self._feeding:
            return True
        if isinstance(self._stream, WSStream):
            return isinstance(event, Body)  # which may be any number of messages
        handler = getattr(self._stream.app_put, "__self__", None)
        return isinstance(handler, Handler) and handler.full

    async def _feed(self) -> None:
        while self._input:
            event = self._input.popleft()
            await self._stream.handle(event)
            if isinstance(event, Body):
                self._give_back(self._lengths.popleft())
                await self._protocol._flush()
        self._feeding = False

    def took(self, length: int) -> None:
        """Called after each Body: how much of the stream's window it took."""
        if self._feeding:
            self._lengths.append(length)
        else:
            self._give_back(length)

    def _give_back(self, length: int) -> None:
        self._fed += length
        if self._fed >= WINDOW_STEP:
            fed, self._fed = self._fed, 0
            # A stream that has ended meanwhile has no window.
            with suppress(KeyError, h2.exceptions.ProtocolError):
                self._protocol.connection.increment_flow_control_window(fed, self._stream.stream_id)

    async def _finish(self) -> None:
        """End the answer, if its handler did not."""
        stream_id = self._stream.stream_id
        buffer = self._protocol.stream_buffers.get(stream_id)
        if not isinstance(buffer, StreamBuffer) or buffer.finished or self._protocol.closed:
            return
        if self.was_reset:
            await buffer.close()
            _forget(self._protocol, stream_id)
        elif isinstance(self._stream, WSStream):
            buffer.set_complete()
            self._protocol.priority.unblock(stream_id)
            await self._protocol.has_data.set()
        else:
            self._protocol.task_group.spawn(self._reset, buffer)

    async def _reset(self, buffer: StreamBuffer) -> None:
        """Tell the client that there is no more, when it has what there is."""
        if buffer.buffer:
            await buffer.drain()
        with suppress(h2.exceptions.ProtocolError):  # unless the client has reset it
            self._protocol.connection.reset_stream(
                self._stream.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR
            )
        _forget(self._protocol, self._stream.stream_id)
        await self._protocol._flush()


class Finished:
    """Stands for any stream that is no more."""

    async def handle(self, event: Event) -> None: ...


class Streams(dict[int, Any]):
    """Hypercorn's dictionary of streams, which become ours on their way in."""

    def __init__(self, protocol: H2Protocol) -> None:
        self._protocol = protocol

    def __setitem__(self, stream_id: int, stream: HTTPStream | WSStream) -> None:
        stream.app_put = None  # which Hypercorn sets too late for a request it refuses
        super().__setitem__(stream_id, Stream(self._protocol, stream))

    def __missing__(self, stream_id: int) -> Finished:
        return Finished()

    def forget_closed(self) -> None:
        """Hypercorn keeps a stream that it answered itself, and its connection never rests."""
        for stream_id in [key for key, stream in self.items() if stream.closed]:
            del self[stream_id]


class Frames:
    """h2's connection, as Hypercorn's protocol sees it."""

    def __init__(self, protocol: H2Protocol, streams: Streams, connection: Connection) -> None:
        self._h2 = protocol.connection
        self._protocol = protocol
        self._streams = streams
        self._connection = connection
        self._goaway = self._h2._frame_dispatch_table[GoAwayFrame]  # there is no other way in
        self._h2._frame_dispatch_table[GoAwayFrame] = self._receive_goaway
        self._draining = False
        self._opened = trio.Event()  # another stream, in a drain
        self._last: int | None = None  # the last stream that is served, once that is certain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._h2, name)

    def receive_data(self, data: bytes) -> list[h2.events.Event]:
        return [event for event in self._h2.receive_data(data) if self._is_for_hypercorn(event)]

    def _is_for_hypercorn(self, event: h2.events.Event) -> bool:
        if isinstance(event, h2.events.RequestReceived):
            if self._last is not None and event.stream_id > self._last:
                self._refuse(event, h2.errors.ErrorCodes.REFUSED_STREAM)
                return False
            if not _understood(event):
                self._refuse(event, h2.errors.ErrorCodes.PROTOCOL_ERROR)
                return False
            if self._draining:
                self._opened.set()
        elif isinstance(event, h2.events.StreamReset) and event.stream_id in self._streams:
            self._streams[event.stream_id].was_reset = True
        return not isinstance(event, h2.events.PriorityUpdated)

    def _receive_goaway(self, frame: GoAwayFrame) -> Any:
        """A client may answer our GOAWAY with its own, and wait for what it has asked for.

        For h2 that is the end of the connection, and for Hypercorn of its streams.
        """
        said_so = frame.error_code == h2.errors.ErrorCodes.NO_ERROR
        if self._draining and said_so and self._h2.open_inbound_streams:
            self._last = self._h2.highest_inbound_stream_id  # as both know
            return [], []
        return self._goaway(frame)

    def _refuse(self, request: h2.events.RequestReceived, code: h2.errors.ErrorCodes) -> None:
        with suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(request.stream_id, code)

    def acknowledge_received_data(self, length: int, stream_id: int) -> None:
        if length:
            with suppress(h2.exceptions.ProtocolError):  # a GOAWAY came with it
                self._h2.increment_flow_control_window(length)
        if stream_id in self._streams:
            self._streams[stream_id].took(length)

    def close_connection(self) -> None:
        """Called by Hypercorn's protocol: there have been ``keep_alive_max_requests``."""
        self._connection.drain()

    def drain(self) -> None:
        """End the connection as soon as every stream is answered.

        RFC 9113 (6.8) has a server send two GOAWAYs: one that forbids new streams, and later
        one that says which was the last. But many a client fails what is in flight, or what
        it asks next, at the first (h2, and with it httpx, cannot read on), and loses nothing
        if both come when nothing is. So the goodbye waits for a moment of rest: it follows
        the end of the last answer at once. Only who opens another stream, and has not rested
        when the grace is over, is told to open no more, and refused after another grace.
        """
        if not self._draining:
            self._draining = True
            self._connection.spawn(self._drain)

    async def _drain(self) -> None:
        await trio.sleep(self._connection.grace)
        if self._connection.conn.state is ACTIVE:
            await self._opened.wait()
            if self._last is None:  # else it has said goodbye meanwhile
                await self._go_away(MAX_STREAM_ID)
                await trio.sleep(self._connection.grace)
        await self.say_goodbye()

    async def say_goodbye(self) -> None:
        """Refuse what comes from now on, and end the connection if it rests."""
        if self._last is None:
            self._last = self._h2.highest_inbound_stream_id
            await self._go_away(self._last)
        if self._connection.conn.state is IDLE:
            self._connection.spawn(self._end)

    async def _end(self) -> None:
        await self._protocol.stream_buffers.wait_for_none()  # type: ignore[attr-defined]
        await self._connection.linger()

    async def _go_away(self, last_stream_id: int) -> None:
        # h2 would take its own GOAWAY for the end of the connection.
        await self._protocol._flush()
        frame = GoAwayFrame(last_stream_id=last_stream_id)
        await self._protocol.send(RawData(frame.serialize()))


def _understood(request: h2.events.RequestReceived) -> bool:
    """Whether the method and the path are there, and what Hypercorn decodes is ASCII."""
    headers = dict(request.headers)
    return all(
        headers.get(name, b"\x80").isascii() for name in (b":method", b":path")
    ) and headers_are_decodable(request.headers)


async def stream_send(protocol: H2Protocol, connection: Connection, event: Event) -> None:
    """Hypercorn's, but a response's headers are written by the sender, with what follows them."""
    if isinstance(event, Response):
        connection.cork()
        try:
            await H2Protocol.stream_send(protocol, event)
        finally:  # it may be that it cannot be encoded
            connection.uncork()
            await protocol.has_data.set()
    else:
        await H2Protocol.stream_send(protocol, event)


async def initiate(
    protocol: H2Protocol,
    connection: Connection,
    headers: list[tuple[bytes, bytes]] | None = None,
    settings: bytes | None = None,
) -> None:
    """Hypercorn's, but its sender runs before the request that was upgraded is answered."""
    if settings is None:
        protocol.connection.initiate_connection()
    else:
        try:
            protocol.connection.initiate_upgrade_connection(settings)
        except (ValueError, h2.exceptions.H2Error, hyperframe.exceptions.HyperframeError):
            await protocol.send(Closed())  # they are not settings
            return
    await protocol._flush()
    connection.spawn(send, protocol, connection)
    if headers is not None:
        request = h2.events.RequestReceived(stream_id=1, headers=headers)
        await protocol._create_stream(request)
        await protocol.streams[1].handle(EndBody(stream_id=1))
        if protocol.keep_alive_requests > protocol.config.keep_alive_max_requests:
            connection.drain()


def adopt(protocol: H2Protocol, connection: Connection) -> None:
    """Put ours in the place of Hypercorn's, in a new protocol."""
    protocol.initiate = partial(initiate, protocol, connection)  # type: ignore[method-assign]
    protocol.stream_send = partial(stream_send, protocol, connection)  # type: ignore[method-assign]
    protocol.priority = Turns()  # type: ignore[assignment]
    protocol.streams = Streams(protocol)
    protocol.stream_buffers = StreamBuffers(protocol)
    protocol.connection = Frames(protocol, protocol.streams, connection)  # type: ignore[assignment]
    # Hypercorn allows one request more than over HTTP/1.
    protocol.keep_alive_requests = 1
