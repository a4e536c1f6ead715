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
from array import array
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from fcntl import ioctl
from functools import partial
from ipaddress import ip_address
from itertools import count, cycle, pairwise, takewhile
from pathlib import Path
from random import Random
from termios import TIOCOUTQ
from typing import Any
from weakref import WeakKeyDictionary

import hpack
import trio
import wsproto
from hypercorn.config import Config
from trio.testing import wait_all_tasks_blocked

from trio_httptrack import Conn, ConnState, tracked_server
from trio_httptrack._hypercorn.connection import H2_PREFACE, Connection
from trio_httptrack._states import TRANSITIONS

from .clients import Http2, http1
from .support import CERT, client_ssl, respond
from .test_faults import GRACE, handshake, open_files, reset

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

CLIENTS = 20  # at once
IN_TIME = 5  # seconds for whatever should happen soon, on a busy machine
STALL = 1  # seconds for one round of the event loop
ENOUGH = 300_000  # bytes that a client reads of an endless answer
FIRST_ADDRESS = int(ip_address("127.1.0.0"))
LOST = (trio.BrokenResourceError, trio.ClosedResourceError)
OWN = "the application's own error"
TLS = {alpn: client_ssl(*filter(None, [alpn])) for alpn in ("h2", "http/1.1", "")}

say = partial(print, flush=True)


# Input: good messages, some of them odd, then mutated

GAP = b"<gap>"  # not sent: there the client gives the server time to answer
PATHS = b"small echo stream endless raise raise-after return disconnect extras push never".split()
PATHS += b"refuse reject".split()  # of http and websocket: each answers the other's somehow
TARGETS = [b"*", b"", b"/%ff", b"/\xff", b"/?\xff", b"/?%ff", b"http://a/", b"/" + b"x" * 9000]
SETTINGS_BODY = bytes.fromhex("00030000006400040000ffff")
DEFLATE = "sec-websocket-extensions: permessage-deflate"
ODD = f"""host: elsewhere|host: \xff|content-length: 5|content-length: -1|content-length: {"9" * 30}
transfer-encoding: chunked|transfer-encoding: gzip|expect: 100-continue|expect: more|te: trailers
connection: close|connection: upgrade|connection: \xe9|upgrade: h2c|upgrade: websocket|upgrade: \xe9
http2-settings: AAM|http2-settings: \xff|http2-settings: AAMAAABkAAQAAP__|x: {"x" * 20_000}|x: \x00
sec-websocket-version: 8|sec-websocket-key: \xe9|sec-websocket-protocol: \xe9|: |X-Upper:  spaces
{DEFLATE}|{DEFLATE}; client_max_window_bits=99|{DEFLATE}; server_max_window_bits=x
:path: /again|:protocol: websocket|:status: 200|:authority: else|cookie: a=b|:scheme: \xff"""
FIELDS = [
    (name, value)
    for field in ODD.encode("latin-1").replace(b"\n", b"|").split(b"|")
    for name, _, value in [field.partition(b": ")]
]


def mutate(rng: Random, data: bytes) -> bytes:
    """A few bytes, or lines, are changed, added, doubled, spliced, or gone."""
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


def target(rng: Random) -> bytes:
    return b"/" + rng.choice(PATHS) if rng.random() < 0.95 else rng.choice(TARGETS)


