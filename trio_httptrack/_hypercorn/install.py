"""Where Hypercorn's workers are entered: the one monkeypatch.

:func:`install` replaces the two names by which Hypercorn calls its trio worker with
functions that look whether the Config has a ``conn_state``, and the asyncio worker's with one
that refuses such a Config.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import hypercorn.asyncio
import hypercorn.trio
import trio
from hypercorn.asyncio.run import worker_serve as hypercorn_asyncio_serve
from hypercorn.config import Config
from hypercorn.trio.run import worker_serve as hypercorn_serve
from hypercorn.typing import AppWrapper

from .._connection.errors import ungrouped
from .conn_state import Named, named, resolve
from .settings import SettingError
from .worker import check_seam, refuse_hypercorn, serve

Trigger = Callable[[], Awaitable[object]]


def install() -> None:
    """Make Hypercorn's trio worker honour ``config.conn_state``.

    :func:`wrap` and :func:`hook` call it. Call it yourself, anywhere in the module of your
    application, if the config is a TOML file, which cannot call functions. A Config without
    ``conn_state`` is served exactly as without it. May be called again.

    Raises:
      RuntimeError: this version of Hypercorn is not supported; nothing was changed.

    >>> install()
    """
    if installed():
        return
    # ``hypercorn`` finds its worker in ``run``; ``hypercorn.trio.serve`` has its own reference.
    workers: list[tuple[Any, object, object]] = [
        (hypercorn.trio.run, hypercorn_serve, _serve_process),
        (hypercorn.trio, hypercorn_serve, _serve),
        (hypercorn.asyncio.run, hypercorn_asyncio_serve, _asyncio_serve_process),
        (hypercorn.asyncio, hypercorn_asyncio_serve, _asyncio_serve),
    ]
    check_seam()
    if any(module.worker_serve is not theirs for module, theirs, _ in workers):
        refuse_hypercorn()
    for module, _, ours in workers:
        module.worker_serve = ours


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
    for part in named(config.conn_state).trackers:
        if not isinstance(part, Named):
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


def _asyncio_serve(app: AppWrapper, config: Config, **kwargs: Any) -> Awaitable[None]:
    """Stands in for ``worker_serve`` in ``hypercorn.asyncio``."""
    if getattr(config, "conn_state", None) is not None:
        raise SettingError(
            "only Hypercorn's trio worker is tracked, and this is the asyncio worker: "
            "start it with -k trio, or remove conn_state from its config"
        )
    return hypercorn_asyncio_serve(app, config, **kwargs)


def _asyncio_serve_process(app: AppWrapper, config: Config, **kwargs: Any) -> Awaitable[None]:
    """The same in ``hypercorn.asyncio.run``. Raises when called, before there is a loop."""
    with exit_in_one_line():
        return _asyncio_serve(app, config, **kwargs)


@contextmanager
def exit_in_one_line() -> Iterator[None]:
    """Turn a SettingError into the end of the process."""
    try:
        yield
    except SettingError as error:
        # On stderr, with status 1 and no traceback; a repr may have several lines.
        sys.exit(f"trio_httptrack: {' '.join(str(error).split())}")
