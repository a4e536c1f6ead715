"""What a connection asks of the operating system about its socket.

``trio.lowlevel.wait_readable`` tells the kernel anew of each waiting, which costs a system
call for each request. Here a socket is registered once and edge-triggered, in one epoll for
all of a worker's connections: the kernel says when something has come, and the reader
remembers it until nothing is left. It also says that the peer has hung up behind bytes that
nobody reads yet.

epoll is Linux's. Elsewhere readers wait as Trio does.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

# Linux's numbers, which Python has on Linux only, and an in-memory kernel has everywhere.
EPOLLIN, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET = 0x1, 0x2, 0x8, 0x10, 0x2000, 1 << 31
READABLE = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
HANGUP = EPOLLRDHUP | EPOLLET
URGENT = EPOLLPRI
RESET = EPOLLHUP | EPOLLERR  # which need no asking
ENDED = EPOLLRDHUP | RESET


class Kernel(Protocol):
    tells: bool
    """Whether it calls back what is registered."""

    def read(self, fileno: int, size: int, /) -> bytes:
        """As ``os.read``."""

    def writev(self, fileno: int, parts: Sequence[bytes], /) -> int:
        """As ``os.writev``."""

    def unsent(self, fileno: int, /) -> int:
        """How many bytes were written, and are not yet where the peer can read them."""

    def register(self, fileno: int, callback: Callable[[int], None], events: int) -> None:
        """Call ``callback(events)`` whenever one of them happens, and soon if one has."""

    def forget(self, fileno: int) -> None:
        """Called before the socket is closed, whether it was registered or not."""

    async def run(self) -> None:
        """Call back until cancelled."""


class SystemKernel:
    """The real one."""

    tells = sys.platform == "linux"
    read = staticmethod(os.read)
    writev = staticmethod(os.writev)

    @staticmethod
    def unsent(fileno: int, /) -> int:
        try:
            (count,) = struct.unpack("i", fcntl.ioctl(fileno, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return 0  # not every system knows it of a socket
        return int(count)

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[int], None]] = {}
        if sys.platform == "linux":
            self._epoll = select.epoll()

    def register(self, fileno: int, callback: Callable[[int], None], events: int) -> None:
        if sys.platform == "linux":
            self._callbacks[fileno] = callback
            self._epoll.register(fileno, events)

    def forget(self, fileno: int) -> None:
        # Closing the socket does not take it out of the epoll while a forked child has it,
        # too, and its number may soon be another's.
        if self._callbacks.pop(fileno, None) is not None and sys.platform == "linux":
            self._epoll.unregister(fileno)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        if sys.platform != "linux":
            return
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fileno, events in self._epoll.poll(0):
                callback = self._callbacks.get(fileno)
                if callback is not None:  # else one of those before has closed it
                    callback(events)

    def close(self) -> None:
        """Called when nobody reads any more: later than the end of ``run``."""
        if sys.platform == "linux":
            self._epoll.close()
