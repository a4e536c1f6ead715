"""Header sections of HTTP/2: what a client's say, and how ours are written (RFC 9113, 8, and
RFC 7541).

Reading is hpack's. A client that repeats a request repeats its header block byte for byte once
its headers are in the compression's table, so a block is decoded and checked once and remembered
for as long as the table stays as it is. The table counts its changes for that: its size and the
number of its entries can be the same again with other entries in it.

Writing uses no table of ours, as in nginx: a header is a constant of the static table, or is
written out. Then a header's bytes are the same in every response of every connection, and the usual
ones are remembered as ``response_head`` remembers lines; nothing has to be kept in step with any
client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import h11
import hpack
import hpack.exceptions
import hpack.table

from .http1_rules import ASCII, is_host
from .http2_frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    HEADER_TABLE_SIZE,
    PROTOCOL_ERROR,
    ConnectionFailure,
    StreamFailure,
)
from .response_head import COMMON, LONGEST_LINE, MOST_LINES, valid
from .settings import Headers

DEFAULT_TABLE_SIZE = 4096
MAX_REMEMBERED = 64  # blocks of a connection
LONGEST_REMEMBERED = 512  # bytes of a block

# RFC 9113, 8.2.1: tokens, in lower case; values without what would end them, at either side.
NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-z]+")
VALUE = re.compile(rb"(?:[^\x00\r\n\t ](?:[^\x00\r\n]*[^\x00\r\n\t ])?)?")
LENGTH = re.compile(rb"[0-9]{1,20}")

PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
OF_CONNECTIONS = frozenset(  # RFC 9113, 8.2.2
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a request's header section says."""

    method: str
    path: bytes
    query: bytes
    headers: Headers
    """With ``host`` first, as HTTP/1 has it."""

    length: int | None
    """Of the body, where it was announced."""

    protocol: bytes | None
    """What CONNECT is to open (RFC 8441)."""


class Table(hpack.table.HeaderTable):
    """A dynamic table that counts its changes."""

    version = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.version += 1
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return super().maxsize

    @maxsize.setter
    def maxsize(self, size: int) -> None:
        self.version += 1
        hpack.table.HeaderTable.maxsize.fset(self, size)  # type: ignore[attr-defined]


class HeaderReader:
    """Reads the header blocks of one connection."""

    __slots__ = ("_decoder", "_known", "_table", "_version")

    def __init__(self, max_size: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=max_size)
        self._decoder.header_table = self._table = Table()
        self._known: dict[bytes, Request] = {}
        self._version = 0  # of the table that the known were read with

    def request(self, block: bytes) -> Request:
        """The request that a header block makes.

        Raises:
          ConnectionFailure: it cannot be decoded, so none behind it can be.
          StreamFailure: it is no request.
        """
        if self._table.version != self._version:
            self._known.clear()
            self._version = self._table.version
        known = self._known.get(block)
        if known is None:
            known = request_of(self.fields(block))
            if (
                self._table.version == self._version
                and len(block) <= LONGEST_REMEMBERED
                and len(self._known) < MAX_REMEMBERED
            ):
                self._known[block] = known
        return known

    def fields(self, block: bytes) -> Headers:
        """What a block says, uninterpreted. Must be called for each that comes, in order."""
        try:
            return [(each[0], each[1]) for each in self._decoder.decode(block, raw=True)]
        except hpack.exceptions.OversizedHeaderListError as error:
            raise ConnectionFailure(ENHANCE_YOUR_CALM, "headers that are too large") from error
        except (hpack.exceptions.HPACKError, IndexError, ValueError, UnicodeError) as error:
            raise ConnectionFailure(COMPRESSION_ERROR, "headers cannot be decoded") from error


def check_fields(fields: Headers) -> None:
    """Raise a StreamFailure unless these can be fields of a message, pseudo-headers left aside."""
    for name, value in fields:
        if (
            not NAME.fullmatch(name)
            or not VALUE.fullmatch(value)
            or name in OF_CONNECTIONS
            or (name == b"te" and value != b"trailers")
        ):
            raise StreamFailure(PROTOCOL_ERROR)


def request_of(fields: Headers) -> Request:
    """Check a request's header section (RFC 9113, 8.3.1), and say what is in it.

    Raises:
      StreamFailure: it is malformed, or not ASCII where it is decoded.
    """
    pseudo, fields = _split(fields)
    check_fields(fields)
    path, protocol = pseudo.get(b":path", b""), pseudo.get(b":protocol")
    if (
        not NAME.fullmatch(pseudo.get(b":method", b"").lower())
        or not path
        or not path.isascii()
        or b":scheme" not in pseudo
        or (protocol is not None) != (pseudo[b":method"] == b"CONNECT")
    ):
        raise StreamFailure(PROTOCOL_ERROR)
    hosts = {value for name, value in fields if name == b"host"}
    if b":authority" in pseudo:
        hosts.add(pseudo[b":authority"])
    if len(hosts) != 1 or not is_host(*hosts):
        raise StreamFailure(PROTOCOL_ERROR)
    return _request(pseudo, fields)


def upgraded_request(fields: Headers) -> Request:
    """An HTTP/1.1 request, checked already, that goes on over HTTP/2."""
    return _request(*_split(fields))


