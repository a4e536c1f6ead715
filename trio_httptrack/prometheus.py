"""PrometheusTracker and MetricsApp: the states of connections as Prometheus metrics.

In one process the numbers are read when they are scraped, so they cost a request nothing.

In ``prometheus_client``'s multiprocess mode each worker writes its numbers to files, so that every
worker can serve the total. To write them at each transition would cost more than any other part of
a request. So a worker writes them each time that Trio is about to wait for I/O, and before a
scrape. The files then lack only what the event loop is handling at that moment.

A worker holds a file lock for as long as it runs. If the lock is free, the worker is dead, and
another worker removes the gauges of the dead one from the total.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import trio

from ._asgi import monitor_of, refuse_websocket, run_lifespan
from ._extra import require_extra
from ._monitor.monitor import Monitor
from ._states import ACTIVE, CLOSED, HIJACKED, IDLE, NEW, Conn, ConnState
from ._stats import BUCKETS, LEFT, StatsTracker

try:
    import fcntl
except ModuleNotFoundError:  # as on Windows
    HAS_FILE_LOCKS = False
else:
    HAS_FILE_LOCKS = True

with require_extra("trio_httptrack.prometheus", extra="prometheus"):
    from prometheus_client import (
        REGISTRY,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        make_asgi_app,
    )
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
    from prometheus_client.registry import Collector
    from prometheus_client.values import MutexValue, ValueClass

__all__ = ["MetricsApp", "PrometheusTracker"]

# The name, the help text and the labels of each metric.
CONNECTIONS = "httptrack_connections", "Open connections by state.", ("state",)
TRANSITIONS = (
    "httptrack_connection_transitions",
    "How often connections entered each state; new counts the accepted ones.",
    ("state",),
)
REASONS = (
    "httptrack_connection_close_reasons",
    "How often connections were closed for each reason; a normal close has none.",
    ("reason",),
)
WEBSOCKETS = "httptrack_websockets", "Open WebSockets of all workers."
DURATION = "httptrack_connection_duration_seconds", "From accept to close."
LOCK_ATTEMPTS = 100
LOCK_PREFIX = "httptrack_lock_"  # the ID of the process that holds the lock follows


class PrometheusTracker(StatsTracker):
    """A :class:`~trio_httptrack.StatsTracker` whose numbers Prometheus can read.

    ``httptrack_connections{state="new|active|idle"}``
        Gauge: open connections.
    ``httptrack_connection_transitions_total{state="new|active|idle|hijacked|closed"}``
        Counter: how often a state was entered. ``new`` counts the accepted connections.
    ``httptrack_connection_duration_seconds``
        Histogram: the duration of closed connections. Upgraded connections are not included:
        their last state is ``hijacked``.
    ``httptrack_connection_close_reasons_total{reason="keep_alive_timeout|..."}``
        Counter: how many connections were closed for each
        :attr:`~trio_httptrack.Conn.close_reason`, upgraded ones included. A normal close has none.

    Args:
      registry: where the metrics are registered; by default ``prometheus_client``'s registry.

    Raises:
      ModuleNotFoundError: on import, without the extra ``prometheus``.
      ValueError: the registry has these metrics already; or, in multiprocess mode, the process
        has another tracker.
      NotADirectoryError: ``PROMETHEUS_MULTIPROC_DIR`` is set, but is not a directory.
      RuntimeError: it was set after ``prometheus_client`` was imported; or another process with
        the same process ID, such as one in another container, uses the same directory.

    >>> from prometheus_client import CollectorRegistry, generate_latest
    >>> from trio_httptrack import Conn, ConnState
    >>> registry = CollectorRegistry()
    >>> tracker = PrometheusTracker(registry)
    >>> tracker.track(Conn(), ConnState.NEW)
    >>> print(generate_latest(registry).decode())  # doctest: +ELLIPSIS
    # HELP httptrack_connections Open connections by state.
    # TYPE httptrack_connections gauge
    httptrack_connections{state="new"} 1.0
    ...
    """

    __slots__ = ("_observe_duration", "_reasons", "_shared")

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__()
        directory = _shared_directory()
        self._shared: _SharedNumbers | None = None
        if directory is None:
            registry.register(_Collector(self))
        else:
            self._shared = _SharedNumbers(directory, registry, self._numbers)
        histogram = Histogram(*DURATION, registry=registry, buckets=BUCKETS)
        self._observe_duration = histogram.observe
        self._reasons = Counter(*REASONS, registry=registry)

    def track(self, conn: Conn, state: ConnState) -> None:  # type: ignore[override]
        """Count one transition."""
        super().track(conn, state)
        if state is CLOSED:
            self._observe_duration(conn.state_since - conn.opened_at)
            self._count_reason(conn)
        elif state is HIJACKED:
            conn._call_when_closed(self._count_reason)
        if self._shared is not None:
            self._shared.mark_changed()

    def _count_reason(self, conn: Conn) -> None:
        if conn.close_reason is not None:
            self._reasons.labels(conn.close_reason).inc()


class MetricsApp:
    """An ASGI application that responds with all metrics, to mount at ``/metrics``.

    It adds a metric of its own: ``httptrack_websockets``, a gauge of the open WebSockets of all
    workers, over HTTP/1.1 and HTTP/2. At each scrape it queries the other workers, as the status
    page does. A worker that does not respond within half a second counts with its last response.

    In multiprocess mode all other metrics are the totals of all processes, too. The cost of a
    scrape grows with the number of workers that ever ran: each leaves its counters in the
    directory. The directory must be empty when the server starts.

    Args:
      registry: the metrics to serve in one process; by default ``prometheus_client``'s registry.

    Raises:
      NotADirectoryError: ``PROMETHEUS_MULTIPROC_DIR`` is set, but is not a directory.
      RuntimeError: it was set after ``prometheus_client`` was imported.

    >>> metrics = MetricsApp()
    >>> async def app(scope, receive, send):
    ...     if scope["type"] == "http" and scope["path"] == "/metrics":
    ...         await metrics(scope, receive, send)
    """

    def __init__(self, registry: Collector = REGISTRY) -> None:
        self._directory = _shared_directory()
        self._registry = registry
        self._websockets: dict[str, int] = {}  # by worker, from its last response

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await refuse_websocket(receive, send)
        else:
            metrics = [*self._metrics().collect()]  # before the first await, so all are of one time
            monitor = monitor_of(scope)
            if monitor is not None:
                metrics.append(
                    GaugeMetricFamily(*WEBSOCKETS, await self._count_websockets(monitor))
                )
            registry = CollectorRegistry(support_collectors_without_names=True)
            registry.register(_AlreadyCollected(metrics))
            await make_asgi_app(registry)(scope, receive, send)

    async def _count_websockets(self, monitor: Monitor) -> int:
        with monitor.viewing():
            own = await monitor.report(None)
            reports, silent = await monitor.peers.fetch_reports(None)
        known = {each["worker"]["name"]: each["websockets"] for each in [own, *reports]}
        silent_names = [worker["name"] for worker in silent]
        self._websockets = {
            name: number for name, number in self._websockets.items() if name in silent_names
        } | known
        return sum(self._websockets.values())

    def _metrics(self) -> Collector:
        if self._directory is None:
            return self._registry
        if _SharedNumbers.of_process is not None:
            _SharedNumbers.of_process.write()
        _remove_dead_workers(self._directory)
        registry = CollectorRegistry()
        _SharedDirectoryCollector(registry, str(self._directory))  # type: ignore[no-untyped-call]
        return registry


class _AlreadyCollected(Collector):
    """Metrics that are collected already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


