"""What one call costs: ``track()`` and ``stats()``, timed in this process."""

from __future__ import annotations

from timeit import Timer
from typing import Any

import prometheus_client

from trio_httptrack import Conn, ConnState, ConnTracker, StatsTracker, compose

NEW, ACTIVE, IDLE = ConnState.NEW, ConnState.ACTIVE, ConnState.IDLE
REPEATS, NUMBER = 15, 20_000


class Empty:
    def track(self, conn: Conn, state: ConnState) -> None:
        pass


def timings() -> dict[str, float]:
    """Return the seconds for each call that the table compares: the least of several repeats.

    The calls are repeated in turn, so that a change of the processor's speed affects all of them.
    """
    conn = Conn()
    tracker = compose(StatsTracker(), ConnTracker())
    tracker.track(conn, NEW)
    request = "tracker.track(conn, ACTIVE); tracker.track(conn, IDLE)"  # what a request does
    names: dict[str, Any] = {"conn": conn, "ACTIVE": ACTIVE, "IDLE": IDLE}
    gauge = prometheus_client.Gauge("g", "a gauge", registry=None)
    timers = {
        "empty": (2, Timer(request, globals={"tracker": Empty(), **names})),
        "track": (2, Timer(request, globals={"tracker": tracker, **names})),
        "prometheus": (1, Timer("gauge.inc(); gauge.dec()", globals={"gauge": gauge})),
        "stats of 10": (1, Timer(tracking(10).stats)),
        "stats of 100,000": (1, Timer(tracking(100_000).stats)),
    }
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(REPEATS):
        for name, (calls, timer) in timers.items():
            found[name].append(timer.timeit(NUMBER) / NUMBER / calls)
    return {name: min(times) for name, times in found.items()}


def tracking(connections: int) -> StatsTracker:
    tracker = StatsTracker()
    for conn in range(connections):
        tracker.track(conn, NEW)
    return tracker
