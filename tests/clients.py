"""Clients by hand, over any stream, for what a well-behaved client library cannot do."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h11
import trio
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame


async def read_response(stream: Any, connection: h11.Connection) -> tuple[int, bytes]:
    """The next response's status and body."""
    status, body = 0, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, body


async def http1(
    stream: Any, method: str = "GET", path: str = "/", *, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """One request and its response, on a connection that may go on afterwards."""
    connection = h11.Connection(h11.CLIENT)
    fields = [
        ("Host", headers.pop("host", "localhost")),
        *((k.replace("_", "-"), v) for k, v in headers.items()),
    ]
    request = connection.send(h11.Request(method=method, target=path, headers=fields))
    data = connection.send(h11.Data(body)) if body else b""
    end = connection.send(h11.EndOfMessage())
    await stream.send_all(request + data + end)
    return await read_response(stream, connection)


async def read_to_end(stream: Any) -> bytes:
    received = b""
    try:
        while data := await stream.receive_some():
            received += data
    except trio.BrokenResourceError:
        pass  # reset after what was read
    return received


class Http2:
    """An HTTP/2 client that sends its preface on request."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.statuses: dict[int, str] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()

    async def start(self) -> None:
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send_all(data)

    def request(self, path: str = "/", method: str = "GET", *, end: bool = True) -> int:
        """Queue a request; :meth:`flush` sends it."""
        stream_id: int = self.h2.get_next_available_stream_id()
        headers = [
            (":method", method),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", path),
        ]
        self.h2.send_headers(stream_id, headers, end_stream=end)
        return stream_id

    async def pump(self) -> bool:
        """Handle what the server sends next; false at its end."""
        data = await self.stream.receive_some()
        for event in self.h2.receive_data(data):
            self.note(event)
        await self.flush()
        return bool(data)

    def note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.statuses[event.stream_id] = dict(event.headers)[b":status"].decode()
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.reset.add(event.stream_id)

    async def get(self, path: str = "/") -> tuple[str, bytes]:
        stream_id = self.request(path)
        await self.flush()
        while stream_id not in self.ended and await self.pump():
            pass
        return self.statuses[stream_id], self.bodies.get(stream_id, b"")

    async def post(self, path: str, body: bytes) -> tuple[str, bytes]:
        """Upload as fast as the windows allow, and read the response."""
        stream_id = self.request(path, "POST", end=False)
        while body:
            window = self.h2.local_flow_control_window(stream_id)
            length = min(window, self.h2.max_outbound_frame_size)
            if not length:
                await self.flush()
                await self.pump()
            else:
                self.h2.send_data(stream_id, body[:length])
                body = body[length:]
        self.h2.end_stream(stream_id)
        await self.flush()
        while stream_id not in self.ended and await self.pump():
            pass
        return self.statuses[stream_id], self.bodies.get(stream_id, b"")

    async def websocket(self, path: str, *, accepted: bool = True) -> int:
        """Open a WebSocket on a stream of its own (RFC 8441)."""
        stream_id: int = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":authority", "localhost"),
            (":path", path),
            ("sec-websocket-version", "13"),
        ]
        self.h2.send_headers(stream_id, headers)
        await self.flush()
        while accepted and stream_id not in self.statuses:
            await self.pump()
        return stream_id


class GoAwayHttp2(Http2):
    """An HTTP/2 client that reads on after a GOAWAY, as h2 by itself cannot."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.seen: list[tuple[float, str, int]] = []  # what ends streams, or the connection
        self.last: int | None = None  # the last stream that is served, as far as it is known
        self._unread = b""

    async def pump(self) -> bool:
        data = bytes(await self.stream.receive_some())
        self._unread += data
        while len(self._unread) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._unread[:9]))
            if len(self._unread) < 9 + length:
                break
            whole, self._unread = self._unread[: 9 + length], self._unread[9 + length :]
            frame.parse_body(memoryview(whole[9:]))
            if isinstance(frame, GoAwayFrame):
                self.last = frame.last_stream_id
                self.seen.append((trio.current_time(), "goaway", frame.last_stream_id))
                continue
            if isinstance(frame, RstStreamFrame):
                self.seen.append((trio.current_time(), "reset", frame.error_code))
            for event in self.h2.receive_data(whole):
                self.note(event)
        await self.flush()
        return bool(data)

    async def run(self) -> None:
        while await self.pump():
            pass
        self.seen.append((trio.current_time(), "end", 0))
        await self.stream.aclose()