class _SharedDirectoryCollector(MultiProcessCollector):
    """Upstream's collector, but a file that is still empty or already removed is no error."""

    def collect(self) -> list[Metric]:
        files = []
        for path in Path(self._path).glob("*.db"):
            with suppress(FileNotFoundError):  # another worker has removed a dead one's file
                if path.stat().st_size:  # a worker that is starting has empty files
                    files.append(str(path))
        metrics: list[Metric] = list(self.merge(files))  # type: ignore[no-untyped-call]
        return metrics


class _Collector(Collector):
    """Reads a tracker's numbers at each scrape, in any thread."""

    def __init__(self, tracker: StatsTracker) -> None:
        self._tracker = tracker

    def describe(self) -> Iterator[Metric]:
        """Return the metrics' names, by which the registry refuses a second tracker."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        stats = self._tracker.stats()
        connections = GaugeMetricFamily(*CONNECTIONS[:2], labels=CONNECTIONS[2])
        for state, number in stats.gauges.items():
            connections.add_metric([str(state)], number)
        yield connections
        transitions = CounterMetricFamily(*TRANSITIONS[:2], labels=TRANSITIONS[2])
        for state, number in stats.counters.items():
            transitions.add_metric([str(state)], number)
        yield transitions


class _SharedNumbers(trio.abc.Instrument):
    """Writes this process's numbers to the directory of the multiprocess mode."""

    of_process: _SharedNumbers | None = None

    def __init__(self, directory: Path, registry: CollectorRegistry, numbers: list[int]) -> None:
        if _SharedNumbers.of_process is not None:
            raise ValueError(
                "in multiprocess mode a process has one PrometheusTracker only: make it once, "
                "where the application's module is imported"
            )
        self._lock = _hold_lock(directory / f"{LOCK_PREFIX}{os.getpid()}")
        gauge = Gauge(*CONNECTIONS, registry=registry, multiprocess_mode="livesum")
        counter = Counter(*TRANSITIONS, registry=registry)
        self._gauges = [gauge.labels(state) for state in (NEW, ACTIVE, IDLE)]
        self._counters = [counter.labels(state) for state in ConnState]
        self._numbers = numbers
        self._open = [0, 0, 0]
        self._entered = [0, 0, 0, 0, 0]
        self._changed = False
        self._installed = False
        for each in self._gauges:
            each.set(0)  # a dead process with our process ID may have left values
        _SharedNumbers.of_process = self

    def mark_changed(self) -> None:
        """Have the numbers written before Trio waits next."""
        self._changed = True
        if not self._installed:
            try:
                trio.lowlevel.add_instrument(self)
                self._installed = True
            except RuntimeError:  # Trio is not running
                self.write()

    def before_io_wait(self, timeout: float) -> None:
        if self._changed:
            self._installed = False  # if write() raises, Trio removes this instrument
            self.write()
            self._installed = True

    def after_run(self) -> None:
        self._installed = False
        self.write()

    def write(self) -> None:
        """Write the numbers that have changed. Each takes a microsecond."""
        self._changed = False
        numbers = self._numbers
        for state, entered in enumerate(self._entered):
            if numbers[state] != entered:
                self._counters[state].inc(numbers[state] - entered)
                self._entered[state] = numbers[state]
        for state, was_open in enumerate(self._open):
            is_open = numbers[state] - numbers[LEFT[state]]
            if is_open != was_open:
                self._gauges[state].set(is_open)
                self._open[state] = is_open


