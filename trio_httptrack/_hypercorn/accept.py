"""Accept connections on the shortest way from the kernel to a connection's task.

For each accepted socket, Trio makes a socket object and a stream (two with TLS), each with a lock
and a conflict detector. Our connections need none of these. So this module replaces the names in
``trio`` that Hypercorn's ``worker_serve`` uses to listen. The rest of its code, and of Trio, is
unchanged.
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

ACCEPT_BATCH = 64  # connections to accept before other tasks run
RETRY_DELAY = 0.1  # seconds, when the system has no file descriptors or memory left

# The same error numbers as in trio.serve_listeners and trio.SocketListener.
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
    """An accepted socket, and what a connection needs to know about it."""

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
            # Accepted sockets inherit TCP_NODELAY. Trio also sets TCP_NOTSENT_LOWAT. We do not:
            # with it a response of 1 MiB takes five writes and two waits instead of one write.
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
    """Have the kernel close a connection whose peer has sent nothing for that many seconds.

    The kernel sends its first probe after half of the time, and about ten more in the other half.
    It counts whole seconds. Options that a system does not have are left out.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
    idle = max(1, round(seconds / 2))
    rest = max(1, round(seconds) - idle)
    interval = max(1, round(rest / 10))
    for name, value in (
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPALIVE", idle),  # macOS's name of TCP_KEEPIDLE
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
    """Replaces ``trio.serve_listeners``."""

    def start(accepted: Accepted) -> Connection:
        connection = make_connection(accepted)
        if connection.phase.reads:  # otherwise a tracker has closed it at NEW
            handler_nursery.start_soon(connection.run, name="trio_httptrack connection")
        return connection

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(listener.accept, start)


def trio_with_our_listeners(
    replacement: Listener | None, keepalive: float | None
) -> SimpleNamespace:
    """Return a stand-in for the module ``trio``, for Hypercorn's ``worker_serve``.

    Args:
      replacement: a listener to use instead of all sockets.
      keepalive: seconds after which the kernel closes a connection with a silent peer; None for
        never.
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
