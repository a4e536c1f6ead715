"""A tracked server: Hypercorn's own worker, with our connections.

Hypercorn's ``worker_serve`` looks up ``TCPServer``, ``WorkerContext``, ``Lifespan`` and ``trio``
as globals of its module. :meth:`Worker.serve` runs the same code object with other globals, in
which these names are ours. Nothing global changes, so several servers in one process, tracked or
not, do not affect each other.
"""

from __future__ import annotations

import math
import random
import select
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from importlib.metadata import version
from inspect import signature
from itertools import count
from operator import add, methodcaller
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

import trio
from hypercorn.config import Config, Sockets
from hypercorn.logging import Logger
from hypercorn.trio.run import worker_serve as hypercorn_serve
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, LifespanState

from .._connection.connection import REFUSAL_TIMEOUT, Connection
from .._connection.drain import drain
from .._connection.errors import ungrouped
from .._connection.exchange import Exchange
from .._connection.http2_headers import HeaderWriter
from .._connection.kernel import Kernel
from .._connection.portable import PortableKernel
from .._connection.response_head import ResponseHeads
from .._connection.shutdown_report import ShutdownReport
from .._connection.timeouts import Timeout
from .._connection.websocket import WebSocket
from .._monitor.directory import DirectoryError, NoDirectoryError
from .._monitor.monitor import MONITOR, Monitor
from .._monitor.serving import serve as serve_monitor
from .._states import PATH_LENGTH, Conn, ConnState, RequestInFlight
from .._stats import StatsTracker
from .._trackers import Composed, Tracker, TrackerFunc, compose
from .accept import Accepted, Listener, trio_with_our_listeners
from .apps import as_asgi
from .conn_state import NamedTracker, unresolved
from .lifespan import Lifespan
from .response_headers import with_cached_headers
from .settings import SettingError, runtime_dir_of, settings_of
from .statsd import Statsd

if TYPE_CHECKING:
    from .._connection.epoll import EpollKernel

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


SUPPORTED = "0.17.3 to 0.18"
ADVICE = "Set runtime_dir to a directory of its own"


def check_seam() -> None:
    """Raise a RuntimeError if Hypercorn's worker does not use the names that we replace."""
    names = {"TCPServer", "WorkerContext", "Lifespan", "trio", "serve_listeners"}
    code = getattr(hypercorn_serve, "__code__", None)
    arguments = ["app", "config", "context", "state", "stream"]
    if (
        not isinstance(code, CodeType)
        or not names <= set(code.co_names)
        or list(signature(TCPServer).parameters) != arguments
    ):
        refuse_hypercorn()


def refuse_hypercorn() -> NoReturn:
    raise RuntimeError(
        f"Hypercorn {version('hypercorn')} cannot be tracked: its trio worker is not the one of "
        f"Hypercorn {SUPPORTED}, or something else has replaced it"
    )


class Service(Protocol):
    """A task that runs as long as the worker."""

    async def run(self) -> None: ...


