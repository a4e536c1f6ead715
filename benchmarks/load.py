"""The load generator: a process of its own, on raw sockets, that does as little as it can.

Each connection sends a request, waits for the whole response, and sends the next (a closed loop).
HTTP/1 responses are not parsed: a connection's first one is read with h11, and those that follow
must have its length, its first line and its end. The process reads one JSON object a line, an
order, and prints one for each, the result. Linux only, for epoll.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

import h11

from .servers import open_files

GET = b"GET %s HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nuser-agent: load\r\n%s\r\n"
BROWSER = b"""\
GET / HTTP/1.1
host: localhost:8000
user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0
accept: image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5
accept-language: en-US,en;q=0.5
accept-encoding: gzip, deflate, br, zstd
connection: keep-alive
referer: http://localhost:8000/some/page
cookie: session=7d1c3f0b9a2e48d6; theme=dark; seen=%d
sec-fetch-dest: image
sec-fetch-mode: no-cors
sec-fetch-site: same-origin
priority: u=5, i

""".replace(b"\n", b"\r\n")
UPGRADE = (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PATHS = {"stream": b"/stream", "megabyte": b"/megabyte"}
RECEIVE = 2**18
RECORD = 2**14
"""The largest TLS record."""

clock = time.perf_counter


class Failed(Exception):
    """The server sent an unexpected response, or none."""


@cache
def tls(protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the client is not measured
    context.set_alpn_protocols([protocol])
    return context


class Connection:
    """One HTTP/1.1 connection that sends request after request."""

    reconnects = False
    protocol = ""
    """The one to negotiate over TLS; empty without TLS."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.address = address
        self.request = request
        self.sent_at = 0.0
        self.connect()
        self.first = self.learn()
        self.left = 0

    def connect(self) -> None:
        self.socket: Any = socket.create_connection(self.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.protocol:
            self.socket = tls(self.protocol).wrap_socket(self.socket)
            # A server without ALPN, such as uvicorn, speaks HTTP/1.1.
            if (self.socket.selected_alpn_protocol() or TLS.protocol) != self.protocol:
                raise Failed(f"the server does not speak {self.protocol}")

    def learn(self) -> bytes:
        """Send a request, and return the bytes of the response, which h11 parses."""
        client = h11.Connection(h11.CLIENT)
        method = self.request.split(b" ", 1)[0]
        client.send(h11.Request(method=method, target="/", headers=[("host", "localhost")]))
        client.send(h11.EndOfMessage())
        self.socket.sendall(self.request)
        response = b""
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                data = self.socket.recv(RECEIVE)
                response += data
                client.receive_data(data)
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise Failed(event)
            elif isinstance(event, h11.EndOfMessage):
                return response

    def send(self, number: int = 1) -> None:
        """Send a request. Over HTTP/2, send ``number`` of them."""
        self.left = len(self.first)
        self.sent_at = clock()
        if self.socket.send(self.request) != len(self.request):
            raise Failed("a request did not fit into the socket's buffer")

    def receive(self) -> bytes:
        """Receive what has arrived. A larger buffer would take half of this process's time."""
        data: bytes = self.socket.recv(min(self.left + 1, RECEIVE))
        return data

    def read(self) -> int:
        """Read what has arrived. Return how many responses are complete."""
        data = self.receive()
        if self.left == len(self.first) and data[:12] != self.first[:12]:
            raise Failed(data[:100])
        self.left -= len(data)
        if self.left > 0 and data:
            return 0
        if self.left or data[-4:] != self.first[-4:]:
            raise Failed(f"{self.left} bytes are missing, the last are {data[-20:]!r}")
        return 1

    def close(self) -> None:
        self.socket.close()


class TLS(Connection):
    protocol = "http/1.1"


class Browser(Connection):
    """Twelve headers, of which the cookie has another value in each request."""

    numbers = count(10**9)

    def send(self, number: int = 1) -> None:
        self.request = BROWSER % next(self.numbers)
        super().send()


class OneShot(Connection):
    """A new connection for each request, which the server closes."""

    reconnects = True

    def learn(self) -> bytes:
        response = super().learn()
        self.socket.close()
        return response

    def send(self, number: int = 1) -> None:
        sent_at = clock()
        self.connect()
        super().send()
        self.sent_at = sent_at

    def read(self) -> int:
        data = self.receive()
        if not data:
            if self.left:
                raise Failed(f"closed with {self.left} bytes missing")
            self.socket.close()
            return 1
        self.left -= len(data)
        return 0


class WebSocket(Connection):
    """A text message and its echo."""

    MESSAGE = b"Hello, world!"

    def learn(self) -> bytes:
        self.socket.sendall(GET % (b"/", UPGRADE))
        response = b""
        while b"\r\n\r\n" not in response:
            response += self.socket.recv(RECEIVE)
        if not response.startswith(b"HTTP/1.1 101 "):
            raise Failed(response)
        # A mask of zeros is valid.
        self.request = bytes([0x81, 0x80 | len(self.MESSAGE)]) + bytes(4) + self.MESSAGE
        return bytes([0x81, len(self.MESSAGE)]) + self.MESSAGE


class Http2(Connection):
    """HTTP/2 over TLS, with ``streams`` requests in flight at any time."""

    protocol = "h2"

    def __init__(self, address: tuple[str, int], streams: int) -> None:
        self.streams = streams
        # :method GET, :path /, :scheme https, :authority localhost; RFC 7541's static table.
        self.headers = b"\x82\x84\x87\x01\x09localhost"
        self.next_id = 1
        self.buffer = b""
        super().__init__(address, b"")

    def learn(self) -> bytes:
        window = 2**31 - 1
        settings = struct.pack(">HLHL", 0x4, window, 0x2, 0)  # INITIAL_WINDOW_SIZE, no push
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + self.frame(0x4, 0, 0, settings)
            + self.frame(0x8, 0, 0, struct.pack(">L", window - 65_535))  # WINDOW_UPDATE
        )
        self.send(1)
        while not self.ended():
            self.buffer += self.socket.recv(RECEIVE)
        self.socket.setblocking(False)
        return b""

    @staticmethod
    def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
        return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream_id) + payload

    def send(self, number: int = 0) -> None:
        """Send ``number`` requests; with 0, as many as there are streams."""
        self.sent_at = clock()
        requests = b""
        for _ in range(number or self.streams):
            requests += self.frame(0x1, 0x5, self.next_id, self.headers)  # END_HEADERS, END_STREAM
            self.next_id += 2
        self.socket.send(requests)

    def ended(self) -> int:
        """Remove the complete frames from the buffer. Return how many streams they close."""
        ended = position = 0
        buffer = self.buffer
        while len(buffer) - position >= 9:
            word, flags, _ = struct.unpack_from(">LBL", buffer, position)
            length, kind = word >> 8, word & 0xFF
            if len(buffer) - position < 9 + length:
                break
            payload = position + 9
            if kind == 0x1 and buffer[payload] not in (0x88, 0x20, 0x3F):  # :status 200
                raise Failed(buffer[payload : payload + length])
            if kind in (0x3, 0x7):  # RST_STREAM, GOAWAY
                raise Failed(buffer[position:])
            if kind == 0x4 and not flags:
                self.socket.send(self.frame(0x4, 0x1, 0, b""))  # acknowledge the settings
            if kind in (0x0, 0x1):
                ended += flags & 0x1
            position = payload + length
        self.buffer = buffer[position:]
        return ended

    def read(self) -> int:
        while True:
            try:
                data = self.socket.recv(RECORD)
            except ssl.SSLWantReadError:
                break
            if not data:
                raise Failed("the server has closed the connection")
            self.buffer += data
        return self.ended()


