"""Write the head of an HTTP/1.1 response, and choose the framing of its body.

Bytes, order and errors are those of Hypercorn's responses, which h11 writes: the application's
headers, the server's own headers, and then the headers that frame the body. Header lines are
checked as strictly as by h11, because a line break in a value would allow response splitting.

Most responses repeat the same few header lines, so a valid line is cached together with its
meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import h11

from .settings import Headers

# The framing of a body. A number that is not negative is its length.
CHUNKED = -1
UNTIL_CLOSE = -2

NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
VALUE = re.compile(rb"(?:[^\x00\s\x7f]+(?:[ \t]+[^\x00\s\x7f]+)*)?")

# The meanings of header lines. PLAIN has none.
PLAIN, LENGTH, CODING, CONNECTION, DATE, SERVER = range(6)
MEANINGS = {
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"date": DATE,
    b"server": SERVER,
}

# Headers that are the same in many responses and contain nothing secret. Only these are cached. Do
# not add a name just because it looks harmless.
COMMON = frozenset(
    b"accept-ranges access-control-allow-origin allow cache-control connection content-encoding"
    b" content-language content-length content-type referrer-policy strict-transport-security"
    b" transfer-encoding vary x-content-type-options x-frame-options".split()
)

Line = tuple[bytes, int, Any]
"""A header's line, its meaning, and its parsed value."""

NO_CONTENT = frozenset({204, 205, 304})

MAX_CACHED_LINES = 1000
MAX_CACHED_LINE = 200


def tokens(value: bytes) -> list[bytes]:
    """Return the members of a comma-separated list, in lower case."""
    return [token for each in value.lower().split(b",") if (token := each.strip())]


def remaining_length(length: int, size: int, more_body: bool) -> int:
    """Return how much of a body of ``length`` bytes is left after ``size`` bytes.

    Raises:
      h11.LocalProtocolError: the body is longer than its length, or shorter. Nothing was written.
    """
    left = length - size
    if left < 0:
        raise h11.LocalProtocolError("Too much data for declared Content-Length")
    if left and not more_body:
        raise h11.LocalProtocolError("Too little data for declared Content-Length")
    return left


def is_cacheable(header: tuple[bytes, bytes], line: bytes) -> bool:
    """Return whether a header line is common, and its header can be a dictionary key.

    A client that can choose a header's value must not be able to fill the memory.
    """
    return (
        len(line) <= MAX_CACHED_LINE
        and type(header) is tuple
        and type(header[0]) is type(header[1]) is bytes
        and header[0].lower() in COMMON
    )


