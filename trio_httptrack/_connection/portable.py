"""A worker's sockets on systems without epoll, such as macOS and Windows.

This is for development. It does what ``epoll`` does, but with a task for each connection, and with
what Trio and Python have on every system. Sockets are read and written by their own methods,
because on Windows they are no file descriptors.

Two things are worse than on Linux. If there are unread bytes before a hang-up, it is noticed only
when they are read. And it is unknown how much is still in flight: within one machine, nothing is
for long.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from socket import MSG_PEEK, SO_ERROR, SOL_SOCKET, socket

import trio

from .kernel import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLRDHUP, WaitsInTrio

INTERVAL = 0.25  # seconds, at most, between two checks for a reset after the peer's EOF


class Watched:
    """A registered socket."""

    __slots__ = ("callback", "error", "read")

    def __init__(self, callback: Callable[[int], None]) -> None:
        self.callback = callback
        self.read = trio.Event()  # set by the first read after a check, and by `forget`
        self.error: OSError | None = None


class PortableKernel(WaitsInTrio):
    def __init__(self) -> None:
        super().__init__()
        self._sockets: dict[int, socket] = {}
        self._watched: dict[int, Watched] = {}
        self._registered, self._to_watch = trio.open_memory_channel[int](float("inf"))

    def add(self, sock: socket, /) -> int:
        fileno = sock.fileno()
        self._sockets[fileno] = sock
        return fileno

    def read(self, fileno: int, size: int, /) -> bytes:
        watched = self._watched.get(fileno)
        if watched is not None:
            watched.read.set()
            if watched.error is not None:  # the system reports it only once
                raise watched.error
        return self._sockets[fileno].recv(size)

    def writev(self, fileno: int, parts: Sequence[bytes | memoryview], /) -> int:
        return self._sockets[fileno].send(parts[0] if len(parts) == 1 else b"".join(parts))

    def unsent(self, _: int, /) -> int:
        return 0

    in_flight = unsent

    def register(self, fileno: int, callback: Callable[[int], None]) -> None:
        self._watched[fileno] = Watched(callback)
        self._registered.send_nowait(fileno)

    def forget(self, fileno: int) -> None:
        self.wake(fileno)
        self._waited.discard(fileno)
        self._sockets.pop(fileno, None)
        watched = self._watched.pop(fileno, None)
        if watched is not None:
            watched.read.set()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            async for fileno in self._to_watch:
                if fileno in self._watched:
                    nursery.start_soon(self._watch, fileno, self._watched[fileno])

    # Trio reports a socket as readable for as long as it has input. So this task waits for a read
    # before it asks Trio again: otherwise it would spin. After the peer's EOF the socket is
    # readable for ever. A reset may still come then, so the task checks for one periodically.
    async def _watch(self, fileno: int, watched: Watched) -> None:
        while self._watched.get(fileno) is watched:
            self._waited.add(fileno)
            with suppress(trio.ClosedResourceError):  # `wake` was called
                await trio.lowlevel.wait_readable(fileno)
            if self._watched.get(fileno) is not watched:
                return
            events = self._events(fileno, watched)
            if events:
                watched.read = trio.Event()
                watched.callback(events)
            if events & EPOLLRDHUP:
                break
            if events:
                await watched.read.wait()
        else:
            return
        while watched.error is None:
            watched.read = trio.Event()
            with trio.move_on_after(INTERVAL):
                await watched.read.wait()
            if self._watched.get(fileno) is not watched:
                return
            if (events := self._events(fileno, watched)) & EPOLLHUP:
                watched.callback(events)

    def _events(self, fileno: int, watched: Watched) -> int:
        """Return the events that epoll would report now."""
        sock = self._sockets[fileno]
        try:
            if error := sock.getsockopt(SOL_SOCKET, SO_ERROR):
                raise OSError(error, os.strerror(error))
            found = sock.recv(1, MSG_PEEK)
        except BlockingIOError:
            return 0
        except OSError as error:
            watched.error = error
            return EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR
        return EPOLLIN if found else EPOLLIN | EPOLLRDHUP

    def close(self) -> None:
        """Close the channel. Call this when nobody reads any more, which is after ``run``."""
        self._registered.close()
        self._to_watch.close()
