"""The one monkeypatch: how Hypercorn calls our worker.

Hypercorn calls its trio worker by two names. :func:`replace_workers` replaces both with functions
that check whether the Config has a ``conn_state``. Hypercorn's asyncio workers would serve such a
Config untracked, so they are refused, in a method of the Config that they call. They are not
replaced, because importing them takes as long as importing this whole package.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import hypercorn.trio
import trio
from hypercorn.config import Config
from hypercorn.trio.run import worker_serve as hypercorn_serve
from hypercorn.typing import AppWrapper

from .._connection.errors import ungrouped
from .._local import OneLineExit
from .conn_state import NamedTracker, resolve, unresolved
from .settings import SettingError
from .worker import check_seam, refuse_hypercorn, serve

Trigger = Callable[[], Awaitable[object]]


def replace_workers() -> None:
    """Replace Hypercorn's trio worker, as :func:`install` describes."""
    if installed():
        return
    # The command finds its worker in ``run``; ``hypercorn.trio.serve`` has its own reference.
    workers: list[tuple[Any, object, object]] = [
        (hypercorn.trio.run, hypercorn_serve, _serve_process),
        (hypercorn.trio, hypercorn_serve, _serve),
    ]
    check_seam()
    if any(module.worker_serve is not theirs for module, theirs, _ in workers):
        refuse_hypercorn()
    for module, _, ours in workers:
        module.worker_serve = ours
    asyncios = refuse_asyncio_worker(Config.set_statsd_logger_class)
    Config.set_statsd_logger_class = asyncios  # type: ignore[assignment, method-assign]


def installed() -> bool:
    """Return whether Hypercorn's worker in this process honours ``config.conn_state``."""
    return hypercorn.trio.run.worker_serve is _serve_process


async def _serve(app: AppWrapper, config: Config, **kwargs: Any) -> None:
    """Replaces ``worker_serve`` in ``hypercorn.trio``."""
    conn_state = getattr(config, "conn_state", None)
    if conn_state is None:
        await hypercorn_serve(app, config, **kwargs)
    else:
        await serve(app, config, resolve(conn_state), **kwargs)


async def _serve_process(
    app: AppWrapper, config: Config, *, shutdown_trigger: Trigger | None = None, **kwargs: Any
) -> None:
    """Replaces ``worker_serve`` in ``hypercorn.trio.run``: the process does nothing else.

    The parent process sends SIGTERM as soon as the first of several workers has stopped.
    Hypercorn's asyncio worker drains on SIGTERM, but SIGTERM kills its trio worker. A tracked
    worker drains, and a second SIGTERM does not interrupt the drain. Ctrl-C is handled by the
    parent, if there is one.
    """
    if getattr(config, "conn_state", None) is None:
        await _serve(app, config, shutdown_trigger=shutdown_trigger, **kwargs)
        return
    terminated = trio.Event()

    async def listen(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:  # receive all of them: a pending one would kill us later
                terminated.set()

    with exit_in_one_line(), ungrouped(nurseries=1):
        if shutdown_trigger is not None:  # a worker process, which exits when this returns
            refuse_copies(config)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # for after listen() has stopped
        async with trio.open_nursery() as nursery:
            await nursery.start(listen)
            trigger = partial(_wait_for_first, terminated.wait, shutdown_trigger or _ctrl_c)
            await _serve(app, config, shutdown_trigger=trigger, **kwargs)
            nursery.cancel_scope.cancel()


def refuse_copies(config: Any) -> None:
    """Refuse any tracker but a hook: in a worker process it is a copy that nobody reads."""
    for part in unresolved(config.conn_state).trackers:
        if not isinstance(part, NamedTracker):
            raise SettingError(
                f"conn_state: {part!r} is a copy of the application's tracker: "
                "name that by its import path, conn_state = hook('myapp:tracker')"
            )


async def _ctrl_c() -> None:
    """Wait for the first Ctrl-C. The second is a KeyboardInterrupt, which stops without a drain."""
    with trio.open_signal_receiver(signal.SIGINT) as interrupted:
        await interrupted.__anext__()


async def _wait_for_first(*triggers: Trigger) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(trigger: Trigger) -> None:
            await trigger()
            nursery.cancel_scope.cancel()

        for trigger in triggers:
            nursery.start_soon(wait, trigger)


class AsyncioWorkerError(OneLineExit, SettingError):
    """Hypercorn's asyncio worker was about to serve a Config that has a ``conn_state``."""


def refuse_asyncio_worker(
    set_class: Callable[[Config, type], None],
) -> Callable[[Config, type], None]:
    """Wrap the Config's method that each worker calls first, to refuse the asyncio worker.

    The worker is recognized by the class that it passes.
    """

    def set_statsd_logger_class(config: Config, statsd_logger: type) -> None:
        ours = getattr(config, "conn_state", None) is not None
        if ours and statsd_logger.__module__.startswith("hypercorn.asyncio."):
            raise AsyncioWorkerError(
                "only Hypercorn's trio worker is tracked, and this is the asyncio worker: "
                "start it with -k trio, or remove conn_state from its config"
            )
        set_class(config, statsd_logger)

    return set_statsd_logger_class


@contextmanager
def exit_in_one_line() -> Iterator[None]:
    """Exit the process with the message of a SettingError."""
    try:
        yield
    except SettingError as error:
        # On stderr, with status 1, without a traceback. A repr may have several lines: join them.
        sys.exit(f"trio_httptrack: {' '.join(str(error).split())}")
