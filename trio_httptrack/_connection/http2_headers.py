"""Parse the header sections of HTTP/2 requests, and write those of responses (RFC 9113, 8).

A client that repeats a request repeats its header block byte for byte, once its headers are in the
compression's table. So the parsed request of a block is cached until the table changes. Headers
that are common in responses are cached as in ``response_head``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import h11

from .http1_rules import ASCII, is_host
from .http2_compression import (
    ENTRY_SIZE,
    STATIC,
    Decoder,
    Entry,
    encode,
    header_block,
)
from .http2_frames import PROTOCOL_ERROR, StreamFailure
from .response_head import MAX_CACHED_LINES, is_cacheable, validate
from .settings import Headers

MAX_CACHED_BLOCKS = 64  # blocks of a connection
MAX_CACHED_BLOCK = 512  # bytes of a block

# RFC 9113, 8.2.1: names are tokens, in lower case; values have no white space at either end.
NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+")
VALUE = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")
NUMBER = re.compile(rb"[0-9]{1,20}")
SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")  # RFC 3986, 3.1
PATH = re.compile(rb"[!-\"$-~]+")  # no fragment, and nothing that HTTP/1 could not forward

PSEUDO_NAMES = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
CONNECTION_HEADERS = frozenset(  # RFC 9113, 8.2.2
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)

# Kinds of headers.
PLAIN, PSEUDO, HOST, COOKIE, LENGTH, EXPECT, MALFORMED = range(7)
KINDS = {b"host": HOST, b"cookie": COOKIE, b"content-length": LENGTH, b"expect": EXPECT}


def header_kind(name: bytes, value: bytes) -> int:
    if not VALUE.fullmatch(value):
        return MALFORMED
    if name[:1] == b":":
        return PSEUDO if name in PSEUDO_NAMES else MALFORMED
    if (
        not NAME.fullmatch(name)
        or name in CONNECTION_HEADERS
        or (name == b"te" and value != b"trailers")
    ):
        return MALFORMED
    if (name in ASCII or name.startswith(b"sec-websocket-")) and not value.isascii():
        return MALFORMED
    kind = KINDS.get(name, PLAIN)
    return MALFORMED if kind == LENGTH and not NUMBER.fullmatch(value) else kind


STATIC_ENTRIES: list[Entry] = [
    ((name, value), header_kind(name, value), len(name) + len(value) + ENTRY_SIZE)
    for name, value in STATIC
]


@dataclass(frozen=True, slots=True)
class Request:
    """A request's parsed header section."""

    method: str
    path: bytes
    query: bytes
    headers: Headers
    """The headers, ``host`` first, as in HTTP/1."""

    length: int | None
    """The body's length, if there is a Content-Length."""

    protocol: bytes | None
    """The protocol of an extended CONNECT (RFC 8441)."""

    expects_100: bool
    """Whether the client waits for a 100 before it sends the body."""


class HeaderReader:
    """Reads the header blocks of one connection, each exactly once and in order."""

    __slots__ = ("_cache", "_decoder")

    def __init__(self, max_size: int) -> None:
        self._decoder = Decoder(max_size, header_kind, STATIC_ENTRIES)
        self._cache: dict[bytes, Request] = {}  # cleared when the table changes

    def request(self, block: bytes) -> Request:
        """Parse the header block of a request.

        Raises:
          ConnectionFailure: it cannot be decoded, so the blocks after it cannot be, either.
          StreamFailure: it is not a valid request.
        """
        request = self._cache.get(block)
        if request is None:
            version = self._decoder.version
            request = parse_request(self._decode(block))
            if (
                version == self._decoder.version  # otherwise the block has another meaning now
                and len(block) <= MAX_CACHED_BLOCK
                and len(self._cache) < MAX_CACHED_BLOCKS
            ):
                self._cache[block] = request
        return request

    def check_trailers(self, block: bytes) -> None:
        """Check a request's trailers, which are dropped.

        Raises:
          ConnectionFailure: they cannot be decoded.
          StreamFailure: they are not valid trailers.
        """
        if any(kind in (PSEUDO, MALFORMED) for _, kind, _ in self._decode(block)):
            raise StreamFailure(PROTOCOL_ERROR)

    def skip(self, block: bytes) -> None:
        """Decode a header block that is not needed, because the blocks after it depend on it.

        Raises:
          ConnectionFailure: it cannot be decoded.
        """
        self._decode(block)

    def _decode(self, block: bytes) -> list[Entry]:
        version = self._decoder.version
        entries = self._decoder.decode(block)
        if self._decoder.version != version:
            self._cache.clear()
        return entries


