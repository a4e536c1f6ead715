"""What a connection needs of the operating system for its socket.

``trio.lowlevel.wait_readable`` registers the socket anew for each wait, which costs a system
call for each request. Here a socket is registered once and edge-triggered, in one epoll for
all connections of a worker: the kernel reports that something has come, and the reader
remembers it until nothing is left. It also reports that the peer has hung up behind bytes that
nobody reads yet.

Invariant: after ``forget(fileno)`` no callback runs and nobody waits for that number. The
socket is closed next, and its number may be another connection's in the same scheduler step.

epoll is Linux's. Elsewhere readers wait as Trio does. Writers do so everywhere: they rarely
have to wait.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import termios
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import trio

# Linux's numbers, which Python has on Linux only, and an in-memory kernel has everywhere.
EPOLLIN, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET = 0x1, 0x2, 0x8, 0x10, 0x2000, 1 << 31
READABLE = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
URGENT = EPOLLPRI
RESET = EPOLLHUP | EPOLLERR  # which are reported in any case
ENDED = EPOLLRDHUP | RESET

MAX_EVENTS = 256  # of one scheduler step
MAX_ENDS = 32  # of them, and in one batch


class Kernel(Protocol):
    tells: bool
    """Whether it calls back what is registered. If not, a reader calls ``wait_readable``."""

    def read(self, fileno: int, size: int, /) -> bytes:
        """As ``os.read``."""

    def writev(self, fileno: int, parts: Sequence[bytes | memoryview], /) -> int:
        """As ``os.writev``."""

    def unsent(self, fileno: int, /) -> int:
        """How many bytes were written, and are not yet where the peer can read them.

        A network in memory, where nothing is on its way, counts what the peer has not read.
        """

    def in_flight(self, fileno: int, /) -> int:
        """How many bytes were written, and are on their way: a reset may overtake them."""

    def register(self, fileno: int, callback: Callable[[int], None], events: int) -> None:
        """Call ``callback(events)`` whenever one of them happens, and soon if one has."""

    async def wait_readable(self, fileno: int) -> None:
        """Wait for it, or for ``wake``."""

    async def wait_writable(self, fileno: int) -> None:
        """Wait for it, or for ``wake``."""

    def wake(self, fileno: int) -> None:
        """Let the tasks that wait for the socket look again."""

    def forget(self, fileno: int) -> None:
        """Unregister it, if it was registered, and wake the tasks that wait for it.

        Must be called before the socket is closed.
        """

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

    in_flight = unsent

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._ended: OrderedDict[int, int] = OrderedDict()  # events not called back yet
        self._waited: set[int] = set()  # sockets that somebody may be waiting for in Trio
        if sys.platform == "linux":
            self._epoll = select.epoll()

    def register(self, fileno: int, callback: Callable[[int], None], events: int) -> None:
        if sys.platform == "linux":
            self._epoll.register(fileno, events)  # which fails where the system has no memory
            self._callbacks[fileno] = callback

    async def wait_readable(self, fileno: int) -> None:
        self._waited.add(fileno)
        with suppress(trio.ClosedResourceError):  # which only says that `wake` was called
            await trio.lowlevel.wait_readable(fileno)

    async def wait_writable(self, fileno: int) -> None:
        self._waited.add(fileno)
        with suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_writable(fileno)

    def wake(self, fileno: int) -> None:
        # Few sockets are ever waited for in Trio, and this is a system call.
        if fileno in self._waited:
            trio.lowlevel.notify_closing(fileno)

    def forget(self, fileno: int) -> None:
        self.wake(fileno)
        self._waited.discard(fileno)
        self._ended.pop(fileno, None)
        # Closing the socket does not remove it from the epoll while a forked child has it,
        # too: its events would be reported to the next socket of this number.
        if self._callbacks.pop(fileno, None) is not None and sys.platform == "linux":
            self._epoll.unregister(fileno)

    # Each callback makes a task runnable, and Trio runs all that are in one scheduler step. If a
    # load balancer fails, 15,000 clients vanish at once. To close their connections takes
    # seconds, and nobody else may have to wait for that.
    #
    # A bound on the events of a step is not enough. epoll reports events in their order, so each
    # request would wait behind all the ends before it. Therefore ends are only collected, which
    # is fast, and called back a batch at a time. While some are left, the next batch waits twice
    # as long as this one took with its tasks: everybody else has most of the time.
    #
    # One batch is called back at once, and that is all of the ends of any ordinary load. If those
    # had to wait, sockets of closed connections would pile up until there are too many.
    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        if sys.platform != "linux":
            return
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._poll()
            while self._ended:
                began = time.perf_counter()
                self._call_back_ended()
                if self._ended:
                    # Their tasks run in the next step, and in any order with this one.
                    for _ in range(2):
                        await trio.lowlevel.checkpoint()
                    await self._serve_others(2 * (time.perf_counter() - began))

    def _poll(self) -> None:
        """Call back what has happened; but only collect the ends."""
        if sys.platform == "linux":
            for fileno, events in self._epoll.poll(0, MAX_EVENTS):
                callback = self._callbacks.get(fileno)
                if callback is None:
                    pass  # one of those before has closed it
                elif events & ENDED:
                    self._ended[fileno] = events  # and all of its end that was reported before
                else:
                    callback(events)

    def _call_back_ended(self) -> None:
        for _ in range(MAX_ENDS):
            if self._ended:  # a callback may have closed others
                fileno, events = self._ended.popitem(last=False)
                self._callbacks[fileno](events)

    async def _serve_others(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        self._poll()
        while time.perf_counter() < until:
            await trio.lowlevel.checkpoint()
            self._poll()

    def close(self) -> None:
        """Called when nobody reads any more: later than the end of ``run``."""
        if sys.platform == "linux":
            self._epoll.close()
