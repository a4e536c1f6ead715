"""What the fuzzer sends: good messages, some of them odd, then mutated; and how it ends.

Everything about a connection comes from ``random.Random(f"{seed} {index}")``, so that one of
them can be made again.
"""

from __future__ import annotations

import ssl
import struct
import zlib
from base64 import urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, pairwise
from random import Random

import hpack

from trio_httptrack._connection.http2_frames import PREFACE

from .support import client_ssl
from .test_faults import handshake

TLS = {alpn: client_ssl(*filter(None, [alpn])) for alpn in ("h2", "http/1.1", "")}

GAP = b"<gap>"  # not sent: there the client gives the server time to respond
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
    return PREFACE + b"".join(map(pack, frames))


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
