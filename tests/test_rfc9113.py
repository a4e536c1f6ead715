"""RFC 9113 (HTTP/2), RFC 7541 (HPACK) and RFC 8441 (WebSockets over HTTP/2), section by section.

Each row of ``ROWS`` is a requirement on an origin server: what a client sends, and what must
come back. Its ID begins with the RFC and the section. Frames are made by hand, because a library
refuses to make what a server has to refuse. ``comes`` is written in these words:

* ``1:200``: stream 1 has a response, and it is complete; ``1:103``: an informational one;
* ``1:200[5]``: a response has begun, and 5 bytes of its content have come;
* ``1:STREAM_CLOSED``: RST_STREAM with this code;
* ``1:promise(2)``: PUSH_PROMISE;
* ``ping`` and ``ack``: a PING, or SETTINGS behind the first ones, are acknowledged;
* ``|``: the client sends its next piece. Between two of them streams are in their order.

The last word is what happens to the connection:

* ``open``: a PING is acknowledged, and another request is served;
* ``full``: a PING is acknowledged, and another request is refused with REFUSED_STREAM;
* ``PROTOCOL_ERROR``, or another code: the server sends GOAWAY with it, and closes;
* ``closed``: it closes without GOAWAY.

Where the RFC leaves a choice, ``or`` separates the alternatives. A stream error may always be a
connection error instead (5.4.1); the rows say what this server makes of it. What every frame and
every response must be is in :class:`Client` and :func:`check`. Each request that the server does
not refuse reaches the application, and no other does.

Requirements that only the application, or the server's operator, can meet:

* what test_rfc9112.py names of RFC 9110
* 9.2, versions of TLS and its cipher suites; 9.1.2, which names the certificate has
* 8.4, that a pushed request is cacheable and safe (it is a GET), and its path is the server's

What the server does not follow, or does in its own way, and why:

* 3.4: an invalid preface is a PROTOCOL_ERROR, for which GOAWAY MAY be omitted. Over TLS, ALPN has
  said that it is HTTP/2, and a GOAWAY comes. In the clear, whatever does not begin with the
  preface is HTTP/1.1, and gets a 400 or 505.
* 5.3 and 6.3: priorities are ignored, as 5.3.2 allows. A stream that depends on itself was an
  error in RFC 7540, and remains one. A PRIORITY of a wrong length is a connection error.
* 6.5.3: SETTINGS without an acknowledgement MAY be a SETTINGS_TIMEOUT. Ours never change, so
  nothing waits for it.
* 6.8: a server SHOULD send GOAWAY before it closes. It sends none behind the client's own, which
  ends the connection with whatever is in flight, as in Hypercorn.
* 8.3.1: a Host that identifies another entity than ``:authority`` SHOULD be malformed. Names are
  compared byte by byte, so ``A`` and ``a`` are two. A request with neither is malformed.
* 8.5 and 9110 9.1: a CONNECT without ``:protocol`` SHOULD get a 501. ASGI has no tunnels; it is
  malformed like any other request without a path.
* 9110 5.6.1 and 8.6: a Content-Length MAY be a list of the same number. It is malformed.
* 10.5.1: a header section that is too large MAY get a 431. It ends the connection with
  ENHANCE_YOUR_CALM, without being decoded to its end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hpack
import pytest
import trio
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack.testing import memory_server

Sends = bytes | tuple[bytes, ...]  # in one piece, or in several

SILENCE = 1  # seconds (virtual ones), after which the client sends its next piece
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NEXT = 2**30 + 1  # the stream of the request that tells whether the connection is open

# 6 Frame Definitions
(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)
UNKNOWN = 0x16

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20
END = END_STREAM | END_HEADERS
FLAGS = {  # the defined ones
    DATA: END_STREAM | PADDED,
    HEADERS: END | PADDED | HAS_PRIORITY,
    SETTINGS: ACK,
    PUSH_PROMISE: END_HEADERS | PADDED,
    PING: ACK,
    CONTINUATION: END_HEADERS,
}

# 6.5.2 Defined Settings
TABLE_SIZE, PUSH, STREAMS, WINDOW, FRAME_SIZE, LIST_SIZE, _, CONNECT_PROTOCOL = range(1, 9)

# 7 Error Codes
CODES = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
CANCEL = CODES.index("CANCEL")

# Frames


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">L", len(payload))[1:] + struct.pack(">BBL", kind, flags, stream) + payload


def headers(block: bytes, stream: int = 1, flags: int = END) -> bytes:
    return frame(HEADERS, block, stream=stream, flags=flags)


def continuation(block: bytes = b"", stream: int = 1, flags: int = END_HEADERS) -> bytes:
    return frame(CONTINUATION, block, stream=stream, flags=flags)


def data(content: bytes = b"", stream: int = 1, flags: int = END_STREAM) -> bytes:
    return frame(DATA, content, stream=stream, flags=flags)


def settings(*pairs: tuple[int, int], flags: int = 0, stream: int = 0) -> bytes:
    payload = b"".join(struct.pack(">HL", *pair) for pair in pairs)
    return frame(SETTINGS, payload, stream=stream, flags=flags)


def window(increment: int, stream: int = 0) -> bytes:
    return frame(WINDOW_UPDATE, struct.pack(">L", increment), stream=stream)


def reset(stream: int = 1, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, struct.pack(">L", code), stream=stream)


def ping(payload: bytes = b"12345678", flags: int = 0, stream: int = 0) -> bytes:
    return frame(PING, payload, flags=flags, stream=stream)


def goaway(code: int = 0, last: int = 0, debug: bytes = b"", stream: int = 0) -> bytes:
    return frame(GOAWAY, struct.pack(">LL", last, code) + debug, stream=stream)


def dependency(on: int, weight: int = 15) -> bytes:
    return struct.pack(">LB", on, weight)


def priority(on: int = 0, stream: int = 1, weight: int = 15) -> bytes:
    return frame(PRIORITY, dependency(on, weight), stream=stream)


def padded(payload: bytes, length: int = 10) -> bytes:
    return bytes([length]) + payload + bytes(length)


# Header blocks (RFC 7541, 5 and 6)

INCREMENTAL, PLAIN, NEVER = 0x40, 0x00, 0x10
HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def integer(value: int, bits: int, first: int = 0) -> bytes:
    most = 2**bits - 1
    if value < most:
        return bytes([first | value])
    encoded, value = bytearray([first | most]), value - most
    while value >= 128:
        encoded.append(value % 128 | 128)
        value //= 128
    return bytes([*encoded, value])


def string(text: str, huffman: bool = False) -> bytes:
    octets = text.encode("latin-1")
    if huffman:
        octets = HUFFMAN.encode(octets)
    return integer(len(octets), 7, 0x80 if huffman else 0) + octets


def literal(name: str | int, value: str, kind: int = PLAIN, huffman: bool = False) -> bytes:
    """Encode a field whose name is a string, or the index of one."""
    bits = 6 if kind == INCREMENTAL else 4
    if isinstance(name, int):
        return integer(name, bits, kind) + string(value, huffman)
    return bytes([kind]) + string(name, huffman) + string(value, huffman)


def indexed(index: int) -> bytes:
    return integer(index, 7, 0x80)


def table_size(size: int) -> bytes:
    return integer(size, 5, 0x20)


def fields(*lines: str) -> bytes:
    """Encode lines such as ``name: value``, without compression."""
    split = (line.partition(": ") for line in lines)
    return b"".join(literal(name, value) for name, _, value in split)


def block(
    *lines: str,
    method: str | None = "GET",
    scheme: str | None = "http",
    path: str | None = "/",
    authority: str | None = "a",
) -> bytes:
    """Encode a request's pseudo-header fields, but for those that are None, and other lines."""
    pseudo = {"method": method, "scheme": scheme, "path": path, "authority": authority}
    given = [f":{name}: {value}" for name, value in pseudo.items() if value is not None]
    return fields(*given, *lines)


def get(path: str = "/", stream: int = 1) -> bytes:
    return headers(block(path=path), stream)


def post(path: str = "/", stream: int = 1, *lines: str) -> bytes:
    """Begin a request whose content follows."""
    return headers(block(*lines, method="POST", path=path), stream, END_HEADERS)


def in_frames(whole: bytes, size: int = 12_000) -> bytes:
    """Make a request of a header block that is too long for one frame."""
    parts = [whole[start : start + size] for start in range(size, len(whole), size)]
    first = headers(whole[:size], flags=END_STREAM)
    return first + b"".join(continuation(part, flags=0) for part in parts) + continuation()


GET, POST = get(), post()
PATH = "a path begins with a slash, has no fragment, and no characters that a URI has not"
WEBSOCKET = (":protocol: websocket", "sec-websocket-version: 13")
USER_AGENT: dict[str, str | int] = {"name": "user-agent", "index": 58}
OPEN = headers(block(*WEBSOCKET, method="CONNECT"), flags=END_HEADERS)


@dataclass(frozen=True)
class Row:
    id: str
    requirement: str
    sends: Sends
    comes: str
    begins: bytes = PREFACE + settings()  # what is sent with the first piece
    given: dict[str, Any] | None = None  # to the application, in its only call
    started: int = 0  # requests that reach the application, and have no response
    content: str | None = None  # of the responses
    has: tuple[str, ...] = ()  # headers of the last response
    lacks: tuple[str, ...] = ()  # names of headers that no response has
    trailers: tuple[str, ...] = ()  # of the last response
    largest: int = 2**14  # frame that the client takes
    tables: tuple[int, ...] = ()  # SETTINGS_HEADER_TABLE_SIZE, where the client has sent it
    config: dict[str, Any] = field(default_factory=dict)
    tls: bool = False


def variants(
    id_: str, requirement: str, comes: str, sends: dict[str, Sends], **more: Any
) -> Iterator[Row]:
    """Make a row for each of several things that a client may send."""
    for name, sent in sends.items():
        yield Row(f"{id_}-{name}", requirement, sent, comes, **more)


def malformed(id_: str, requirement: str, blocks: dict[str, bytes], **more: Any) -> Iterator[Row]:
    """Make a row for each of several header blocks that are no request (8.1.1)."""
    sends: dict[str, Sends] = {name: headers(made) for name, made in blocks.items()}
    yield from variants(id_, requirement, "1:PROTOCOL_ERROR open", sends, **more)


def starting(*pairs: tuple[int, int]) -> dict[str, Any]:
    """Say what the client's first settings are."""
    return {"begins": PREFACE + settings(*pairs)}


