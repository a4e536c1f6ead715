"""Who may see the page. It shows the addresses of clients and the paths that they request.

An address does not prove who somebody is: behind a proxy on the same machine everybody has the
proxy's, and nothing in a request says for certain that there is none. So the page opens by a
token, which is in the server's log; who can read that may see the page, from wherever it is
looked at. With ``allow`` the address at the other end of the socket is all that counts.
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
    """``allow`` are networks and addresses as strings, and ``"unix"``; None is for the token."""

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
        """The same in all workers of a server, also of those after a reload, and in no other.

        Workers have the secret of the process that has started them: multiprocessing's.
        """
        secret = bytes(current_process().authkey)
        return hmac.new(secret, b"trio_httptrack.status", "sha256").hexdigest()[:32]

    def refusal(self, scope: Any) -> str | None:
        """Why the request is refused, if it is."""
        if self.by_token:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if hmac.compare_digest(given.encode(), self.token.encode()):
                return None
            return "This page opens by its token, as in ?token=...: the server's log has it."
        conn = conn_of(scope)
        uid = None if conn is None or not self._unix else peer_uid(conn._socket)
        if uid is not None and is_own(uid):
            return None
        peer = _peer(scope)
        if peer is not None and any(peer in network for network in self._networks):
            return None
        return f"You may not look at this page from {peer or 'an unknown address'}."


def _network(name: object) -> IPv4Network | IPv6Network:
    if not isinstance(name, str):
        raise TypeError(f"allow: networks are strings such as '10.1.2.0/24', not {name!r}")
    return ip_network(name)


def _peer(scope: Any) -> IPv4Address | IPv6Address | None:
    conn = conn_of(scope)
    # Middleware may put into the scope what it reads in a header.
    client: Any = scope.get("client") if conn is None else conn.client
    try:
        peer = ip_address(client[0])
    except (IndexError, TypeError, ValueError):  # such as a Unix socket's
        return None
    return getattr(peer, "ipv4_mapped", None) or peer
