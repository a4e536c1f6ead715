"""What HTTP/2 writes: each stream's bytes until they are sent, and who is next.

* A handler that writes faster than its peer reads waits in :class:`StreamBuffer`.
* What several streams have to say at the same time is written at once, by :func:`send`.
* Priorities are ignored, as RFC 9113 (5.3) allows: they cost memory for streams that are long
  finished, and clients no longer send them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import h2.exceptions
import trio
from hypercorn.protocol import h2 as hypercorn_h2
from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h2 import BufferCompleteError, H2Protocol
from priority.priority import DeadlockError, MissingStreamError

if TYPE_CHECKING:
    from .http2 import Http2

WRITE_SIZE = 2**16  # write at least so much at once, if there is so much


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


class RoundRobin:
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


async def send(protocol: Http2) -> None:
    """Send what the streams' buffers hold, as far as the windows are open, until the end.

    Hypercorn's does one write for each frame; this one fills the connection first.
    """
    while not protocol.closed:
        protocol.cork()
        size, sent, idle = 0, list[Any](), False
        try:
            while size < WRITE_SIZE:
                stream_id = next(protocol.priority)
                sent.append(protocol.stream_buffers[stream_id])
                size += await _send_frame(protocol, stream_id)
        except DeadlockError:
            idle = True
        await protocol.flush()
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
        forget(protocol, stream_id)
    return len(data)


def forget(protocol: H2Protocol, stream_id: int) -> None:
    protocol.stream_buffers.forget(stream_id)  # type: ignore[attr-defined]
    protocol.priority.remove_stream(stream_id)


async def stream_send(protocol: Http2, event: Event) -> None:
    """Hypercorn's, but a response's headers are written by the sender, with what follows them."""
    if isinstance(event, Response):
        protocol.cork()
        try:
            await H2Protocol.stream_send(protocol, event)
        finally:  # it may be that it cannot be encoded
            protocol.uncork()
            await protocol.has_data.set()
    else:
        await H2Protocol.stream_send(protocol, event)
