"""Timeouts: one queue and one task for all of a worker's connections that may wait equally long.

A cancel scope's deadline for each connection, set and cleared with each request, costs ten
times as much. Connections that may wait equally long are due in the order in which they
began, so a dictionary is queue enough, and one task sleeps until the first one is due.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import trio


class Waiting(Protocol):
    def expire(self) -> None:
        """Called when it has waited too long. Must not block."""


class Timeout:
    """Calls ``expire`` on whoever has waited for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: OrderedDict[Waiting, float] = OrderedDict()
        self._begun = trio.Event()

    def begin(self, waiting: Waiting) -> None:
        """It begins to wait, perhaps anew."""
        self._due.pop(waiting, None)
        self._due[waiting] = trio.current_time() + self._seconds
        self._begun.set()

    def end(self, waiting: Waiting) -> None:
        """It does not wait any more, if it did."""
        self._due.pop(waiting, None)

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
                waiting.expire()
