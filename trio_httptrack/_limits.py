"""ConnLimit: a limit on open connections, in total and for each client.

A connection counts from NEW until its socket closes. A connection beyond the limit is refused while
NEW is reported. By then the server has read nothing from it and has started no task for it, so a
refusal costs little.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from socket import AF_INET, AF_INET6, inet_pton

from ._local import ProcessLocal
from ._states import NEW, Conn, ConnState

RETRY_AFTER = 5  # seconds: Hypercorn's keep_alive_timeout, after which idle connections are closed
IPV4_MAPPED_PREFIX = inet_pton(AF_INET6, "::ffff:0:0")[:12]  # an IPv4 address in an IPv6 one

Network = tuple[int, int]
"""The address and the netmask of a network, as numbers."""

Client = tuple[int, int]
"""The prefix that all addresses of a client share, as a number, and an address's length in
bytes."""


class ConnLimit(ProcessLocal):
    """A limit on the open connections of a process, in total and for each client.

    A connection beyond a limit is refused. Without TLS it gets a response with ``Connection:
    close`` and ``Retry-After`` before its request is read: 503 beyond the total, 429 beyond the
    limit of its client. (To an HTTP/2 client without TLS that is a protocol error.) With TLS it is
    closed before the handshake. Its ``close_reason`` is ``max_concurrent_connections_exceeded`` or
    ``max_client_connections_exceeded``.

    A client is known by the address of its socket. Behind a proxy all clients have the proxy's
    address.

    An upgraded connection, such as a WebSocket, counts until its socket closes. Clients of a Unix
    socket have no address, and count for the total only. The limit may have any position in
    :func:`compose`. The other trackers see a refused connection, too: NEW, then CLOSED.

    Args:
      total: connections of all clients together, ``>= 1``; None for no limit.
      per_client: connections of one client, ``>= 1``; None for no limit.
      prefix: how many bits of an IPv4 and of an IPv6 address identify a client. An IPv6 client
        usually has a whole /64, and may use any address in it.
      exempt: networks such as ``"10.0.0.0/8"`` or ``"::1"``. Their connections are neither counted
        nor refused. An example is the health checks of a load balancer.

    Raises:
      TypeError: no limit is given, or an argument has the wrong type.
      ValueError: a number is out of range, or an item of ``exempt`` is not a network.

    >>> limits = ConnLimit(per_client=1)
    >>> first, second = Conn(("192.0.2.7", 4711)), Conn(("192.0.2.7", 4712))
    >>> for conn in first, second:
    ...     limits.track(conn, ConnState.NEW)
    >>> print(first.state, second.state, second.close_reason)
    new closed max_client_connections_exceeded
    >>> limits.refused
    {'total': 0, 'per_client': 1}
    """

    __slots__ = ("_clients", "_conns", "_exempt", "_masks", "_per_client", "_refused", "_total")

    def __init__(
        self,
        *,
        total: int | None = None,
        per_client: int | None = None,
        prefix: tuple[int, int] = (32, 64),
        exempt: Iterable[str] = (),
    ) -> None:
        if total is None and per_client is None:
            raise TypeError("a ConnLimit needs total=, per_client=, or both")
        self._total = _validated("total", total)
        self._per_client = _validated("per_client", per_client)
        self._masks = {4: _netmask(prefix[0], 32), 16: _netmask(prefix[1], 128)}
        if isinstance(exempt, str):
            raise TypeError(f"exempt must be several networks: write exempt=[{exempt!r}]")
        self._exempt: dict[int, list[Network]] = {4: [], 16: []}  # by the length of an address
        for name in exempt:
            try:
                network = ip_network(name)
            except ValueError as error:
                raise ValueError(f"exempt: {error}; write '10.1.2.0/24', or '10.1.2.3'") from None
            address, mask = int(network.network_address), int(network.netmask)
            self._exempt[len(network.network_address.packed)].append((address, mask))
        self._conns: dict[Conn, Client | None] = {}
        self._clients: dict[Client, int] = {}
        self._refused = {"total": 0, "per_client": 0}

    @property
    def count(self) -> int:
        """Open connections that are not exempt, ``>= 0``."""
        return len(self._conns)

    @property
    def refused(self) -> dict[str, int]:
        """How many connections each limit has refused, ``>= 0``. Rising steadily: a limit is
        too low for your clients, or one of them misbehaves."""
        return self._refused.copy()

    def track(self, conn: Conn, state: ConnState) -> None:
        """Count a connection, or refuse it. Only NEW matters. Not a checkpoint."""
        if state is not NEW or conn._is_closed or conn in self._conns:
            return
        client = None
        if conn.client is not None:
            client = self._client(conn.client[0])
            if client is None:
                return
        per_client = self._per_client
        if client is not None and per_client and self._clients.get(client, 0) >= per_client:
            self._refuse(conn, "per_client", 429, "max_client_connections_exceeded")
        elif self._total is not None and len(self._conns) >= self._total:
            self._refuse(conn, "total", 503, "max_concurrent_connections_exceeded")
        else:
            self._conns[conn] = client
            if client is not None:
                self._clients[client] = self._clients.get(client, 0) + 1
            conn._call_when_closed(self._forget)

    def _client(self, host: str) -> Client | None:
        """Return the client that an address belongs to; None if it is exempt."""
        if ":" in host:
            packed = inet_pton(AF_INET6, host.partition("%")[0])
            if packed.startswith(IPV4_MAPPED_PREFIX):
                packed = packed[12:]
        else:
            packed = inet_pton(AF_INET, host)
        address = int.from_bytes(packed, "big")
        for network, mask in self._exempt[len(packed)]:
            if address & mask == network:
                return None
        return address & self._masks[len(packed)], len(packed)

    def _refuse(self, conn: Conn, limit: str, status: int, reason: str) -> None:
        if conn._refuse(status, reason, RETRY_AFTER):
            self._refused[limit] += 1

    def _forget(self, conn: Conn) -> None:
        client = self._conns.pop(conn)
        if client is not None:
            remaining = self._clients[client] - 1
            if remaining:
                self._clients[client] = remaining
            else:
                del self._clients[client]

    def __repr__(self) -> str:
        limits = [f"total={self._total}"] if self._total is not None else []
        limits += [f"per_client={self._per_client}"] if self._per_client is not None else []
        return f"<ConnLimit {' '.join(limits)} count={self.count}>"


def _validated(name: str, limit: object) -> int | None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise TypeError(f"{name} must be a number of connections, not {limit!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"{name} must be 1 or more, not {limit!r}")
    return limit


def _netmask(bits: object, length: int) -> int:
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise TypeError(f"prefix must be two numbers of bits, such as (32, 64), not {bits!r}")
    if not 0 <= bits <= length:
        raise ValueError(f"prefix must be at most (32, 128), and no number of it negative: {bits}")
    return ((1 << length) - 1) ^ ((1 << (length - bits)) - 1)