def _shared_directory() -> Path | None:
    """Return the directory of the multiprocess mode; None outside of it."""
    name = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if (name is None) != (ValueClass is MutexValue):
        raise RuntimeError(
            "PROMETHEUS_MULTIPROC_DIR was changed after prometheus_client was imported: "
            "set it before the server starts"
        )
    if name is None:
        return None
    if not HAS_FILE_LOCKS:
        raise RuntimeError(
            "multiprocess mode needs file locks (fcntl), which this system does not have: "
            "unset PROMETHEUS_MULTIPROC_DIR, and start one worker"
        )
    directory = Path(name)
    if not name or not directory.is_dir():
        raise NotADirectoryError(
            f"PROMETHEUS_MULTIPROC_DIR is {name!r}, which is not a directory: "
            "make it, empty, before the server starts"
        )
    return directory


def _hold_lock(path: Path) -> BinaryIO:
    """Lock the file for as long as this process lives."""
    for _ in range(LOCK_ATTEMPTS):
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except (BlockingIOError, FileNotFoundError):
            pass  # another process checks whether we are dead, or removes the file of a dead one
        file.close()
        time.sleep(0.01)
    raise RuntimeError(
        f"{path} is locked by another process with the same process ID, perhaps in another "
        "container: give each container a PROMETHEUS_MULTIPROC_DIR of its own"
    )


def _remove_dead_workers(directory: Path) -> None:
    for path in directory.glob(f"{LOCK_PREFIX}*"):
        # BlockingIOError: the worker runs. FileNotFoundError: another worker was faster.
        with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            mark_process_dead(  # type: ignore[no-untyped-call]
                path.name.removeprefix(LOCK_PREFIX), str(directory)
            )
            path.unlink()
