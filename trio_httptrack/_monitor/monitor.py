"""A worker's monitor: it makes reports for viewers, and keeps the history of the last minutes.

Without viewers it does almost nothing. Four times a second it measures how late the event loop is.
Once a second it takes a sample of the numbers. Both cost a request nothing. To measure more exactly
how long the loop was blocked would need a Trio instrument, which runs at each step of each task.

A report on 10,000 connections takes milliseconds, in which the worker serves no requests. So a
report processes the connections in batches, and other tasks run between two batches. Only one
report is made at a time. Viewers that refresh every second share reports. After each piece of work
the monitor rests, so that all viewers together take a tenth of the worker's time.
"""

from __future__ import annotations

import heapq
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol, TypeVar

import trio

from .._states import CLOSED, Conn
from .._stats import StatsTracker
from .peers import Peers
from .query import MAX_PAGES, ROWS_PER_PAGE, Key, Query, in_flight, is_websocket
from .report import COUNTERS, GAUGES, STATUS_CLASSES, Group, Report, Row, Worker, row_of
from .view import View, view_of

K = TypeVar("K")
T = TypeVar("T")

MONITOR = "httptrack.monitor"
"""The monitor's key in the ``extensions`` of a lifespan scope."""

LAG_INTERVAL = 0.25  # seconds between two measurements of the lag
SAMPLE_INTERVAL = 1.0  # seconds between two samples
HISTORY_LENGTH = 300  # seconds of history
MAX_SAMPLE_GAP = 2.5 * SAMPLE_INTERVAL  # a longer time without a sample is unknown in the history
RATE_WINDOW = 10  # seconds
MIN_RATE_WINDOW = 3  # seconds; a rate over less time would mean nothing
LAG_WINDOW = 10  # seconds
BLOCKED_AFTER = 1.0  # seconds; a longer lag is logged

BATCH_SIZE = 250  # connections; they take less than a millisecond
REST_FACTOR = 10  # a step of t seconds keeps the next report waiting until 10 t after its begin
MAX_CHARGE = 0.1  # seconds that one step counts at most: the process may have been stopped in it


