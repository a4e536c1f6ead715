"""Parse an ordinary HTTP/1.1 request head without h11.

A request head is *ordinary* if it is not ambiguous in any way. It is parsed here, at about a tenth
of h11's cost. Every other head is declined, and h11 parses it from the same bytes.

The invariant: a head is either declined, or it gives exactly what h11 gives: the same request, the
same length of its body, the same end. Declining a head without need costs some time. Accepting a
head in which h11, or a proxy in front, sees another request allows request smuggling. So each rule
says what is accepted, never what is refused. Where HTTP leaves a choice (a repeated name, a list
of lengths, a bare line feed), this module declines.

A header line is valid or not by itself, whatever is around it. Only two rules concern a whole head:
no name is repeated, and there is a Host. So the lines that clients send again and again can be
cached with their meaning, see ``_Lines``.

Each pattern is linear: a repetition is followed by a byte that the repetition does not accept.
h11's pattern for a header line is quadratic in the spaces of an invalid line.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import TypeAlias

Header: TypeAlias = tuple[bytes, bytes]

RequestHead: TypeAlias = tuple[str, bytes, list[Header], int, bool, int]
"""``(method, target, headers, content_length, keep_alive, end)``. A plain tuple, because creating
a named tuple costs a fifth of parsing a short head.

``method`` is upper-case. ``target`` begins with ``b"/"``. ``headers`` has lower-case names, and
values without surrounding white space; the caller owns the list. ``content_length`` is 0 without
such a header. ``keep_alive`` is False with ``Connection: close``. ``end`` is the offset of the
first byte after the head.
"""

METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}

# The target is a path and perhaps a query, in visible ASCII. A fragment ("#") is not part of it.
_match_request_line = re.compile(
    rb"(" + rb"|".join(METHODS) + rb') (/[!"$-~]*) HTTP/1\.1\r\n'
).match

# A value has no control characters and no bytes outside of ASCII; h11 accepts most of them.
_match_header_line = re.compile(rb"([-!#$%&'*+.^_`|~0-9A-Za-z]+):([\t -~]*)").fullmatch

_match_host = re.compile(
    rb"(?:[A-Za-z0-9._~-]+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?"
).fullmatch


def _is_ordinary_host(value: bytes) -> bool:
    """Return whether a Host is a name or an address, perhaps with a port.

    RFC 3986 also allows a percent sign and ``!$&'()*+,;=`` in a name. No host has such a name.
    """
    match = _match_host(value)
    if match is None:
        return False
    if match["ipv6"] is not None:
        try:
            socket.inet_pton(socket.AF_INET6, match["ipv6"].decode())
        except OSError:
            return False
    return True


def _never(value: bytes) -> bool:
    return False


# The headers that define where the request ends, what follows it, or which host it is for. All
# others are passed on unchecked, even TE and Trailer: without Transfer-Encoding they frame nothing.
_ORDINARY_VALUES: dict[bytes, Callable[[bytes], object]] = {
    b"connection": re.compile(rb"keep-alive|close", re.IGNORECASE).fullmatch,
    # Below 10**18: it fits into a 64-bit integer everywhere.
    b"content-length": re.compile(rb"0|[1-9][0-9]{0,17}").fullmatch,
    b"expect": _never,
    b"host": _is_ordinary_host,
    b"http2-settings": _never,
    b"transfer-encoding": _never,
    b"upgrade": _never,
}

# Headers that are the same in many requests and contain nothing secret. Clients share the cache, so
# one can learn, by timing its own request, whether another has just sent the same line. So a line
# is cached only if its name is here. Do not add a name just because it looks harmless.
_SHARED_NAMES = frozenset(
    b"accept accept-encoding accept-language cache-control connection content-type dnt host origin"
    b" pragma priority sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode"
    b" sec-fetch-site sec-fetch-user te upgrade-insecure-requests user-agent".split()
)

MAX_CACHED_LINES = 512
MAX_CACHED_LINE = 256
"""In bytes. Both limits keep the cache below half a megabyte, whatever clients send."""


class _Unusual(Exception):
    """A header line is left to h11. This is not an error: h11 decides whether it is one."""


class _Lines(dict[bytes, Header]):
    """A cache from header lines to parsed headers. ``__missing__`` parses a new line.

    A cached line costs a tenth of parsing it. Only valid lines are cached.

    A full cache is cleared. If it kept its first lines, a client could fill it for good with lines
    of its own. If it kept the lines used last, that would cost more in each request than parsing
    the common lines again now and then. So a client that sends only new lines can slow the others
    down to the speed without a cache, which is still twice h11's.
    """

    __slots__ = ()

    def __missing__(self, line: bytes) -> Header:
        match = _match_header_line(line)
        if match is None:
            raise _Unusual
        name = match[1].lower()
        value = match[2].strip()
        is_ordinary = _ORDINARY_VALUES.get(name)
        if is_ordinary is not None and not is_ordinary(value):
            raise _Unusual
        header = (name, value)
        if name in _SHARED_NAMES and len(line) <= MAX_CACHED_LINE:
            if len(self) >= MAX_CACHED_LINES:
                self.clear()
            self[line] = header
        return header


_lines = _Lines()
_read_line = _lines.__getitem__  # with ``map``, no bytecode runs for a line seen before


def read_request_head(data: bytes, max_size: int) -> RequestHead | None:
    """Return the ordinary request head at the start of ``data``, or None to leave it to h11.

    The bytes after the head are ignored. The result is None if the head is not ordinary, is
    incomplete, or is longer than ``max_size`` bytes.
    """
    end = data.find(b"\r\n\r\n", 0, max_size)
    if end < 0:
        return None
    line = _match_request_line(data)
    if line is None:
        return None
    try:
        headers = list(map(_read_line, data[line.end() : end].split(b"\r\n")))
    except _Unusual:
        return None
    by_name = dict(headers)
    if len(by_name) != len(headers) or b"host" not in by_name:
        return None
    return (
        METHODS[line[1]],
        line[2],
        headers,
        int(by_name[b"content-length"]) if b"content-length" in by_name else 0,
        b"connection" not in by_name or by_name[b"connection"].lower() != b"close",
        end + 4,
    )