ROWS = [
    # RFC 9113
    # 3.4 HTTP/2 Connection Preface
    Row("9113-3.4-preface", "the preface of both is exchanged", b"", "open"),
    Row(
        "9113-3.4-in-pieces",
        "a preface may come in pieces",
        (PREFACE[:1], PREFACE[1:20], PREFACE[20:] + settings()[:5], settings()[5:] + GET),
        "| | | 1:200 open",
        begins=b"",
    ),
    *variants(
        "9113-3.4-invalid",
        "an invalid preface over TLS is a PROTOCOL_ERROR",
        "PROTOCOL_ERROR",
        {
            "text": b"INVALID CONNECTION PREFACE\r\n\r\n",
            "its-end": PREFACE[:-2] + b"xx" + settings() + GET,
            "http-1.1": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "frames": settings() + GET,
        },
        begins=b"",
        tls=True,
    ),
    *variants(
        "9113-3.4-invalid-in-the-clear",
        "without TLS, what does not begin with the preface is HTTP/1.1",
        "HTTP/1.1:400 closed",
        {"text": b"INVALID CONNECTION PREFACE\r\n\r\n", "frames": settings() + GET},
        begins=b"",
    ),
    Row(
        "9113-3.4-invalid-in-the-clear-its-end",
        "without TLS, the beginning of the preface alone is a version that HTTP/1.1 has not",
        PREFACE[:-2] + b"xx" + settings() + GET,
        "HTTP/1.1:505 closed",
        begins=b"",
    ),
    *variants(
        "9113-3.4-no-settings",
        "SETTINGS, which may be empty, are the first frame",
        "PROTOCOL_ERROR",
        {
            "headers": GET,
            "ping": ping(),
            "window": window(1),
            "unknown": frame(UNKNOWN),
            "acknowledgement": settings(flags=ACK) + GET,
        },
        begins=PREFACE,
    ),
    *variants(
        "9113-3.3-tls",
        "HTTP/2 over TLS is chosen by ALPN",
        "1:200 open",
        {"get": GET, "post": POST + data(b"hello")},
        tls=True,
    ),
    Row(
        "9113-3.3-tls-content",
        "a response of several frames comes over TLS",
        get("/large") + window(2**20) + window(2**20, 1),
        "1:200 open",
        content="x" * 100_000,
        tls=True,
    ),
    Row(
        "9113-5.4-tls",
        "errors are the same over TLS",
        (headers(block("Upper: x")), get(stream=3), data(b"x", 5)),
        "1:PROTOCOL_ERROR | 3:200 | PROTOCOL_ERROR",
        tls=True,
    ),
    # 4.1 Frame Format
    *variants(
        "9113-4.1-unknown-type",
        "frames of unknown types are ignored",
        "1:200 open",
        {
            "connection": frame(UNKNOWN, b"x") + GET,
            "idle-stream": frame(UNKNOWN, b"x", stream=99) + GET,
            "open-stream": POST + frame(UNKNOWN, b"x", stream=1, flags=0xFF) + data(),
            "closed-stream": GET + frame(UNKNOWN, b"x", stream=1),
            "empty": frame(0xFF) + GET,
            "largest": frame(UNKNOWN, bytes(2**14)) + GET,
            "priority-update": frame(0x10, b"\0\0\0\1u=1", stream=0) + GET,  # RFC 9218
            "altsvc": frame(0xA, b"\0\0", stream=0) + GET,  # RFC 7838
            "origin": frame(0xC) + GET,  # RFC 8336
        },
    ),
    *variants(
        "9113-4.1-undefined-flags",
        "flags without a meaning for the type are ignored",
        "1:200 open",
        {
            "headers": headers(block(), flags=END | 0xD2),
            "data": POST + data(b"x", flags=END_STREAM | 0xF6),
            "priority": priority() + frame(PRIORITY, dependency(0), stream=1, flags=0xFF) + GET,
            "window": frame(WINDOW_UPDATE, b"\0\0\0\1", flags=0xFF) + GET,
            "continuation": headers(block()[:4], flags=END_STREAM)
            + continuation(block()[4:], flags=0xFF),
        },
    ),
    Row(
        "9113-4.1-undefined-flags-of-a-ping",
        "flags without a meaning for the type are ignored",
        ping(flags=0xFE) + settings(flags=0xFE),
        "ack ping open",
    ),
    Row(
        "9113-4.1-undefined-flags-of-a-reset",
        "flags without a meaning for the type are ignored",
        POST + frame(RST_STREAM, struct.pack(">L", CANCEL), stream=1, flags=0xFF),
        "open",
        started=1,
    ),
    *variants(
        "9113-4.1-reserved",
        "the reserved bit of a stream identifier is ignored",
        "1:200 open",
        {
            "headers": headers(block(), stream=2**31 + 1),
            "data": POST + data(b"x", 2**31 + 1),
            "window": window(1, 2**31) + GET,
        },
    ),
    Row(
        "9113-4.1-in-pieces",
        "a frame may come in pieces",
        tuple(bytes([octet]) for octet in GET),
        "| " * (len(GET) - 1) + "1:200 open",
    ),
    # 4.2 Frame Size
    Row(
        "9113-4.2-largest",
        "a frame of 2^14 octets is processed",
        post("/length") + data(bytes(2**14)),
        "1:200 open",
        content=str(2**14),
    ),
    *variants(
        "9113-4.2-too-large",
        "a frame that exceeds SETTINGS_MAX_FRAME_SIZE is a FRAME_SIZE_ERROR",
        "FRAME_SIZE_ERROR",
        {
            "headers": headers(block() + literal("x", "y" * 2**14)),
            "settings": settings(*[(0xFF, 0)] * (2**14 // 6 + 1)),
            "unknown": frame(UNKNOWN, bytes(2**14 + 1)),
            "only-its-length": frame(DATA, bytes(2**14 + 1), stream=1)[:9],
        },
    ),
    *variants(
        "9113-4.2-too-large",
        "a frame that exceeds SETTINGS_MAX_FRAME_SIZE is a FRAME_SIZE_ERROR",
        "FRAME_SIZE_ERROR",
        {
            "data": POST + data(bytes(2**14 + 1)),
            "continuation": POST
            + headers(block()[:1], 3, END_STREAM)
            + continuation(bytes(2**14 + 1), 3),
        },
        started=1,
    ),
    *variants(
        "9113-4.2-too-small",
        "a frame that is too small for what it must contain is a FRAME_SIZE_ERROR",
        "FRAME_SIZE_ERROR",
        {
            "padded-headers": headers(b"", flags=END | PADDED),
            "priority": headers(bytes(4), flags=END | HAS_PRIORITY),
            "padded-priority": headers(padded(bytes(4), 3), flags=END | HAS_PRIORITY | PADDED),
        },
    ),
    Row(
        "9113-4.2-too-small-data",
        "a frame that is too small for what it must contain is a FRAME_SIZE_ERROR",
        POST + data(b"", flags=PADDED),
        "FRAME_SIZE_ERROR or 1:FRAME_SIZE_ERROR open",
        started=1,
    ),
    Row(
        "9113-4.2-client",
        "no frame exceeds the client's SETTINGS_MAX_FRAME_SIZE",
        get("/large") + window(2**20) + window(2**20, 1),
        "1:200 open",
        content="x" * 100_000,
    ),
    Row(
        "9113-4.2-client-that-takes-more",
        "a client may take larger frames",
        get("/large") + window(2**20) + window(2**20, 1),
        "1:200 open",
        **starting((FRAME_SIZE, 2**24 - 1)),
        content="x" * 100_000,
        largest=2**24 - 1,
    ),
    Row(
        "9113-4.2-long-headers",
        "a header section that is too long for a frame goes on in CONTINUATION",
        get("/long"),
        "1:200 open",
        has=("long: " + "x" * 40_000,),
    ),
    # 4.3 Field Section Compression and Decompression
    *variants(
        "9113-4.3-invalid",
        "a header block that cannot be decoded is a COMPRESSION_ERROR",
        "COMPRESSION_ERROR",
        {
            "truncated": headers(block()[:-1]),
            "no-value": headers(b"\0" + string("x")),
            "garbage": headers(b"\xff" * 20),
        },
    ),
    Row(
        "9113-4.3-invalid-trailers",
        "trailers that cannot be decoded are a COMPRESSION_ERROR",
        POST + headers(b"\x40", 1, END),
        "COMPRESSION_ERROR",
        started=1,
    ),
    *variants(
        "9113-4.3-interleaved",
        "the frames of a header block are contiguous",
        "PROTOCOL_ERROR",
        {
            "priority": headers(block(), flags=END_STREAM) + priority() + continuation(),
            "headers": headers(block(), flags=END_STREAM) + get(stream=3),
            "data": headers(block(), flags=0) + data(),
            "ping": headers(block(), flags=END_STREAM) + ping() + continuation(),
            "settings": headers(block(), flags=END_STREAM) + settings() + continuation(),
            "reset": headers(block(), flags=END_STREAM) + reset(),
            "unknown": headers(block(), flags=END_STREAM) + frame(UNKNOWN) + continuation(),
            "other-stream": headers(block(), flags=END_STREAM) + continuation(stream=3),
            "connection": headers(block(), flags=END_STREAM) + continuation(stream=0),
            "again": headers(block(), flags=END_STREAM) + headers(b""),
        },
    ),
    Row(
        "9113-4.3-decoded-malformed",
        "header blocks of malformed requests are decoded, for those that follow",
        headers(block("Upper: x") + literal("x", "y", INCREMENTAL))
        + headers(block() + indexed(62), 3),
        "1:PROTOCOL_ERROR 3:200 open",
        given={"headers": [(b"host", b"a"), (b"x", b"y")]},
    ),
    Row(
        "9113-4.3-decoded-trailers",
        "trailers are decoded, for what follows",
        POST + headers(literal("x", "y", INCREMENTAL), 1, END) + headers(block() + indexed(62), 3),
        "1:200 3:200 open",
    ),
    Row(
        "9113-4.3-decoded-refused",
        "header blocks of refused streams are decoded, for those that follow",
        (
            get("/wait"),
            headers(block() + literal("x", "y", INCREMENTAL), 3),
            reset(),
            headers(block("later: 1") + indexed(62), 5),
        ),
        "| 3:REFUSED_STREAM | | 5:200 open",
        started=1,
        config={"h2_max_concurrent_streams": 1},
    ),
    Row(
        "9113-4.3-decoded-reset",
        "header blocks of streams that the server has reset are decoded, for those that follow",
        (
            post("/", 1, "content-length: 1") + data(b"12", flags=0),
            headers(literal("x", "y", INCREMENTAL), 1, END),
            headers(block() + indexed(62), 3),
        ),
        "1:PROTOCOL_ERROR | | 3:200 open",
        started=1,
    ),
    # 4.3.1 Compression State
    Row(
        "9113-4.3.1-table-size",
        "the first header block behind smaller SETTINGS_HEADER_TABLE_SIZE says so",
        GET + get(stream=3),
        "1:200 3:200 open",
        **starting((TABLE_SIZE, 0)),
        tables=(0,),
    ),
    Row(
        "9113-4.3.1-table-size-later",
        "the table may become smaller at any time, and larger again",
        (
            GET,
            settings((TABLE_SIZE, 100)) + get(stream=3),
            settings((TABLE_SIZE, 2**16)) + get(stream=5),
        ),
        "1:200 | 3:200 ack | 5:200 ack open",
        tables=(4096, 100, 2**16),
    ),
    Row(
        "9113-4.3.1-table-size-pushed",
        "the first header block may be that of a PUSH_PROMISE",
        get("/push"),
        "1:200 1:promise(2) 2:200 open",
        **starting((TABLE_SIZE, 0)),
        tables=(0,),
    ),
    Row(
        "9113-4.3.1-table-size-trailers",
        "the first header block may be one that has waited for a window",
        (
            headers(block("te: trailers", path="/trailers")),
            settings((TABLE_SIZE, 0)) + window(100, 1),
        ),
        "1:200[0] | 1:200 ack open",
        **starting((WINDOW, 0)),
        trailers=("x: y",),
        tables=(4096, 0),
    ),
    # 5.1 Stream States
    *variants(
        "9113-5.1-idle",
        "an idle stream gets HEADERS or PRIORITY, and nothing else",
        "PROTOCOL_ERROR",
        {
            "data": data(b"test"),
            "reset": reset(),
            "window": window(100, 1),
            "continuation": continuation(block()),
            "data-ahead": data(b"test", 3),
            "window-server": window(100, 2),
            "reset-server": reset(2),
            "data-server": data(b"test", 2),
        },
    ),
    *variants(
        "9113-5.1-idle-priority",
        "PRIORITY may come for an idle stream, and does not open it",
        "1:200 open",
        {
            "the-next": priority() + GET,
            "a-later": priority(stream=99) + GET,
            "a-server's": priority(stream=2) + GET,
            "exclusive": priority(on=2**31, weight=255) + GET,
            "dependent": priority(on=3) + priority(on=5, stream=3) + GET,
        },
    ),
    *variants(
        "9113-5.1-half-closed",
        "a stream that its client has ended gets no content or headers: STREAM_CLOSED",
        "1:STREAM_CLOSED open",
        {
            "data": get("/wait") + data(b"test"),
            "data-open": get("/wait") + data(b"test", flags=0),
            "empty": get("/wait") + data(),
            "headers": get("/wait") + get("/wait"),
            "trailers": get("/wait") + headers(fields("x: y")),
            "data-behind-data": post("/wait") + data(b"test") + data(b"test"),
            "data-behind-trailers": post("/wait") + headers(fields("x: y")) + data(b"test"),
        },
        started=1,
    ),
    Row(
        "9113-5.1-half-closed-continuation",
        "CONTINUATION follows HEADERS that have not ended",
        get("/wait") + continuation(block()),
        "PROTOCOL_ERROR",
        started=1,
    ),
    *variants(
        "9113-5.1-half-closed-other",
        "a stream that its client has ended gets windows, priorities and a reset",
        "open",
        {
            "window": get("/wait") + window(100, 1),
            "priority": get("/wait") + priority(),
            "reset": get("/wait") + reset(),
        },
        started=1,
    ),
    *variants(
        "9113-5.1-reset",
        "a stream that its client has reset gets nothing more: STREAM_CLOSED",
        "1:STREAM_CLOSED open or STREAM_CLOSED",
        {
            "data": POST + reset() + data(b"test"),
            "headers": POST + reset() + headers(fields("x: y")),
            "request": POST + reset() + GET,
        },
        started=1,
    ),
    Row(
        "9113-5.1-reset-continuation",
        "a stream that its client has reset gets nothing more",
        POST + reset() + continuation(fields("x: y")),
        "PROTOCOL_ERROR or STREAM_CLOSED",
        started=1,
    ),
    *variants(
        "9113-5.1-reset-priority",
        "a stream that its client has reset gets priorities, and windows that were on their way",
        "open",
        {"priority": POST + reset() + priority(), "window": POST + reset() + window(1, 1)},
        started=1,
    ),
    *variants(
        "9113-5.1-closed",
        "a closed stream gets neither content nor headers: STREAM_CLOSED",
        "1:200 | STREAM_CLOSED",
        {
            "data": (GET, data(b"test")),
            "headers": (GET, GET),
            "trailers": (GET, headers(fields("x: y"))),
            "data-behind-data": (POST + data(b"test"), data(b"test")),
        },
    ),
    Row(
        "9113-5.1-closed-continuation",
        "a closed stream gets no CONTINUATION",
        (GET, continuation(fields("x: y"))),
        "1:200 | STREAM_CLOSED or 1:200 | PROTOCOL_ERROR",
    ),
    Row(
        "9113-5.1-closed-data-skipped",
        "a stream that was skipped is closed",
        (get(stream=5), data(b"test", 3)),
        "5:200 | STREAM_CLOSED or 5:200 | PROTOCOL_ERROR",
    ),
    *variants(
        "9113-5.1-closed-other",
        "what was sent for a stream before its end was known is ignored",
        "1:200 | open",
        {
            "priority": (GET, priority()),
            "window": (GET, window(100, 1)),
            "reset": (GET, reset()),
            "resets": (GET, reset() + reset()),
        },
    ),
    *variants(
        "9113-5.1-we-reset",
        "what was sent for a stream before the server's reset was known is ignored",
        "1:PROTOCOL_ERROR | open",
        {
            "data": (headers(block("Upper: x"), flags=END_HEADERS), data(b"test")),
            "more": (headers(block("Upper: x"), flags=END_HEADERS), data(b"x", flags=0) * 9),
            "trailers": (headers(block("Upper: x"), flags=END_HEADERS), headers(fields("x: y"))),
            "window": (headers(block("Upper: x"), flags=END_HEADERS), window(1, 1)),
            "reset": (headers(block("Upper: x"), flags=END_HEADERS), reset()),
            "priority": (headers(block("Upper: x"), flags=END_HEADERS), priority()),
        },
    ),
    *variants(
        "9113-5.1-reserved",
        "a promised stream gets resets, priorities and windows",
        "1:200 1:promise(2) | open",
        {
            "reset": (get("/push-slow"), reset(2)),
            "window": (get("/push-slow"), window(100, 2)),
            "priority": (get("/push-slow"), priority(stream=2)),
        },
        started=1,
    ),
    Row(
        "9113-5.1-reserved-headers",
        "a promised stream gets nothing else",
        (get("/push-slow"), headers(fields("x: y"), 2)),
        "1:200 1:promise(2) | PROTOCOL_ERROR",
        started=1,
    ),
    Row(
        "9113-5.1-reserved-data",
        "a promised stream gets nothing else",
        (get("/push-slow"), data(b"test", 2)),
        "1:200 1:promise(2) | PROTOCOL_ERROR",
        started=1,
    ),
    # 5.1.1 Stream Identifiers
    *variants(
        "9113-5.1.1-client",
        "a client's streams have odd numbers",
        "PROTOCOL_ERROR",
        {"even": get(stream=2), "zero": get(stream=0), "high": get(stream=2**31 - 2)},
    ),
    Row(
        "9113-5.1.1-smaller",
        "a new stream's number is greater than all before",
        (get(stream=5), get(stream=3)),
        "5:200 | PROTOCOL_ERROR",
    ),
    Row(
        "9113-5.1.1-smaller-at-once",
        "a new stream's number is greater than all before, which may be open",
        get("/wait", 5) + get(stream=3),
        "PROTOCOL_ERROR",
        started=1,
    ),
    Row(
        "9113-5.1.1-skipped",
        "numbers may be skipped",
        get(stream=3) + get(stream=101) + get(stream=2**20 + 1),
        "3:200 101:200 1048577:200 open",
    ),
    # 5.1.2 Stream Concurrency
    *variants(
        "9113-5.1.2-limit",
        "a stream beyond the limit is refused",
        "3:REFUSED_STREAM full",
        {
            "half-closed": get("/wait") + get(stream=3),
            "open": post("/wait") + get(stream=3),
            "with-content": get("/wait") + post("/", 3) + data(b"x", 3),
        },
        started=1,
        config={"h2_max_concurrent_streams": 1},
    ),
    *variants(
        "9113-5.1.2-freed",
        "a closed stream does not count",
        "| 3:200 open",
        {"reset": (get("/wait"), reset() + get(stream=3))},
        started=1,
        config={"h2_max_concurrent_streams": 1},
    ),
    Row(
        "9113-5.1.2-limit-reached",
        "as many streams as the limit says are served at once",
        b"".join(get("/wait", 2 * i + 1) for i in range(99)) + get(stream=199),
        "199:200 open",
        started=99,
    ),
    Row(
        "9113-5.1.2-ours",
        "promised streams do not count against the client's limit",
        (get("/push-slow"), get("/wait", 3) + get(stream=5), reset(3)),
        "1:200 1:promise(2) | | 5:200 open",
        started=2,
        config={"h2_max_concurrent_streams": 2},
    ),
    Row(
        "9113-5.1.2-client-none",
        "the client's limit for promised streams is not exceeded",
        get("/push"),
        "1:200 open",
        **starting((STREAMS, 0)),
    ),
    Row(
        "9113-5.1.2-client",
        "promised streams that are closed do not count against the client's limit",
        (get("/push-slow"), get("/push", 3), reset(2) + get("/push", 5)),
        "1:200 1:promise(2) | 3:200 | 4:200 5:200 5:promise(4) open",
        **starting((STREAMS, 1)),
        started=1,
    ),
    # 5.2 Flow Control
    Row(
        "9113-5.2-other-frames",
        "only DATA is subject to flow control",
        headers(block(method="HEAD")) + ping(),
        "1:200 ping open",
        **starting((WINDOW, 0)),
    ),
    Row(
        "9113-5.2.2-streams",
        "a stream without a window keeps no other waiting",
        (get("/large") + get("/abc", 3), window(2**20), window(2**20, 1)),
        "1:200[65531] 3:200 | 1:200[65535] | 1:200 open"
        " or 1:200[65535] 3:200[0] | 1:200[65535] 3:200 | 1:200 open",
    ),
    # 5.3 Prioritization
    *variants(
        "9113-5.3-itself",
        "a stream cannot depend on itself (RFC 7540, 5.3.1)",
        "PROTOCOL_ERROR or 1:PROTOCOL_ERROR open",
        {
            "headers": headers(dependency(1) + block(), flags=END | HAS_PRIORITY),
            "priority": priority(on=1),
        },
    ),
    *variants(
        "9113-5.3-ignored",
        "priorities may come with headers, and at any time",
        "1:200 open",
        {
            "headers": headers(dependency(0) + block(), flags=END | HAS_PRIORITY),
            "exclusive": headers(dependency(2**31 + 11, 255) + block(), flags=END | HAS_PRIORITY),
            "padded": headers(padded(dependency(3) + block()), flags=END | HAS_PRIORITY | PADDED),
            "before": priority(weight=0) + priority(weight=255) + GET,
            "between": POST + priority() + data(),
            "first": priority(stream=3) + priority(stream=5, on=3) + priority(stream=7, on=5) + GET,
        },
    ),
    # 5.4 Error Handling
    Row(
        "9113-5.4.1-goaway",
        "GOAWAY has the last stream, and the connection is closed",
        (GET, get(stream=3), ping(b"short")),
        "1:200 | 3:200 | FRAME_SIZE_ERROR",
    ),
    Row(
        "9113-5.4.1-in-flight",
        "a connection error ends the streams in flight",
        get("/wait") + get("/wait", 3) + ping(b"short"),
        "FRAME_SIZE_ERROR",
        started=2,
    ),
    Row(
        "9113-5.4.1-behind",
        "what is behind a connection error is not processed",
        ping(b"short") + GET,
        "FRAME_SIZE_ERROR",
    ),
    Row(
        "9113-5.4.2-others",
        "a stream error leaves the other streams alone",
        get("/slow") + headers(block("Upper: x"), 3) + get("/slow", 5),
        "1:200 3:PROTOCOL_ERROR 5:200 open",
    ),
    Row(
        "9113-5.4.2-looping",
        "RST_STREAM is not the response to RST_STREAM",
        (get("/wait"), reset(), reset()),
        "| | open",
        started=1,
    ),
    # 5.5 Extending HTTP/2
    Row(
        "9113-5.5-settings",
        "unknown settings are ignored",
        settings((0xFF, 2**32 - 1), (0, 0), (0x7, 1), (0x9, 1)) + GET,
        "1:200 ack open",
    ),
    # 6.1 DATA
    *variants(
        "9113-6.1-data",
        "content may come in any number of frames",
        "1:200 open",
        {
            "one": post("/length") + data(b"12345"),
            "several": post("/length") + data(b"1", flags=0) * 4 + data(b"5"),
            "empty-end": post("/length") + data(b"12345", flags=0) + data(),
            "empty-between": post("/length")
            + data(b"123", flags=0)
            + data(flags=0) * 3
            + data(b"45"),
            "padded": post("/length") + data(padded(b"12345"), flags=END_STREAM | PADDED),
            "padded-most": post("/length") + data(padded(b"12345", 255), flags=END_STREAM | PADDED),
            "padded-none": post("/length") + data(padded(b"12345", 0), flags=END_STREAM | PADDED),
            "padding-only": post("/length") + data(padded(b""), flags=PADDED) + data(b"12345"),
            "padding-not-zero": post("/length") + data(b"\x0212345xx", flags=END_STREAM | PADDED),
        },
        content="5",
    ),
    Row("9113-6.1-connection", "DATA has a stream", data(b"x", 0), "PROTOCOL_ERROR"),
    *variants(
        "9113-6.1-padding",
        "padding is shorter than the payload",
        "PROTOCOL_ERROR",
        {
            "as-long": POST + data(b"\x06test!", flags=END_STREAM | PADDED),
            "longer": POST + data(b"\xfftest!", flags=END_STREAM | PADDED),
            "only": POST + data(b"\x01", flags=END_STREAM | PADDED),
        },
        started=1,
    ),
    # 6.2 HEADERS
    *variants(
        "9113-6.2-headers",
        "headers may be padded",
        "1:200 open",
        {
            "padded": headers(padded(block()), flags=END | PADDED),
            "most": headers(padded(block(), 255), flags=END | PADDED),
            "none": headers(padded(block(), 0), flags=END | PADDED),
            "continued": headers(padded(block()[:5]), flags=END_STREAM | PADDED)
            + continuation(block()[5:]),
        },
    ),
    *variants(
        "9113-6.2-padding",
        "padding is shorter than the payload",
        "PROTOCOL_ERROR",
        {
            "as-long": headers(bytes([len(block()) + 1]) + block(), flags=END | PADDED),
            "longer": headers(b"\xff" + block(), flags=END | PADDED),
        },
    ),
    Row("9113-6.2-connection", "HEADERS have a stream", get(stream=0), "PROTOCOL_ERROR"),
    # 6.3 PRIORITY
    Row("9113-6.3-connection", "PRIORITY has a stream", priority(stream=0), "PROTOCOL_ERROR"),
    *variants(
        "9113-6.3-length",
        "PRIORITY has 5 octets",
        "FRAME_SIZE_ERROR or 1:FRAME_SIZE_ERROR open",
        {
            "short": frame(PRIORITY, bytes(4), stream=1),
            "long": frame(PRIORITY, bytes(6), stream=1),
        },
    ),
    # 6.4 RST_STREAM
    Row("9113-6.4-connection", "RST_STREAM has a stream", reset(0), "PROTOCOL_ERROR"),
    *variants(
        "9113-6.4-length",
        "RST_STREAM has 4 octets",
        "FRAME_SIZE_ERROR",
        {
            "short": post("/wait") + frame(RST_STREAM, bytes(3), stream=1),
            "long": post("/wait") + frame(RST_STREAM, bytes(5), stream=1),
            "empty": post("/wait") + frame(RST_STREAM, b"", stream=1),
        },
        started=1,
    ),
    Row(
        "9113-6.4-told",
        "the application learns of it",
        (post("/wait") + data(b"x", flags=0), reset()),
        "| open",
        given={"end": "disconnect"},
    ),
    # 6.5 SETTINGS
    Row(
        "9113-6.5-acknowledged",
        "each SETTINGS is acknowledged",
        settings() + settings((STREAMS, 10)) + settings((FRAME_SIZE, 2**14)),
        "ack ack ack open",
    ),
    Row(
        "9113-6.5-acknowledgement",
        "an acknowledgement is not acknowledged",
        settings(flags=ACK),
        "open",
    ),
    Row(
        "9113-6.5-acknowledgement-with-settings",
        "an acknowledgement is empty",
        settings((STREAMS, 10), flags=ACK),
        "FRAME_SIZE_ERROR",
    ),
    Row("9113-6.5-stream", "SETTINGS have no stream", settings(stream=1), "PROTOCOL_ERROR"),
    *variants(
        "9113-6.5-length",
        "a setting has 6 octets",
        "FRAME_SIZE_ERROR",
        {
            "short": frame(SETTINGS, bytes(3)),
            "long": frame(SETTINGS, b"\0\xff" + bytes(5)),
            "first": frame(SETTINGS, bytes(5)),
        },
    ),
    # 6.5.2 Defined Settings
    *variants(
        "9113-6.5.2-protocol-error",
        "values have limits",
        "PROTOCOL_ERROR",
        {
            "push": settings((PUSH, 2)),
            "frame-size-low": settings((FRAME_SIZE, 2**14 - 1)),
            "frame-size-high": settings((FRAME_SIZE, 2**24)),
            "second": settings((STREAMS, 10), (PUSH, 2**32 - 1)),
        },
    ),
    Row(
        "9113-6.5.2-window",
        "a window has at most 2^31-1 octets",
        settings((WINDOW, 2**31)),
        "FLOW_CONTROL_ERROR",
    ),
    *variants(
        "9113-6.5.2-values",
        "values up to the limits are accepted",
        "1:200 ack open",
        {
            "push": settings((PUSH, 0)) + GET,
            "table": settings((TABLE_SIZE, 2**32 - 1)) + GET,
            "streams": settings((STREAMS, 0), (STREAMS, 2**32 - 1)) + GET,
            "window": settings((WINDOW, 2**31 - 1)) + GET,
            "frame-size": settings((FRAME_SIZE, 2**14), (FRAME_SIZE, 2**24 - 1)) + GET,
            "list-size": settings((LIST_SIZE, 2**32 - 1)) + GET,
        },
    ),
    # 6.5.3 Settings Synchronization
    Row(
        "9113-6.5.3-order",
        "the values are processed in their order",
        get("/abc"),
        "1:200[1] open",
        **starting((WINDOW, 100), (WINDOW, 1)),
    ),
    Row(
        "9113-6.5.3-frames",
        "settings are processed before what follows",
        settings((WINDOW, 1)) + get("/abc") + settings((WINDOW, 2)) + ping(),
        "1:200[2] ack ack ping open",
    ),
    # 6.6 PUSH_PROMISE
    *variants(
        "9113-6.6-client",
        "a client cannot push (8.4)",
        "PROTOCOL_ERROR",
        {
            "idle": frame(PUSH_PROMISE, b"\0\0\0\2" + block(), stream=1, flags=END_HEADERS),
            "connection": frame(PUSH_PROMISE, b"\0\0\0\2" + block(), flags=END_HEADERS),
        },
    ),
    Row(
        "9113-6.6-client-open",
        "a client cannot push (8.4)",
        post("/wait") + frame(PUSH_PROMISE, b"\0\0\0\2" + block(), stream=1, flags=END_HEADERS),
        "PROTOCOL_ERROR",
        started=1,
    ),
    # 6.7 PING
    *variants(
        "9113-6.7-ping",
        "PING is acknowledged with its payload",
        "ping open",
        {"alone": ping(), "with-its-flags": ping(flags=0x08)},
    ),
    Row("9113-6.7-several", "each PING is acknowledged", ping() * 3, "ping ping ping open"),
    Row(
        "9113-6.7-busy",
        "PING is acknowledged while responses wait for a window",
        (get("/large"), ping()),
        "1:200[65535] | ping open",
    ),
    Row("9113-6.7-acknowledgement", "an acknowledgement is ignored", ping(flags=ACK), "open"),
    *variants(
        "9113-6.7-stream",
        "PING has no stream",
        "PROTOCOL_ERROR",
        {"idle": ping(stream=1), "acknowledgement": ping(stream=1, flags=ACK)},
    ),
    *variants(
        "9113-6.7-length",
        "PING has 8 octets",
        "FRAME_SIZE_ERROR",
        {
            "short": ping(b"123456"),
            "long": ping(b"123456789"),
            "empty": ping(b""),
            "acknowledgement": ping(b"", flags=ACK),
        },
    ),
    # 6.8 GOAWAY
    *variants(
        "9113-6.8-goaway",
        "a client that sends GOAWAY is done with the connection",
        "closed",
        {
            "no-error": goaway(),
            "error": goaway(CODES.index("INTERNAL_ERROR"), debug=b"why"),
            "unknown-code": goaway(0xFF),
            "reserved": goaway(last=2**31),
        },
    ),
    Row(
        "9113-6.8-in-flight",
        "a client that sends GOAWAY does not wait for the streams that it has opened",
        get("/slow") + goaway(),
        "closed",
        started=1,
    ),
    Row("9113-6.8-stream", "GOAWAY has no stream", goaway(stream=1), "PROTOCOL_ERROR"),
    Row("9113-6.8-length", "GOAWAY has 8 octets", frame(GOAWAY, bytes(7)), "FRAME_SIZE_ERROR"),
    # 6.9 WINDOW_UPDATE
    *variants(
        "9113-6.9-update",
        "windows may grow by up to 2^31-1",
        "1:200 open",
        {
            "connection": window(1) + GET,
            "most": window(2**31 - 1 - 65_535) + GET,
            "stream": POST + window(1, 1) + data(),
            "stream-most": POST + window(2**31 - 1 - 65_535, 1) + data(),
            "reserved": window(2**31 + 1) + GET,
        },
    ),
    Row("9113-6.9-zero", "a window grows by at least 1", window(0), "PROTOCOL_ERROR"),
    *variants(
        "9113-6.9-zero-stream",
        "a window grows by at least 1",
        "1:PROTOCOL_ERROR open",
        {"zero": get("/wait") + window(0, 1), "reserved": get("/wait") + window(2**31, 1)},
        started=1,
    ),
    *variants(
        "9113-6.9-length",
        "WINDOW_UPDATE has 4 octets",
        "FRAME_SIZE_ERROR",
        {
            "short": frame(WINDOW_UPDATE, bytes(3)),
            "long": frame(WINDOW_UPDATE, bytes(5)),
            "idle": frame(WINDOW_UPDATE, bytes(3), stream=1),
        },
    ),
    # 6.9.1 The Flow-Control Window
    Row(
        "9113-6.9.1-stream",
        "a stream's window is not exceeded",
        (get("/abc"), window(1, 1), window(2, 1)),
        "1:200[1] | 1:200[2] | 1:200 open",
        **starting((WINDOW, 1)),
        content="/abc",
    ),
    Row(
        "9113-6.9.1-connection",
        "the connection's window is not exceeded",
        (get("/large"), window(1, 1) + window(1), window(2**20), window(2**20, 1)),
        "1:200[65535] | 1:200[65536] | | 1:200 open",
    ),
    Row(
        "9113-6.9.1-shared",
        "the connection's window is for all streams together",
        (get("/large"), get("/abc", 3), get("/none", 5), window(2)),
        "1:200[65535] | 3:200[0] | 5:200 | 3:200[2] open",
    ),
    Row(
        "9113-6.9.1-headers",
        "an empty DATA that ends a stream needs no window",
        get("/empty"),
        "1:200 open",
        **starting((WINDOW, 0)),
    ),
    Row(
        "9113-6.9.1-too-large",
        "the connection's window does not grow beyond 2^31-1",
        window(2**31 - 1),
        "FLOW_CONTROL_ERROR",
    ),
    Row(
        "9113-6.9.1-too-large-in-steps",
        "the connection's window does not grow beyond 2^31-1",
        window(2**30) + window(2**30),
        "FLOW_CONTROL_ERROR",
    ),
    *variants(
        "9113-6.9.1-too-large-stream",
        "a stream's window does not grow beyond 2^31-1",
        "1:FLOW_CONTROL_ERROR open",
        {
            "at-once": get("/wait") + window(2**31 - 1, 1),
            "in-steps": get("/wait") + window(2**30, 1) + window(2**30, 1),
        },
        started=1,
    ),
    Row(
        "9113-6.9.1-our-window",
        "what the client sends is accepted as far as the window goes",
        post("/unread") + data(bytes(2**14), flags=0) * 3 + data(bytes(2**14 - 1), flags=0),
        "open",
        started=1,
    ),
    *variants(
        "9113-6.9.1-our-window",
        "a client that exceeds the window is told so",
        "1:FLOW_CONTROL_ERROR open or FLOW_CONTROL_ERROR",
        {
            "exceeded": post("/unread") + data(bytes(2**14), flags=0) * 4,
            "by-padding": post("/unread")
            + data(bytes(2**14), flags=0) * 3
            + data(bytes(2**14 - 2), flags=0)
            + data(padded(b"", 1), flags=PADDED),
        },
        started=1,
    ),
    Row(
        "9113-6.9.1-returned",
        "windows are returned as content is read",
        (
            post("/length") + data(bytes(15_000), flags=0) * 4,
            *(data(bytes(15_000), flags=0) * 4,) * 5,
            data(),
        ),
        "| | | | | | 1:200 open",
        content="360000",
    ),
    Row(
        "9113-6.9.1-returned-padding",
        "padding takes a part of the window, and gives it back",
        (
            post("/length") + data(padded(b"", 255), flags=PADDED) * 200,
            *(data(padded(b"", 255), flags=PADDED) * 200,) * 5,
            data(),
        ),
        "| | | | | | 1:200 open",
        content="0",
    ),
    Row(
        "9113-6.9.1-returned-discarded",
        "content of a stream that the server has reset counts for the connection's window",
        (
            headers(block("Upper: x"), flags=END_HEADERS),
            *(data(bytes(15_000), flags=0) * 4,) * 5,
            post("/length", 3) + data(bytes(15_000), 3, 0) * 3 + data(b"", 3),
        ),
        "1:PROTOCOL_ERROR | | | | | | 3:200 open",
        content="45000",
    ),
    # 6.9.2 Initial Flow-Control Window Size
    Row(
        "9113-6.9.2-open-streams",
        "a change of the initial window is one of all streams",
        (get("/abc"), settings((WINDOW, 1)), settings((WINDOW, 100))),
        "1:200[0] | 1:200[1] ack | 1:200 ack open",
        **starting((WINDOW, 0)),
    ),
    Row(
        "9113-6.9.2-negative",
        "a window may become negative",
        (get("/abcdef"), settings((WINDOW, 2)), window(1, 1), window(1, 1), window(9, 1)),
        "1:200[3] | ack | | 1:200[4] | 1:200 open",
        **starting((WINDOW, 3)),
    ),
    Row(
        "9113-6.9.2-connection",
        "a change of the initial window is none of the connection's",
        (settings((WINDOW, 2**20)) + get("/large"), window(2**20)),
        "1:200[65535] ack | 1:200 open",
    ),
    Row(
        "9113-6.9.2-overflow",
        "a change that makes a window too large is a FLOW_CONTROL_ERROR",
        get("/wait") + window(2**31 - 1 - 65_535, 1) + settings((WINDOW, 65_536)),
        "FLOW_CONTROL_ERROR",
        started=1,
    ),
    # 6.10 CONTINUATION
    *variants(
        "9113-6.10-continuation",
        "a header block may be cut anywhere",
        "1:200 open",
        {
            "one": headers(block()[:9], flags=END_STREAM) + continuation(block()[9:]),
            "several": headers(block()[:1], flags=END_STREAM)
            + b"".join(continuation(bytes([octet]), flags=0) for octet in block()[1:20])
            + continuation(block()[20:]),
            "empty": headers(b"", flags=END_STREAM)
            + continuation(flags=0)
            + continuation(block(), flags=0)
            + continuation(),
            "content": headers(block(method="POST")[:9], flags=0)
            + continuation(block(method="POST")[9:])
            + data(b"x"),
            "trailers": POST + headers(b"\0", flags=END_STREAM) + continuation(fields("x: y")[1:]),
        },
    ),
    Row(
        "9113-6.10-in-pieces",
        "a header block may come in pieces",
        (
            headers(block()[:9], flags=END_STREAM),
            continuation(block()[9:20], flags=0),
            continuation(block()[20:]),
        ),
        "| | 1:200 open",
    ),
    *variants(
        "9113-6.10-alone",
        "CONTINUATION follows a frame without END_HEADERS",
        "PROTOCOL_ERROR",
        {
            "headers": get("/wait") + continuation(),
            "continuation": headers(block(path="/wait"), flags=END_STREAM) + continuation() * 2,
            "data": post("/wait") + data(b"x") + continuation(),
        },
        started=1,
    ),
    *variants(
        "9113-6.10-connection",
        "CONTINUATION has a stream",
        "PROTOCOL_ERROR",
        {
            "alone": continuation(block(), 0),
            "behind-headers": headers(block()[:9], flags=END_STREAM) + continuation(block()[9:], 0),
        },
    ),
    Row(
        "9113-10.5-continuation",
        "a header block without end is not collected",
        headers(block(), flags=END_STREAM) + continuation(flags=0) * 200,
        "ENHANCE_YOUR_CALM",
    ),
    # 7 Error Codes
    Row(
        "9113-7-unknown",
        "an unknown error code means nothing special",
        (post("/wait"), reset(code=0xFF)),
        "| open",
        given={"end": "disconnect"},
    ),
    # 8.1 HTTP Message Framing
    *variants(
        "9113-8.1-methods",
        "a request has headers, perhaps content, and perhaps trailers",
        "1:200 open",
        {
            "get": GET,
            "get-with-content": headers(block(), flags=END_HEADERS) + data(b"x"),
            "head": headers(block(method="HEAD")),
            "post": POST + data(b"hello"),
            "post-without-content": headers(block(method="POST")),
            "trailers": POST + data(b"hello", flags=0) + headers(fields("x: y")),
            "only-trailers": POST + headers(fields("x: y")),
            "empty-trailers": POST + data(b"x", flags=0) + headers(b""),
        },
    ),
    Row(
        "9113-8.1-trailers",
        "trailers are not content",
        POST + data(b"hello", flags=0) + headers(fields("x: y")),
        "1:200 open",
        given={"body": b"hello", "end": "complete", "headers": [(b"host", b"a")]},
    ),
    *variants(
        "9113-8.1-trailers-open",
        "trailers end the stream",
        "1:PROTOCOL_ERROR open",
        {
            "at-once": POST + headers(fields("x: y"), flags=END_HEADERS),
            "behind-data": POST
            + data(b"x", flags=0)
            + headers(fields("x: y"), flags=END_HEADERS)
            + data(b"x"),
        },
        started=1,
    ),
    *variants(
        "9113-8.1-malformed-trailers",
        "trailers have no pseudo-header fields, and nothing that no header section has",
        "1:PROTOCOL_ERROR open",
        {
            "method": POST + headers(fields(":method: GET")),
            "status": POST + headers(fields(":status: 200")),
            "behind": POST + headers(fields("x: y", ":path: /")),
            "upper": POST + headers(fields("X: y")),
            "connection": POST + headers(fields("connection: close")),
        },
        started=1,
    ),
    *variants(
        "9113-8.1-interleaved",
        "requests may be interleaved",
        "1:200 3:200 open",
        {
            "data": POST
            + post("/", 3)
            + data(b"1", flags=0)
            + data(b"3", 3, 0)
            + data(b"11")
            + data(b"33", 3),
            "later-first": POST + post("/", 3) + data(b"333", 3) + data(b"111"),
        },
    ),
    *variants(
        "9113-8.1-early",
        "a response may come before the request is complete, which then is cut off",
        "1:200 1:NO_ERROR open",
        {
            "at-once": post("/early"),
            "between": post("/early") + data(b"x", flags=0),
        },
    ),
    *variants(
        "9113-8.1-early-continued",
        "what the client has sent before it knew is ignored",
        "1:200 1:NO_ERROR | open",
        {
            "data": (post("/early"), data(b"x", flags=0) * 3 + data(b"x")),
            "trailers": (post("/early"), headers(fields("x: y"))),
            "reset": (post("/early"), reset()),
            "window": (post("/early"), window(1, 1)),
        },
    ),
    Row(
        "9113-8.1-informational",
        "informational responses come first, and do not end the stream",
        get("/hints"),
        "1:103 1:200 open",
    ),
    *variants(
        "9113-8.1-continue",
        "a 100 does not wait for the content (RFC 9110, 10.1.1)",
        "1:100 | 1:200 open",
        {
            "length": (post("/", 1, "expect: 100-continue", "content-length: 1"), data(b"x")),
            "no-length": (post("/", 1, "expect: 100-continue"), data(b"x")),
        },
        content="x",
    ),
    Row(
        "9113-8.1-continue-none",
        "a request without content needs no 100",
        headers(block("expect: 100-continue")),
        "1:200 open or 1:100 1:200 open",
    ),
    Row(
        "9113-8.1-response-trailers",
        "a response may have trailers",
        headers(block("te: trailers", path="/trailers")),
        "1:200 open",
        content="content",
        trailers=("x: y",),
    ),
    Row(
        "9113-8.1-failed",
        "a response that the application does not complete is reset",
        get("/unfinished"),
        "1:INTERNAL_ERROR open",
        content="content",
    ),
    # 8.1.1 Malformed Messages
    *variants(
        "9113-8.1.1-length",
        "content is as long as Content-Length says",
        "1:PROTOCOL_ERROR open",
        {
            "longer": post("/", 1, "content-length: 1") + data(b"12"),
            "shorter": post("/", 1, "content-length: 9") + data(b"12"),
            "longer-in-all": post("/", 1, "content-length: 3") + data(b"12", flags=0) + data(b"34"),
            "shorter-in-all": post("/", 1, "content-length: 9")
            + data(b"12", flags=0)
            + data(b"34"),
            "longer-unfinished": post("/", 1, "content-length: 1") + data(b"12", flags=0),
            "trailers": post("/", 1, "content-length: 9") + headers(fields("x: y")),
            "padding": post("/", 1, "content-length: 2")
            + data(padded(b"1", 1), flags=END_STREAM | PADDED),
            "empty": post("/", 1, "content-length: 1") + data(),
        },
        started=1,
    ),
    *malformed(
        "9113-8.1.1-length",
        "content is as long as Content-Length says",
        {
            "no-content": block("content-length: 1"),
            "two": block("content-length: 0", "content-length: 1"),
            "negative": block("content-length: -0"),
            "sign": block("content-length: +0"),
            "text": block("content-length: none"),
            "empty": block("content-length: "),
            "list": block("content-length: 0, 0"),
        },
    ),
    *variants(
        "9113-8.1.1-length-right",
        "content is as long as Content-Length says",
        "1:200 open",
        {
            "one": post("/", 1, "content-length: 2") + data(b"12"),
            "several": post("/", 1, "content-length: 2") + data(b"1", flags=0) + data(b"2"),
            "padded": post("/", 1, "content-length: 2")
            + data(padded(b"12"), flags=END_STREAM | PADDED),
            "end-alone": post("/", 1, "content-length: 2") + data(b"12", flags=0) + data(),
            "trailers": post("/", 1, "content-length: 2")
            + data(b"12", flags=0)
            + headers(fields("x: y")),
        },
        content="12",
    ),
    *variants(
        "9113-8.1.1-length-zero",
        "a Content-Length of 0 is none",
        "1:200 open",
        {
            "headers": headers(block("content-length: 0")),
            "data": post("/", 1, "content-length: 0") + data(),
            "twice": headers(block("content-length: 0", "content-length: 0")),
        },
    ),
    # 8.2.1 Field Validity
    *malformed(
        "9113-8.2.1-name",
        "a field's name is a token in lower case",
        {
            "upper": block("X-Test: x"),
            "one-upper": block("x-tesT: x"),
            "empty": block() + literal("", "x"),
            "space": block("x y: x"),
            "space-first": block(" x: x"),
            "space-last": block("x : x"),
            "tab": block("x\ty: x"),
            "control": block("x\1: x"),
            "nul": block("x\0: x"),
            "delete": block("x\x7f: x"),
            "not-ascii": block("x\xe9: x"),
            "colon": block("x:y: x"),
            "newline": block("x\r\ny: x"),
            "separator": block("x(y): x"),
        },
    ),
    *malformed(
        "9113-8.2.1-value",
        "a field's value has no line breaks and NULs, and no space at its ends",
        {
            "nul": block("x: a\0b"),
            "lf": block("x: a\nb"),
            "cr": block("x: a\rb"),
            "crlf": block("x: a\r\nhost: b"),
            "space-first": block("x:  a"),
            "space-last": block("x: a "),
            "tab-first": block("x: \ta"),
            "tab-last": block("x: a\t"),
            "space": block("x:  "),
            "path": block(path="/\r\nx: y"),
            "path-nul": block(path="/\0"),
            "method": block(method="GET / HTTP/1.1\r\nx: y\r\n\r\n"),
            "authority": block(authority="a\r\nx: y"),
        },
    ),
    Row(
        "9113-8.2.1-values",
        "values may have spaces, no characters, and any other octets",
        headers(block("a: b c\td", "e: ", "x: \xe9\xff")),
        "1:200 open",
        given={"headers": [(b"host", b"a"), (b"a", b"b c\td"), (b"e", b""), (b"x", b"\xe9\xff")]},
    ),
    Row(
        "9113-8.2.1-many",
        "a request may have many headers",
        headers(block(*(f"x-{i}: {'y' * i}" for i in range(100)))),
        "1:200 open",
        given={
            "headers": [
                (b"host", b"a"),
                *((b"x-%d" % i, b"y" * i) for i in range(100)),
            ]
        },
    ),
    Row(
        "9113-8.2.1-repeated",
        "fields may be repeated, and keep their order",
        headers(block("a: 1", "b: 2", "a: 3")),
        "1:200 open",
        given={"headers": [(b"host", b"a"), (b"a", b"1"), (b"b", b"2"), (b"a", b"3")]},
    ),
    # 8.2.2 Connection-Specific Header Fields
    *malformed(
        "9113-8.2.2-connection",
        "there are no connection-specific headers",
        {
            "connection": block("connection: keep-alive"),
            "connection-close": block("connection: close"),
            "keep-alive": block("keep-alive: timeout=5"),
            "proxy-connection": block("proxy-connection: keep-alive"),
            "transfer-encoding": block("transfer-encoding: chunked"),
            "upgrade": block("upgrade: h2c"),
            "te": block("te: gzip"),
            "te-and-more": block("te: trailers, deflate"),
        },
    ),
    Row(
        "9113-8.2.2-te",
        "TE may say trailers",
        headers(block("te: trailers")),
        "1:200 open",
        given={"headers": [(b"host", b"a"), (b"te", b"trailers")]},
    ),
    Row(
        "9113-8.2.2-response",
        "what the application says of an HTTP/1 connection is not sent",
        get("/connection"),
        "1:200 open",
        content="streamed",
        has=("x: y",),
    ),
    # 8.2.3 Compressing the Cookie Header Field
    Row(
        "9113-8.2.3-cookie",
        "pieces of a cookie are joined for the application",
        headers(block("cookie: a=b", "x: y", "cookie: c=d; e=f", "cookie: g=h")),
        "1:200 open",
        given={"headers": [(b"host", b"a"), (b"x", b"y"), (b"cookie", b"a=b; c=d; e=f; g=h")]},
    ),
    # 8.3 HTTP Control Data
    *malformed(
        "9113-8.3-pseudo",
        "pseudo-header fields are the defined ones of a request, once each, and first",
        {
            "unknown": fields(":test: x") + block(),
            "unknown-last": fields(":method: GET", ":scheme: http", ":path: /", ":x: y"),
            "status": fields(":status: 200") + block(),
            "upper": fields(":Method: GET") + block(method=None),
            "colon": fields(":: GET") + block(),
            "behind-a-header": block("x: y", ":authority: a", authority=None),
            "method-last": block("x: y", ":method: GET", method=None),
            "unknown-behind": block("x: y", ":test: x"),
            "two-methods": fields(":method: GET") + block(),
            "other-method": fields(":method: POST") + block(),
            "two-schemes": fields(":scheme: http") + block(),
            "two-paths": fields(":path: /") + block(),
            "two-authorities": fields(":authority: a") + block(),
            "protocol": fields(":protocol: websocket") + block(),
        },
    ),
    # 8.3.1 Request Pseudo-Header Fields
    *malformed(
        "9113-8.3.1-missing",
        "a request has a method, a scheme and a path",
        {
            "method": block(method=None),
            "scheme": block(scheme=None),
            "path": block(path=None),
            "all": b"",
            "only-headers": fields("host: a", "x: y"),
        },
    ),
    *malformed(
        "9113-8.3.1-method",
        "a method is a token",
        {
            "empty": block(method=""),
            "space": block(method="GET /"),
            "delimiter": block(method="G(T"),
            "not-ascii": block(method="G\xc9T"),
        },
    ),
    *malformed(
        "9113-8.3.1-scheme",
        "a scheme begins with a letter (RFC 3986, 3.1)",
        {
            "empty": block(scheme=""),
            "colon": block(scheme="http:"),
            "space": block(scheme="ht tp"),
            "not-ascii": block(scheme="htt\xfe"),
        },
    ),
    *malformed(
        "9113-8.3.1-path",
        PATH,
        {
            "empty": block(path=""),
            "not-ascii": block(path="/\xe9"),
            "relative": block(path="a"),
            "query-only": block(path="?q"),
            "uri": block(path="http://a/"),
            "asterisk-of-a-get": block(path="*"),
            "asterisk-and-more": block(path="*a", method="OPTIONS"),
        },
    ),
    *malformed(
        "9113-8.3.1-path",
        PATH,
        {
            "fragment": block(path="/#f"),
            "fragment-of-a-query": block(path="/?q#f"),
            "space": block(path="/a b"),
            "version": block(path="/ HTTP/1.1"),
            "control": block(path="/\1"),
            "delete": block(path="/\x7f"),
        },
    ),
    *malformed(
        "9113-8.3.1-authority",
        "an authority is a host, and perhaps a port, and Host is the same",
        {
            "userinfo": block(authority="user@a"),
            "path": block(authority="a/b"),
            "space": block(authority="a b"),
            "port": block(authority="a:b"),
            "host-port": block("host: a:b", authority=None),
            "other-host": block("host: b"),
            "two-hosts": block("host: a", "host: b"),
            "two-hosts-without-authority": block("host: a", "host: b", authority=None),
            "none": block(authority=None),
        },
    ),
    *variants(
        "9113-8.3.1-host",
        "an authority may be in either place, or in both",
        "1:200 open",
        {
            "authority": GET,
            "host": headers(block("host: a", authority=None)),
            "both": headers(block("host: a")),
        },
        given={"headers": [(b"host", b"a")]},
    ),
    Row(
        "9113-8.3.1-host-first",
        "the authority is the application's first header",
        headers(block("x: y", "host: a:80", authority=None)),
        "1:200 open",
        given={"headers": [(b"host", b"a:80"), (b"x", b"y")]},
    ),
    *variants(
        "9113-8.3.1-order",
        "pseudo-header fields may have any order",
        "1:200 open",
        {
            "authority-first": headers(fields(":authority: a") + block(authority=None)),
            "method-last": headers(block(method=None) + fields(":method: GET")),
        },
        given={"method": "GET", "path": "/", "headers": [(b"host", b"a")]},
    ),
    *variants(
        "9113-8.3.1-schemes",
        "schemes are not only http and https",
        "1:200 open",
        {name: headers(block(scheme=name)) for name in ("https", "HTTP", "coap+tcp", "h2.x-1")},
    ),
    Row(
        "9113-8.3.1-query",
        "a path may have a query",
        get("/a%20b?c=d&e=%2F?"),
        "1:200 open",
        given={"path": "/a b", "raw_path": b"/a%20b", "query_string": b"c=d&e=%2F?"},
    ),
    Row(
        "9113-8.3.1-asterisk",
        "the path of OPTIONS may be an asterisk",
        headers(block(method="OPTIONS", path="*")),
        "1:200 open",
        given={"method": "OPTIONS", "path": "*"},
    ),
    Row(
        "9113-8.3.1-unknown-method",
        "a method that the server does not know is the application's",
        headers(block(method="M-SEARCH")),
        "1:200 open",
        given={"method": "M-SEARCH"},
    ),
    # 8.4 Server Push
    Row(
        "9113-8.4-push",
        "a push is promised, and then made",
        get("/push"),
        "1:200 1:promise(2) 2:200 open",
        content="/push /pushed",
    ),
    *variants(
        "9113-8.4-disabled",
        "nothing is pushed to a client that wants no push",
        "1:200 open",
        {"get": get("/push")},
        **starting((PUSH, 0)),
    ),
    Row(
        "9113-8.4-disabled-later",
        "a client may change its mind",
        (
            get("/push"),
            settings((PUSH, 0)) + get("/push", 3),
            settings((PUSH, 1)) + get("/push", 5),
        ),
        "1:200 1:promise(2) 2:200 | 3:200 ack | 4:200 5:200 5:promise(4) ack open",
    ),
    Row(
        "9113-8.4.2-reset",
        "a client may refuse what is promised",
        (get("/push-slow"), reset(2, CODES.index("REFUSED_STREAM"))),
        "1:200 1:promise(2) | open",
        started=1,
    ),
    # 8.5 The CONNECT Method
    *variants(
        "9113-8.5-connect",
        "this server is no proxy",
        "1:PROTOCOL_ERROR open or 1:501 open or 1:405 open",
        {
            "right": headers(
                block(method="CONNECT", scheme=None, path=None, authority="a:80"),
                flags=END_HEADERS,
            ),
            "scheme-and-path": headers(block(method="CONNECT"), flags=END_HEADERS),
            "no-authority": headers(
                block(method="CONNECT", scheme=None, path=None, authority=None)
            ),
        },
    ),
    # 10.5.1 Limits on Field Block Size
    Row(
        "9113-10.5.1-large",
        "headers up to SETTINGS_MAX_HEADER_LIST_SIZE are processed",
        in_frames(block() + literal("x", "y" * 60_000)),
        "1:200 open",
    ),
    Row(
        "9113-10.5.1-too-large",
        "headers beyond SETTINGS_MAX_HEADER_LIST_SIZE end the connection",
        headers(block() + literal("x", "y" * 4000, INCREMENTAL) + indexed(62) * 20),
        "ENHANCE_YOUR_CALM",
    ),
    # RFC 7541 (HPACK)
    # 2.3.3 Index Address Space
    *variants(
        "7541-2.3.3-index",
        "an index beyond both tables is a decoding error",
        "COMPRESSION_ERROR",
        {
            "indexed": headers(block() + indexed(70)),
            "just-beyond": headers(block() + indexed(62)),
            "literal": headers(block() + literal(70, "x")),
            "incremental": headers(block() + literal(70, "x", INCREMENTAL)),
            "never": headers(block() + literal(62, "x", NEVER)),
            "huge": headers(block() + indexed(2**27)),
        },
    ),
    # 4 Dynamic Table Management
    *variants(
        "7541-4.2-update",
        "a change of the table's size is at the beginning of a header block",
        "1:200 open",
        {
            "zero": headers(table_size(0) + block()),
            "most": headers(table_size(4096) + block()),
            "two": headers(table_size(0) + table_size(4096) + block()),
        },
    ),
    *variants(
        "7541-4.2-update-late",
        "a change of the table's size is at the beginning of a header block",
        "COMPRESSION_ERROR",
        {
            "end": headers(block() + table_size(1)),
            "middle": headers(fields(":method: GET") + table_size(1) + block(method=None)),
        },
    ),
    Row(
        "7541-4.3-evicted",
        "a smaller table loses its oldest entries",
        headers(block() + literal("x", "y", INCREMENTAL))
        + headers(table_size(0) + table_size(4096) + block() + indexed(62), 3),
        "COMPRESSION_ERROR",
        started=1,
    ),
    Row(
        "7541-4.4-too-large",
        "an entry that is larger than the table empties it, and is no error",
        headers(block() + literal("x", "y" * 5000, INCREMENTAL)) + get(stream=3),
        "1:200 3:200 open",
    ),
    # 5.1 Integer Representation
    *variants(
        "7541-5.1-integer",
        "an integer that is too long is a decoding error",
        "COMPRESSION_ERROR",
        {
            "indexed": headers(block() + b"\xff" * 1000),
            "length": headers(block() + b"\0\1x\x7f" + b"\xff" * 1000 + b"\0"),
            "table-size": headers(b"\x3f" + b"\x80" * 1000 + b"\0" + block()),
            "unfinished": headers(block() + b"\xff\x80"),
        },
    ),
    # 5.2 String Literal Representation
    *variants(
        "7541-5.2-string",
        "a string that cannot be decoded is a decoding error",
        "COMPRESSION_ERROR",
        {
            # "test" by Huffman is 49 50 9f.
            "padding-too-long": headers(block() + b"\0\1x\x84 \x49\x50\x9f\xff"),
            "padding-of-zeros": headers(block() + b"\0\1x\x83\x49\x50\x90"),
            "end-of-string": headers(block() + b"\0\1x\x87\x49\x50\x9f\xff\xff\xff\xff"),
            "too-short": headers(block() + b"\0\1x\x05test"),
        },
    ),
    *variants(
        "7541-5.2-strings",
        "strings may be plain, or by Huffman",
        "1:200 open",
        {
            "plain": headers(block() + literal("x", "test")),
            "huffman": headers(block() + literal("x", "test", huffman=True)),
            "huffman-by-hand": headers(block() + b"\0\1x\x83\x49\x50\x9f"),
        },
        given={"headers": [(b"host", b"a"), (b"x", b"test")]},
    ),
    # 6 Binary Format
    Row(
        "7541-6.1-zero",
        "there is no index 0",
        headers(block() + indexed(0)),
        "COMPRESSION_ERROR",
    ),
    Row(
        "7541-6.1-static",
        "a field may be an index in the static table",
        headers(indexed(2) + indexed(6) + indexed(4) + literal(1, "a")),
        "1:200 open",
        given={"method": "GET", "path": "/", "headers": [(b"host", b"a")]},
    ),
    *variants(
        "7541-6.2-literal",
        "a field may be a literal in each of three ways, with a name or its index",
        "1:200 open",
        {
            f"{name}-{form}{'-huffman' * huffman}": headers(
                block() + literal(key, "x", kind, huffman)
            )
            for name, kind in {
                "incremental": INCREMENTAL,
                "plain": PLAIN,
                "never": NEVER,
            }.items()
            for form, key in USER_AGENT.items()
            for huffman in (False, True)
        },
        given={"headers": [(b"host", b"a"), (b"user-agent", b"x")]},
    ),
    Row(
        "7541-6.2.1-dynamic",
        "a field may be an index in the dynamic table, in the same block and in later ones",
        (
            headers(block() + literal("x", "y", INCREMENTAL) + indexed(62)),
            headers(block() + literal(62, "z", INCREMENTAL) + indexed(62) + indexed(63), 3),
        ),
        "1:200 | 3:200 open",
    ),
    Row(
        "7541-6.2.1-dynamic-value",
        "the newest entry has the lowest index",
        headers(
            block() + literal("x", "y", INCREMENTAL) + literal(62, "z", INCREMENTAL) + indexed(63)
        ),
        "1:200 open",
        given={"headers": [(b"host", b"a"), (b"x", b"y"), (b"x", b"z"), (b"x", b"y")]},
    ),
    Row(
        "7541-6.2.1-repeated",
        "the same octets mean what the table says then",
        (
            headers(block() + literal("x", "y", INCREMENTAL)),
            headers(block(path="/a") + indexed(62), 3)
            + headers(block("later: 1") + literal("x", "z", INCREMENTAL), 5)
            + headers(block(path="/a") + indexed(62), 7),
        ),
        "1:200 | 3:200 5:200 7:200 open",
    ),
    *variants(
        "7541-6.3-size",
        "the table's size is at most what SETTINGS_HEADER_TABLE_SIZE says",
        "COMPRESSION_ERROR",
        {
            "more": headers(table_size(4097) + block()),
            "much-more": headers(table_size(2**31) + block()),
            "second": headers(table_size(0) + table_size(4097) + block()),
        },
    ),
    # RFC 8441 (Bootstrapping WebSockets with HTTP/2)
    Row(
        "8441-5-websocket",
        "CONNECT opens a WebSocket",
        OPEN,
        "1:200[0] open",
        given={
            "type": "websocket",
            "path": "/",
            "headers": [(b"host", b"a"), (b"sec-websocket-version", b"13")],
        },
    ),
    *malformed(
        "8441-4-connect",
        "an extended CONNECT has a scheme and a path, and :protocol is one of a CONNECT",
        {
            "scheme": block(*WEBSOCKET, method="CONNECT", scheme=None),
            "path": block(*WEBSOCKET, method="CONNECT", path=None),
            "authority": block(*WEBSOCKET, method="CONNECT", authority=None),
            "method": block(*WEBSOCKET),
            "twice": block(":protocol: websocket", ":protocol: websocket", method="CONNECT"),
        },
    ),
    Row(
        "8441-4-unknown",
        "a protocol that the server does not know gets a 501 (RFC 9220, 3)",
        headers(block(":protocol: tunnel", method="CONNECT"), flags=END_HEADERS),
        "1:501 1:NO_ERROR open or 1:501 open",
    ),
    Row(
        "8441-5-end",
        "the end of the stream is the end of the WebSocket",
        (
            OPEN,
            data(),
        ),
        "1:200[0] | 1:200 open",
    ),
    Row(
        "8441-5-reset",
        "a reset is the end of the WebSocket",
        (
            OPEN,
            reset(),
        ),
        "1:200[0] | open",
    ),
    # RFC 9110, where framing is HTTP/2's
    Row(
        "9110-9.3.2-head",
        "the response to HEAD has no content, but its length",
        headers(block(method="HEAD")),
        "1:200 open",
        content="",
        has=("content-length: 1",),
    ),
    Row(
        "9110-15.3.5-204",
        "a 204 has no content, even if the application wants it",
        get("/204"),
        "1:204 open",
        content="",
        lacks=("content-length",),
    ),
    Row(
        "9110-15.4.5-304",
        "a 304 has no content, but may have a length",
        get("/304"),
        "1:304 open",
        content="",
        has=("content-length: 7",),
    ),
    Row(
        "9110-6.6.1-date",
        "the application's own date and server stay",
        get("/dated"),
        "1:200 open",
        has=("date: Tue, 15 Nov 1994 08:12:31 GMT", "server: mine"),
    ),
]


# The application

RESPONSES: dict[str, tuple[int, list[str], bytes]] = {
    "/connection": (
        200,
        ["Connection: close", "Keep-Alive: 5", "Transfer-Encoding: chunked", "Upgrade: x", "X: y"],
        b"streamed",
    ),
    "/dated": (200, ["date: Tue, 15 Nov 1994 08:12:31 GMT", "server: mine"], b"content"),
    "/empty": (200, [], b""),
    "/large": (200, [], b"x" * 100_000),
    "/long": (200, ["long: " + "x" * 40_000], b"content"),
    "/none": (200, ["content-length: 0"], b""),
    "/unfinished": (200, [], b"content"),
    "/204": (204, ["content-length: 7"], b"content"),
    "/304": (304, ["content-length: 7"], b"content"),
}


class Application:
    """Responds as the path says, by default with the request's content; keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        given = {**scope, "body": b"", "end": None}
        self.given.append(given)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        path = scope["path"]
        if path.startswith("/push") and path != "/pushed":
            pushed = "/pushed" if path == "/push" else "/wait"
            await send({"type": "http.response.push", "path": pushed, "headers": []})
        if path == "/hints":
            await send({"type": "http.response.early_hint", "links": [b"</style.css>"]})
        if path == "/unread":
            await trio.sleep_forever()
        while path != "/early" and (given["end"] is None or path == "/wait"):
            event = await receive()
            if event["type"] == "http.disconnect":
                given["end"] = "disconnect"
                return
            given["body"] += event["body"]
            if not event["more_body"]:
                given["end"] = "complete"
        if path == "/slow":
            await trio.sleep(SILENCE / 2)
        content = given["body"] or path.encode()
        if path == "/length":
            content = b"%d" % len(given["body"])
        default = (200, [f"content-length: {len(content)}"], content)
        status, lines, content = RESPONSES.get(path, default)
        if path == "/trailers":
            status, lines, content = 200, [], b"content"
        fields = [tuple(line.encode().split(b": ", 1)) for line in lines]
        trailers = path == "/trailers"
        start = {"type": "http.response.start", "status": status, "headers": fields}
        await send({**start, "trailers": trailers})
        await send({"type": "http.response.body", "body": content, "more_body": True})
        if path == "/unfinished":
            return
        await send({"type": "http.response.body"})
        if trailers:
            await send({"type": "http.response.trailers", "headers": [(b"x", b"y")]})


# The client


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]
    content: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False


def order(word: str) -> tuple[int, str]:
    """Sort what has come by streams, and behind it what is the connection's."""
    stream, _, _ = word.partition(":")
    return (int(stream) if stream.isdigit() else 2**31), word


NAME = re.compile(r"[- !#$%&'*+.^_`|~0-9a-z]+")
VALUE = re.compile(r"(?:[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?)?")
CONNECTION_SPECIFIC = {
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
}


def check_fields(fields: list[tuple[str, str]], pseudo: set[str]) -> None:
    """Check what every header section must be."""
    names = [name for name, _ in fields]
    assert {name for name in names if name.startswith(":")} == pseudo  # 8.3
    assert set(names[: len(pseudo)]) == pseudo, "pseudo-header fields are first (8.3)"
    for name, value in fields:
        assert NAME.fullmatch(name.removeprefix(":")), "not a name (8.2.1)"
        assert VALUE.fullmatch(value), "not a value (8.2.1)"
    assert not CONNECTION_SPECIFIC & set(names)  # 8.2.2


def check(response: Response, head: bool) -> None:
    """Check what every response must be."""
    names = [name for name, _ in response.headers]
    for name in ("date", "server", "content-length"):
        assert names.count(name) <= 1, f"more than one {name}"
    assert "date" in names, "no Date (9110, 6.6.1)"

    length = dict(response.headers).get("content-length")
    if response.complete and length is not None and not head and response.status != 304:
        assert int(length) == len(response.content), "8.1.1"


class Client:
    """Sends one piece after the other, and reads frames; nothing is tolerated in them."""

    def __init__(self, stream: Any, row: Row) -> None:
        self._stream = stream
        self._largest = row.largest
        self._tables = list(row.tables)
        self._unread = b""
        self._decoder = hpack.Decoder()
        self._block: tuple[int, int, int, bytes] | None = None  # until it has its end
        self._settled = False  # the server's settings have come
        self._acknowledged = False  # and the client's first ones are
        self._moved: set[int] = set()  # streams that have got something, in this piece
        self._closed: set[int] = set()  # streams that have ended
        self._reset: set[int] = set()
        self._promised: set[int] = set()
        self._words: list[str] = []
        self.pieces: list[str] = []
        self.responses: dict[int, Response] = {}
        self.goaway = ""  # its code
        self.end = ""  # how the connection was closed, once it is

    async def send(self, piece: bytes) -> None:
        """Send a piece, and receive until the server is silent."""
        with trio.move_on_after(SILENCE):
            try:
                await self._stream.send_all(piece)
                while received := await self._stream.receive_some():
                    self._read(bytes(received))
                self.end = "closed"
            except trio.BrokenResourceError:
                self.end = "reset"
            await wait_all_tasks_blocked()  # the application learns of the end, too
        assert not self._unread, "an incomplete frame"
        for stream in self._moved - self._closed:
            response = self.responses[stream]
            self._words.append(f"{stream}:{response.status}[{len(response.content)}]")
        self._words.sort(key=order)
        self.pieces.append(" ".join(self._words))
        self._words, self._moved = [], set()

    def _read(self, received: bytes) -> None:
        self._unread += received
        if not self._settled and self._unread.startswith(b"HTTP/1.1 "):
            self._words.append(f"HTTP/1.1:{self._unread[9:12].decode()}")
            self._unread = b""
        while len(self._unread) >= 9:
            high, low, kind, flags, stream = struct.unpack(">BHBBL", self._unread[:9])
            length = high << 16 | low
            assert length <= self._largest, "4.2"
            if len(self._unread) < 9 + length:
                return
            payload, self._unread = self._unread[9 : 9 + length], self._unread[9 + length :]
            self._read_frame(kind, flags, stream, payload)

    def _read_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert stream < 2**31, "the reserved bit is not set (4.1)"
        assert not flags & ~FLAGS.get(kind, 0), "an undefined flag is set (4.1)"
        assert self._settled or (kind == SETTINGS and not flags), "the preface of a server (3.4)"
        assert (kind == CONTINUATION) == (self._block is not None), "4.3"
        if kind in (SETTINGS, PING, GOAWAY):
            assert not stream
        elif kind != WINDOW_UPDATE:
            assert stream % 2 or stream in self._promised, "5.1.1"
        if kind in (DATA, HEADERS, PUSH_PROMISE):
            assert stream not in self._closed, "5.1"

        if kind == DATA:
            self.responses[stream].content += payload
            self._moved.add(stream)
            if flags & END_STREAM:
                self._complete(stream)
        elif kind in (HEADERS, PUSH_PROMISE):
            self._block = kind, flags, stream, payload
        elif kind == CONTINUATION:
            assert self._block is not None
            assert stream == self._block[2]
            self._block = *self._block[:3], self._block[3] + payload
        elif kind == RST_STREAM:
            (code,) = struct.unpack(">L", payload)
            assert stream not in self._reset
            assert stream not in self._closed or CODES[code] == "NO_ERROR", "8.1"
            self._words.append(f"{stream}:{CODES[code]}")
            self._reset.add(stream)
            self._closed.add(stream)
        elif kind == SETTINGS:
            self._read_settings(flags, payload)
        elif kind == PING:
            assert flags == ACK
            assert payload == b"12345678", "6.7"
            self._words.append("ping")
        elif kind == GOAWAY:
            last, code = struct.unpack(">LL", payload[:8])
            assert last >= max((id_ for id_ in self.responses if id_ % 2), default=0), "6.8"
            self.goaway = CODES[code]
        else:
            assert kind == WINDOW_UPDATE
            (increment,) = struct.unpack(">L", payload)
            assert 0 < increment < 2**31
        if self._block is not None and flags & END_HEADERS:
            self._read_block(*self._block)
            self._block = None

    def _read_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            assert not payload
            if self._acknowledged:
                self._words.append("ack")
            self._acknowledged = True
            if self._tables:
                self._decoder.max_allowed_table_size = self._tables.pop(0)
            return
        assert not self._settled, "they never change"
        self._settled = True
        values = dict(struct.iter_unpack(">HL", payload))
        assert not values.get(PUSH), "6.5.2"
        assert values[WINDOW] < 2**31
        assert 2**14 <= values[FRAME_SIZE] < 2**24
        assert values[CONNECT_PROTOCOL] == 1, "RFC 8441, 3"

    def _read_block(self, kind: int, flags: int, stream: int, encoded: bytes) -> None:
        if kind == PUSH_PROMISE:
            (promised,) = struct.unpack(">L", encoded[:4])
            encoded = encoded[4:]
        fields = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in self._decoder.decode(encoded, raw=True)
        ]
        if kind == PUSH_PROMISE:
            assert not promised % 2
            assert promised > max(self._promised, default=0), "5.1.1"
            check_fields(fields, {":method", ":scheme", ":authority", ":path"})
            self._promised.add(promised)
            self._words.append(f"{stream}:promise({promised})")
            return
        if stream in self.responses:
            assert flags & END_STREAM, "8.1"
            check_fields(fields, set())
            self.responses[stream].trailers = fields
        else:
            check_fields(fields, {":status"})
            response = Response(int(fields[0][1]), fields[1:])
            if response.status < 200:
                assert not flags & END_STREAM, "8.1"
                self._words.append(f"{stream}:{response.status}")
                return
            self.responses[stream] = response
        self._moved.add(stream)
        if flags & END_STREAM:
            self._complete(stream)

    def _complete(self, stream: int) -> None:
        self.responses[stream].complete = True
        self._closed.add(stream)
        self._words.append(f"{stream}:{self.responses[stream].status}")


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
async def test_requirement(row: Row, certificate: Path, autojump_clock: MockClock) -> None:
    """What the client sends has the result that the row states."""
    application = Application()
    pem = str(certificate)
    config = {"certfile": pem, "keyfile": pem, "keep_alive_timeout": 1000, **row.config}
    pieces = row.sends if isinstance(row.sends, tuple) else (row.sends,)
    async with memory_server(application, **config) as server:
        stream = await server.connect(tls=row.tls, alpn=["h2"] if row.tls else [])
        client = Client(stream, row)
        for first, piece in enumerate(pieces):
            await client.send(piece if first else row.begins + piece)
        given = [dict(call) for call in application.given]
        responses = dict(client.responses)
        came, end = list(client.pieces), client.end
        if not end:
            await client.send(ping() + headers(block(method="HEAD", path="/next"), NEXT))
            last = client.pieces[-1].split()
            ends = {f"{NEXT}:200": "open", f"{NEXT}:REFUSED_STREAM": "full"}
            end = next((ends[word] for word in last if word in ends and "ping" in last), "stuck")

    end = client.goaway if end == "closed" and client.goaway else f"{client.goaway} {end}"
    outcome = " ".join(f"{' | '.join(came)} {end}".split())
    assert outcome in row.comes.split(" or "), row.requirement
    head = b"HEAD" in b"".join(pieces)
    for response in responses.values():
        assert not {name for name, _ in response.headers} & set(row.lacks)
        check(response, head)
    contents = [responses[id_].content.decode() for id_ in sorted(responses)]
    assert row.content is None or " ".join(contents) == row.content
    last_response = list(responses.values())[-1:]
    for header in row.has:
        name, _, value = header.partition(": ")
        assert [v for n, v in last_response[0].headers if n == name] == [value]
    for header in row.trailers:
        assert tuple(header.split(": ", 1)) in last_response[0].trailers
    if row.given is not None:
        (call,) = given
        assert {name: call[name] for name in row.given} == row.given
    else:
        refused = {404, 501}  # by the server; the application sends none
        served = [response for response in responses.values() if response.status not in refused]
        assert len(given) == len(served) + row.started
