"""The load generator: a process of its own, on raw sockets, that does as little as it can.

Each connection asks, waits for the whole answer, and asks again (a closed loop). HTTP/1
answers are not parsed: a connection's first one is read with h11, and those that follow must
have its length, its first line and its end. It reads one JSON object a line, an order, and prints
one for each, the result. Linux only, for epoll.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import h11

GET = b"GET %s HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nuser-agent: load\r\n%s\r\n"
UPGRADE = (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PATHS = {"get": b"/", "stream": b"/stream", "megabyte": b"/megabyte"}
RECEIVE = 2**18


class Failed(Exception):
    """The server answered something else than before."""


class Connection:
    """One HTTP/1.1 connection that asks again and again."""

    reconnects = False

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.address = address
        self.request = request
        self.asked = 0.0
        self.connect()
        self.first = self.learn()
        self.left = 0

    def connect(self) -> None:
        self.socket: Any = socket.create_connection(self.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def learn(self) -> bytes:
        """The first answer's bytes, read carefully."""
        client = h11.Connection(h11.CLIENT)
        method = self.request.split(b" ", 1)[0]
        client.send(h11.Request(method=method, target="/", headers=[("host", "localhost")]))
        client.send(h11.EndOfMessage())
        self.socket.sendall(self.request)
        answer = b""
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                data = self.socket.recv(RECEIVE)
                answer += data
                client.receive_data(data)
            elif isinstance(event, h11.Response) and event.status_code != 200:
                raise Failed(event)
            elif isinstance(event, h11.EndOfMessage):
                return answer

    def ask(self, number: int = 1) -> None:
        self.left = len(self.first)
        self.asked = time.perf_counter()
        if self.socket.send(self.request) != len(self.request):
            raise Failed("a request did not fit into the socket's buffer")

    def read(self) -> int:
        """What is there; how many answers are complete."""
        data = self.socket.recv(RECEIVE)
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


class OneShot(Connection):
    """A new connection for each request, which the server closes."""

    reconnects = True

    def learn(self) -> bytes:
        answer = super().learn()
        self.socket.close()
        return answer

    def ask(self, number: int = 1) -> None:
        self.left = len(self.first)
        self.asked = time.perf_counter()
        self.connect()
        self.socket.send(self.request)

    def read(self) -> int:
        data = self.socket.recv(RECEIVE)
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
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.socket.recv(RECEIVE)
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise Failed(answer)
        # A mask of zeros is a mask.
        self.request = bytes([0x81, 0x80 | len(self.MESSAGE)]) + bytes(4) + self.MESSAGE
        return bytes([0x81, len(self.MESSAGE)]) + self.MESSAGE


class Http2(Connection):
    """HTTP/2 over TLS, with so many streams at work at any time."""

    def __init__(self, address: tuple[str, int], streams: int) -> None:
        self.streams = streams
        self.next_id = 1
        self.buffer = b""
        super().__init__(address, b"")

    def connect(self) -> None:
        super().connect()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what is measured is not the client
        context.set_alpn_protocols(["h2"])
        self.socket = context.wrap_socket(self.socket)
        if self.socket.selected_alpn_protocol() != "h2":
            raise Failed("the server does not speak HTTP/2")

    def learn(self) -> bytes:
        window = 2**31 - 1
        settings = struct.pack(">HLHL", 0x4, window, 0x2, 0)  # INITIAL_WINDOW_SIZE, no push
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + self.frame(0x4, 0, 0, settings)
            + self.frame(0x8, 0, 0, struct.pack(">L", window - 65_535))  # WINDOW_UPDATE
        )
        self.ask(1)
        while not self.ended():
            self.buffer += self.socket.recv(RECEIVE)
        self.socket.setblocking(False)
        return b""

    @staticmethod
    def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
        return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream_id) + payload

    def ask(self, number: int = 0) -> None:
        """As many requests as were answered, at first as many as there are streams."""
        self.asked = time.perf_counter()
        # :method GET, :path /, :scheme https, :authority localhost; RFC 7541's static table.
        headers = b"\x82\x84\x87\x01\x09localhost"
        requests = b""
        for _ in range(number or self.streams):
            requests += self.frame(0x1, 0x5, self.next_id, headers)  # END_HEADERS, END_STREAM
            self.next_id += 2
        self.socket.send(requests)

    def ended(self) -> int:
        """Take the whole frames out of the buffer; how many streams they end."""
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
                data = self.socket.recv(RECEIVE)
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
    if kind == "post":
        post = GET.replace(b"GET", b"POST") % (b"/", b"content-length: 1024\r\n")
        return Connection(address, post + b"x" * 1024)
    return Connection(address, GET % (PATHS[kind], b""))


def run(kind: str, port: int, connections: int, seconds: float, warmup: float) -> dict[str, Any]:
    """Load the server; the answers of ``seconds`` that begin after ``warmup`` count."""
    address = ("127.0.0.1", port)
    open_now = [make(kind, address) for _ in range(connections)]
    clock = time.perf_counter
    latencies: list[float] = []
    with select.epoll() as epoll:
        by_fd: dict[int, Connection] = {}

        def watch(connection: Connection) -> None:
            by_fd[connection.socket.fileno()] = connection
            epoll.register(connection.socket.fileno(), select.EPOLLIN)

        for connection in open_now:
            connection.ask()
            watch(connection)
        begin = clock() + warmup
        end = begin + seconds
        cpu = 0.0
        now = clock()
        while now < end:
            for fd, _ in epoll.poll(1):
                connection = by_fd[fd]
                answers = connection.read()
                if not answers:
                    continue
                now = clock()
                if now >= begin:
                    if not cpu:
                        cpu = time.process_time()
                    latencies += [now - connection.asked] * answers
                connection.ask(answers)
                if connection.reconnects:
                    watch(connection)
            now = clock()
        cpu = time.process_time() - cpu
    for connection in open_now:
        connection.close()
    latencies.sort()
    return {
        "rate": len(latencies) / seconds,
        "p99": latencies[len(latencies) * 99 // 100],
        "busy": cpu / seconds,
    }


idle: list[Connection] = []


def hold(port: int, connections: int) -> dict[str, Any]:
    """Open connections that have had one answer each, and keep them."""
    idle.extend(make("get", ("127.0.0.1", port)) for _ in range(connections))
    return {}


def release() -> dict[str, Any]:
    """Close what was kept, one after the other; when each was closed, by its port."""
    closed = {}
    for connection in idle:
        port = connection.socket.getsockname()[1]
        connection.close()
        closed[port] = time.monotonic()
        time.sleep(0.001)
    idle.clear()
    return closed


def main() -> None:
    os.sched_setaffinity(0, {int(sys.argv[1])})
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "run": run,
        "hold": hold,
        "release": release,
    }
    for line in sys.stdin:
        order = json.loads(line)
        result = commands[order.pop("command")](**order)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