class Server(Protocol):
    """What a monitor needs from its worker."""

    stats_tracker: StatsTracker
    hijacked: int
    """The number of open upgraded connections."""

    requests: int
    """The number of requests since the start."""

    @property
    def responses(self) -> list[int]:
        """The number of responses since the start, by the first digit of the status code."""

    @property
    def draining(self) -> bool: ...

    @property
    def monitored(self) -> Iterable[Conn]:
        """All connections that still have a socket or a handler."""

    async def log_blocked(self, seconds: float) -> None: ...
    async def log_info(self, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """The gauges and counters at one time."""

    time: float
    gauges: tuple[int, ...]
    counters: tuple[int, ...]


class Monitor:
    """The monitor of one worker."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.name: str = f"{os.getpid()}-{os.urandom(4).hex()}"
        """The name of its socket."""

        self.peers: Peers = Peers(None, self.name, self.charged)
        """The other workers of the server."""

        self._viewers: Counter[Conn] = Counter()
        self._started = trio.current_time()
        self._samples: deque[Sample] = deque(maxlen=int(HISTORY_LENGTH / SAMPLE_INTERVAL) + 1)
        self._lag = 0.0  # since the last sample
        self._lags: deque[float] = deque(maxlen=LAG_WINDOW)
        self._lock = trio.Lock()
        self._resume_at = self._started
        self._recent_reports: dict[Query, tuple[float, Report]] = {}

    # In the background

    async def run(self) -> None:
        """Measure the event loop's lag and keep the history, until cancelled."""
        sampled = self._sample().time
        while True:
            due = trio.current_time() + LAG_INTERVAL
            await trio.sleep_until(due)
            now = trio.current_time()
            late = now - due
            if late > self._lag:
                self._lag = late
            blocked = late + LAG_INTERVAL / 2  # on average: it began between two measurements
            if blocked > BLOCKED_AFTER:
                await self._server.log_blocked(blocked)
            if now >= sampled + SAMPLE_INTERVAL:
                sampled = self._sample().time
                self._lags.append(self._lag)
                self._lag = 0.0

    def _sample(self) -> Sample:
        """Take a sample. Add it to the history if the last one is old enough."""
        server, stats = self._server, self._server.stats_tracker.stats()
        entered = stats.counters.values()
        sample = Sample(
            trio.current_time(),
            (*stats.gauges.values(), server.hijacked),
            (*entered, server.requests, *server.responses[1 : len(STATUS_CLASSES) + 1]),
        )
        if not self._samples or sample.time >= self._samples[-1].time + SAMPLE_INTERVAL:
            self._samples.append(sample)
        return sample

    async def log(self, message: str) -> None:
        """Log a message in the server's log."""
        await self._server.log_info(message)

    # For viewers

    @contextmanager
    def viewing(self, viewer: Conn | None = None) -> Iterator[None]:
        """Serve a viewer. ``view()`` must be called in such a block.

        The viewer's own connection is listed last, because its request is not stuck.
        """
        with self.peers.viewing():
            if viewer is None:
                yield
                return
            self._viewers[viewer] += 1
            try:
                yield
            finally:
                self._viewers[viewer] -= 1
                self._viewers = +self._viewers  # drops the zeros

    async def view(self, query: Query, *, max_age: float = 0) -> View:
        """Return what all workers are doing.

        Args:
          query: which connections to list.
          max_age: how old a report for another viewer may be, to use it again; in seconds.
        """
        own = await self.report(query, max_age=max_age)
        reports, silent = await self.peers.fetch_reports(query, max_age)
        with self.charged():
            return view_of(query, [own, *reports], silent)

    async def report(self, query: Query | None, *, max_age: float = 0) -> Report:
        """Return the report of this worker. A checkpoint.

        Args:
          query: which connections to list; None for none.
          max_age: how old a report for another viewer may be, to use it again; in seconds.
        """
        if query is None:  # for metrics; such a report is cheap
            return await self._make_report(None)
        async with self._lock:
            made, report = self._recent_reports.get(query, (-math.inf, None))
            if report is None or trio.current_time() - made >= max_age:
                await trio.sleep_until(self._resume_at)
                report = await self._make_report(query)
                now = trio.current_time()
                self._recent_reports = {
                    **still_fresh(self._recent_reports, now),
                    query: (now, report),
                }
            return report

    async def _make_report(self, query: Query | None) -> Report:
        now = trio.current_time()
        selection = Selection(query, now, self._viewers)
        await self._in_batches(list(self._server.monitored), selection.add)
        first = selection.first()
        path = "" if query is None else query.path
        rows: list[Row] = []

        def show(part: list[tuple[Key, Conn]]) -> None:
            now = trio.current_time()  # other tasks have run since the last batch
            rows.extend(row_of(conn, os.getpid(), now, path) for _, conn in part)

        await self._in_batches(first, show)
        sample = self._sample()
        return Report(
            worker=Worker(
                pid=os.getpid(),
                name=self.name,
                uptime=round(now - self._started, 3),
                connections=sum(sample.gauges),
                lag=round(max(self._lag, *self._lags, 0.0), 4),
                draining=self._server.draining,
                silent=None,
            ),
            gauges=dict(zip(GAUGES, sample.gauges, strict=True)),
            websockets=selection.websockets + self._server.hijacked,
            counters=dict(zip(COUNTERS, sample.counters, strict=True)),
            rates=self._rates(sample),
            history={} if query is None else self._history(sample),
            matching=selection.matching,
            rows=rows,
            keys=[list(key) for key, _ in first],
            groups=selection.groups(),
        )

    async def _in_batches(self, items: list[T], handle: Callable[[list[T]], None]) -> None:
        for start in range(0, len(items), BATCH_SIZE):
            with self.charged():
                handle(items[start : start + BATCH_SIZE])
            await trio.lowlevel.checkpoint()

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Measure the time of one step of a viewer's work. The next report is delayed by it."""
        began = trio.current_time()
        yield
        took = min(trio.current_time() - began, MAX_CHARGE)
        self._resume_at = max(self._resume_at, began) + REST_FACTOR * took

    def _rates(self, now: Sample) -> dict[str, float] | None:
        """Return the counters' rates per second over the last seconds; None if not known yet."""
        begin = now.time - RATE_WINDOW
        earlier = (each for each in reversed(self._samples) if each.time <= begin)
        then = next(earlier, self._samples[0])
        seconds = now.time - then.time
        if seconds < MIN_RATE_WINDOW:
            return None
        pairs = zip(COUNTERS, now.counters, then.counters, strict=True)
        return {name: round((number - before) / seconds, 3) for name, number, before in pairs}

    def _history(self, now: Sample) -> dict[str, list[int | None]]:
        """Return the gauges at each of the last seconds, from the last sample before it."""
        samples = [*self._samples, now]
        first = next(each.time for each in samples if each.time >= now.time - HISTORY_LENGTH)
        unknown = (None,) * len(GAUGES)
        lines: list[tuple[int | None, ...]] = []
        at = 0
        for ago in range(int(now.time - first), -1, -1):
            time = now.time - ago
            while at + 1 < len(samples) and samples[at + 1].time <= time:
                at += 1
            lines.append(
                samples[at].gauges if time - samples[at].time <= MAX_SAMPLE_GAP else unknown
            )
        return dict(zip(GAUGES, map(list, zip(*lines, strict=True)), strict=True))


def still_fresh(items: Mapping[K, tuple[float, T]], now: float) -> dict[K, tuple[float, T]]:
    """Return the items that are fresh enough for another viewer, of items with their times."""
    return {key: item for key, item in items.items() if now - item[0] < SAMPLE_INTERVAL}


class Selection:
    """The connections that a query selects, of those that are added."""

    def __init__(self, query: Query | None, now: float, viewers: Container[Conn]) -> None:
        self._query = query
        self._listed_last = viewers if query is not None and query.order == "stuck" else ()
        self._now = now
        self._found: list[tuple[Key, Conn]] = []
        self._needed = 0 if query is None else min(query.page, MAX_PAGES) * ROWS_PER_PAGE
        self._groups: dict[str, list[Conn]] = {}
        self.matching = 0
        self.websockets = 0  # over HTTP/2

    def add(self, conns: list[Conn]) -> None:
        query = self._query
        for conn in conns:
            if conn.protocol == "h2" and conn.state is not CLOSED:
                self.websockets += sum(is_websocket(conn, each) for each in in_flight(conn))
            if query is None or not query.matches(conn):
                continue
            self.matching += 1
            if query.group:
                self._groups.setdefault(conn.client[0] if conn.client else "", []).append(conn)
            else:
                last = conn in self._listed_last
                key = (0, 0.0) if last else query.key(conn, self._now)
                self._found.append((key, conn))
        if len(self._found) > 2 * self._needed + BATCH_SIZE:
            self._found = self.first()

    def first(self) -> list[tuple[Key, Conn]]:
        """Return the connections on the query's page and the pages before it, in order."""
        if self._query is None:
            return []
        pick = heapq.nlargest if self._query.descending else heapq.nsmallest
        return pick(self._needed, self._found, key=itemgetter(0))

    def groups(self) -> list[Group]:
        """Return the clients with the most connections."""
        groups = heapq.nlargest(
            MAX_PAGES * ROWS_PER_PAGE, self._groups.items(), key=lambda group: len(group[1])
        )
        return [
            Group(
                client=client,
                connections=len(conns),
                states=Counter(str(conn.state) for conn in conns),
                oldest=round(max(self._now - conn.opened_at for conn in conns), 3),
            )
            for client, conns in groups
        ]
