"""Bad input, much of it, against the real worker: ``python -m tests.fuzz``.

Each connection is made from ``random.Random(f"{seed} {index}")`` and nothing else: its bytes,
their chunks, how it ends. So ``--seed S --only I`` does one of them again, and shows it. Its
client has an address of its own, made from the index, by which the server's log and the
tracker know it again.

While they run, good clients must get right answers in time and the event loop must come
round; afterwards nothing may be left of them, and nothing in the log but the application's
own errors, for a client must not be able to fill an operator's log with tracebacks.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import re
import ssl
import struct
import sys
import tempfile
import time
import traceback
import zlib
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import count, pairwise, takewhile
from pathlib import Path
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import hpack
import trio
from hypercorn.config import Config
from trio.testing import wait_all_tasks_blocked
from trio_websocket import open_websocket

from trio_httptrack import Conn, ConnState, tracked_server
from trio_httptrack._hypercorn.connection import H2_PREFACE, Connection
from trio_httptrack._states import TRANSITIONS

from .clients import Http2, http1
from .support import CERT, client_ssl, respond
from .test_faults import GRACE, open_files, reset

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

IN_TIME = 5  # seconds for whatever should happen soon, on a busy machine
STALL = 1  # seconds for one round of the event loop
ENOUGH = 300_000  # bytes that a client reads of an endless answer
FIRST_ADDRESS = int(ip_address("127.1.0.0"))
LOST = (trio.BrokenResourceError, trio.ClosedResourceError)
OWN = "the application's own error"
TLS = {alpn: client_ssl(*filter(None, [alpn])) for alpn in ("h2", "http/1.1", "")}

say = partial(print, flush=True)


# Input: good messages, some of them odd, then mutated

PATHS = b"small echo stream endless raise raise-after return disconnect extras push never".split()
PATHS += b"refuse reject".split()  # of http and websocket: each answers the other's somehow
TARGETS = [
    b"*",
    b"",
    b"/%ff",
    b"/\xff",
    b"/?\xff",
    b"/?%ff",
    b"http://localhost/",
    b"/" + b"x" * 9000,
]
HELLO_SETTINGS = bytes.fromhex("00030000006400040000ffff")
UPGRADE = [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"]
FIELDS = [
    (b"host", b"elsewhere"),
    (b"host", b"\xff"),
    (b"content-length", b"5"),
    (b"content-length", b"-1"),
    (b"content-length", b"9" * 30),
    (b"transfer-encoding", b"chunked"),
    (b"transfer-encoding", b"gzip"),
    (b"connection", b"close"),
    (b"connection", b"upgrade"),
    (b"connection", b"caf\xe9"),
    (b"upgrade", b"h2c"),
    (b"upgrade", b"websocket"),
    (b"http2-settings", b"AAM"),
    (b"http2-settings", b"\xff"),
    (b"http2-settings", b"AAMAAABkAAQAAP__"),
    (b"expect", b"100-continue"),
    (b"expect", b"something"),
    (b"te", b"trailers"),
    (b"sec-websocket-version", b"8"),
    (b"sec-websocket-key", b"\xe9"),
    (b"sec-websocket-protocol", b"a, \xe9"),
    (b"sec-websocket-extensions", b"permessage-deflate; client_max_window_bits=99"),
    (b"sec-websocket-extensions", b"permessage-deflate; server_max_window_bits=x"),
    (b"sec-websocket-extensions", b"permessage-deflate"),
    (b"x", b"x" * 20_000),
    (b"x", b"\x00"),
    (b"", b""),
    (b"X-Upper", b" spaces "),
    (b"cookie", b"a=b"),
    (b":path", b"/again"),
    (b":protocol", b"websocket"),
    (b":status", b"200"),
]


def mutate(rng: Random, data: bytes) -> bytes:
    """A few bytes, or lines, are changed, added, doubled, moved, or gone."""
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + int(rng.paretovariate(0.7)))
        lines = data.split(b"\r\n")
        line = rng.randrange(len(lines))
        change = rng.randrange(9)
        if change == 0 and data:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        elif change == 1:
            data = data[:start] + rng.choice([b"\x00", b"\xff", b"\r\n", b"\n", b" "]) + data[stop:]
        elif change == 2:
            data = data[:start] + rng.randbytes(rng.randrange(1, 20)) + data[start:]
        elif change == 3:
            data = data[:start] + data[stop:]
        elif change == 4:
            data = data[:stop] + data[start:]
        elif change == 5:
            data = data[:stop]
        elif change == 6:
            data = b"\r\n".join([*lines[:line], *lines[line + 1 :]])
        elif change == 7:
            data = b"\r\n".join([*lines[:line], lines[line], *lines[line:]])
        else:
            data = data[:start] + rng.choice([http1_input, http2_input])(rng)
    return data


def odd_target(rng: Random) -> bytes:
    return b"/" + rng.choice(PATHS) if rng.random() < 0.95 else rng.choice(TARGETS)


def http1_input(rng: Random) -> bytes:
    data = b""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        kind = rng.choice(
            [
                "get",
                "head",
                "post",
                "chunked",
                "expect",
                "close",
                "1.0",
                "h2c",
                "websocket",
                "websocket",
            ]
        )
        method, lines, body = b"GET", [b"Host: localhost"], b""
        if kind == "head":
            method = b"HEAD"
        elif kind == "post":
            method, body = b"POST", rng.randbytes(rng.choice([0, 1, 100, 50_000]))
            lines.append(b"Content-Length: %d" % len(body))
        elif kind in ("chunked", "expect"):
            method = b"POST"
            lines.append(b"Transfer-Encoding: chunked")
            lines += [b"Expect: 100-continue"] * (kind == "expect")
            body = b"5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\n" + rng.choice([b"", b"X: y\r\n"]) + b"\r\n"
        elif kind == "close":
            lines.append(b"Connection: close")
        elif kind == "h2c":
            settings = urlsafe_b64encode(HELLO_SETTINGS)
            lines += [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"]
            lines.append(b"HTTP2-Settings: " + settings)
            body = http2_input(rng, first=3)
        elif kind == "websocket":
            lines += [*UPGRADE, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
            lines += [b"Sec-WebSocket-Extensions: permessage-deflate"] * rng.randrange(2)
            body = websocket_input(rng)
        while rng.random() < 0.2:
            lines.insert(rng.randrange(len(lines) + 1), b": ".join(rng.choice(FIELDS)))
        version = b"1.0" if kind == "1.0" else b"1.1"
        data += b"%s %s HTTP/%s\r\n" % (method, odd_target(rng), version)
        data += b"\r\n".join([*lines, b"", body])
    return data


def websocket_input(rng: Random) -> bytes:
    """Frames, masked by a mask of ours: a library's would not be the same again."""
    deflate = zlib.compressobj(wbits=-15)
    squeezed = deflate.compress(b"squeezed") + deflate.flush(zlib.Z_SYNC_FLUSH)
    frames = [
        *[(0x81, b"text"), (0x82, b"bytes"), (0x89, b"ping"), (0x8A, b"pong")] * 3,
        *[(0x81, b"bye"), (0x88, b"\x03\xe8"), (0x01, b"part"), (0x00, b"part"), (0x80, b"end")]
        * 2,
        *[(0xC1, squeezed[:-4]), (0xC1, b"not"), (0xC2, squeezed), (0xC9, b""), (0xF1, b"")],
        *[(0x81, b"\xff"), (0x81, b"\xc3"), (0x82, b"x" * 40_000), (0x83, b""), (0x8B, b"")],
        *[(0x88, b""), (0x88, b"\x03"), (0x88, b"\x03\xed"), (0x88, b"\x03\xe8\xff")],
        *[(0x09, b""), (0x89, b"x" * 126), (0x88, b"\x00\x00"), (0x08, b"\x03\xe8")],
    ]
    data = b""
    for first, payload in rng.choices(frames, k=rng.randrange(1, 8)):
        size, mask = len(payload), rng.randbytes(4) if len(payload) < 126 else bytes(4)
        second, length = (0x80 | size, b"") if size < 126 else (0xFE, size.to_bytes(2, "big"))
        masked = (
            bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if any(mask) else payload
        )
        data += bytes([first, second]) + length + mask + masked
    return data


DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW, CONTINUATION = (
    range(10)
)
Frame = tuple[int, int, int, bytes]  # type, flags, stream, body


def http2_input(rng: Random, first: int = 1) -> bytes:
    encoder = hpack.Encoder()
    settings = rng.choice([b"", HELLO_SETTINGS, bytes.fromhex("0004") + rng.choice(NUMBERS)])
    frames: list[Frame] = [(SETTINGS, 0, 0, settings), (WINDOW, 0, 0, b"\x00\x0f\x00\x00")]
    begun: list[list[Frame]] = []
    last = first + 2 * rng.randrange(1, 6)
    for stream in range(first, last, 2):
        head, rest = http2_request(rng, encoder, stream)
        frames += head
        begun.append(rest)
        while (going := [rest for rest in begun if rest]) and rng.random() < 0.6:
            frames.append(rng.choice(going).pop(0))
    frames += [frame for rest in begun for frame in rest]
    while rng.random() < 0.6:
        place = rng.randrange(len(frames) + 1)
        kind, flags, stream, body = frames[min(place, len(frames) - 1)]
        change = rng.randrange(10)
        if change < 5:
            frames[place:place] = odd_frames(rng, rng.randrange(first, last + 2))
        elif change == 5:
            frames[place : place + 1] = []
        elif change == 6:
            frames.insert(place, (kind, flags ^ rng.choice([1, 4, 8, 32]), stream, body))
        elif change == 7:
            frames.insert(place, (rng.randrange(12), flags, stream, body))
        elif change == 8:
            frames.insert(place, (kind, flags, rng.randrange(last + 4), body))
        else:
            frames.insert(place, frames.pop(rng.randrange(len(frames))))
    return H2_PREFACE + b"".join(map(pack, frames))


