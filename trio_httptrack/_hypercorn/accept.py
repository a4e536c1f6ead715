"""How connections are accepted: by the shortest way from the kernel to a connection's task.

Trio makes of each accepted socket a socket object and a stream of its own, over TLS two, with a
lock and a conflict detector in each; a connection of ours uses none of them. So what Hypercorn's
``worker_serve`` looks up in ``trio`` in order to listen is replaced: the rest of its code, and of
Trio, stays as it is.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import trio

from .._connection.connection import Connection
from .._connection.transport import Socket

ACCEPT_BATCH = 64  # connections that are accepted before other tasks have their turn
RETRY_DELAY = 0.1  # seconds, where the system has no file descriptors or memory left

# As trio.serve_listeners and trio.SocketListener have them.
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
CONNECTION_ERRORS = {
    getattr(errno, name)
    for name in (
        *("EPERM", "ECONNABORTED", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ENOSYS", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}

logger = logging.getLogger("trio_httptrack")

Address = tuple[str, int]


class Accepted(NamedTuple):
    """What a connection is made of."""

    socket: Socket
    ssl_context: ssl.SSLContext | None
    client: Address | None
    server: Address | None


StartConnection = Callable[[Accepted], Connection]


class Listener(Protocol):
    async def accept(self, start: StartConnection) -> None:
        """Accept connections, and start each, until cancelled."""


class SocketListener:
    """A listening socket, with or without TLS."""

    def __init__(
        self,
        sock: socket.socket,
        ssl_context: ssl.SSLContext | None = None,
        *,
        keepalive: float | None = None,
    ) -> None:
        self.socket = sock
        self._ssl_context = ssl_context
        sock.setblocking(False)
        self._inet = sock.family in (socket.AF_INET, socket.AF_INET6)
        if self._inet:
            # Accepted sockets inherit it. Trio also sets TCP_NOTSENT_LOWAT; with that a response
            # of 1 MiB takes five writes and two waits instead of one write.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if keepalive is not None:
                set_keepalive(sock, keepalive)

    @trio.lowlevel.enable_ki_protection
    async def accept(self, start: StartConnection) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self.socket)
                try:
                    self._accept_all(start)
                except OSError as error:
                    if error.errno not in OUT_OF_RESOURCES:
                        raise
                    logger.error(
                        "accept: %s; next try in %s s", error.strerror, RETRY_DELAY, exc_info=True
                    )
                    await trio.sleep(RETRY_DELAY)
        finally:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    def _accept_all(self, start: StartConnection) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                accepted, client = self.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in CONNECTION_ERRORS:
                    continue
                raise
            accepted.setblocking(False)
            server = accepted.getsockname()
            start(
                Accepted(accepted, self._ssl_context, self._address(client), self._address(server))
            )

    def _address(self, address: Any) -> Address | None:
        return (address[0], address[1]) if self._inet else None


def set_keepalive(sock: socket.socket, seconds: float) -> None:
    """Have the kernel give up a peer of which it has heard nothing for so long.

    It asks after half of the time, and then about ten times in the other half, which counts in
    seconds. A system that lets us say less does less.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
    idle = max(1, round(seconds / 2))
    rest = max(1, round(seconds) - idle)
    interval = max(1, round(rest / 10))
    for name, value in (
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPALIVE", idle),  # which is macOS's name for it
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", round(rest / interval)),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def serve_listeners(
    make_connection: Callable[[Accepted], Connection],
    listeners: list[Listener],
    *,
    handler_nursery: trio.Nursery,
) -> None:
    """Stands in for Trio's."""

    def start(accepted: Accepted) -> Connection:
        connection = make_connection(accepted)
        if connection.phase.reads:  # else a tracker has closed it
            handler_nursery.start_soon(connection.run, name="trio_httptrack connection")
        return connection

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(listener.accept, start)


def trio_with_our_listeners(
    replacement: Listener | None, keepalive: float | None
) -> SimpleNamespace:
    """Trio, as far as Hypercorn's ``worker_serve`` uses it.

    Args:
      instead: a listener that takes the place of all sockets.
      keepalive: seconds after which a silent peer of a socket is given up, if it ever is.
    """

    def with_tls(listener: SocketListener, context: ssl.SSLContext, **_: object) -> SocketListener:
        return SocketListener(listener.socket, context, keepalive=keepalive)

    async def serve(handler: Any, listeners: list[Listener], **kwargs: Any) -> None:
        await serve_listeners(
            handler, listeners if replacement is None else [replacement], **kwargs
        )

    return SimpleNamespace(
        **{
            **vars(trio),
            "socket": SimpleNamespace(from_stdlib_socket=lambda sock: sock),
            "SocketListener": partial(SocketListener, keepalive=keepalive),
            "SSLListener": with_tls,
            "serve_listeners": serve,
        }
    )
