"""tracked_server: a tracked Hypercorn as an async context manager."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
from hypercorn.config import Config

from ._connection.errors import ungrouped
from ._connection.shutdown_report import ShutdownReport
from ._conns import ConnTracker
from ._hypercorn.conn_state import resolve
from ._hypercorn.settings import check_config
from ._states import Conn, ConnState
from ._stats import Stats, StatsTracker
from ._trackers import Tracker, compose

# ASGI or WSGI. The argument types are those that frameworks use.
App = Callable[[Any, Any, Any], Awaitable[None]] | Callable[[Any, Any], Iterable[bytes]]


class TrackedServer:
    """A running server, as ``async with tracked_server(...)`` yields it.

    >>> import httpx, trio
    >>> async def app(scope, receive, send):
    ...     assert scope["type"] == "http"
    ...     await send({"type": "http.response.start", "status": 204, "headers": []})
    ...     await send({"type": "http.response.body"})
    >>> async def main():
    ...     async with tracked_server(app) as server:
    ...         async with httpx.AsyncClient() as client:
    ...             await client.get(server.urls[0])
    ...             print(*server.connections().values())
    ...         report = await server.shutdown()
    ...         print(report.forced, server.conn_tracker.count, server.stats().closed_total)
    >>> trio.run(main)
    idle
    0 0 1
    """

    def __init__(self) -> None:
        self.urls: list[str] = []
        """The URLs that it listens on, such as ``["http://127.0.0.1:54321"]``."""

        self.conn_tracker: ConnTracker = ConnTracker()
        """The number of this server's open connections. ``await conn_tracker.wait()`` returns when
        none is open."""

        self._stats_tracker = StatsTracker()
        self._shutdown = trio.Event()
        self._stopped = trio.Event()
        self._report: ShutdownReport | None = None

    def stats(self) -> Stats:
        """Return this server's counts at this instant."""
        return self._stats_tracker.stats()

    def connections(self) -> dict[Conn, ConnState]:
        """Return this server's open connections and their states at this instant."""
        return self._stats_tracker.connections()  # type: ignore[return-value]

    async def shutdown(self) -> ShutdownReport:
        """Stop accepting, drain, and return when the server has stopped.

        The drain handles the requests that are in flight or arriving. After
        ``config.graceful_timeout`` seconds it closes the remaining connections by force. Then the
        application's lifespan shuts down. A checkpoint. A second call waits for the same shutdown.

        Raises:
          RuntimeError: the server failed or was cancelled before it had drained.
        """
        self._shutdown.set()
        await self._stopped.wait()
        if self._report is None:
            raise RuntimeError(
                "the server failed or was cancelled before its connections were drained; "
                "the tracked_server block raises its error"
            )
        return self._report


@asynccontextmanager
async def tracked_server(
    app: App, config: Config | None = None, *, tracker: Tracker | None = None
) -> AsyncIterator[TrackedServer]:
    """Serve ``app`` with Hypercorn, tracked, while the block runs.

    When the block is left, the server drains, as :meth:`TrackedServer.shutdown` does. An
    exception or a cancellation in the block closes every connection at once. If the server
    fails, the block is cancelled, and the server's error is raised.

    Args:
      app: an ASGI or WSGI application.
      config: Hypercorn's Config. No setting of it is changed. (With a ``statsd_host``, its logger
        is replaced by one that never makes a request wait.) Without a config, the server listens
        on 127.0.0.1 on a free port.
      tracker: called for each transition, after ``config.conn_state`` if that is set.

    Raises:
      TypeError: ``config`` is not Hypercorn's Config, or ``tracker`` is not a tracker.
      ValueError: ``config.conn_state`` does not name a tracker, or another setting is invalid.
      OSError: the address cannot be bound.
      RuntimeError: this version of Hypercorn is not supported.
      hypercorn.utils.LifespanFailureError: the application's startup failed.
      hypercorn.utils.LifespanTimeoutError: the startup took longer than ``startup_timeout``.

    >>> import trio
    >>> async def app(scope, receive, send):
    ...     await send({"type": "http.response.start", "status": 204, "headers": []})
    ...     await send({"type": "http.response.body"})
    >>> async def main():
    ...     async with tracked_server(app) as server:
    ...         print(server.stats().accepted_total)
    >>> trio.run(main)
    0
    """
    if config is None:
        config = Config()
        config.bind = "127.0.0.1:0"
    check_config(config)
    from ._hypercorn.worker import serve  # slow to import, and not needed for the trackers alone

    server = TrackedServer()
    async with serving(server, serve, app, config, tracker):
        yield server


@asynccontextmanager
async def serving(
    server: TrackedServer,
    serve: Callable[..., Awaitable[ShutdownReport]],
    app: App,
    config: Config,
    tracker: Tracker | None,
) -> AsyncIterator[None]:
    """Run ``serve``, the worker's function or a stand-in for it, while the block runs."""
    from hypercorn.utils import wrap_app

    conn_state = getattr(config, "conn_state", None)
    extra = () if tracker is None else (resolve(compose(tracker)),)
    tracked = compose(resolve(conn_state), *extra, server._stats_tracker, server.conn_tracker)
    wrapped_app = wrap_app(app, config.wsgi_max_body_size, None)

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        try:
            server._report = await serve(
                wrapped_app,
                config,
                tracked,
                shutdown_trigger=server._shutdown.wait,
                task_status=task_status,
            )
        finally:
            server._stopped.set()

    with ungrouped(nurseries=1):
        async with trio.open_nursery() as nursery:
            server.urls = await nursery.start(run)
            yield
            server._shutdown.set()
            await server._stopped.wait()
