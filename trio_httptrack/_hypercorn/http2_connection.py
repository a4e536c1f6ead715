"""h2's connection, as Hypercorn's protocol sees it: what it is told, and how it says goodbye.

A request that Hypercorn could not handle is refused: its stream is reset, the others go on. A
connection that drains answers its streams before it ends, and says so with GOAWAY.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import h2.errors
import h2.events
import h2.exceptions
import trio
from hypercorn.events import RawData
from hypercorn.protocol.h2 import H2Protocol
from hyperframe.frame import GoAwayFrame

from .._connection.http1_rules import ASCII
from .._states import ACTIVE, IDLE
from .http2_input import Streams

if TYPE_CHECKING:
    from .._connection.connection import Connection

MAX_STREAM_ID = 2**31 - 1


class H2Connection:
    """Stands before h2's, in a protocol of Hypercorn's."""

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
        await trio.sleep(self._connection.settings.drain_idle_timeout)
        if self._connection.conn.state is ACTIVE:
            await self._opened.wait()
            if self._last is None:  # else it has said goodbye meanwhile
                await self._go_away(MAX_STREAM_ID)
                await trio.sleep(self._connection.settings.drain_idle_timeout)
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
        await self._connection.finish(linger=True)

    async def _go_away(self, last_stream_id: int) -> None:
        # h2 would take its own GOAWAY for the end of the connection.
        await self._protocol._flush()
        frame = GoAwayFrame(last_stream_id=last_stream_id)
        await self._protocol.send(RawData(frame.serialize()))


def _understood(request: h2.events.RequestReceived) -> bool:
    """Whether the method and the path are there, and what is decoded is ASCII."""
    headers = dict(request.headers)
    return all(headers.get(name, b"\x80").isascii() for name in (b":method", b":path")) and all(
        value.isascii()
        for name, value in request.headers
        if name in ASCII or name == b":authority" or name.startswith(b"sec-websocket-")
    )
