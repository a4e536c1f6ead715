"""A worker's sockets on Linux: one epoll for all of them.

``trio.lowlevel.wait_readable`` registers the socket anew for each wait, which costs a system
call for each request. Here a socket is registered once and edge-triggered: the kernel reports
that something has come, and the reader remembers it until nothing is left. It also reports that
the peer has hung up behind bytes that nobody reads yet.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
from collections import OrderedDict
from collections.abc import Callable
from socket import socket

import trio

from .kernel import HANG_UP, READABLE, WaitsInTrio

MAX_EVENTS = 256  # of one scheduler step
MAX_HANG_UPS = 32  # of them, and in one batch


class EpollKernel(WaitsInTrio):
    add = staticmethod(socket.fileno)
    read = staticmethod(os.read)
    writev = staticmethod(os.writev)

    @staticmethod
    def unsent(fileno: int, /) -> int:
        try:
            (count,) = struct.unpack("i", fcntl.ioctl(fileno, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return 0  # it is no TCP socket
        return int(count)

    in_flight = unsent

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._hang_ups: OrderedDict[int, int] = OrderedDict()  # events not called back yet

    def register(self, fileno: int, callback: Callable[[int], None]) -> None:
        self._epoll.register(fileno, READABLE)  # which fails where the system has no memory
        self._callbacks[fileno] = callback

    def forget(self, fileno: int) -> None:
        self.wake(fileno)
        self._waited.discard(fileno)
        self._hang_ups.pop(fileno, None)
        # Closing the socket does not remove it from the epoll while a forked child has it,
        # too: its events would be reported to the next socket of this number.
        if self._callbacks.pop(fileno, None) is not None:
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
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._poll()
            while self._hang_ups:
                began = time.perf_counter()
                self._report_hang_ups()
                if self._hang_ups:
                    # Their tasks run in the next step, and in any order with this one.
                    for _ in range(2):
                        await trio.lowlevel.checkpoint()
                    await self._serve_others(2 * (time.perf_counter() - began))

    def _poll(self) -> None:
        """Call back what has happened; but only collect the ends."""
        for fileno, events in self._epoll.poll(0, MAX_EVENTS):
            callback = self._callbacks.get(fileno)
            if callback is None:
                pass  # one of those before has closed it
            elif events & HANG_UP:
                self._hang_ups[fileno] = events  # and all of its end that was reported before
            else:
                callback(events)

    def _report_hang_ups(self) -> None:
        for _ in range(MAX_HANG_UPS):
            if self._hang_ups:  # a callback may have closed others
                fileno, events = self._hang_ups.popitem(last=False)
                self._callbacks[fileno](events)

    async def _serve_others(self, seconds: float) -> None:
        until = time.perf_counter() + seconds
        self._poll()
        while time.perf_counter() < until:
            await trio.lowlevel.checkpoint()
            self._poll()

    def close(self) -> None:
        """Called when nobody reads any more: later than the end of ``run``."""
        self._epoll.close()
