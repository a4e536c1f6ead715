"""An in-memory network, without an operating system: a connection is two buffers.

It behaves as TCP does within one machine: bytes arrive at once, until a buffer is full. One case is
stricter. With TCP it depends on timing whether a client can still read what came before a reset.
Here it never can. So a server whose responses survive on this network does not lose them on any
other. A server reads what came before a reset as on Linux.

:class:`MemorySocket` is non-blocking. :class:`MemoryStream` waits for it on the client's side, and
:class:`MemoryKernel` reports its events to the server's connections.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from socket import AF_INET, AF_INET6, SHUT_WR
from typing import TypeVar

import trio

from .._connection.kernel import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLRDHUP
from .._states import Conn

T = TypeVar("T")
Address = tuple[str, int]

BUFFER_SIZE = 2**16  # bytes, each way


class MemorySocket:
    """One side of a connection, with the part of a socket's interface that a server uses."""

    def __init__(self, address: Address, *, client: bool = False) -> None:
        self.family = AF_INET6 if ":" in address[0] else AF_INET
        self.changed: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        self.closed: bool = False
        self.eof_sent: bool = False
        self._eof_received = False
        self._broken = False  # nothing can be sent any more
        self._reset_received = False  # recv() raises after the last byte
        self._received = bytearray()
        self._address = address
        self._client = client
        self._peer = self  # until connect()
        self._kernel: MemoryKernel | None = None
        self._fileno = -1

    def connect(self, peer: MemorySocket) -> None:
        self._peer, peer._peer = peer, self

    def open(self, kernel: MemoryKernel, fileno: int) -> None:
        """Set a file descriptor, which a server's socket gets when it is accepted."""
        self._kernel = kernel
        self._fileno = fileno

    def fileno(self) -> int:
        return self._fileno

    def getsockname(self) -> Address:
        return self._address

    def getpeername(self) -> Address:
        return self._peer._address

    def recv(self, size: int) -> bytes:
        if self.closed:
            raise _error(errno.EBADF)
        if not self._received and self._reset_received:
            raise _error(errno.ECONNRESET)
        if not self._received and not self._eof_received:
            raise _error(errno.EAGAIN)
        data = bytes(self._received[:size])
        del self._received[:size]
        self._peer._wake()  # there is room
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Send as many bytes as there is room for; return their number."""
        if self.closed:
            raise _error(errno.EBADF)
        if self.eof_sent or self._broken:
            raise _error(errno.EPIPE)
        if not data:
            return 0
        if self._peer.closed:
            self._on_reset()
            return len(data)  # the first time, as in TCP, which learns of the reset only then
        if not self.room():
            raise _error(errno.EAGAIN)
        data = data[: self.room()]
        self._peer._received += data
        self._peer._wake()
        return len(data)

    @property
    def unread_by_peer(self) -> int:
        """How many bytes a reset would destroy."""
        return len(self._peer._received)

    def room(self) -> int:
        """Return how many bytes can be sent without waiting."""
        return BUFFER_SIZE - self.unread_by_peer

    def shutdown(self, how: int) -> None:
        """Send EOF. ``how`` must be ``SHUT_WR``."""
        if self.closed or self._broken:
            raise _error(errno.ENOTCONN)
        self.eof_sent = True
        self._peer._eof_received = True
        self._peer._wake()
        self._wake()

    def close(self) -> None:
        """Close both directions; with a reset if there are unread bytes, as in TCP (RFC 2525)."""
        if self._received:
            self.reset()
        elif not self.closed:
            with suppress(OSError):
                self.shutdown(SHUT_WR)
            self._close()

    def reset(self) -> None:
        """Close both directions with a reset. A client loses its unread bytes."""
        if not self.closed:
            self._peer._on_reset()
            self._close()

    def _close(self) -> None:
        self.closed = True
        if self._kernel is not None:
            self._kernel.remove(self._fileno)
        self._fileno = -1
        self._wake()

    def _on_reset(self) -> None:
        self._broken = True
        if self._client and self._received:
            self._received.clear()
            self._reset_received = True
        elif not self._eof_received:
            self._reset_received = True
        self._wake()

    def _wake(self) -> None:
        self.changed.unpark_all()
        if self._kernel is not None:
            self._kernel.notify(self._fileno)

    @property
    def events(self) -> int:
        """The events that epoll would report now."""
        events = EPOLLIN if self._received or self._eof_received else 0
        if self._eof_received:
            events |= EPOLLRDHUP | (EPOLLHUP if self.eof_sent else 0)
        if self._broken:
            events |= EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
        return events

    @property
    def writable(self) -> bool:
        """Whether ``send`` would not block."""
        return self.closed or self.eof_sent or self._broken or self.room() > 0


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))  # an instance of the number's subclass


class MemoryKernel:
    """The kernel of a worker (``_connection.kernel``), for memory sockets."""

    def __init__(self) -> None:
        self._filenos = count()
        self._sockets: dict[int, MemorySocket] = {}
        self._registered: dict[int, Callable[[int], None]] = {}
        self._changed: dict[int, None] = {}  # an ordered set
        self._wakeup = trio.Event()

    def add(self, socket: MemorySocket, /) -> int:
        fileno = next(self._filenos)
        self._sockets[fileno] = socket
        socket.open(self, fileno)
        return fileno

    def remove(self, fileno: int) -> None:
        del self._sockets[fileno]

    def read(self, fileno: int, size: int, /) -> bytes:
        return self._sockets[fileno].recv(size)

    def writev(self, fileno: int, parts: Sequence[bytes | memoryview], /) -> int:
        return self._sockets[fileno].send(b"".join(parts))

    def unsent(self, fileno: int, /) -> int:
        return self._sockets[fileno].unread_by_peer if fileno in self._sockets else 0

    def in_flight(self, fileno: int, /) -> int:
        return 0

    def register(self, fileno: int, callback: Callable[[int], None]) -> None:
        self._registered[fileno] = callback
        self.notify(fileno)

    async def wait_writable(self, fileno: int) -> None:
        if self._sockets[fileno].writable:
            await trio.lowlevel.checkpoint()
        else:
            await self._sockets[fileno].changed.park()

    def wake(self, fileno: int) -> None:
        if fileno in self._sockets:
            self._sockets[fileno].changed.unpark_all()

    def forget(self, fileno: int) -> None:
        self._registered.pop(fileno, None)
        self.wake(fileno)

    def notify(self, fileno: int) -> None:
        """Note that the events of a socket may have changed."""
        if fileno in self._registered:
            self._changed[fileno] = None
            self._wakeup.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup = trio.Event()
            changed, self._changed = self._changed, {}
            for fileno in changed:
                # A callback before may have closed it.
                if fileno in self._registered and (events := self._sockets[fileno].events):
                    self._registered[fileno](events)


class MemoryStream(trio.abc.HalfCloseableStream):
    """A stream over a memory socket, as ``trio.SocketStream`` is over a real one."""

    def __init__(self, socket: MemorySocket) -> None:
        self.socket = socket
        self._busy: set[str] = set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._exclusive("sending"):
            await trio.lowlevel.checkpoint()
            self._refuse_after_eof()
            rest = memoryview(data).cast("B")
            while True:
                sent = await self._retry_until_ready(partial(self.socket.send, rest))
                rest = rest[sent:]
                if not rest:
                    return

    async def wait_send_all_might_not_block(self) -> None:
        with self._exclusive("sending"):
            await trio.lowlevel.checkpoint()
            self._refuse_after_eof()
            await self._retry_until_ready(partial(self.socket.send, b""))
            while not self.socket.room():
                await self.socket.changed.park()
                await self._retry_until_ready(partial(self.socket.send, b""))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is None:
            max_bytes = BUFFER_SIZE
        if not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes must be an int, not {max_bytes!r}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes!r}")
        with self._exclusive("receiving"):
            await trio.lowlevel.checkpoint()
            return await self._retry_until_ready(partial(self.socket.recv, max_bytes))

    async def send_eof(self) -> None:
        with self._exclusive("sending"):
            await trio.lowlevel.checkpoint()
            if self.socket.closed:
                raise trio.ClosedResourceError
            if not self.socket.eof_sent:
                await self._retry_until_ready(partial(self.socket.shutdown, SHUT_WR))

    async def aclose(self) -> None:
        self.socket.close()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        self.socket.reset()

    async def _retry_until_ready(self, operation: Callable[[], T]) -> T:
        while True:
            try:
                return operation()
            except BlockingIOError:
                await self.socket.changed.park()
            except OSError as error:
                if self.socket.closed:
                    raise trio.ClosedResourceError from None
                raise trio.BrokenResourceError(f"{error}") from error

    def _refuse_after_eof(self) -> None:
        if self.socket.eof_sent:
            raise trio.ClosedResourceError("nothing can be sent after send_eof()")

    @contextmanager
    def _exclusive(self, doing: str) -> Iterator[None]:
        if doing in self._busy:
            raise trio.BusyResourceError(f"another task is already {doing} on this stream")
        self._busy.add(doing)
        try:
            yield
        finally:
            self._busy.remove(doing)


class ServerSide(trio.abc.AsyncResource):
    """The server's side of a connection, before and after it is accepted."""

    conn: Conn
    """The accepted connection; set before ``accepted``."""

    def __init__(self, socket: MemorySocket, ssl_context: ssl.SSLContext | None = None) -> None:
        self.socket = socket
        self.ssl_context = ssl_context
        self.accepted = trio.Event()

    async def aclose(self) -> None:
        self.socket.close()
        await trio.lowlevel.checkpoint()


class MemoryListener(trio.abc.Listener[ServerSide]):
    """Accepts the connections that clients offer, one at a time."""

    def __init__(self) -> None:
        self._offer, self._accept = trio.open_memory_channel[ServerSide](0)

    async def offer(self, side: ServerSide) -> None:
        """Wait until the server accepts the connection.

        Raises:
          ConnectionRefusedError: the server does not accept any more.
        """
        try:
            await self._offer.send(side)
        except trio.BrokenResourceError:
            raise _error(errno.ECONNREFUSED) from None

    async def accept(self) -> ServerSide:
        return await self._accept.receive()

    async def aclose(self) -> None:
        self._accept.close()
        await trio.lowlevel.checkpoint()
