"""A worker's sockets on Linux: one epoll for all of them.

``trio.lowlevel.wait_readable`` registers the socket anew for each wait, which costs a system
call for each request. Here a socket is registered once and edge-triggered: the kernel reports
new input, and the reader remembers that until nothing is left. The kernel also reports that the
peer has hung up, even if there are unread bytes before that.
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
MAX_HANG_UPS = 32  # of one batch


class EpollKernel(WaitsInTrio):
    add = staticmethod(socket.fileno)
    read = staticmethod(os.read)
    writev = staticmethod(os.writev)

    @staticmethod
    def unsent(fileno: int, /) -> int:
        try:
            (count,) = struct.unpack("i", fcntl.ioctl(fileno, termios.TIOCOUTQ, bytes(4)))
        except OSError:
            return 0  # not a TCP socket
        return int(count)

    in_flight = unsent

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._hang_ups: OrderedDict[int, int] = OrderedDict()  # events not called back yet

    def register(self, fileno: int, callback: Callable[[int], None]) -> None:
        self._epoll.register(fileno, READABLE)  # fails if the system is out of memory
        self._callbacks[fileno] = callback

    def forget(self, fileno: int) -> None:
        self.wake(fileno)
        self._waited.discard(fileno)
        self._hang_ups.pop(fileno, None)
        # While a forked child has the socket, too, closing it does not remove it from the epoll.
        # Then its events would be reported to the next socket of this number.
        if self._callbacks.pop(fileno, None) is not None:
            self._epoll.unregister(fileno)

    # Each callback makes a task runnable, and Trio runs all runnable tasks in one scheduler step.
    # If a load balancer fails, 15,000 clients disappear at once. Closing their connections takes
    # seconds, and other connections must not wait for that.
    #
    # A limit on the events of a step is not enough. epoll reports events in order, so each request
    # would wait for all the hang-ups before it. So hang-ups are only collected, which is fast, and
    # reported in batches. While some are left, the pause before the next batch is twice as long as
    # the last batch took with its tasks: other connections get most of the time.
    #
    # The first batch is reported at once, and it has room for all hang-ups of an ordinary load. If
    # those had to wait, the sockets of disconnected clients would pile up.
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
        """Report what has happened, but only collect the hang-ups."""
        for fileno, events in self._epoll.poll(0, MAX_EVENTS):
            callback = self._callbacks.get(fileno)
            if callback is None:
                pass  # a callback before has closed it
            elif events & HANG_UP:
                self._hang_ups[fileno] = events  # includes what was reported before
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
        """Close the epoll. Call this when nobody reads any more, which is after ``run``."""
        self._epoll.close()
