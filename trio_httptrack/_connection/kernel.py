"""What a connection needs of the operating system for its socket.

Linux has ``epoll`` for it. Everywhere else, ``portable`` does the same with what Trio and Python
have on every system.

Invariant: after ``forget(fileno)`` no callback runs and nobody waits for that number. The
socket is closed next, and its number may be another connection's in the same scheduler step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import trio

# Linux's numbers, which Python has on Linux only, and the other kernels have everywhere.
EPOLLIN, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET = 0x1, 0x2, 0x8, 0x10, 0x2000, 1 << 31
READABLE = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
URGENT = EPOLLPRI
RESET = EPOLLHUP | EPOLLERR  # which are reported in any case
HANG_UP = EPOLLRDHUP | RESET


class Kernel(Protocol):
    def add(self, socket: Any, /) -> int:
        """Return the number by which the socket is known here, until ``forget``."""

    def read(self, fileno: int, size: int, /) -> bytes:
        """As ``os.read``."""

    def writev(self, fileno: int, parts: Sequence[bytes | memoryview], /) -> int:
        """As ``os.writev``."""

    def unsent(self, fileno: int, /) -> int:
        """Return how many bytes were written, and are not yet where the peer can read them.

        A network in memory, where nothing is in flight, counts what the peer has not read.
        Where the system does not say, it is 0.
        """

    def in_flight(self, fileno: int, /) -> int:
        """Return how many bytes were written, and are in flight: a reset may overtake them.

        Where the system does not say, it is 0.
        """

    def register(self, fileno: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` whenever one of ``READABLE`` happens, and soon if one has."""

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


class WaitsInTrio:
    """Writers wait as Trio does, on every system: they rarely have to wait."""

    def __init__(self) -> None:
        self._waited: set[int] = set()  # sockets that somebody may be waiting for in Trio

    async def wait_writable(self, fileno: int) -> None:
        self._waited.add(fileno)
        with suppress(trio.ClosedResourceError):  # which only says that `wake` was called
            await trio.lowlevel.wait_writable(fileno)

    def wake(self, fileno: int) -> None:
        # Few sockets are ever waited for in Trio, and this is a system call.
        if fileno in self._waited:
            trio.lowlevel.notify_closing(fileno)
