"""One timer for all connections of a worker that have the same timeout.

A cancel scope with a deadline for each connection, set and cleared with each request, costs
ten times as much. Connections with the same timeout expire in the order in which they were
started. So a dictionary serves as the queue, and one task sleeps until the first deadline.

A connection that no longer waits may stay in the queue. ``expire`` is called for it, and ignores
the call. So a request costs one move to the end of the queue, and no removal from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

Waiting = TypeVar("Waiting")


class Timeout(Generic[Waiting]):
    """Calls ``expire`` with each object that has waited for ``seconds``.

    ``expire`` must not block.
    """

    __slots__ = ("_due", "_expire", "_seconds", "_started_event")

    def __init__(self, seconds: float, expire: Callable[[Waiting], object]) -> None:
        self._seconds = seconds
        self._expire = expire
        self._due: dict[Waiting, float] = {}
        self._started_event: trio.Event | None = None  # while nothing waits

    def start(self, waiting: Waiting, now: float) -> None:
        """Start to wait, or restart. ``now`` is an argument because most callers have it."""
        due = self._due
        due.pop(waiting, None)
        due[waiting] = now + self._seconds
        if self._started_event is not None:
            self._started_event.set()
            self._started_event = None

    def cancel(self, waiting: Waiting) -> None:
        """Stop waiting, and leave the queue."""
        self._due.pop(waiting, None)

    def __len__(self) -> int:
        return len(self._due)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Watch the clock until cancelled."""
        while True:
            if not self._due:
                self._started_event = trio.Event()
                await self._started_event.wait()
                continue
            waiting, due = next(iter(self._due.items()))
            if due > trio.current_time():
                await trio.sleep_until(due)
            else:
                del self._due[waiting]
                self._expire(waiting)
