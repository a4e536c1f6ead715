"""Where handlers run that may have to be cancelled, each by itself.

A cancel scope around each handler would do, but takes more than a quarter of the instructions of a
small request. A lane is a cancel scope in which one handler runs at a time. The first one runs in
the lane's own task: a connection with a single request has no more than that. Then the lane opens
a nursery for the handlers that follow, and they pay next to nothing. Only a lane that was cancelled
is spent. A connection has as many lanes as it has had handlers at a time.

Where no setting cancels handlers there are no lanes: they run in the connection's nursery.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .errors import ungrouped
from .exchange import Exchange

MAX_FREE = 16  # lanes of a connection: each is a task

Handle = Callable[[Exchange, "Lane"], Awaitable[None]]


class Lane:
    """Room for one handler.

    Args:
      exchange: the first one.
      free: the lanes of its connection that are free, of which it is one between two handlers.
    """

    __slots__ = ("_closed", "_free", "_nursery", "_wake", "exchange", "scope")

    def __init__(self, exchange: Exchange, free: list[Lane]) -> None:
        self.scope = trio.CancelScope()
        """Cancelling it cancels the handler."""

        self.exchange: Exchange | None = exchange
        """Whose handler that is, until it has ended."""

        self._free = free
        self._closed = False
        self._nursery: trio.Nursery | None = None
        self._wake: trio.Event | None = None

    async def run(self, handle: Handle) -> None:
        """Handle the exchange, and others that follow, until closed or cancelled."""
        assert self.exchange is not None
        with self.scope:
            await handle(self.exchange, self)
            # Who finds a lane that is free must be able to start a handler in it.
            if self.exchange is None and not self._closed:
                await self._stay_open()

    async def _stay_open(self) -> None:
        self._wake = trio.Event()
        with ungrouped(nurseries=1):
            async with trio.open_nursery() as self._nursery:
                self._free.append(self)
                await self._wake.wait()

    def start(self, exchange: Exchange, handle: Handle) -> None:
        """Handle another exchange, when the last one has ended."""
        self.exchange = exchange
        assert self._nursery is not None
        self._nursery.start_soon(handle, exchange, self, name="trio_httptrack exchange")

    def end(self, *, more: bool) -> None:
        """Its handler has ended. ``more`` is whether others may follow on the connection."""
        self.exchange = None
        if not more or len(self._free) >= MAX_FREE:
            self.close()
        elif self._nursery is not None:
            self._free.append(self)

    def close(self) -> None:
        """No other exchange follows."""
        self._closed = True
        if self._wake is not None:
            self._wake.set()
