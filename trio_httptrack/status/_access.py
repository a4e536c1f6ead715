"""Who may see the page. It shows the addresses of clients and the paths that they ask for.

What counts is the address at the other end of the socket, which nobody can forge. Headers that
a proxy adds are never a reason to let somebody in. Without ``allow``, only a browser on this
machine may see the page, and a loopback address does not prove that it is one:

* behind a proxy on the same machine, everybody has that address. Most say that they are one, by a
  header or by speaking HTTP/1.0; one that does not cannot be told from a browser, and nginx,
  since 1.29.7, does not unless it is configured to;
* a web site whose name resolves to 127.0.0.1 can make a browser that runs here read the page
  and tell (DNS rebinding); but the request then names that site as its host.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any
from urllib.parse import urlsplit

from .._asgi import conn_of

# What proxies add, by their first two words.
PROXY_HEADERS = {
    *(b"forwarded", b"via", b"x-forwarded", b"x-real", b"x-client", b"x-envoy"),
    *(b"cf-connecting", b"true-client", b"fastly-client"),
}


class Access:
    """``allow`` are networks and addresses as strings, or None for this machine only."""

    def __init__(self, allow: Iterable[str] | None) -> None:
        if isinstance(allow, str):
            raise TypeError(f"allow must be several networks: write allow=[{allow!r}]")
        try:
            self._networks = None if allow is None else [_network(each) for each in allow]
        except ValueError as error:
            raise ValueError(f"allow: {error}; write '10.1.2.0/24', or '10.1.2.3'") from None

    def refusal(self, scope: Any) -> str | None:
        """Why the request may not be answered, if it may not."""
        peer = _peer(scope)
        if self._networks is not None:
            if peer is None or not any(peer in network for network in self._networks):
                return f"You may not look at this page from {peer or 'an unknown address'}."
            return None
        headers = dict(scope["headers"])
        if peer is None or not peer.is_loopback:
            peer_name = peer or "an unknown address"
            return f"This page is for this machine's own users, and you ask from {peer_name}."
        if scope.get("http_version") == "1.0" or not PROXY_HEADERS.isdisjoint(map(_kind, headers)):
            return "This page is not shown through a proxy."
        if not _is_local(headers.get(b"host", b"localhost")):
            return "This page is shown to http://localhost only, not by another name."
        return None


def _kind(header: bytes) -> bytes:
    """Its first two words, or its only one: that of ``x-forwarded-proto`` is ``x-forwarded``."""
    return b"-".join(header.split(b"-")[:2])


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


def _is_local(host: bytes) -> bool:
    """Whether it is this machine, and no name server was asked for it."""
    try:
        name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return ip_address(name).is_loopback
    except ValueError:
        return False
