"""What HTTP/1 needs beside Hypercorn's protocol, so that its connections keep our promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import h11
import trio
from hypercorn.protocol.h11 import H11Protocol

if TYPE_CHECKING:
    from .connection import Connection

DECODED = frozenset({b"host", b":authority", b"connection", b"upgrade", b"http2-settings"})


class H11Connection(h11.Connection):
    """h11's server, with three differences.

    * It is deaf to what a client sends after its last request. A client that said
      ``Connection: close``, or speaks HTTP/1.0, has no more to say. What comes nevertheless (an
      empty line too many, a request that it pipelined) is an error to h11, which would cost
      it the answer to what it asked before.
    * Headers that Hypercorn could not decode are an error of the client's.
    * With an answer's end, the connection is uncorked.
    """

    def __init__(self, connection: Connection, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self._connection = connection

    def receive_data(self, data: bytes) -> None:
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA
        event = super().next_event()
        if type(event) is h11.Request:
            headers = Headers(event.headers)
            if not headers_are_decodable(headers):
                raise h11.RemoteProtocolError("a header that must be ASCII is not")
            headers.raw_items = event.headers.raw_items
            object.__setattr__(event, "headers", headers)  # an event is frozen
        return event

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        if type(event) is h11.EndOfMessage:
            self._connection.uncork()
        return super().send(event)


class Headers(list[tuple[bytes, bytes]]):
    """A request's headers as h11 has them. Hypercorn goes through them three times, which
    takes a list a fifth of the time."""

    __slots__ = ("raw_items",)

    raw_items: Callable[[], list[tuple[bytes, bytes]]]


def headers_are_decodable(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether Hypercorn can decode what it decodes; the rest may be any bytes."""
    return all(
        value.isascii()
        for name, value in headers
        if name in DECODED or name.startswith(b"sec-websocket-")
    )


class PipelineEvent:
    """What a pipelined request waits for, with what Hypercorn's protocol needs of an event."""

    def __init__(self, connection: Connection) -> None:
        self._event = trio.Event()
        self._connection = connection

    async def clear(self) -> None:
        self._event = trio.Event()

    async def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        with self._connection.parked():
            await self._event.wait()

    def is_set(self) -> bool:
        return self._event.is_set()


def adopt(protocol: H11Protocol, connection: Connection) -> None:
    """Give a new protocol our h11, and make its waiting reader known."""
    protocol.connection = H11Connection(connection, protocol.config.h11_max_incomplete_size)
    protocol.can_read = PipelineEvent(connection)


def drain(protocol: H11Protocol) -> None:
    """Let Hypercorn say ``Connection: close`` with each answer that begins from now on."""
    protocol.keep_alive_requests = protocol.config.keep_alive_max_requests
