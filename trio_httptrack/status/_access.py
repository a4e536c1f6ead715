"""Access control of the page, which shows the addresses of clients and the paths that they request.

An address does not identify a viewer. Behind a proxy on the same machine all viewers have the
proxy's address, and a request does not show for certain whether there is a proxy. So the page needs
a token, which is in the server's log. A viewer who can read the log may see the page, from any
address. With ``allow`` only the peer address of the socket counts.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from functools import cached_property
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from multiprocessing import current_process
from typing import Any
from urllib.parse import parse_qs

from .._asgi import conn_of
from .._monitor.sockets import is_own, peer_uid

UNIX = "unix"


class Access:
    """The rule of access. ``allow`` has networks as strings, and ``"unix"``; None: by token."""

    def __init__(self, allow: Iterable[str] | None) -> None:
        if isinstance(allow, str):
            raise TypeError(f"allow must be several networks: write allow=[{allow!r}]")
        names = None if allow is None else list(allow)
        self.by_token = names is None
        self._unix = UNIX in (names or ())
        try:
            self._networks = [_network(each) for each in names or () if each != UNIX]
        except ValueError as error:
            raise ValueError(
                f"allow: {error}; write '10.1.2.0/24', or '10.1.2.3', or 'unix'"
            ) from None

    @cached_property
    def token(self) -> str:
        """The token. It is the same in all workers of one server, even after a reload.

        It is made from multiprocessing's secret key, which workers inherit from their parent.
        """
        secret = bytes(current_process().authkey)
        return hmac.new(secret, b"trio_httptrack.status", "sha256").hexdigest()[:32]

    def refusal(self, scope: Any) -> str | None:
        """Return why the request is refused; None if it is allowed."""
        if self.by_token:
            sent = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if hmac.compare_digest(sent.encode(), self.token.encode()):
                return None
            return "This page needs its token, as in ?token=...: the server's log has it."
        conn = conn_of(scope)
        uid = None if conn is None or not self._unix else peer_uid(conn._socket)
        if uid is not None and is_own(uid):
            return None
        peer = _peer(scope)
        if peer is not None and any(peer in network for network in self._networks):
            return None
        return f"You may not view this page from {peer or 'an unknown address'}."


def _network(name: object) -> IPv4Network | IPv6Network:
    if not isinstance(name, str):
        raise TypeError(f"allow: networks are strings such as '10.1.2.0/24', not {name!r}")
    return ip_network(name)


def _peer(scope: Any) -> IPv4Address | IPv6Address | None:
    conn = conn_of(scope)
    # Not scope["client"] of a tracked server: middleware may have set it from a header.
    client: Any = scope.get("client") if conn is None else conn.client
    try:
        peer = ip_address(client[0])
    except (IndexError, TypeError, ValueError):  # such as a Unix socket's
        return None
    return getattr(peer, "ipv4_mapped", None) or peer
