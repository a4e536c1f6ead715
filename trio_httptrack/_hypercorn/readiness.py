"""Which sockets have something to read: one epoll for all of a worker's connections.

``trio.lowlevel.wait_readable`` tells the kernel anew of each waiting, which costs a system
call for each request. Here a socket is registered once and edge-triggered: the kernel says
when something has come, and the reader remembers it until nothing is left. It also says
that the peer has hung up behind bytes that nobody reads yet.

epoll is Linux's. Elsewhere readers wait as Trio does.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable

import trio

AVAILABLE = sys.platform == "linux"

if sys.platform == "linux":
    READABLE = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
    HANGUP = select.EPOLLRDHUP | select.EPOLLET
    URGENT = select.EPOLLPRI
    RESET = select.EPOLLHUP | select.EPOLLERR  # which need no asking
    ENDED = select.EPOLLRDHUP | RESET


class Readiness:
    """Who wants to know, by file descriptor."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[int], None]] = {}
        if sys.platform == "linux":
            self._epoll = select.epoll()

    def register(self, fileno: int, callback: Callable[[int], None], events: int) -> None:
        """Call ``callback(events)`` whenever one of them happens, and at once if one has."""
        if sys.platform == "linux":
            self._callbacks[fileno] = callback
            self._epoll.register(fileno, events)

    def forget(self, fileno: int) -> None:
        """Called before the socket is closed.

        That alone does not take it out of the epoll while a forked child has it, too, and
        its number may soon be another's.
        """
        if self._callbacks.pop(fileno, None) is not None and sys.platform == "linux":
            self._epoll.unregister(fileno)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Call back until cancelled."""
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
