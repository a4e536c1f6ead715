"""A worker's own monitor: it makes reports when somebody looks, and knows the last minutes.

While nobody looks it does next to nothing: four times a second it notes by how much the event loop
is late, and once a second it takes a sample of the numbers. Requests pay nothing for either. To
notice more exactly when the loop was blocked would take an instrument in each of its steps.

A look at 10,000 connections takes milliseconds, in which a worker could serve requests. So a
report goes through them in portions, between which others have their turn; one report is made at
a time; viewers who look every second share what they can; and behind whatever it does for them the
monitor rests, so that all viewers together take a tenth of the worker's time.
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
"""By this name it is in a lifespan's ``extensions``."""

LAG_INTERVAL = 0.25  # seconds between two looks at the clock
SAMPLE_INTERVAL = 1.0  # seconds between two samples
HISTORY_LENGTH = 300  # seconds of history
MAX_SAMPLE_GAP = 2.5 * SAMPLE_INTERVAL  # without a sample for longer than this, nobody knows
RATE_WINDOW = 10  # seconds
MIN_RATE_WINDOW = 3  # seconds; what happened in less says nothing
LAG_WINDOW = 10  # seconds
BLOCKED_AFTER = 1.0  # seconds, from which on it is logged

BATCH_SIZE = 250  # connections, in less than a millisecond
REST_FACTOR = 10  # a tenth of the time
MAX_CHARGE = 0.1  # seconds that count of one step: we may have been stopped in it


class Server(Protocol):
    """What a monitor needs of the worker that it watches."""

    stats_tracker: StatsTracker
    hijacked: int
    """Upgraded connections that are open."""

    requests: int
    """Since the start."""

    @property
    def responses(self) -> list[int]:
        """Since the start, by the first digit of their status codes."""

    @property
    def draining(self) -> bool: ...

    @property
    def monitored(self) -> Iterable[Conn]:
        """All connections that have a socket or a handler."""

    async def log_blocked(self, seconds: float) -> None: ...
    async def log_info(self, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """The numbers at one time."""

    time: float
    gauges: tuple[int, ...]
    counters: tuple[int, ...]


class Monitor:
    """Watches one worker."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.name: str = f"{os.getpid()}-{os.urandom(4).hex()}"
        """Of its socket."""

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

    # Beside the connections

    async def run(self) -> None:
        """Watch the event loop, and keep the history, until cancelled."""
        sampled = self._sample().time
        while True:
            due = trio.current_time() + LAG_INTERVAL
            await trio.sleep_until(due)
            now = trio.current_time()
            late = now - due
            if late > self._lag:
                self._lag = late
            blocked = late + LAG_INTERVAL / 2  # or so: it began between two looks at the clock
            if blocked > BLOCKED_AFTER:
                await self._server.log_blocked(blocked)
            if now >= sampled + SAMPLE_INTERVAL:
                sampled = self._sample().time
                self._lags.append(self._lag)
                self._lag = 0.0

    def _sample(self) -> Sample:
        """The numbers now; they become part of the history if their time has come."""
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
        """Say something in the server's log."""
        await self._server.log_info(message)

    # When somebody looks

    @contextmanager
    def viewing(self, viewer: Conn | None = None) -> Iterator[None]:
        """To be put around everything else. A viewer's own connection does not look stuck."""
        with self.peers.viewing():
            if viewer is None:
                yield
                return
            self._viewers[viewer] += 1
            try:
                yield
            finally:
                self._viewers[viewer] -= 1
                self._viewers = +self._viewers  # those that are above zero

    async def view(self, query: Query, *, max_age: float = 0) -> View:
        """What all workers are doing. To be called within ``viewing()``.

        Args:
          query: which connections are listed.
          max_age: how old a report may be that was made for somebody else, in seconds.
        """
        own = await self.report(query, max_age=max_age)
        reports, silent = await self.peers.fetch_reports(query, max_age)
        with self.charged():
            return view_of(query, [own, *reports], silent)

    async def report(self, query: Query | None, *, max_age: float = 0) -> Report:
        """What there is to be seen. A checkpoint.

        Args:
          query: which connections are listed; None for none.
          max_age: how old a report may be that was made for somebody else, in seconds.
        """
        if query is None:  # which is asked for metrics, and is soon made
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
            now = trio.current_time()  # others had their turn
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
        """To be put around each step of what is done for a viewer: the next report has to wait."""
        began = trio.current_time()
        yield
        took = min(trio.current_time() - began, MAX_CHARGE)
        self._resume_at = max(self._resume_at, began) + REST_FACTOR * took

    def _rates(self, now: Sample) -> dict[str, float] | None:
        """How often a second each thing has happened, lately."""
        lately = now.time - RATE_WINDOW
        earlier = (each for each in reversed(self._samples) if each.time <= lately)
        then = next(earlier, self._samples[0])
        seconds = now.time - then.time
        if seconds < MIN_RATE_WINDOW:
            return None
        pairs = zip(COUNTERS, now.counters, then.counters, strict=True)
        return {name: round((number - before) / seconds, 3) for name, number, before in pairs}

    def _history(self, now: Sample) -> dict[str, list[int | None]]:
        """The gauges in each of the last seconds: what the last sample before it says."""
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


def still_fresh(kept: Mapping[K, tuple[float, T]], now: float) -> dict[K, tuple[float, T]]:
    """What somebody may still be shown, of what was made at these times."""
    return {key: made for key, made in kept.items() if now - made[0] < SAMPLE_INTERVAL}


class Selection:
    """What a query chooses of the connections that it is shown."""

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
        """Those that are on the query's page, and before it."""
        if self._query is None:
            return []
        pick = heapq.nlargest if self._query.descending else heapq.nsmallest
        return pick(self._needed, self._found, key=itemgetter(0))

    def groups(self) -> list[Group]:
        """Those with the most connections."""
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
