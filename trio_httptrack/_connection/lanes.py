"""Lanes: reusable cancel scopes, in which handlers can be cancelled one by one.

A cancel scope around each handler would cost more than a quarter of the instructions of a small
request. A lane is a cancel scope in which one handler runs at a time. The first handler runs in
the lane's own task, which is all that a connection with a single request needs. Then the lane
opens a nursery for the handlers that follow, at almost no cost. A lane that was cancelled is not
used again. A connection has as many lanes as it has had concurrent handlers.

If no setting cancels handlers, there are no lanes: handlers run in the connection's nursery.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .errors import ungrouped
from .exchange import Exchange

MAX_FREE = 16  # free lanes of a connection: each is a task

Handle = Callable[[Exchange, "Lane"], Awaitable[None]]


class Lane:
    """A cancel scope for one handler at a time.

    Args:
      exchange: the first exchange.
      free: the connection's free lanes. The lane adds itself when its handler is done.
    """

    __slots__ = ("_closed", "_free", "_nursery", "_wake", "exchange", "scope")

    def __init__(self, exchange: Exchange, free: list[Lane]) -> None:
        self.scope = trio.CancelScope()
        """The scope around the handler."""

        self.exchange: Exchange | None = exchange
        """The handler's exchange; None when the handler is done."""

        self._free = free
        self._closed = False
        self._nursery: trio.Nursery | None = None
        self._wake: trio.Event | None = None

    async def run(self, handle: Handle) -> None:
        """Handle the first exchange, and those that follow, until closed or cancelled."""
        assert self.exchange is not None
        with self.scope:
            await handle(self.exchange, self)
            # A free lane must be able to start a handler, so it has an open nursery.
            if self.exchange is None and not self._closed:
                await self._stay_open()

    async def _stay_open(self) -> None:
        self._wake = trio.Event()
        with ungrouped(nurseries=1):
            async with trio.open_nursery() as self._nursery:
                self._free.append(self)
                await self._wake.wait()

    def start(self, exchange: Exchange, handle: Handle) -> None:
        """Handle another exchange, after the last one is done."""
        self.exchange = exchange
        assert self._nursery is not None
        self._nursery.start_soon(handle, exchange, self, name="trio_httptrack exchange")

    def handler_done(self, *, more: bool) -> None:
        """Free the lane. ``more`` says whether the connection may have other exchanges."""
        self.exchange = None
        if not more or len(self._free) >= MAX_FREE:
            self.close()
        elif self._nursery is not None:
            self._free.append(self)

    def close(self) -> None:
        """Close the lane: no other exchange follows."""
        self._closed = True
        if self._wake is not None:
            self._wake.set()
