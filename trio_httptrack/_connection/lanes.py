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
    """Room for one handler."""

    __slots__ = ("_closed", "_nursery", "_wake", "exchange", "scope")

    def __init__(self, exchange: Exchange) -> None:
        self.scope = trio.CancelScope()
        """Cancelling it cancels the handler."""

        self.exchange: Exchange | None = exchange
        """Whose handler that is, until it has ended."""

        self._closed = False
        self._nursery: trio.Nursery | None = None
        self._wake: trio.Event | None = None

    async def run(self, handle: Handle) -> None:
        """Handle the exchange, and others that follow, until closed or cancelled."""
        assert self.exchange is not None
        with self.scope:
            await handle(self.exchange, self)
            if not self._closed:
                await self._stay_open()

    async def _stay_open(self) -> None:
        self._wake = trio.Event()
        with ungrouped(nurseries=1):
            async with trio.open_nursery() as self._nursery:
                await self._wake.wait()

    def start(self, exchange: Exchange, handle: Handle) -> None:
        """Handle another exchange, when the last one has ended."""
        self.exchange = exchange
        assert self._nursery is not None
        self._nursery.start_soon(handle, exchange, self, name="trio_httptrack exchange")

    def close(self) -> None:
        """No other exchange follows."""
        self._closed = True
        if self._wake is not None:
            self._wake.set()
