"""Rules of RFC 9112 for requests that h11 does not enforce.

Each rule names its section of RFC 9112. A client that breaks one gets an error response, and its
connection closes: a request that two programs parse differently allows request smuggling.
"""

from __future__ import annotations

import re
import socket
from base64 import urlsafe_b64decode

import h11

from .response_head import tokens
from .settings import Headers, Settings

# RFC 3986, 3.2.2 and 3.2.3
HOST = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::[0-9]*)?"
)
ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]+)([^?#]*)(?:\?([^#]*))?")
HEAD_END = re.compile(rb"\n\r?\n")
FOLDED = re.compile(rb"\n[ \t]")
GAP = re.compile(rb"[ \t]{256}")
CODINGS = re.compile(rb"(?im)^transfer-encoding:(.*)$")

# These values are decoded; the values of all other headers may be any bytes.
ASCII = frozenset({b"host", b"connection", b"upgrade", b"http2-settings"})


class Refused(Exception):
    """A request is refused: the client gets this status, and the connection closes."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def is_host(value: bytes) -> bool:
    """Return whether a value is a host, perhaps with a port."""
    match = HOST.fullmatch(value)
    if match is None:
        return False
    if match["ipv6"] is None:
        return True
    try:
        socket.inet_pton(socket.AF_INET6, match["ipv6"].decode())
    except OSError:
        return False
    return True


def check_gaps(data: bytes) -> None:
    """Refuse a complete head with long runs of spaces, which h11 parses too slowly.

    The time of h11's pattern for a header line is quadratic in the length of such a run: 16 KiB
    of spaces take more than a second.
    """
    end = HEAD_END.search(data)
    if end is not None and GAP.search(data, 0, end.start()):
        raise Refused(400)


def check_headers(headers: Headers, head: bytes, http11: bool) -> None:
    """Refuse a head with ambiguous headers, or with some that cannot be decoded."""
    end = HEAD_END.search(head)
    if FOLDED.search(head, 0, end.start() + 1 if end else len(head)):
        raise Refused(400)  # 5.2
    names = {name for name, _ in headers}
    if http11 and b"host" not in names:
        raise Refused(400)  # 3.2; h11 looks for it in HTTP/1.1 only, and not in 1.2
    if b"transfer-encoding" in names and (b"content-length" in names or not http11):
        raise Refused(400)  # 6.1
    for name, value in headers:
        if (name in ASCII or name.startswith(b"sec-websocket-")) and not value.isascii():
            raise Refused(400)
        if name == b"host" and not is_host(value):
            raise Refused(400)  # 3.2


def split_target(method: str, target: bytes) -> tuple[bytes | None, bytes, bytes]:
    """Return the authority, if the target has one, the path and the query (3.2)."""
    if method == "CONNECT":  # 3.2.3
        host, colon, port = target.rpartition(b":")
        authority = host and colon and port.isdigit() and is_host(target)
        raise Refused(501 if authority else 400)  # ASGI has no tunnels
    if b"#" in target:
        raise Refused(400)
    if target.startswith(b"/"):  # 3.2.1
        path, _, query = target.partition(b"?")
        return None, path, query
    if target == b"*" and method == "OPTIONS":  # 3.2.4
        return None, target, b""
    absolute = ABSOLUTE.fullmatch(target)  # 3.2.2
    if absolute is None or not is_host(absolute[1]) or absolute[1].startswith(b":"):
        raise Refused(400)
    empty_path = b"*" if method == "OPTIONS" and absolute[3] is None else b"/"
    return absolute[1], absolute[2] or empty_path, absolute[3] or b""


def error_status(error: h11.RemoteProtocolError, head: bytes, max_head_size: int) -> int:
    """Return the status code for a request that h11 does not accept."""
    status: int = error.error_status_hint
    end = HEAD_END.search(head)
    if end is not None:
        head = head[: end.end()]  # the rest is not part of it
    if status == 431 and b"\n" not in head[:max_head_size]:
        return 414  # 3
    if status == 501:
        # 6.3: an unknown coding could be implemented (501). But a body whose last coding is not
        # chunked, or which is chunked twice, has no defined length (400).
        codings = tokens(b",".join(CODINGS.findall(head)))
        return 501 if codings[-1:] == [b"chunked"] and codings.count(b"chunked") == 1 else 400
    return status


def is_http2_settings(value: bytes) -> bool:
    """Return whether a value is an ``HTTP2-Settings`` header (RFC 7540, 3.2.1)."""
    if not re.fullmatch(rb"[A-Za-z0-9_-]*", value) or len(value) % 4 == 1:
        return False
    return len(urlsafe_b64decode(value + b"=" * (-len(value) % 4))) % 6 == 0


def is_served(headers: Headers, settings: Settings) -> bool:
    """Return whether the request is for one of the server's hosts."""
    if not settings.server_names:
        return True
    host = next((value for name, value in headers if name.lower() == b"host"), b"")
    return host.decode("ascii", "replace") in settings.server_names
