"""How a tracker gets onto a Config, and from there into Hypercorn's worker.

``config.conn_state`` holds a tracker, a :func:`hook`, or a hook's path as a plain string
(as a TOML file has it). Hypercorn's command starts each worker process afresh and pickles
the Config into it, so only a hook travels: its unpickling calls :func:`install` there,
and the tracker it names is imported when the worker starts, before it accepts.

:func:`install` is the one monkeypatch. It replaces the two names by which Hypercorn calls
its trio worker with functions that look whether the Config has a ``conn_state``, and
the asyncio worker's with one that refuses such a Config.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from typing import Any

import hypercorn.asyncio
import hypercorn.trio
import trio
from hypercorn.asyncio.run import worker_serve as hypercorn_asyncio_serve
from hypercorn.config import Config
from hypercorn.trio.run import worker_serve as hypercorn_serve
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import AppWrapper

from .._states import Conn, ConnState
from .._trackers import Composed, Tracker, check_tracker, compose
from .errors import SettingError, ungrouped
from .worker import serve

Trigger = Callable[[], Awaitable[object]]

SUPPORTED = "0.17.3 to 0.18"


class HookError(SettingError):
    """A Config's ``conn_state`` does not lead to a tracker."""


class Hook:
    """What :func:`hook` returns."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path: str = path

    def track(self, conn: Conn, state: ConnState) -> None:
        self.resolve().track(conn, state)

    def resolve(self) -> Tracker:
        """Import the tracker. An error *inside* the imported module is not a HookError."""
        module_name, _, attribute = self.path.partition(":")
        try:
            found: Any = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise HookError(f"{self!r}: there is no module {error.name!r}") from None
        for name in attribute.split("."):
            try:
                found = getattr(found, name)
            except AttributeError:
                raise HookError(f"{self!r}: {found!r} has no attribute {name!r}") from None
        try:
            check_tracker(found)
        except TypeError as error:
            raise HookError(f"{self!r}: {error}") from None
        tracker: Tracker = found
        return tracker

    def __repr__(self) -> str:
        return f"hook({self.path!r})"

    def __reduce__(self) -> tuple[Callable[[str], Hook], tuple[str]]:
        return hook, (self.path,)


def hook(path: str) -> Hook:
    """Name a tracker by its import path, for a Hypercorn config file.

    It can be pickled, as everything in a Config must be that ``hypercorn`` sends to
    its workers; the tracker is the one that the application imports in the same worker.
    Put it wherever a tracker goes::

        # hypercorn_conf.py, for: hypercorn -k trio -c file:hypercorn_conf.py myapp:app
        from trio_httptrack import hook

        conn_state = hook("myapp:tracker")

    Args:
      path: ``"package.module:attribute"``; the attribute may have dots.

    Raises:
      ValueError: the path is of another form. If it leads nowhere, or not to a tracker,
        the worker says so in one line and ends as it starts.
      RuntimeError: this version of Hypercorn is not supported.

    >>> hook("myapp:tracker")
    hook('myapp:tracker')
    """
    module, colon, attribute = path.partition(":")
    if not all([*module.split("."), colon, *attribute.split(".")]):
        raise HookError(f"hook({path!r}): write it as 'package.module:attribute'")
    install()
    return Hook(path)


def wrap(config: Config, tracker: Tracker) -> Tracker | str | None:
    """Put a tracker on a Config, behind the one that is already there.

    What was there is kept and runs first, except that every :class:`ConnTracker` runs
    last. Then serve as always: ``await hypercorn.trio.serve(app, config)``.

    Returns:
      What ``config.conn_state`` was before, None if nothing.

    Raises:
      TypeError: ``tracker`` is not a tracker; the Config is unchanged.
      ValueError: what is there is not one; likewise.
      RuntimeError: this version of Hypercorn is not supported; likewise.

    >>> from hypercorn.config import Config
    >>> config, log = Config(), LogTracker()
    >>> wrap(config, log) is None
    True
    >>> wrap(config, ConnTracker()).trackers == (log,)
    True
    """
    previous: Tracker | str | None = getattr(config, "conn_state", None)
    composed = compose(_named(previous), tracker)
    install()
    config.conn_state = composed  # type: ignore[attr-defined]
    return previous


def resolve(conn_state: Any) -> Composed:
    """The trackers that a Config's ``conn_state`` stands for, imported."""
    return compose(*_imported(_named(conn_state)))


