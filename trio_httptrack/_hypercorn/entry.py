"""Where Hypercorn's workers are entered: the one monkeypatch.

:func:`replace_workers` replaces the two names by which Hypercorn calls its trio worker with
functions that look whether the Config has a ``conn_state``. Hypercorn's other workers, which are
asyncio's, would serve it untracked. They are refused by what they call of the Config: to import
them in order to replace them takes as long as to import all of ours.
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
    """Do what :func:`install` says."""
    if installed():
        return
    # ``hypercorn`` finds its worker in ``run``; ``hypercorn.trio.serve`` has its own reference.
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
    """Stands in for ``worker_serve`` in ``hypercorn.trio``."""
    conn_state = getattr(config, "conn_state", None)
    if conn_state is None:
        await hypercorn_serve(app, config, **kwargs)
    else:
        await serve(app, config, resolve(conn_state), **kwargs)


async def _serve_process(
    app: AppWrapper, config: Config, *, shutdown_trigger: Trigger | None = None, **kwargs: Any
) -> None:
    """The same in ``hypercorn.trio.run``, in a process that has nothing else to do.

    Hypercorn's asyncio worker drains on SIGTERM, its trio worker dies of it, and its parent
    sends it as soon as the first of several workers has ended. A tracked worker drains, and
    goes on draining when it is told again. Ctrl-C is the parent's business, if there is one.
    """
    if getattr(config, "conn_state", None) is None:
        await _serve(app, config, shutdown_trigger=shutdown_trigger, **kwargs)
        return
    terminated = trio.Event()

    async def listen(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:  # all of them: one that is left over would kill us later
                terminated.set()

    with exit_in_one_line(), ungrouped(nurseries=1):
        if shutdown_trigger is not None:  # a process of Hypercorn's, that ends when this ends
            refuse_copies(config)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from when nobody listens any more
        async with trio.open_nursery() as nursery:
            await nursery.start(listen)
            trigger = partial(_first_of, terminated.wait, shutdown_trigger or _ctrl_c)
            await _serve(app, config, shutdown_trigger=trigger, **kwargs)
            nursery.cancel_scope.cancel()


def refuse_copies(config: Any) -> None:
    """In a process that was sent its Config, all but a hook is a copy that nobody reads."""
    for part in unresolved(config.conn_state).trackers:
        if not isinstance(part, NamedTracker):
            raise SettingError(
                f"conn_state: {part!r} is a copy of the application's tracker: "
                "name that by its import path, conn_state = hook('myapp:tracker')"
            )


async def _ctrl_c() -> None:
    """Wait for the first. The second is a KeyboardInterrupt, which does not wait for anybody."""
    with trio.open_signal_receiver(signal.SIGINT) as interrupted:
        await interrupted.__anext__()


async def _first_of(*triggers: Trigger) -> None:
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
    """Around the Config's method that a worker calls first, with a class of its own."""

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
    """Turn a SettingError into the end of the process."""
    try:
        yield
    except SettingError as error:
        # On stderr, with status 1 and no traceback; a repr may have several lines.
        sys.exit(f"trio_httptrack: {' '.join(str(error).split())}")
