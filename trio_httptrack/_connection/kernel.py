"""What a connection's socket needs of the operating system.

On Linux, ``epoll`` implements it. On other systems, ``portable`` does, with what Trio and Python
have everywhere.

Invariant: after ``forget(fileno)``, no callback runs and no task waits for that number. The
socket is closed next, and another connection may get its number in the same scheduler step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import trio

# Linux's values. Python defines them on Linux only, and the other kernels here use them everywhere.
EPOLLIN, EPOLLPRI, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET = 0x1, 0x2, 0x8, 0x10, 0x2000, 1 << 31
READABLE = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET
URGENT = EPOLLPRI
RESET = EPOLLHUP | EPOLLERR  # always reported
HANG_UP = EPOLLRDHUP | RESET


class Kernel(Protocol):
    def add(self, socket: Any, /) -> int:
        """Return the number that identifies the socket here, until ``forget``."""

    def read(self, fileno: int, size: int, /) -> bytes:
        """Read as ``os.read``."""

    def writev(self, fileno: int, parts: Sequence[bytes | memoryview], /) -> int:
        """Write as ``os.writev``."""

    def unsent(self, fileno: int, /) -> int:
        """Return how many written bytes the peer cannot read yet.

        A network in memory, where nothing is in flight, counts what the peer has not read.
        If the system does not report it, return 0.
        """

    def in_flight(self, fileno: int, /) -> int:
        """Return how many written bytes are in flight: a reset may overtake them.

        If the system does not report it, return 0.
        """

    def register(self, fileno: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` whenever one of ``READABLE`` happens, and soon if one has."""

    async def wait_writable(self, fileno: int) -> None:
        """Wait until the socket is writable, or ``wake`` is called."""

    def wake(self, fileno: int) -> None:
        """Wake the tasks that wait for the socket."""

    def forget(self, fileno: int) -> None:
        """Unregister the socket, if it was registered, and wake the tasks that wait for it.

        Must be called before the socket is closed.
        """

    async def run(self) -> None:
        """Run the callbacks until cancelled."""


class WaitsInTrio:
    """Waits for writable sockets with Trio, on every system: writes rarely have to wait."""

    def __init__(self) -> None:
        self._waited: set[int] = set()  # sockets that a task may be waiting for in Trio

    async def wait_writable(self, fileno: int) -> None:
        self._waited.add(fileno)
        with suppress(trio.ClosedResourceError):  # `wake` was called
            await trio.lowlevel.wait_writable(fileno)

    def wake(self, fileno: int) -> None:
        # Few sockets are ever waited for in Trio, and this is a system call.
        if fileno in self._waited:
            trio.lowlevel.notify_closing(fileno)
