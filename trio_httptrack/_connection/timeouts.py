"""One clock for all connections of a worker that may wait equally long.

A cancel scope with a deadline for each connection, set and cleared with each request, costs
ten times as much. Connections that may wait equally long are due in the order in which they
began, so a dictionary is queue enough, and one task sleeps until the first one is due.

A connection that is no longer waiting may stay in the queue: it is asked to expire, and knows
that it need not. So a request costs one move to the queue's end, and none out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

Waiting = TypeVar("Waiting")


class Timeout(Generic[Waiting]):
    """Calls ``expire`` with whatever has waited for ``seconds``. It must not block."""

    __slots__ = ("_begun", "_due", "_expire", "_seconds")

    def __init__(self, seconds: float, expire: Callable[[Waiting], object]) -> None:
        self._seconds = seconds
        self._expire = expire
        self._due: dict[Waiting, float] = {}
        self._begun: trio.Event | None = None  # while nothing waits

    def begin(self, waiting: Waiting, now: float) -> None:
        """Start to wait, or start again. The time is given because the caller mostly has it."""
        due = self._due
        due.pop(waiting, None)
        due[waiting] = now + self._seconds
        if self._begun is not None:
            self._begun.set()
            self._begun = None

    def end(self, waiting: Waiting) -> None:
        """Wait no longer, and be forgotten."""
        self._due.pop(waiting, None)

    def __len__(self) -> int:
        return len(self._due)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Watch the clock until cancelled."""
        while True:
            if not self._due:
                self._begun = trio.Event()
                await self._begun.wait()
                continue
            waiting, due = next(iter(self._due.items()))
            if due > trio.current_time():
                await trio.sleep_until(due)
            else:
                del self._due[waiting]
                self._expire(waiting)