def pack(frame: Frame) -> bytes:
    kind, flags, stream, body = frame
    return struct.pack("!I", len(body))[1:] + struct.pack("!BBI", kind, flags, stream) + body


NUMBERS = [struct.pack("!I", n) for n in (0, 1, 2, 5, 16_384, 2**24, 2**31 - 1, 2**31, 2**32 - 1)]


def http2_request(
    rng: Random, encoder: hpack.Encoder, stream: int
) -> tuple[list[Frame], list[Frame]]:
    kind = rng.choice(
        ["get", "head", "post", "post", "padded", "trailers", "websocket", "websocket"]
    )
    method = {"get": b"GET", "head": b"HEAD", "websocket": b"CONNECT"}.get(kind, b"POST")
    fields = [(b":method", method), (b":scheme", b"http"), (b":authority", b"localhost")]
    fields.append((b":path", odd_target(rng)))
    rest: list[Frame] = []
    if kind == "websocket":
        fields += [(b":protocol", b"websocket"), (b"sec-websocket-version", b"13")]
        rest = [(DATA, 0, stream, websocket_input(rng)), (DATA, rng.randrange(2), stream, b"")]
    elif kind == "padded":
        rest = [(DATA, 8 | 1, stream, b"\x05hello" + bytes(5))]
    elif kind in ("post", "trailers"):
        sizes = rng.choices([0, 1, 100, 16_384], k=rng.randrange(1, 6))
        rest = [(DATA, 0, stream, rng.randbytes(size)) for size in sizes]
        if kind == "post":
            rest.append((DATA, 1, stream, b""))
    while rng.random() < 0.2:
        if rng.random() < 0.6:
            fields.insert(rng.randrange(len(fields) + 1), rng.choice(FIELDS))
        else:
            fields.pop(rng.randrange(len(fields)))
    block = encoder.encode(fields, huffman=rng.random() < 0.5)
    end = int(kind in ("get", "head"))
    parts = [block[i : i + 16_000] for i in range(0, len(block), 16_000)] or [b""]
    if rng.random() < 0.1:
        parts = [bytes([byte]) for byte in block]
    head: list[Frame] = []
    for i, part in enumerate(parts):
        flags = 4 * (i == len(parts) - 1) | (end if i == 0 else 0)
        head.append((CONTINUATION if i else HEADERS, flags, stream, part))
    if kind == "trailers":  # in the order of encoding, which is that of the blocks
        head += rest
        rest = []
        head.append((HEADERS, 4 | 1, stream, encoder.encode([(b"x", b"y"), rng.choice(FIELDS)])))
    if rng.random() < 0.1:
        rest.append((RST_STREAM, 0, stream, rng.choice(NUMBERS)))
    return head, rest


