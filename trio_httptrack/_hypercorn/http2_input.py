"""HTTP/2's streams: each the way between one exchange and the client.

A stream whose handler does not read keeps no other waiting: its input waits in
:class:`Stream`, and its window stays closed until the handler has read; the connection's window
opens at once, for it belongs to all streams. What arrives for a stream that has had its response
is dropped, and a stream whose handler left its response unfinished is reset, so that the client
knows.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import h2.errors
import h2.exceptions
from hypercorn.protocol.events import (
    Body,
    Data,
    EndBody,
    EndData,
    Event,
    InformationalResponse,
    Request,
    Response,
    StreamClosed,
    Trailers,
)

from .._connection.exchange import Exchange, HttpExchange, base_scope, validated
from .._connection.http1_rules import is_served
from .._connection.settings import Headers
from .._connection.websocket import WebSocket
from .._connection.websocket_handshake import Handshake
from .http2_output import StreamBuffer, forget

if TYPE_CHECKING:
    from .http2 import Http2

WINDOW_STEP = 2**14  # return this much of a stream's window at once: a frame's default size


class Stream:
    """One stream, for Hypercorn's protocol on one side and an exchange on the other."""

    survives_disconnect = False

    def __init__(self, protocol: Http2, stream_id: int) -> None:
        self._protocol = protocol
        self._id = stream_id
        self._exchange: Exchange | None = None  # once the request is known
        self._input: deque[Event] = deque()
        self._lengths: deque[int] = deque()  # what each Body in the input took of the window
        self._fed = 0  # bytes to give back to the window
        self._feeding = False
        self._complete = False  # the request is
        self.was_reset = False  # by the client, who reads no more of the response

    # Hypercorn's side

    @property
    def idle(self) -> bool:
        return isinstance(self._exchange, WebSocket) and self._exchange.idle

    @property
    def owes_request(self) -> bool:
        """Whether the rest of the request is for the client to send, not for us to read."""
        return isinstance(self._exchange, HttpExchange) and not (self._complete or self._feeding)

    async def handle(self, event: Event) -> None:
        if isinstance(event, Request):
            await self._begin(event)
        elif isinstance(event, (Body, EndBody)):
            self._complete = isinstance(event, EndBody)
            if self._would_wait(event):
                self._input.append(event)
                if not self._feeding:
                    self._feeding = True
                    self._protocol.owner.spawn(self._feed)
            else:
                await self._put(event)
        elif isinstance(event, StreamClosed):
            if self._exchange is not None:
                self._exchange.disconnect()
            await self._finish()

    async def _begin(self, request: Request) -> None:
        connection = self._protocol.owner
        settings = connection.settings
        path, _, query = request.raw_path.partition(b"?")
        scope = base_scope(connection, path, query, request.headers, "2")
        exchange: HttpExchange | WebSocket
        if request.method == "CONNECT":
            limit = settings.websocket_max_message_size
            handshake = Handshake(request.headers, "2", limit)
            WebSocket.complete_scope(scope, handshake)
            exchange = WebSocket(connection, self, scope, handshake)
        else:
            scope["type"] = "http"
            scope["method"] = request.method
            for extension in ("trailers", "push", "early_hint"):
                scope["extensions"][f"http.response.{extension}"] = {}
            exchange = HttpExchange(connection, self, scope, settings.max_queue_size)
        self._exchange = exchange
        if not is_served(request.headers, settings):
            await exchange.respond_with_error(404)
        elif not isinstance(exchange, WebSocket) or await exchange.open():
            connection.start(exchange)

    def _would_wait(self, event: Body | EndBody) -> bool:
        if self._feeding:
            return True
        if isinstance(self._exchange, WebSocket):
            return isinstance(event, Body)  # which may be any number of messages
        return self._exchange is not None and self._exchange.full

    async def _put(self, event: Event) -> None:
        exchange = self._exchange
        if isinstance(exchange, WebSocket):
            if isinstance(event, Body):
                await exchange.feed(event.data)
            else:  # the end of the stream stands for that of a connection (RFC 8441, 5)
                exchange.disconnect()
                await self.release()
        elif exchange is not None:
            body = event.data if isinstance(event, Body) else b""
            more = isinstance(event, Body)
            await exchange.put({"type": "http.request", "body": bytes(body), "more_body": more})

    async def _feed(self) -> None:
        while self._input:
            event = self._input.popleft()
            await self._put(event)
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
                self._protocol.connection.increment_flow_control_window(fed, self._id)

    async def _finish(self) -> None:
        """End the response, if its handler did not."""
        buffer = self._protocol.stream_buffers.get(self._id)
        if not isinstance(buffer, StreamBuffer) or buffer.finished or self._protocol.closed:
            return
        if self.was_reset:
            await buffer.close()
            forget(self._protocol, self._id)
        elif isinstance(self._exchange, WebSocket):
            buffer.set_complete()
            self._protocol.priority.unblock(self._id)
            await self._protocol.has_data.set()
        else:
            self._protocol.owner.spawn(self._reset, buffer)

    async def _reset(self, buffer: StreamBuffer) -> None:
        """Tell the client that there is no more, when it has what there is."""
        if buffer.buffer:
            await buffer.drain()
        with suppress(h2.exceptions.ProtocolError):  # unless the client has reset it
            self._protocol.connection.reset_stream(self._id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        forget(self._protocol, self._id)
        await self._protocol._flush()

    # The exchange's side

    def waiting(self) -> AbstractContextManager[object]:
        return nullcontext()

    async def respond(self, status: int, headers: Headers, body: bytes, more_body: bool) -> None:
        response = Response(self._id, headers=validated(headers), status_code=status)
        await self._protocol.stream_send(response)
        await self.write_body(body, more_body)

    async def write_body(self, body: bytes, more_body: bool) -> None:
        if body:
            await self._protocol.stream_send(Body(self._id, data=body))
        if not more_body:
            await self._protocol.stream_send(EndBody(self._id))
            await self.abandon()

    async def abandon(self) -> None:
        await self._protocol.stream_send(StreamClosed(self._id))

    async def inform(self, status: int, headers: Headers) -> None:
        response = InformationalResponse(self._id, headers=headers, status_code=status)
        await self._protocol.stream_send(response)

    async def write_trailers(self, headers: Headers, more_trailers: bool) -> None:
        await self._protocol.stream_send(Trailers(self._id, headers=headers))
        if not more_trailers:
            await self.write_body(b"", False)

    async def push(self, path: bytes, headers: Headers) -> None:
        assert self._exchange is not None
        scope = self._exchange.scope
        request = [(b":scheme", scope["scheme"].encode())]
        request += [(b":authority", value) for name, value in scope["headers"] if name == b"host"]
        await self._protocol.stream_send(
            Request(
                self._id,
                headers=request + headers,
                http_version="2",
                method="GET",
                raw_path=path,
                state=scope["state"],
            )
        )

    async def accept(self, status: int, headers: Headers) -> None:
        await self._protocol.stream_send(Response(self._id, headers=headers, status_code=status))

    async def write_data(self, data: bytes) -> None:
        await self._protocol.stream_send(Data(self._id, data=data))

    async def end_data(self) -> None:
        await self._protocol.stream_send(EndData(self._id))

    async def release(self, *, linger: bool = False) -> None:
        await self.abandon()


class Finished:
    """Stands for any stream that is no more."""

    async def handle(self, event: Event) -> None: ...


class Streams(dict[int, Any]):
    """Hypercorn's dictionary of streams, which become ours on their way in."""

    def __init__(self, protocol: Http2) -> None:
        self._protocol = protocol

    def __setitem__(self, stream_id: int, stream: Any) -> None:
        super().__setitem__(stream_id, Stream(self._protocol, stream_id))

    def __missing__(self, stream_id: int) -> Finished:
        return Finished()

    def owe_request(self) -> bool:
        """Whether the client has begun a request, and could go on with it."""
        return any(stream.owes_request for stream in self.values())
