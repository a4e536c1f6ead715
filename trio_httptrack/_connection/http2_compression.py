"""Encode and decode header blocks with HTTP/2's header compression, HPACK (RFC 7541).

Both sides keep a table of headers that were sent, so that most of them are one byte the next time.
Here a table entry also keeps the header's ``kind``, which is computed when the header is read for
the first time. So a header from the table costs no more than a look-up.

The encoder uses no dynamic table, as in nginx: a header is an entry of the static table, or is
written out. So its bytes are the same in every response of every connection, and no state has to
be kept in step with a client.

The static table and the Huffman code are those of the library hpack. Tests compare this decoder
with hpack's.
"""

from __future__ import annotations

from collections.abc import Callable

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from .http2_frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionFailure
from .settings import Headers

DEFAULT_TABLE_SIZE = 4096
NO_TABLE = b"\x20"
"""The first header block begins with this table size of 0 (RFC 7541, 6.3), whatever size the
client allows: the encoder uses no table."""

ENTRY_SIZE = 32  # bytes that each entry counts in addition to its own (RFC 7541, 4.1)
MAX_INTEGER_BITS = 28  # after the first byte: more than any length or index has

STATIC: list[tuple[bytes, bytes]] = [(name, value) for name, value in HeaderTable.STATIC_TABLE]

Entry = tuple[tuple[bytes, bytes], int, int]
"""A header, its kind, and its size."""


class Decoder:
    """Decodes the header blocks of one connection, each exactly once and in order."""

    __slots__ = ("_dynamic", "_header_kind", "_limit", "_max_size", "_size", "_static", "version")

    def __init__(
        self, max_size: int, header_kind: Callable[[bytes, bytes], int], static: list[Entry]
    ) -> None:
        self._max_size = max_size
        self._header_kind = header_kind
        self._static = static
        self._dynamic: list[Entry] = []  # the newest is the last
        self._size = 0
        self._limit = DEFAULT_TABLE_SIZE
        self.version = 0
        """How often the table has changed. Its size and length do not show every change."""

    def decode(self, block: bytes) -> list[Entry]:
        """Return the headers of a block.

        Raises:
          ConnectionFailure: it is invalid, so no block after it can be decoded; or too large.
        """
        try:
            return self._decode(block)
        except (HPACKDecodingError, IndexError, ValueError) as error:
            raise ConnectionFailure(COMPRESSION_ERROR, "headers cannot be decoded") from error

    def _decode(self, block: bytes) -> list[Entry]:
        entries: list[Entry] = []
        left = self._max_size
        position, end = 0, len(block)
        while position < end:
            first = block[position]
            position += 1
            if first & 0x80:
                index = first & 0x7F
                if index == 0x7F:
                    index, position = _integer_at(block, position, index)
                entry = self._entry(index)
            elif first & 0xE0 == 0x20:
                size = first & 0x1F
                if size == 0x1F:
                    size, position = _integer_at(block, position, size)
                if entries or size > DEFAULT_TABLE_SIZE:
                    raise ValueError("unexpected table size, or too large")
                self._resize(size)
                continue
            else:
                limit = 0x3F if first & 0x40 else 0x0F
                index = first & limit
                if index == limit:
                    index, position = _integer_at(block, position, index)
                if index:
                    name = self._entry(index)[0][0]
                else:
                    name, position = _string_at(block, position)
                value, position = _string_at(block, position)
                size = len(name) + len(value) + ENTRY_SIZE
                entry = (name, value), self._header_kind(name, value), size
                if first & 0x40:
                    self._add(entry)
            entries.append(entry)
            left -= entry[2]
            if left < 0:
                raise ConnectionFailure(ENHANCE_YOUR_CALM, "headers too large")
        return entries

    def _entry(self, index: int) -> Entry:
        if 0 < index <= len(STATIC):
            return self._static[index - 1]
        index -= len(STATIC)
        if not 0 < index <= len(self._dynamic):
            raise IndexError("no such entry")
        return self._dynamic[-index]

    def _add(self, entry: Entry) -> None:
        self.version += 1
        self._dynamic.append(entry)
        self._size += entry[2]
        if self._size > self._limit:
            self._evict()

    def _resize(self, limit: int) -> None:
        self.version += 1
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        oldest = 0
        while self._size > self._limit:
            self._size -= self._dynamic[oldest][2]
            oldest += 1
        del self._dynamic[:oldest]


def _integer_at(block: bytes, position: int, value: int) -> tuple[int, int]:
    """Return an integer whose first byte was full (RFC 7541, 5.1), and the position after it."""
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > MAX_INTEGER_BITS:
            raise ValueError("integer too long")


def _string_at(block: bytes, position: int) -> tuple[bytes, int]:
    first = block[position]
    length = first & 0x7F
    position += 1
    if length == 0x7F:
        length, position = _integer_at(block, position, length)
    end = position + length
    if end > len(block):
        raise IndexError("truncated string")
    text = block[position:end]
    return decode_huffman(text) if first & 0x80 else text, end


def _integer(value: int, bits: int, first: int) -> bytes:
    """Encode an integer (RFC 7541, 5.1); ``first`` has the other bits of its first byte."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    encoded = bytearray([first | limit])
    value -= limit
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_FIELDS = {field: index for index, field in reversed(list(enumerate(STATIC, 1)))}
_NAMES = {field[0]: index for index, field in reversed(list(enumerate(STATIC, 1)))}


def encode(name: bytes, value: bytes) -> bytes:
    """Encode a header in its shortest form without the dynamic table (RFC 7541, 6.1 and 6.2.2)."""
    index = _FIELDS.get((name, value))
    if index is not None:
        return _integer(index, 7, 0x80)
    index = _NAMES.get(name, 0)
    key = _integer(index, 4, 0)
    if not index:
        key += _integer(len(name), 7, 0) + name
    return key + _integer(len(value), 7, 0) + value


def header_block(headers: Headers) -> bytes:
    """Encode headers of any kind."""
    return b"".join(encode(name.lower(), value) for name, value in headers)