def parse_request(entries: list[Entry]) -> Request:
    """Parse a request's header section (RFC 9113, 8.3.1).

    Raises:
      StreamFailure: it is malformed, or a value that is decoded is not ASCII.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: Headers = [(b"host", b"")]
    cookies: list[bytes] = []
    host: bytes | None = None
    length: int | None = None
    expects = regular = False
    for header, kind, _ in entries:
        if kind == PLAIN:
            headers.append(header)
        elif kind == PSEUDO:
            if regular or header[0] in pseudo:
                raise StreamFailure(PROTOCOL_ERROR)
            pseudo[header[0]] = header[1]
            continue
        elif kind == COOKIE:
            cookies.append(header[1])
        elif kind == HOST and host is None:
            host = header[1]
        elif kind == EXPECT:
            headers.append(header)
            expects = expects or header[1].lower() == b"100-continue"
        elif kind == LENGTH and length in (None, int(header[1])):
            if length is None:
                headers.append(header)
            length = int(header[1])
        else:
            raise StreamFailure(PROTOCOL_ERROR)
        regular = True
    authority = pseudo.get(b":authority", host)
    method, path = pseudo.get(b":method", b"").upper(), pseudo.get(b":path", b"")
    protocol = pseudo.get(b":protocol")
    if (
        not SCHEME.fullmatch(pseudo.get(b":scheme", b""))
        or not NAME.fullmatch(method.lower())
        or not (path.startswith(b"/") or (path == b"*" and method == b"OPTIONS"))
        or not PATH.fullmatch(path)
        or (protocol is not None) != (method == b"CONNECT")
        or authority is None
        or host not in (None, authority)
        or not is_host(authority)
    ):
        raise StreamFailure(PROTOCOL_ERROR)
    headers[0] = (b"host", authority)
    if cookies:  # RFC 9113, 8.2.3: HTTP/2 may split them; applications get one header
        headers.append((b"cookie", b"; ".join(cookies)))
    path, _, query = path.partition(b"?")
    return Request(method.decode(), path, query, headers, length, protocol, expects)


def trusted_request(fields: Headers) -> Request:
    """Return a request that needs no check: a push of ours, or an upgrade from HTTP/1.1."""
    pseudo = {name: value for name, value in fields if name[:1] == b":"}
    headers = [(b"host", pseudo.get(b":authority", b""))]
    headers += [each for each in fields if each[0] not in pseudo and each[0] != b"host"]
    path, _, query = pseudo[b":path"].partition(b"?")
    return Request(pseudo[b":method"].decode().upper(), path, query, headers, None, None, False)


# Writing

# The application's headers of these names replace the server's (RFC 9110, 6.6.1 and 10.2.4).
REPLACEABLE = frozenset({b"date", b"server"})

_STATUSES = {status: encode(b":status", b"%d" % status) for status in range(100, 1000)}


class HeaderWriter:
    """Writes header blocks, for all connections of a worker."""

    def __init__(self, server_headers: Callable[[str], Headers]) -> None:
        self._server_headers = server_headers
        self.sent: list[int] = [0] * 10
        """The number of responses, by the first digit of their status codes."""

        self._cache: dict[Any, tuple[bytes, int | None]] = {}
        self._own: Headers | None = None
        self._own_block = b""

    def response(
        self, status: int, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[bytes, int | None]:
        """Return a response's header block, with the server's own headers, and its Content-Length.

        Headers about an HTTP/1 connection are left out (RFC 9113, 8.2.2).

        Raises:
          h11.LocalProtocolError: a header cannot be sent.
        """
        own = self._server_headers("h2")
        if own is not self._own:
            self._own_block = header_block(own)
            self._own = own
        if status < 200 or status in (204, 205):  # RFC 9110, 8.6
            headers = [each for each in headers if _name(each) != b"content-length"]
        cache = self._cache
        parts = [_STATUSES[status]]
        length: int | None = None
        replaced = False
        for header in headers:
            try:
                part, value = cache[header]
            except (KeyError, TypeError, ValueError):  # it may be unhashable, such as a list
                part, value = self._parse_and_cache(header)
                replaced = replaced or _name(header) in REPLACEABLE
            if value is not None:
                if length not in (None, value):
                    raise h11.LocalProtocolError("conflicting Content-Length headers")
                length = value
            parts.append(part)
        if not replaced:
            parts.append(self._own_block)
        else:
            theirs = {_name(each) for each in headers} & REPLACEABLE
            parts.append(header_block([each for each in own if each[0].lower() not in theirs]))
        self.sent[status // 100] += 1
        return b"".join(parts), length

    def _parse_and_cache(self, header: tuple[bytes, bytes]) -> tuple[bytes, int | None]:
        name, value = validate(header)
        name, length = name.lower(), None
        if name == b"content-length":
            if not NUMBER.fullmatch(value):
                raise h11.LocalProtocolError(f"bad Content-Length {value!r}")
            length = int(value)
        part = b"" if name in CONNECTION_HEADERS else encode(name, value), length
        if is_cacheable(header, part[0]):
            if len(self._cache) >= MAX_CACHED_LINES:
                self._cache.clear()
            self._cache[header] = part
        return part


def _name(header: tuple[bytes, bytes]) -> bytes:
    return bytes(header[0]).strip().lower()