def odd_frames(rng: Random, stream: int) -> list[Frame]:
    number = rng.choice(NUMBERS)
    block = b"\x82\x86\x84\x01\x09localhost"  # get, without the encoder's dynamic table
    flood = rng.choice([2, 50, 500])
    odd: list[list[Frame]] = [
        [(WINDOW, 0, rng.choice([0, stream]), number)],
        [(WINDOW, 0, stream, b"\x00\x00\x00\x01")] * flood,
        [(SETTINGS, 0, 0, struct.pack("!H", rng.randrange(1, 12)) + number)],
        [(SETTINGS, rng.randrange(2), rng.randrange(2), number)],
        [(SETTINGS, 0, 0, b"")] * flood,
        [(SETTINGS, 1, 0, b"")],
        [(PING, rng.randrange(2), rng.randrange(2), b"x" * rng.choice([7, 8]))] * flood,
        [(RST_STREAM, 0, stream, number)],
        [(RST_STREAM, 0, s, number) for s in range(stream + 4)],
        [(DATA, rng.randrange(2), stream, b"x" * 100)] * flood,
        [(DATA, 8, stream, b"\xff" + b"x" * 100)],
        [(DATA, 8, stream, b"\xff" + bytes(255))] * flood,
        [(HEADERS, 4 | 1, stream, block)],
        [(HEADERS, 0, stream, block)],
        [(HEADERS, 4 | 1, stream, rng.randbytes(20))],
        [(HEADERS, 4 | 1 | 32, stream, struct.pack("!I", stream) + b"\x10" + block)],
        [(HEADERS, 0, stream, b"")] + [(CONTINUATION, 0, stream, b"")] * flood,
        [(CONTINUATION, 4, stream, block)],
        [(PUSH_PROMISE, 4, stream, number + block)] * flood,
        [(PRIORITY, 0, stream, struct.pack("!IB", rng.randrange(stream + 9), 7))],
        [(PRIORITY, 0, s, number + b"\x10") for s in range(1, 2 * flood, 2)],
        [(GOAWAY, 0, 0, number + number + b"bye")],
        [(rng.randrange(10, 256), rng.randrange(256), stream, rng.randbytes(9))] * flood,
    ]
    s = stream | 1
    rapid = [[(HEADERS, 5, n, block), (RST_STREAM, 0, n, number)] for n in range(s, s + flood, 2)]
    odd.append([frame for pair in rapid for frame in pair])
    return rng.choice(odd)


# What one connection does


@dataclass(frozen=True)
class Plan:
    tls: bool
    alpn: str | None  # None: no handshake
    deaf: bool  # stops reading
    end: str
    chunks: list[tuple[bytes, int, bool]]  # bytes, checkpoints behind them, whether under TLS