def _named(conn_state: Any) -> Composed:
    """The trackers that a Config names, as it names them."""
    if conn_state is None:
        return compose()
    try:
        return compose(hook(conn_state) if isinstance(conn_state, str) else conn_state)
    except TypeError as error:
        raise HookError(f"conn_state: {error}") from None


def _imported(tracker: Tracker, *hooks: str) -> Iterator[Tracker]:
    if isinstance(tracker, Composed):
        for part in tracker.trackers:
            yield from _imported(part, *hooks)
    elif isinstance(tracker, Hook):
        if tracker.path in hooks:
            raise HookError(f"{tracker!r} leads to itself")
        yield from _imported(tracker.resolve(), tracker.path, *hooks)
    else:
        yield tracker


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

    with _exit_in_one_line(), ungrouped(nurseries=1):
        if shutdown_trigger is not None:  # a process of Hypercorn's, that ends when this ends
            _refuse_copies(config)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from when nobody listens any more
        async with trio.open_nursery() as nursery:
            await nursery.start(listen)
            trigger = partial(_first_of, terminated.wait, shutdown_trigger or _ctrl_c)
            await _serve(app, config, shutdown_trigger=trigger, **kwargs)
            nursery.cancel_scope.cancel()


def _refuse_copies(config: Any) -> None:
    """In a process that was sent its Config, all but a hook is a copy that nobody reads."""
    for part in _named(config.conn_state).trackers:
        if not isinstance(part, Hook):
            raise HookError(
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
        raise HookError(
            "only Hypercorn's trio worker is tracked, and this is the asyncio worker: "
            "start it with -k trio, or remove conn_state from its config"
        )
    return hypercorn_asyncio_serve(app, config, **kwargs)


def _asyncio_serve_process(app: AppWrapper, config: Config, **kwargs: Any) -> Awaitable[None]:
    """The same in ``hypercorn.asyncio.run``. Raises when called, before there is a loop."""
    with _exit_in_one_line():
        return _asyncio_serve(app, config, **kwargs)


@contextmanager
def _exit_in_one_line() -> Iterator[None]:
    try:
        yield
    except SettingError as error:
        sys.exit(f"trio_httptrack: {error}")  # on stderr, with status 1 and no traceback


def install() -> None:
    """Make Hypercorn's trio worker honour ``config.conn_state``.

    :func:`wrap` and :func:`hook` call it. Call it yourself, anywhere in the module of your
    application, where the config is a TOML file, which cannot. A Config without
    ``conn_state`` is served exactly as without it. May be called again.

    Raises:
      RuntimeError: this version of Hypercorn is not supported; nothing was changed.

    >>> install()
    """
    if hypercorn.trio.run.worker_serve is _serve_process:
        return
    names = {"TCPServer", "WorkerContext", "Lifespan"} & set(hypercorn_serve.__code__.co_names)
    arguments = list(signature(TCPServer).parameters)
    if (
        hypercorn.trio.run.worker_serve is not hypercorn_serve
        or len(names) < 3
        or arguments != ["app", "config", "context", "state", "stream"]
    ):
        raise RuntimeError(
            f"Hypercorn {version('hypercorn')} cannot be tracked: its trio worker is not the one "
            f"of Hypercorn {SUPPORTED}, or something else has replaced it"
        )
    # ``hypercorn`` finds its worker in ``run``; ``hypercorn.trio.serve`` has its own reference.
    _replace(hypercorn.trio.run, _serve_process)
    _replace(hypercorn.trio, _serve)
    _replace(hypercorn.asyncio.run, _asyncio_serve_process)
    _replace(hypercorn.asyncio, _asyncio_serve)


def _replace(module: Any, worker_serve: Callable[..., object]) -> None:
    module.worker_serve = worker_serve