class Worker:
    """One run of a tracked server: its tracker and its connections."""

    # Each request reads several of these attributes, and slots are the fastest.
    __slots__ = (
        "_ages",
        "_all_closed",
        "_description",
        "_drained",
        "_hypercorn_context",
        "_logged",
        "_nursery",
        "_pending_transitions",
        "_runtime_dir",
        "_tracker",
        "_tracking",
        "app",
        "config",
        "conn_ids",
        "connections",
        "deadline",
        "drain_idle_timeout",
        "handshake_timeout",
        "header_writer",
        "hijacked",
        "keep_alive_timeout",
        "kernel",
        "log_access",
        "monitor",
        "refusal_timeout",
        "report",
        "request_timeout",
        "requests",
        "response_heads",
        "settings",
        "state",
        "stats_tracker",
        "statsd",
        "websocket_ping_timeout",
    )

    report: ShutdownReport
    """The report of the drain; not set before the drain is over."""

    deadline: float
    """When the drain closes the remaining connections by force; infinity before it begins."""

    def __init__(
        self, config: Config, tracker: Composed, kernel: Kernel, nursery: trio.Nursery
    ) -> None:
        self.config = with_cached_headers(config)
        self.settings = settings_of(self.config)
        self._runtime_dir = runtime_dir_of(self.config)
        self.response_heads = ResponseHeads(self.settings.server_headers)
        self.header_writer = HeaderWriter(self.settings.server_headers)
        self.handshake_timeout = self._timeout(self.settings.handshake_timeout)
        self.keep_alive_timeout = self._timeout(self.settings.keep_alive_timeout)
        self.drain_idle_timeout = self._timeout(self.settings.drain_idle_timeout)
        self.refusal_timeout = self._timeout(REFUSAL_TIMEOUT)
        ages = self.settings.max_connection_ages
        self._ages = [Timeout(age, Connection.drain_at_max_age) for age in ages]
        seconds = self.settings.websocket_ping_timeout
        self.websocket_ping_timeout = (
            None if seconds is None else Timeout(seconds, WebSocket.pong_timed_out)
        )
        seconds = self.settings.request_timeout
        self.request_timeout: Timeout[Exchange] | None = (
            None if seconds is None else Timeout(seconds, methodcaller("time_out"))
        )
        self._description = describe(self.config, tracker)  # before we add trackers of our own
        trackers = [part for part in tracker.trackers if isinstance(part, StatsTracker)]
        self.stats_tracker = trackers[0] if trackers else StatsTracker()
        if not trackers:
            tracker = compose(tracker, self.stats_tracker)
        self.statsd = None if config.statsd_host is None else Statsd(config)
        self._tracker = tracker if self.statsd is None else compose(tracker, self.statsd.tracker)
        self.connections: set[Connection] = set()
        self.conn_ids: Iterator[int] = count(1)
        self.hijacked = 0
        self.requests = 0
        self.monitor: Monitor = Monitor(self)
        self.kernel = kernel
        self.state: dict[str, Any] = {}
        self._nursery = nursery
        self.deadline = math.inf
        self._tracking = False
        self._pending_transitions: deque[tuple[Conn, ConnState]] = deque()
        self._logged: set[object] = set()
        self._all_closed = trio.lowlevel.ParkingLot()
        services: tuple[Service | None, ...] = (
            kernel,
            self.handshake_timeout,
            self.keep_alive_timeout,
            self.drain_idle_timeout,
            self.refusal_timeout,
            *self._ages,
            self.websocket_ping_timeout,
            self.request_timeout,
            self.statsd,
        )
        for service in services:
            if service is not None:
                nursery.start_soon(service.run)

    @staticmethod
    def _timeout(seconds: float) -> Timeout[Connection]:
        return Timeout(seconds, Connection.expire)

    def age_timeout(self) -> Timeout[Connection] | None:
        """Return the age limit of a new connection, chosen at random; None without a limit."""
        return random.choice(self._ages) if self._ages else None

    async def serve(
        self, app: AppWrapper, *, listener: Listener | None = None, **kwargs: Any
    ) -> None:
        """Run Hypercorn's ``worker_serve``, on the Config's sockets or on another listener."""
        check_seam()
        self.app = as_asgi(app)
        names: dict[str, object] = {
            "TCPServer": self.make_connection,
            "WorkerContext": self._make_context,
            "Lifespan": self.make_lifespan,
            "trio": trio_with_our_listeners(listener, self.settings.tcp_keepalive),
        }
        if listener is not None:
            kwargs["sockets"] = Sockets([], [], [])
        else:
            await self.config.log.info("Tracking%s", self._description)
            await self._publish()
        serve = FunctionType(hypercorn_serve.__code__, {**hypercorn_serve.__globals__, **names})
        serve.__kwdefaults__ = hypercorn_serve.__kwdefaults__
        await serve(app, self.config, **kwargs)
        await self._drained.wait()
        if self.statsd is not None:
            await self.statsd.send()

    async def _publish(self) -> None:
        """Open the Unix socket on which other processes of this machine query this worker."""
        self._nursery.start_soon(self.monitor.run)
        try:
            await self._nursery.start(serve_monitor, self.monitor, self._runtime_dir)
        except (OSError, DirectoryError) as error:
            if self._runtime_dir is not None:
                raise SettingError(f"runtime_dir: {error}") from None
            await self.config.log.info(
                "Neither other workers nor httptrack top can see this worker: %s%s",
                error,
                "" if isinstance(error, NoDirectoryError) else f". {ADVICE}",
            )

    def make_connection(
        self,
        _app: AppWrapper,
        _config: Config,
        _context: WorkerContext,
        state: dict[str, Any],
        accepted: Accepted,
    ) -> Connection:
        self.state = state
        return Connection(self, *accepted)

    def _make_context(self, max_requests: int | None) -> WorkerContext:
        self._drained = trio.Event()
        self._hypercorn_context = WorkerContext(max_requests)
        log = self.config.log
        no_access_log = type(log) is Logger and log.access_logger is None
        self.log_access: Any = None if no_access_log else log.access
        self._nursery.start_soon(self._drain, self._hypercorn_context)
        return self._hypercorn_context

    def mark_request(self) -> None:
        """Count a request, for ``max_requests`` and the statistics."""
        self.requests += 1
        if self._hypercorn_context.max_requests is not None:
            self._nursery.start_soon(self._hypercorn_context.mark_request)

    def track(self, conn: Conn, state: ConnState) -> None:
        """Change a connection's state, and call the trackers. An error that one raises is logged.

        A tracker may itself close connections. Those transitions are queued until all trackers
        have seen the current one. Otherwise the trackers after it would see CLOSED before NEW. And
        a tracker that closes other connections whenever one is closed would recurse without limit.
        """
        if self._tracking:
            self._pending_transitions.append((conn, state))
            return
        self._tracking = True
        try:
            self._track(conn, state)
            while self._pending_transitions:
                self._track(*self._pending_transitions.popleft())
        finally:
            self._tracking = False

    def _track(self, conn: Conn, state: ConnState) -> None:
        conn.state = state
        conn.state_since = trio.current_time()
        try:
            self._tracker.track(conn, state)
        except Exception as error:
            self.log_error(error, "A tracker failed (%s %s)", conn, state)

    @property
    def responses(self) -> list[int]:
        """The number of responses, by the first digit of the status code."""
        return list(map(add, self.response_heads.sent, self.header_writer.sent))

    @property
    def monitored(self) -> list[Conn]:
        """All connections that still have a socket or a handler."""
        return [connection.conn for connection in self.connections]

    @property
    def draining(self) -> bool:
        return self.deadline < math.inf

    async def _drain(self, context: WorkerContext) -> None:
        await drain(self, context.terminated.wait, self.config.graceful_timeout, self.config.log)
        self._drained.set()

    @property
    def drain_deadline_reached(self) -> bool:
        """Whether the drain's deadline has come, or is about to.

        Hypercorn cancels its own nursery at the same time, maybe before our drain has even started.
        """
        now = trio.current_time()
        grace_period = self.config.graceful_timeout
        deadline = min(self.deadline, now + grace_period) - min(0.1, grace_period / 2)
        return self._hypercorn_context.terminated.is_set() and now >= deadline

    def make_lifespan(self, app: AppWrapper, config: Config, state: LifespanState) -> Lifespan:
        async def call(scope: Any, *args: Any) -> None:
            extended: Any = {**scope, "extensions": {MONITOR: self.monitor}}
            await app(extended, *args)

        return Lifespan(cast(AppWrapper, call), config, state)

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._all_closed.unpark_all()

    async def wait_all_closed(self) -> None:
        """Wait until no connection has a socket or a handler any more."""
        while self.connections:
            await self._all_closed.park()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in tuple(self.connections):
            connection.abort()

    async def log_connection_error(self, error: BaseException, conn: Conn) -> None:
        """Log an error that closed its connection.

        Only the first error of its kind has a traceback. Otherwise a client that can cause one
        could fill the log with tracebacks.
        """
        cause = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        trace = cause.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        kind = (type(cause), trace and (trace.tb_frame.f_code, trace.tb_lineno))
        first = kind not in self._logged
        self._logged.add(kind)
        await self.config.log.error(
            "Error in a connection, which is closed (%s): %r",
            conn,
            cause,
            exc_info=error if first else None,
        )

    async def log_application_error(self, error: BaseException, conn: Conn, path: str) -> None:
        """Log what a handler raised. The response is a 500."""
        await self.config.log.error(
            "Error in ASGI Framework (%s, %r)", conn, path[:PATH_LENGTH], exc_info=error
        )

    async def log_flood(self, what: str, conn: Conn) -> None:
        """Log that a client floods the server. Called once for a connection."""
        await self.config.log.warning(
            "A connection is closed because of a flood (%s): %s", conn, what
        )

    async def log_timeout(self, request: RequestInFlight, conn: Conn) -> None:
        """Log that a handler took too long."""
        await self.config.log.warning(
            "A handler took longer than request_timeout, %s s, and was cancelled (%s, %s %r)",
            self.settings.request_timeout,
            conn,
            request.method,
            request.path,
        )

    async def log_blocked(self, seconds: float) -> None:
        """Log that the event loop was blocked."""
        await self.config.log.warning(
            "The event loop was blocked for %.1f s, and nothing was served: the process was "
            "stopped, or a handler made a blocking call (use trio.to_thread.run_sync() for that)",
            seconds,
        )

    async def log_info(self, message: str) -> None:
        await self.config.log.info("%s", message)

    def log_error(self, error: BaseException, message: str, *args: object) -> None:
        """Log an error from synchronous code."""
        self._nursery.start_soon(partial(self.config.log.error, message, *args, exc_info=error))