def _split(fields: Headers) -> tuple[dict[bytes, bytes], Headers]:
    """The pseudo-headers, and what is behind them."""
    pseudo: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] != b":":
            break
        if name in pseudo or name not in PSEUDO or not VALUE.fullmatch(value):
            raise StreamFailure(PROTOCOL_ERROR)
        pseudo[name] = value
    return pseudo, fields[len(pseudo) :]


def _request(pseudo: dict[bytes, bytes], fields: Headers) -> Request:
    headers: Headers = [(b"host", pseudo.get(b":authority", b""))]
    cookies: list[bytes] = []
    length: int | None = None
    for name, value in fields:
        if name == b"host":
            headers[0] = (name, value)
            continue
        if name == b"cookie":
            cookies.append(value)
            continue
        if name == b"content-length":
            if not LENGTH.fullmatch(value) or length not in (None, int(value)):
                raise StreamFailure(PROTOCOL_ERROR)
            length = int(value)
        if (name in ASCII or name.startswith(b"sec-websocket-")) and not value.isascii():
            raise StreamFailure(PROTOCOL_ERROR)
        headers.append((name, value))
    if cookies:  # RFC 9113, 8.2.3: they are one to all but HTTP/2
        headers.append((b"cookie", b"; ".join(cookies)))
    method = pseudo[b":method"].decode().upper()
    path, _, query = pseudo[b":path"].partition(b"?")
    return Request(method, path, query, headers, length, pseudo.get(b":protocol"))


# Writing


def _integer(value: int, bits: int, first: int) -> bytes:
    """An integer as RFC 7541, 5.1, has it, behind the pattern of its first byte."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    encoded = bytearray([first | most])
    value -= most
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_STATIC = hpack.table.HeaderTable.STATIC_TABLE
_FIELDS = {field: index for index, field in reversed(list(enumerate(_STATIC, 1)))}
_NAMES = {field[0]: index for index, field in reversed(list(enumerate(_STATIC, 1)))}


def encoded(name: bytes, value: bytes) -> bytes:
    """A header in its shortest form that needs no dynamic table (RFC 7541, 6.1 and 6.2.2)."""
    index = _FIELDS.get((name, value))
    if index is not None:
        return _integer(index, 7, 0x80)
    index = _NAMES.get(name, 0)
    key = _integer(index, 4, 0)
    if not index:
        key += _integer(len(name), 7, 0) + name
    return key + _integer(len(value), 7, 0) + value


_STATUSES = {status: encoded(b":status", b"%d" % status) for status in range(100, 1000)}


class HeaderWriter:
    """Writes header blocks, for all connections of a worker."""

    def __init__(self, server_headers: Callable[[str], Headers]) -> None:
        self._server_headers = server_headers
        self._known: dict[Any, bytes] = {}
        self._own: Headers | None = None
        self._own_block = b""

    def response(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """A response's header block, with the server's own headers.

        What belongs to a connection of HTTP/1 is left out (RFC 9113, 8.2.2).

        Raises:
          h11.LocalProtocolError: a header cannot be sent.
        """
        own = self._server_headers("h2")
        if own is not self._own:
            self._own_block = b"".join(encoded(name.lower(), value) for name, value in own)
            self._own = own
        known = self._known
        parts = [_STATUSES[status]]
        replaced = False
        for header in headers:
            try:
                part = known[header]
            except (KeyError, TypeError, ValueError):  # or it is no key, as a list is none
                name, value = valid(header)
                name = name.lower()
                part = self._learn(header, name, value)
                replaced = replaced or name in (b"date", b"server")
            parts.append(part)
        if not replaced:
            parts.append(self._own_block)
        else:  # RFC 9110, 6.6.1 and 10.2.4
            theirs = {bytes(header[0]).strip().lower() for header in headers}
            parts += [
                encoded(name.lower(), value)
                for name, value in own
                if name.lower() not in theirs or name.lower() not in (b"date", b"server")
            ]
        return b"".join(parts)

    def _learn(self, header: tuple[bytes, bytes], name: bytes, value: bytes) -> bytes:
        if name == b"content-length" and not value.isdigit():
            raise h11.LocalProtocolError(f"bad Content-Length {value!r}")
        part = b"" if name in OF_CONNECTIONS else encoded(name, value)
        # As in response_head: only what is usual, and tells nothing secret.
        if (
            name in COMMON
            and len(part) <= LONGEST_LINE
            and type(header) is tuple
            and type(header[0]) is type(header[1]) is bytes
        ):
            if len(self._known) >= MOST_LINES:
                self._known.clear()
            self._known[header] = part
        return part


def header_block(headers: Headers) -> bytes:
    """The header block of any other message: a push's request, or trailers."""
    return b"".join(encoded(name.lower(), value) for name, value in headers)


def table_size_update(settings: list[tuple[int, int]]) -> bytes:
    """What our next header block must begin with, since a client has said how large a table we may
    use (RFC 7541, 4.2): that we use none."""
    sizes = [value for setting, value in settings if setting == HEADER_TABLE_SIZE]
    return b"\x20" if any(size < DEFAULT_TABLE_SIZE for size in sizes) else b""