def make_plan(seed: int, index: int) -> Plan:
    rng = Random(f"{seed} {index}")
    kind = rng.choices(["plain", "h2", "http/1.1", "", "garbage"], [80, 8, 6, 2, 4])[0]
    if kind == "garbage" and rng.random() < 0.5:
        data = rng.choice([CLIENT_HELLO, CLIENT_HELLO, rng.randbytes(50)])
    else:
        data = (http2_input if kind == "h2" or rng.random() < 0.4 else http1_input)(rng)
    if rng.random() < 0.5:
        data = mutate(rng, data)
    size = rng.choice([len(data), 9, 24, 100, 1000]) or 1
    size = max(size, len(data) // 100)
    cuts = sorted({0, *(rng.randrange(len(data) + 1) for _ in range(len(data) // size)), len(data)})
    pieces = [data[start:stop] for start, stop in pairwise(cuts)]
    chunks = [(piece, rng.choice([0, 0, 1, 5]), rng.random() < 0.01) for piece in pieces]
    end = rng.choice(["close", "reset", "half-close", "half-close"])
    chunks.append((b"", rng.choice([0, 1, 10, 50]), False))
    alpn = None if kind in ("plain", "garbage") else kind
    deaf = end in ("close", "reset") and rng.random() < 0.3
    return Plan(kind != "plain", alpn, deaf, end, chunks)


def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        TLS["h2"].wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


CLIENT_HELLO = client_hello()


# The application


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Does as its path says."""
    if scope["type"] == "lifespan":
        while True:
            await send({"type": (await receive())["type"] + ".complete"})
    elif scope["type"] == "http":
        await http(scope, receive, send)
    else:
        await websocket(scope["path"], receive, send)


async def http(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    if path == "/raise":
        raise ValueError(OWN)
    if path == "/return":
        return
    if path == "/disconnect":
        while (await receive())["type"] != "http.disconnect":
            pass
    if path == "/extras" and scope["http_version"] == "2":
        await send({"type": "http.response.early_hint", "links": [b"</x>; rel=preload"]})
        await send({"type": "http.response.push", "path": "/stream", "headers": []})
    if path == "/echo":
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event["body"], event["more_body"]
        await respond(send, body)
    elif path in ("/stream", "/endless", "/raise-after"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in count():
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            if path == "/raise-after":
                raise ValueError(OWN)
            if part > 2 and (path == "/stream" or scope["method"] == "HEAD"):
                break
        await send({"type": "http.response.body"})
    else:
        await respond(send, path.encode())


async def websocket(path: str, receive: Any, send: Any) -> None:
    await receive()
    if path == "/raise":
        raise ValueError(OWN)
    if path == "/refuse":
        await send({"type": "websocket.close"})
    elif path == "/reject":
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no"})
    elif path == "/never":
        while (await receive())["type"] != "websocket.disconnect":
            pass
    elif path != "/return":
        await send({"type": "websocket.accept"})
        if path == "/raise-after":
            raise ValueError(OWN)
        while path == "/push":
            await send({"type": "websocket.send", "bytes": b"x" * 1000})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})
            if event["text"] == "bye":
                await send({"type": "websocket.close"})


# What is watched


class Log(logging.Handler):
    """Errors that are not the application's, by what and where they are."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.rows: dict[tuple[str, str, str], list[int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        conn = next((arg for arg in record.args or () if isinstance(arg, Conn)), None)
        error = record.exc_info[1] if record.exc_info else None
        for leaf in leaves(error):
            if str(leaf) != OWN:
                what = f"{type(leaf).__name__}: {str(leaf)[:200]}"
                what = re.sub(r"0x\w+|\d+|b?'[^']*'|b?\"[^\"]*\"", "_", what)
                row = (record.msg.partition(" (")[0], what, where(leaf))
                self.rows.setdefault(row, []).append(index_of(conn))


def leaves(error: BaseException | None) -> Iterator[BaseException | None]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    else:
        yield error


def where(error: BaseException | None) -> str:
    """Who raised it, and who of Hypercorn or us is to blame for it."""
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    ours = [f for f in frames if "httptrack" in f.filename or "hypercorn" in f.filename]
    names = [
        f"{'/'.join(Path(f.filename).parts[-3:])}:{f.lineno}" for f in (*ours[-2:], *frames[-1:])
    ]
    return " > ".join(dict.fromkeys(names))


def index_of(conn: Conn | None) -> int:
    """Which connection of the fuzzer's; negative if it is another."""
    return int(ip_address(conn.client[0])) - FIRST_ADDRESS if conn and conn.client else -1


class Rounds(trio.abc.Instrument):
    """The longest time that the event loop took between two looks at its sockets."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._began = time.perf_counter()

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        self.worst = max(self.worst, time.perf_counter() - self._began)


class Fuzz:
    """One server, its bad clients and its good ones; a tracker that judges what it is told."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.failures: list[str] = []
        self.log = Log()
        self.done = 0
        self.answers: Counter[str] = Counter()
        self.slowest = 0.0
        self.reasons: Counter[str | None] = Counter()
        self._accepted = 0
        self._states: WeakKeyDictionary[Conn, ConnState] = WeakKeyDictionary()
        self._conns: dict[int, Conn] = {}
        self._in_flight: set[int] = set()
        self._attacked = trio.Event()
        self._stopped = trio.Event()
        self._ports: dict[bool, int] = {}

    def fail(self, message: str) -> None:
        self.failures.append(f"seed {self.seed}: {message}")

    def track(self, conn: Conn, state: ConnState) -> None:
        if conn in self._states:
            allowed = state in TRANSITIONS[self._states[conn]]
        else:
            allowed = state is ConnState.NEW
            self._accepted += 1
            self._conns[index_of(conn)] = conn
        if not allowed:
            self.fail(f"connection {index_of(conn)}: {state} after {self._states.get(conn)}")
        self._states[conn] = state
        if state.terminal:
            self.reasons[conn.close_reason or str(state)] += 1

    # Bad clients

    async def attack(self, index: int, *, task_status: trio.TaskStatus[None] | None = None) -> None:
        """Do what is planned; with a ``task_status``, stay until the server has shut down."""
        plan = make_plan(self.seed, index)
        self._in_flight.add(index)
        address = str(ip_address(FIRST_ADDRESS + index))
        transport = await trio.open_tcp_stream(
            "127.0.0.1", self._ports[plan.tls], local_address=address
        )
        try:
            await self._converse(index, plan, transport, task_status)
        finally:
            transport.socket.close()
        conn = self._conns.pop(index, None)  # a reset may have come before its address was asked
        if conn is not None:
            with trio.move_on_after(IN_TIME) as patience:
                await conn.wait_closed()
            if patience.cancelled_caught:
                self.fail(f"connection {index} ({plan.end}) is still {conn.state}")
        self._in_flight.discard(index)
        self.done += 1

    async def _converse(
        self,
        index: int,
        plan: Plan,
        transport: trio.SocketStream,
        task_status: trio.TaskStatus[None] | None,
    ) -> None:
        stream: Any = transport
        if plan.alpn is not None:
            stream = trio.SSLStream(
                transport, TLS[plan.alpn], server_hostname="localhost", https_compatible=True
            )
        read = trio.Event()
        async with trio.open_nursery() as nursery:
            with suppress(*LOST), trio.move_on_after(1):  # the server may read no further
                if stream is not transport:
                    await stream.do_handshake()
                if not plan.deaf:
                    nursery.start_soon(read_enough, stream, read)
                for chunk, pause, raw in plan.chunks:
                    await (transport if raw else stream).send_all(chunk)
                    for _ in range(pause):
                        await trio.lowlevel.checkpoint()
            if task_status is not None:
                task_status.started()
                await self._stopped.wait()
            elif plan.end == "reset":
                reset(transport)
            elif plan.end == "half-close":
                with suppress(OSError):
                    transport.socket.shutdown(trio.socket.SHUT_WR)
                with trio.move_on_after(IN_TIME) as patience:
                    await read.wait()
                if patience.cancelled_caught:
                    self.fail(f"connection {index}: no end after a half-close")
            else:
                with suppress(*LOST, trio.BusyResourceError), trio.move_on_after(1):
                    await stream.aclose()
            nursery.cancel_scope.cancel()

    # Good clients

    @contextmanager
    def in_time(self, client: str) -> Iterator[None]:
        began = trio.current_time()
        with trio.fail_after(IN_TIME):
            yield
        self.slowest = max(self.slowest, trio.current_time() - began)
        self.answers[client] += 1

    async def good_http1(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._ports[False]) as stream:
            for n in range(100):
                with self.in_time("http/1.1"):
                    assert await http1(stream, path=f"/good/{n}") == (200, b"/good/%d" % n)

    async def good_http2(self) -> None:
        transport = await trio.open_tcp_stream("127.0.0.1", self._ports[True])
        stream = trio.SSLStream(
            transport, TLS["h2"], server_hostname="localhost", https_compatible=True
        )
        async with stream:
            client = Http2(stream)
            await client.start()
            for n in range(100):
                with self.in_time("h2"):
                    assert await client.get(f"/good/{n}") == ("200", b"/good/%d" % n)

    async def good_websocket(self) -> None:
        port = self._ports[False]
        async with open_websocket("127.0.0.1", port, "/echo", use_ssl=False) as client:
            for n in range(100):
                with self.in_time("websocket"):
                    await client.send_message(f"good {n}")
                    assert await client.get_message() == f"good {n}"

    async def _be_good(self, client: Callable[[], Awaitable[None]]) -> None:
        while not self._attacked.is_set():
            try:
                await client()
            except Exception as error:
                self.fail(f"{client.__name__}: {error!r}, amid {sorted(self._in_flight)}")
                return

    # The run

    async def run(self, certificate: Path, indices: Iterable[int], clients: int = 20) -> None:
        errorlog, accesslog = logging.Logger("error"), logging.Logger("access")
        errorlog.addHandler(self.log)
        accesslog.addHandler(logging.NullHandler())  # so that what it logs is put together
        config = Config.from_mapping(
            bind="127.0.0.1:0",
            insecure_bind="127.0.0.1:0",
            certfile=str(certificate),
            keyfile=str(certificate),
            errorlog=errorlog,
            accesslog=accesslog,
            graceful_timeout=GRACE,
            websocket_max_message_size=2**15,
            websocket_ping_interval=0.05,
        )
        rounds = Rounds()
        async with tracked_server(app, config, tracker=self) as server:
            self._ports = {"https" in url: int(url.rpartition(":")[2]) for url in server.urls}
            config.server_names = ["localhost", f"127.0.0.1:{self._ports[False]}"]
            before = await census()
            trio.lowlevel.add_instrument(rounds)
            shared = iter(indices)
            async with trio.open_nursery() as good:
                for client in (self.good_http1, self.good_http2, self.good_websocket):
                    good.start_soon(self._be_good, client)
                async with trio.open_nursery() as bad:
                    for _ in range(clients):
                        bad.start_soon(self._attack_all, shared)
                self._attacked.set()
            trio.lowlevel.remove_instrument(rounds)
            with trio.move_on_after(IN_TIME):
                while (after := await census()) != before:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            if after != before:
                left = [index_of(c.conn) for c in gc.get_objects() if isinstance(c, Connection)]
                self.fail(f"tasks and files were {before}, are {after}; left are {left}")
            await self._shut_down(server.shutdown, self.done)
        if server.conn_tracker.count:
            self.fail(f"ConnTracker.count is {server.conn_tracker.count}")
        if self.reasons.total() != self._accepted:
            self.fail(f"{self._accepted} connections, {self.reasons.total()} ends")
        if rounds.worst > STALL:
            self.fail(f"a round of the event loop took {rounds.worst:.2f} s")
        for (message, what, place), found in self.log.rows.items():
            self.fail(f"{len(found)} x {message}: {what}\n    {place}\n    --only {min(found)}")

    async def _attack_all(self, shared: Iterator[int]) -> None:
        for index in shared:
            await self.attack(index)

    async def _shut_down(self, shutdown: Callable[[], Awaitable[None]], first: int) -> None:
        """Shut down while some connections stay."""
        async with trio.open_nursery() as nursery:
            for index in range(first, first + 20):
                await nursery.start(partial(self.attack, index))
            began = trio.current_time()
            await shutdown()
            if (took := trio.current_time() - began) > GRACE + 0.5:
                self.fail(f"the shutdown took {took:.2f} s")
            self._stopped.set()


async def read_enough(stream: Any, done: trio.Event) -> None:
    received = 0
    with suppress(*LOST):
        while received < ENOUGH and (data := await stream.receive_some()):
            received += len(data)
    done.set()


async def census() -> tuple[int, int]:
    await wait_all_tasks_blocked()
    return trio.lowlevel.current_statistics().tasks_living, open_files()


def rss() -> float:
    """Resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(seconds: float) -> Iterator[int]:
    """Indices, for so long; says ten times how much memory is used."""
    began, said = time.perf_counter(), 0
    for index in takewhile(lambda _: time.perf_counter() - began < seconds, count()):
        if (tenth := int((time.perf_counter() - began) / seconds * 10)) > said:
            said = tenth
            say(f"{index} connections, {rss():.0f} MB")
        yield index


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=20_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", metavar="I", help="these and no others")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="for so long, not so many")
    args = parser.parse_args()
    say(f"seed {args.seed}")
    for index in args.only or ():
        say(f"{index}: {make_plan(args.seed, index)}")
    indices = args.only or (soak(args.soak) if args.soak else range(args.connections))
    fuzz = Fuzz(args.seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder, "localhost.pem")
        CERT.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        trio.run(fuzz.run, certificate, indices)
    took = time.perf_counter() - began
    say(f"{fuzz.done} connections, {fuzz.done / took:.0f}/s, {rss():.0f} MB")
    say(f"ends {dict(fuzz.reasons)}")
    say(f"right answers {dict(fuzz.answers)}, the slowest in {fuzz.slowest:.2f} s")
    sys.exit("\n".join(fuzz.failures))


if __name__ == "__main__":
    main()
