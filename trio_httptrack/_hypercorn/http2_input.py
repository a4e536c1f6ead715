"""What HTTP/2 reads, stream by stream: one whose handler does not read keeps nobody waiting.

Its input waits in :class:`Stream`, and its window stays closed until the handler has read; the
connection's window opens at once, for it belongs to all streams. What arrives for a stream
that was already answered is dropped, and a stream whose handler left its answer unfinished is
reset, so that the client knows.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any

import h2.errors
import h2.exceptions
from hypercorn.protocol.events import Body, EndBody, Event, StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream

from .handler import Handler
from .http2_output import StreamBuffer, forget

WINDOW_STEP = 2**14  # return this much of a stream's window at once: a frame's default size


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
            forget(self._protocol, stream_id)
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
        forget(self._protocol, self._stream.stream_id)
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
