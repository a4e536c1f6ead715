"""Learn that a peer has hung up while nobody reads from it.

While an HTTP/1 client's pipelined request waits for its turn, the peer's end is hidden
behind bytes that nobody reads yet. The kernel knows: epoll reports ``EPOLLRDHUP`` without
any reading. There is one epoll for the whole worker, and one task that waits for it.
Systems without epoll (it is Linux's) notice such an end when the reader reads on.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio


class Hangups:
    """Who wants to know, by file descriptor."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[bool], None]] = {}
        if sys.platform == "linux":
            self._epoll = select.epoll()

    @contextmanager
    def watch(self, fileno: int, hung_up: Callable[[bool], None]) -> Iterator[None]:
        """While the block runs, call ``hung_up(reset)`` once at the peer's end.

        ``reset`` is true if the peer does not read any more either.
        """
        if sys.platform != "linux" or fileno < 0:
            yield
            return
        self._epoll.register(fileno, select.EPOLLRDHUP | select.EPOLLONESHOT)
        self._callbacks[fileno] = hung_up
        try:
            yield
        finally:
            # A socket that was closed meanwhile has left the epoll by itself, and its
            # number may be another's by now.
            if self._callbacks.get(fileno) is hung_up:
                del self._callbacks[fileno]
                with suppress(OSError):
                    self._epoll.unregister(fileno)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Wait for hangups until cancelled."""
        if sys.platform != "linux":
            return
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fileno, events in self._epoll.poll(0):
                self._callbacks[fileno](bool(events & (select.EPOLLHUP | select.EPOLLERR)))

    def close(self) -> None:
        """Called when nobody watches any more: later than the end of ``run``."""
        if sys.platform == "linux":
            self._epoll.close()