def validate(header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Validate an application's header; return it as it is sent.

    Raises:
      h11.LocalProtocolError: it is invalid. The error does not contain its value.
      ValueError: it is a pseudo-header.
      TypeError: it is not bytes.
    """
    name, value = (bytes(part).strip() for part in header)
    if name.startswith(b":"):
        raise ValueError(f"Pseudo headers are not valid: {name!r}")
    if not NAME.fullmatch(name):
        raise h11.LocalProtocolError(f"Illegal header name {name!r}")
    if not VALUE.fullmatch(value):
        raise h11.LocalProtocolError(f"Illegal value of the header {name!r}")
    return name, value


def header_line(header: tuple[bytes, bytes]) -> Line:
    """Validate a header; return its line.

    Raises:
      h11.LocalProtocolError: as ``validate``, or the value is invalid for this name.
    """
    name, value = validate(header)
    meaning = MEANINGS.get(name.lower(), PLAIN)
    parsed: Any = None
    if meaning is LENGTH:
        lengths = {each.strip() for each in value.split(b",")}
        value = lengths.pop()
        if lengths or not value.isdigit() or len(value) > 20:
            raise h11.LocalProtocolError(f"bad Content-Length {header[1]!r}")
        parsed = int(value)
    elif meaning is CODING:
        value = value.lower()
        if value != b"chunked":
            raise h11.LocalProtocolError(f"Only Transfer-Encoding: chunked is supported: {value!r}")
    elif meaning is CONNECTION:
        parsed = tokens(value)
    return b"%b: %b\r\n" % (name, value), meaning, parsed


class ResponseHeads:
    """Renders response heads for all connections of a worker."""

    def __init__(self, server_headers: Callable[[str], Headers]) -> None:
        self._server_headers = server_headers
        self._cache: dict[Any, Line] = {}
        self._status_lines = {
            status: b"HTTP/1.1 %d \r\n" % status for status in (200, 201, 204, 302, 304, 404)
        }
        self.sent: list[int] = [0] * 10
        """The number of responses, by the first digit of their status codes."""

        self._own: Headers | None = None  # the source of the lines below
        self._own_lines: list[Line] = []
        self._own_block = b""

    def own(self) -> bytes:
        """Return the server's own header lines, such as the date."""
        headers = self._server_headers("h11")
        if headers is not self._own:
            self._own_lines = [header_line(each) for each in headers]
            self._own_block = b"".join(line for line, _, _ in self._own_lines)
            self._own = headers
        return self._own_block

    def interim(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """Return a whole interim response."""
        self.sent[1] += 1
        header_lines = map(header_line, headers)
        # RFC 9110, 8.6, and RFC 9112, 6.1
        lines = [line for line, meaning, _ in header_lines if meaning not in (LENGTH, CODING)]
        return b"HTTP/1.1 %d \r\n%b%b\r\n" % (status, b"".join(lines), self.own())

    def refusal(self, status: int, retry_after: int | None = None) -> bytes:
        """Return a whole error response, after which the connection closes."""
        self.sent[status // 100] += 1
        retry = b"" if retry_after is None else b"retry-after: %d\r\n" % retry_after
        line = b"HTTP/1.1 %d \r\n" % status
        return b"%b%bcontent-length: 0\r\n%bconnection: close\r\n\r\n" % (line, retry, self.own())

    def render(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        http11: bool,
        to_head: bool,
        last: bool,
        client_closes: bool,
    ) -> tuple[bytes, int, bool]:
        """Return the head's bytes, the body's framing, and whether the connection closes after it.

        Args:
          http11: whether the client speaks at least HTTP/1.1, and so understands chunks.
          to_head: whether it responds to a HEAD request.
          last: whether the server closes the connection.
          client_closes: whether the client closes the connection.

        Raises:
          h11.LocalProtocolError: a header is invalid, or headers contradict each other.
        """
        if not 200 <= status < 1000:
            raise h11.LocalProtocolError(f"a status code is from 200 to 999, not {status}")
        cache = self._cache
        lines = [self._status_lines.get(status) or b"HTTP/1.1 %d \r\n" % status]
        special: list[Line] | None = None
        for header in headers:
            try:
                line = cache[header]
            except (KeyError, TypeError, ValueError):  # it may be unhashable, such as a list
                line = self._parse_and_cache(header)
            lines.append(line[0])
            if line[1]:
                if special is None:
                    special = []
                special.append(line)
        own = self.own()
        # The fast path: a length, or no body, and the connection is kept alive.
        if not (last or client_closes):
            if (
                special
                and len(special) == 1
                and special[0][1] is LENGTH
                and status not in NO_CONTENT
                and not to_head
            ):
                lines.append(own)
                lines.append(b"\r\n")
                self.sent[status // 100] += 1
                return b"".join(lines), special[0][2], False
            if special is None and status in (204, 304):
                lines.append(own)
                lines.append(b"\r\n")
                self.sent[status // 100] += 1
                return b"".join(lines), 0, False
        return self._render_general(
            status, lines, special or [], http11, to_head, last, client_closes
        )

    def _parse_and_cache(self, header: tuple[bytes, bytes]) -> Line:
        line = header_line(header)
        if is_cacheable(header, line[0]):
            if len(self._cache) >= MAX_CACHED_LINES:
                self._cache.clear()
            self._cache[header] = line
        return line

    def _render_general(
        self,
        status: int,
        lines: list[bytes],
        special: list[Line],
        http11: bool,
        to_head: bool,
        last: bool,
        client_closes: bool,
    ) -> tuple[bytes, int, bool]:
        meanings = {meaning for _, meaning, _ in special}
        # The application's own Date and Server replace ours (RFC 9110, 6.6.1 and 10.2.4).
        own = [
            line for line, meaning, _ in self._own_lines if not meaning or meaning not in meanings
        ]
        lengths = [(line, value) for line, meaning, value in special if meaning is LENGTH]
        if len({value for _, value in lengths}) > 1:
            raise h11.LocalProtocolError("conflicting Content-Length headers")
        if sum(meaning is CODING for _, meaning, _ in special) > 1:
            raise h11.LocalProtocolError("multiple Transfer-Encoding headers")
        lines.reverse()
        for line, _ in lengths[1:]:
            lines.remove(line)  # the first one stays
        lines.reverse()
        options = {each for _, meaning, value in special if meaning is CONNECTION for each in value}
        end: list[bytes] = []
        dropped = set()
        if last and b"close" not in options:
            end.append(b"connection: close\r\n")
        framing = lengths[0][1] if lengths else UNTIL_CLOSE
        if status in NO_CONTENT:
            framing = 0
            if status != 304:  # RFC 9110, 8.6 and 15.3.6, and RFC 9112, 6.1
                dropped |= {LENGTH, CODING}
            if status == 205:
                end.append(b"content-length: 0\r\n")
        elif CODING in meanings or framing == UNTIL_CLOSE:
            # In HTTP/1.0 only a close can end such a body.
            dropped |= {LENGTH, CODING}
            framing = CHUNKED if http11 else UNTIL_CLOSE
            if http11:
                end.append(b"Transfer-Encoding: chunked\r\n")
        if to_head:
            framing = 0
        closes = last or client_closes or framing == UNTIL_CLOSE or b"close" in options
        if client_closes or framing == UNTIL_CLOSE:
            dropped.add(CONNECTION)
            end = [line for line in end if not line.startswith(b"connection")]
            options = (options - {b"keep-alive"}) | {b"close"}
            end += [b"Connection: %b\r\n" % each for each in sorted(options)]
        if dropped:
            unsent = [line for line, meaning, _ in special if meaning in dropped]
            lines = [line for line in lines if line not in unsent]
        self.sent[status // 100] += 1
        return b"".join([*lines, *own, *end, b"\r\n"]), framing, closes