def make(kind: str, address: tuple[str, int]) -> Connection:
    if kind.startswith("h2-"):
        return Http2(address, int(kind.removeprefix("h2-")))
    if kind == "websocket":
        return WebSocket(address, b"")
    if kind == "one-shot":
        return OneShot(address, GET % (b"/", b"connection: close\r\n"))
    if kind == "browser":
        return Browser(address, BROWSER % next(Browser.numbers))
    if kind == "tls":
        return TLS(address, GET % (b"/", b""))
    if kind == "post":
        post = GET.replace(b"GET", b"POST") % (b"/", b"content-length: 1024\r\n")
        return Connection(address, post + b"x" * 1024)
    return Connection(address, GET % (PATHS.get(kind, b"/"), b""))


class Clients:
    """Connections that load a server at the same time."""

    def __init__(self, kind: str, port: int, connections: int) -> None:
        self.connections = [make(kind, ("127.0.0.1", port)) for _ in range(connections)]
        self.epoll = select.epoll()
        self.by_fd: dict[int, Connection] = {}
        for connection in self.connections:
            connection.send()
            self.watch(connection)

    def watch(self, connection: Connection) -> None:
        self.by_fd[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket.fileno(), select.EPOLLIN)

    def load(self, over: Callable[[], bool]) -> dict[str, Any]:
        """Send and receive until ``over()`` is true. Return the results."""
        latencies: list[float] = []
        cpu, begin = time.process_time(), clock()
        while not over():
            for fd, _ in self.epoll.poll(0.1):
                connection = self.by_fd[fd]
                responses = connection.read()
                if not responses:
                    continue
                latencies += [clock() - connection.sent_at] * responses
                connection.send(responses)
                if connection.reconnects:
                    self.watch(connection)
        seconds = clock() - begin
        latencies.sort()
        return {
            "seconds": seconds,
            "rate": len(latencies) / seconds,
            "median": latencies[len(latencies) // 2] if latencies else seconds,
            "p99": latencies[len(latencies) * 99 // 100] if latencies else seconds,
            "busy": (time.process_time() - cpu) / seconds,
        }

    def close(self) -> None:
        self.epoll.close()
        for connection in self.connections:
            connection.close()


def after(seconds: float) -> Callable[[], bool]:
    end = clock() + seconds
    return lambda: clock() >= end


def run(kind: str, port: int, connections: int, seconds: float, warmup: float) -> dict[str, Any]:
    """Load the server; the responses of ``seconds`` count, those of ``warmup`` do not."""
    clients = Clients(kind, port, connections)
    clients.load(after(warmup))
    result = clients.load(after(seconds))
    clients.close()
    return result


def vanish(port: int, victims: int, server: int, files: int) -> dict[str, Any]:
    """Load the server while all clients of the process ``victims`` vanish at once.

    Return the rates before that, and from then until ``server`` has only ``files`` files open.
    """
    clients = Clients("get", port, 32)
    clients.load(after(0.3))
    before = clients.load(after(1))
    os.kill(victims, signal.SIGKILL)
    too_late = after(60)
    during = clients.load(lambda: open_files(server) <= files + 32 or too_late())
    if too_late():
        raise Failed(f"{open_files(server) - files} connections are not closed after a minute")
    clients.close()
    return {"before": before, "during": during}


def repeat(port: int, requests: int) -> dict[str, Any]:
    """Send so many requests in all, eight at the same time, then wait for their responses."""
    connections = [make("get", ("127.0.0.1", port)) for _ in range(8)]
    for _ in range(requests // len(connections)):
        for connection in connections:
            connection.send()
        for connection in connections:
            while not connection.read():
                pass
    for connection in connections:
        connection.close()
    return {}


idle: list[Connection] = []


def hold(port: int, connections: int) -> dict[str, Any]:
    """Open connections that have had one response each, and keep them."""
    idle.extend(make("get", ("127.0.0.1", port)) for _ in range(connections))
    return {}


def hold_streams(port: int, connections: int, streams: int) -> dict[str, Any]:
    """Open HTTP/2 connections with so many requests each, whose handlers wait, and keep them."""
    for _ in range(connections):
        connection = Http2(("127.0.0.1", port), streams)
        connection.headers = connection.headers.replace(b"\x84", b"\x04\x05/wait")
        connection.send()
        idle.append(connection)
    time.sleep(1)  # until the server has read all requests
    return {}


def release() -> dict[str, Any]:
    """Close the held connections one by one. Return when each was closed, by its port."""
    closed = {}
    for connection in idle:
        port = connection.socket.getsockname()[1]
        connection.close()
        closed[port] = time.monotonic()
        time.sleep(0.001)
    idle.clear()
    return closed


def main() -> None:
    orders: list[Callable[..., dict[str, Any]]] = [
        run,
        vanish,
        repeat,
        hold,
        hold_streams,
        release,
    ]
    commands = {order.__name__: order for order in orders}
    for line in sys.stdin:
        order = json.loads(line)
        result = commands[order.pop("command")](**order)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