def http1_input(rng: Random) -> bytes:
    data = b""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        kind = rng.choice(b"get head post chunked expect close 1.0 h2c ws ws".split())
        method, lines, body = b"GET", [b"Host: localhost"], b""
        if kind == b"head":
            method = b"HEAD"
        elif kind == b"post":
            method, body = b"POST", rng.randbytes(rng.choice([0, 1, 100, 50_000]))
            lines.append(b"Content-Length: %d" % len(body))
        elif kind in (b"chunked", b"expect"):
            method = b"POST"
            lines.append(b"Transfer-Encoding: chunked")
            lines += [b"Expect: 100-continue"] * (kind == b"expect")
            body = b"5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\n" + rng.choice([b"", b"X: y\r\n"]) + b"\r\n"
        elif kind == b"close":
            lines.append(b"Connection: close")
        elif kind == b"h2c":
            lines += [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"]
            lines.append(b"HTTP2-Settings: " + urlsafe_b64encode(SETTINGS_BODY))
            body = http2_input(rng, first=3)
        elif kind == b"ws":
            lines += handshake().split(b"\r\n")[2:-2]
            lines += [DEFLATE.encode()] * rng.randrange(2)
            body = GAP * (rng.random() < 0.8) + websocket_input(rng)
        while rng.random() < 0.2:
            lines.insert(rng.randrange(len(lines) + 1), b": ".join(rng.choice(FIELDS)))
        version = b"1.0" if kind == b"1.0" else b"1.1"
        data += b"%s %s HTTP/%s\r\n" % (method, target(rng), version)
        data += b"\r\n".join([*lines, b"", body])
    return data


def websocket_input(rng: Random) -> bytes:
    """Frames with a mask of ours; a library's would not be the same again."""
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
        size, mask = len(payload), bytes(4)
        second, length = (0x80 | size, b"") if size < 126 else (0xFE, size.to_bytes(2, "big"))
        if size < 126:
            mask = rng.randbytes(4)
            payload = bytes(byte ^ key for byte, key in zip(payload, cycle(mask), strict=False))
        data += bytes([first, second]) + length + mask + payload
    return data


Frame = tuple[int, int, int, bytes]  # type, flags, stream, body
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW, CONTINUATION = range(5, 10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32
PAUSE: Frame = (-1, 0, 0, b"")
NUMBERS = [n.to_bytes(4, "big") for n in (0, 1, 2, 5, 16_384, 2**24, 2**31 - 1, 2**31, 2**32 - 1)]


def pack(frame: Frame) -> bytes:
    kind, flags, stream, body = frame
    if kind < 0:
        return GAP
    return len(body).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + body


def http2_input(rng: Random, first: int = 1) -> bytes:
    encoder = hpack.Encoder()
    settings = rng.choice([b"", SETTINGS_BODY, b"\x00\x04" + rng.choice(NUMBERS)])
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
        place = rng.randrange(len(frames))
        kind, flags, stream, body = frames[place]
        change = rng.randrange(10)
        if change < 5:
            frames[place:place] = odd_frames(rng, rng.randrange(first, last + 2))
        elif change == 5:
            frames.insert(place, (kind, flags ^ rng.choice([1, 4, 8, 32]), stream, body))
        elif change == 6:
            frames.insert(place, (rng.randrange(12), flags, stream, body))
        elif change == 7:
            frames.insert(place, (kind, flags, rng.randrange(last + 4), body))
        elif change == 8:
            frames.insert(place, frames.pop(rng.randrange(len(frames))))
        elif len(frames) > 1:
            frames.pop(place)
    return H2_PREFACE + b"".join(map(pack, frames))


def http2_request(
    rng: Random, encoder: hpack.Encoder, stream: int
) -> tuple[list[Frame], list[Frame]]:
    """The frames that are in the order of the streams, and those that may come later."""
    kind = rng.choice(b"GET HEAD POST POST padded trailers CONNECT CONNECT".split())
    method = b"POST" if kind.islower() else kind
    fields = [(b":method", method), (b":scheme", b"http"), (b":authority", b"localhost")]
    fields.append((b":path", target(rng)))
    rest: list[Frame] = []
    if kind == b"CONNECT":
        fields += [(b":protocol", b"websocket"), (b"sec-websocket-version", b"13")]
        rest = [PAUSE] * (rng.random() < 0.8)
        rest += [(DATA, 0, stream, websocket_input(rng)), (DATA, rng.randrange(2), stream, b"")]
    elif kind == b"padded":
        rest = [(DATA, PADDED | END_STREAM, stream, b"\x05hello" + bytes(5))]
    elif method == b"POST":
        sizes = rng.choices([0, 1, 100, 16_384], k=rng.randrange(1, 6))
        rest = [(DATA, 0, stream, rng.randbytes(size)) for size in sizes]
        if kind == b"POST":
            rest.append((DATA, END_STREAM, stream, b""))
    while rng.random() < 0.2:
        if not fields or rng.random() < 0.6:
            fields.insert(rng.randrange(len(fields) + 1), rng.choice(FIELDS))
        else:
            fields.pop(rng.randrange(len(fields)))
    block = encoder.encode(fields, huffman=rng.random() < 0.5)
    size = 1 if rng.random() < 0.1 and len(block) < 1000 else 16_000
    parts = [block[start : start + size] for start in range(0, len(block), size)] or [b""]
    head: list[Frame] = [(CONTINUATION, 0, stream, part) for part in parts[1:]]
    head.insert(0, (HEADERS, kind in (b"GET", b"HEAD"), stream, parts[0]))
    head[-1] = (head[-1][0], head[-1][1] | END_HEADERS, *head[-1][2:])
    if kind == b"trailers":
        trailers = encoder.encode([(b"x", b"y"), rng.choice(FIELDS)])
        head += [*rest, (HEADERS, END_HEADERS | END_STREAM, stream, trailers)]
        rest = []
    if rng.random() < 0.1:
        rest.append((RST_STREAM, 0, stream, rng.choice(NUMBERS)))
    return head, rest


def odd_frames(rng: Random, stream: int) -> list[Frame]:
    number, bit = rng.choice(NUMBERS), rng.randrange(2)
    flood = rng.choice([2, 50, 500])
    streams = range(stream | 1, stream + 2 * flood, 2)
    get = b"\x82\x86\x84\x01\x09localhost"  # a block that changes nothing in the decoder
    all_of_it = END_HEADERS | END_STREAM
    return rng.choice(
        [
            [(WINDOW, 0, rng.choice([0, stream]), number)],
            [(WINDOW, 0, stream, b"\x00\x00\x00\x01")] * flood,
            [(SETTINGS, 0, 0, struct.pack("!H", rng.randrange(1, 12)) + number)],
            [(SETTINGS, bit, rng.randrange(2), number)],
            [(SETTINGS, bit, 0, b"")] * flood,
            [(PING, bit, rng.randrange(2), b"x" * rng.choice([7, 8]))] * flood,
            [(RST_STREAM, 0, stream, number)],
            [(RST_STREAM, 0, other, number) for other in range(stream + 4)],
            [(DATA, bit, stream, b"x" * 100)] * flood,
            [(DATA, PADDED, stream, b"\xff" + b"x" * 100)],
            [(DATA, PADDED, stream, b"\xff" + bytes(255))] * flood,
            [(HEADERS, all_of_it, stream, get)],
            [(HEADERS, 0, stream, get)],
            [(HEADERS, all_of_it, stream, rng.randbytes(20))],
            [(HEADERS, all_of_it | WITH_PRIORITY, stream, number + b"\x10" + get)],
            [(HEADERS, 0, stream, b"")] + [(CONTINUATION, 0, stream, b"")] * flood,
            [(CONTINUATION, END_HEADERS, stream, get)],
            [(PUSH_PROMISE, END_HEADERS, stream, number + get)] * flood,
            [(PRIORITY, 0, other, number + b"\x10") for other in (0, stream, *streams)],
            [(PRIORITY, 0, stream, struct.pack("!IB", stream, 7))],
            [(GOAWAY, 0, 0, number + number + b"bye")],
            [(rng.randrange(10, 256), rng.randrange(256), stream, b"unknown")] * flood,
            [(HEADERS, all_of_it, other, get) for other in streams],
            [
                frame
                for other in streams
                for frame in [(HEADERS, all_of_it, other, get), (RST_STREAM, 0, other, number)]
            ],
        ]
    )


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
    chunks = []
    for part in data.split(GAP):
        size = max(rng.choice([len(part), 9, 24, 100, 1000]), len(part) // 100, 1)
        cuts = [rng.randrange(len(part) + 1) for _ in range(len(part) // size)]
        for start, stop in pairwise(sorted({0, *cuts, len(part)})):
            chunks.append((part[start:stop], rng.choice([0, 0, 1, 5]), rng.random() < 0.01))
        chunks.append((b"", rng.choice([0, 10, 20, 50]), False))
    end = rng.choice(["close", "reset", "half-close", "half-close"])
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
            if event["text"] == "bye":
                await send({"type": "websocket.close"})
                break
            await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})


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
        self.errorlog = logging.Logger("error")
        self.errorlog.addHandler(self.log)
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
            elif plan.end == "reset" or unsent(transport):
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

    @asynccontextmanager
    async def in_time(self, client: str) -> AsyncIterator[None]:
        began = trio.current_time()
        with trio.fail_after(IN_TIME):
            yield
        self.slowest = max(self.slowest, trio.current_time() - began)
        self.answers[client] += 1
        await trio.sleep(0.01)

    async def good_http1(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._ports[False]) as stream:
            for n in range(100):
                async with self.in_time("http/1.1"):
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
                async with self.in_time("h2"):
                    assert await client.get(f"/good/{n}") == ("200", b"/good/%d" % n)

    async def good_websocket(self) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self._ports[False]) as stream:
            await stream.send_all(handshake("/echo"))
            async with self.in_time("accept"):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
            client = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
            for n in range(100):
                await stream.send_all(client.send(wsproto.events.TextMessage(f"good {n}")))
                async with self.in_time("websocket"):
                    assert await next_message(stream, client) == f"good {n}"

    async def _be_good(self, client: Callable[[], Awaitable[None]]) -> None:
        while not self._attacked.is_set():
            try:
                await client()
            except Exception as error:
                self.fail(f"{client.__name__}: {error!r}, amid {sorted(self._in_flight)}")
                return

    # The run

    async def run(self, certificate: Path, indices: Iterable[int], stay: int = 20) -> None:
        """Attack as ``indices`` say; shut down while so many more stay."""
        accesslog = logging.Logger("access")
        accesslog.addHandler(logging.NullHandler())  # so that what it logs is put together
        config = Config.from_mapping(
            bind="127.0.0.1:0",
            insecure_bind="127.0.0.1:0",
            certfile=str(certificate),
            keyfile=str(certificate),
            errorlog=self.errorlog,
            accesslog=accesslog,
            graceful_timeout=GRACE,
            server_names=["localhost"],
            websocket_max_message_size=2**15,
            websocket_ping_interval=0.05,
        )
        rounds = Rounds()
        async with tracked_server(app, config, tracker=self) as server:
            self._ports = {"https" in url: int(url.rpartition(":")[2]) for url in server.urls}
            before = await census()
            trio.lowlevel.add_instrument(rounds)
            shared = iter(indices)
            async with trio.open_nursery() as good:
                for client in (self.good_http1, self.good_http2, self.good_websocket):
                    good.start_soon(self._be_good, client)
                async with trio.open_nursery() as bad:
                    for _ in range(CLIENTS):
                        bad.start_soon(self._attack_all, shared)
                self._attacked.set()
            trio.lowlevel.remove_instrument(rounds)
            with trio.move_on_after(IN_TIME):
                while (after := await census()) != before:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            if after != before:
                gc.collect()  # what is left then is in a task
                left = [index_of(c.conn) for c in gc.get_objects() if isinstance(c, Connection)]
                self.fail(f"tasks and files were {before}, are {after}; left are {left}")
            await self._shut_down(server.shutdown, range(self.done, self.done + stay))
        if server.conn_tracker.count:
            self.fail(f"ConnTracker.count is {server.conn_tracker.count}")
        if sum(self.reasons.values()) != self._accepted:
            self.fail(f"{self._accepted} connections, {sum(self.reasons.values())} ends")
        if rounds.worst > STALL:
            self.fail(f"a round of the event loop took {rounds.worst:.2f} s")
        for (message, what, place), found in self.log.rows.items():
            self.fail(f"{len(found)} x {message}: {what}\n    {place}\n    --only {min(found)}")

    async def _attack_all(self, shared: Iterator[int]) -> None:
        for index in shared:
            await self.attack(index)

    async def _shut_down(self, shutdown: Callable[[], Awaitable[None]], stay: range) -> None:
        """Shut down while some connections stay."""
        async with trio.open_nursery() as nursery:
            for index in stay:
                await nursery.start(partial(self.attack, index))
            began = trio.current_time()
            await shutdown()
            if (took := trio.current_time() - began) > GRACE + 0.5:
                self.fail(f"the shutdown took {took:.2f} s")
            self._stopped.set()


def unsent(stream: trio.SocketStream) -> bool:
    """Whether a FIN would wait, unseen, behind bytes for which the server has no room."""
    size = array("i", [0])
    ioctl(stream.socket.fileno(), TIOCOUTQ, size)
    return size[0] > 0


async def read_enough(stream: Any, done: trio.Event) -> None:
    received = 0
    with suppress(*LOST):
        while received < ENOUGH and (data := await stream.receive_some()):
            received += len(data)
    done.set()


async def next_message(stream: trio.SocketStream, client: wsproto.connection.Connection) -> str:
    while True:
        for event in client.events():
            if isinstance(event, wsproto.events.TextMessage):
                return event.data
            if isinstance(event, wsproto.events.Ping):
                await stream.send_all(client.send(event.response()))
        client.receive_data(await stream.receive_some())


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
    indices = args.only or (soak(args.soak) if args.soak else range(args.connections))
    fuzz = Fuzz(args.seed)
    if args.only:
        fuzz.errorlog.addHandler(logging.StreamHandler())
        for index in args.only:
            say(f"{index}: {make_plan(args.seed, index)}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder, "localhost.pem")
        CERT.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        trio.run(fuzz.run, certificate, indices, 0 if args.only else CLIENTS)
    took = time.perf_counter() - began
    say(f"{fuzz.done} connections, {fuzz.done / took:.0f}/s, {rss():.0f} MB")
    say(f"ends {dict(fuzz.reasons)}")
    say(f"right answers {dict(fuzz.answers)}, the slowest in {fuzz.slowest:.2f} s")
    sys.exit("\n".join(fuzz.failures))


if __name__ == "__main__":
    main()
