"""Clients that see what a server does to their connection."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress
from typing import Any

import hpack
import trio
import wsproto
import wsproto.events
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, PingFrame, SettingsFrame

from .servers import Running

LIMIT = 75
"""Seconds after which nothing more is expected to happen."""


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


async def response(stream: trio.abc.ReceiveStream) -> str:
    """What comes: a whole response, or not."""
    data = b""
    try:
        while b"\r\n\r\n" not in data or not data.endswith((b"done", b"0\r\n\r\n")):
            received = await stream.receive_some(2**16)
            if not received:
                return f"cut off ({data[:12].decode()!r})" if data else "no response"
            data += received
    except trio.BrokenResourceError:
        return "no response (reset)"
    head = data.partition(b"\r\n\r\n")[0].lower()
    return data[9:12].decode() + (", connection: close" if b"connection: close" in head else "")


async def closes(stream: trio.abc.ReceiveStream, seconds: float = LIMIT) -> str:
    """When the server closes, and what it has sent before."""
    began, data = trio.current_time(), b""
    with trio.move_on_after(seconds):
        try:
            while received := await stream.receive_some(2**16):
                data += received
            how = "closed"
        except trio.BrokenResourceError:
            how = "reset"
        status = f", {data[9:12].decode()}" if data.startswith(b"HTTP/1.1 ") else ""
        return f"{how} after {trio.current_time() - began:.1f} s{status}"
    return f"open for over {seconds} s"


async def vanish(stream: trio.SocketStream, *, reset: bool) -> None:
    if reset:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()


class WebSocket:
    """A client of one, which replies to a close frame if it has the time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)

    async def connect(self, path: str) -> None:
        request = wsproto.events.Request(host="localhost", target=path)
        await self.stream.send_all(self.protocol.send(request))
        event = await self.event()
        assert isinstance(event, wsproto.events.AcceptConnection), event

    async def event(self) -> wsproto.events.Event | None:
        while True:
            for event in self.protocol.events():
                return event
            try:
                received = await self.stream.receive_some(2**16)
            except trio.BrokenResourceError:
                received = b""
            if not received:
                return None
            self.protocol.receive_data(received)

    async def end(self) -> str:
        """How it ends: by a close frame, or without."""
        while True:
            event = await self.event()
            if event is None:
                return "no close frame"
            if isinstance(event, wsproto.events.CloseConnection):
                await self.stream.send_all(self.protocol.send(event.response()))
                return f"close frame {event.code:d}"


class Http2:
    """A client of HTTP/2 over TLS that reads on after a GOAWAY, which h2 cannot."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.encoder = hpack.Encoder()
        self.received = b""
        self.stream_id = -1
        self.frames: list[tuple[float, Frame]] = []

    async def connect(self) -> bool:
        """Whether the server negotiates HTTP/2."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what is measured is not the client
        context.set_alpn_protocols(["h2", "http/1.1"])
        self.stream = trio.SSLStream(
            await self.running.connect(),
            context,
            server_hostname="localhost",
            https_compatible=True,
        )
        await self.stream.do_handshake()
        if self.stream.selected_alpn_protocol() != "h2":
            return False
        await self.stream.send_all(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
        )
        await self.read(0.3)
        return True

    async def get(self, path: str) -> None:
        self.stream_id += 2
        names = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "a")]
        flags = ["END_HEADERS", "END_STREAM"]
        frame = HeadersFrame(self.stream_id, self.encoder.encode(names), flags=flags)
        await self.stream.send_all(frame.serialize())

    async def read(self, seconds: float) -> None:
        """Note what comes, until the time is over or nothing more can come after a GOAWAY."""
        with trio.move_on_after(seconds), suppress(trio.BrokenResourceError):
            while received := await self.stream.receive_some(2**16):
                self.received += received
                await self.parse()
                if self.find(GoAwayFrame) and (self.stream_id < 0 or self.complete()):
                    await self.stream.aclose()
                    return

    async def parse(self) -> None:
        while len(self.received) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self.received[:9]))
            if len(self.received) < 9 + length:
                return
            frame.parse_body(memoryview(self.received[9 : 9 + length]))
            self.received = self.received[9 + length :]
            self.frames.append((trio.current_time(), frame))
            if isinstance(frame, SettingsFrame | PingFrame) and "ACK" not in frame.flags:
                if isinstance(frame, PingFrame):
                    reply: Frame = PingFrame(0, frame.opaque_data, flags=["ACK"])
                else:
                    reply = SettingsFrame(0, flags=["ACK"])
                await self.stream.send_all(reply.serialize())

    def find(self, kind: type[Frame]) -> list[tuple[float, Any]]:
        return [(at, frame) for at, frame in self.frames if isinstance(frame, kind)]

    def complete(self) -> float | None:
        """When the response of the last stream was complete."""
        for at, frame in self.frames:
            if frame.stream_id == self.stream_id and "END_STREAM" in frame.flags:
                return at
        return None