async def run(
    make_worker: Callable[[trio.Nursery], Worker], app: AppWrapper, **kwargs: Any
) -> ShutdownReport:
    """Make a worker, and serve until it has stopped."""
    # The four nurseries are ours, and the three of Hypercorn's worker_serve.
    with ungrouped(nurseries=4):
        async with trio.open_nursery() as nursery:
            worker = make_worker(nursery)
            await worker.serve(app, **kwargs)
            nursery.cancel_scope.cancel()
    return worker.report


def system_kernel() -> EpollKernel | PortableKernel:
    """Return the fastest kernel interface that this system has."""
    if hasattr(select, "epoll"):
        from .._connection.epoll import EpollKernel  # cannot be imported without epoll

        return EpollKernel()
    return PortableKernel()


async def serve(
    app: AppWrapper, config: Config, tracker: Composed, **kwargs: Any
) -> ShutdownReport:
    """Hypercorn's ``worker_serve``, with every connection reported to ``tracker``.

    When the server has stopped, the totals are logged, if there is a :class:`StatsTracker`.
    """
    with closing(system_kernel()) as kernel:
        report = await run(partial(Worker, config, tracker, kernel), app, **kwargs)
    stats = [part.stats() for part in tracker.trackers if isinstance(part, StatsTracker)]
    if stats:
        await config.log.info("Connections: %s", stats[0])
    return report


def describe(config: Config, tracker: Composed) -> str:
    """Return the log line of the start: the hooks, the trackers, the protocols and the drain."""
    parts = unresolved(getattr(config, "conn_state", None)).trackers
    hooks = [part.path for part in parts if isinstance(part, NamedTracker)]
    source = f" with {', '.join(hooks)}" if hooks else ""
    trackers = ", ".join(map(tracker_name, tracker.trackers))
    protocols = ", ".join(config.alpn_protocols) if config.ssl_enabled else "HTTP/1.1, h2"
    return f"{source}: {trackers}; {protocols}; drain {config.graceful_timeout:.1f} s"


def tracker_name(tracker: Tracker) -> str:
    """Return the name of a tracker's class, or of its function."""
    if type(tracker) is TrackerFunc:
        return getattr(tracker.track, "__qualname__", repr(tracker.track))
    return type(tracker).__name__
