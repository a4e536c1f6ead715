"""The last minutes of a StatsTracker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import trio

from .._hijacks import HijackTracker
from .._states import ConnState
from .._stats import Stats, StatsTracker

INTERVAL = 1.0  # seconds between two samples
LENGTH = 300  # seconds
RATES_OVER = 10  # seconds
RATES_FROM = 3  # seconds; what happened in less says nothing


@dataclass(frozen=True, slots=True)
class Sample:
    """What there was at one time."""

    time: float
    stats: Stats
    hijacked: int
    """Upgraded connections that were open."""


class History:
    """One sample a second, of the last five minutes."""

    def __init__(self, tracker: StatsTracker, hijacks: HijackTracker | None) -> None:
        self._tracker = tracker
        self._hijacks = hijacks
        self.run: trio.lowlevel.TrioToken | None = None
        """The run of Trio that the samples are of."""

        self.samples: deque[Sample] = deque(maxlen=int(LENGTH / INTERVAL) + 1)

    def now(self) -> Sample:
        """What there is; it becomes part of the history if its time has come."""
        hijacked = 0 if self._hijacks is None else self._hijacks.count
        now = Sample(trio.current_time(), self._tracker.stats(), hijacked)
        run = trio.lowlevel.current_trio_token()
        if run is not self.run:  # whose clock is another
            self.samples.clear()
            self.run = run
        if not self.samples or now.time >= self.samples[-1].time + INTERVAL:
            self.samples.append(now)
        return now

    async def keep(self) -> None:
        """Take the samples, until cancelled."""
        while True:
            self.now()
            await trio.sleep(INTERVAL)

    def rates(self, now: Sample) -> dict[ConnState, float] | None:
        """How often a second each state was entered, lately; None if nothing is known yet."""
        before_lately = [each for each in self.samples if each.time <= now.time - RATES_OVER]
        then = before_lately[-1] if before_lately else next(iter(self.samples), now)
        if now.time - then.time < RATES_FROM:
            return None
        before = then.stats.counters
        seconds = now.time - then.time
        return {
            state: (entered - before[state]) / seconds
            for state, entered in now.stats.counters.items()
        }
