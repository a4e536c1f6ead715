"""How a tracker gets onto a Config, and what a Config's ``conn_state`` stands for.

``config.conn_state`` holds a tracker, a :func:`hook`, or a hook's path as a plain string
(as a TOML file has it). Hypercorn's command starts each worker process afresh and pickles
the Config into it, so only a hook travels: its unpickling calls :func:`install` there,
and the tracker it names is imported when the worker starts, before it accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from hypercorn.config import Config

from .._states import Conn, ConnState
from .._trackers import Composed, Tracker, check_tracker, compose
from .install import install
from .settings import SettingError, check_config


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
      TypeError: ``path`` is something else, such as the tracker itself.
      ValueError: the path is of another form. If it leads nowhere, or not to a tracker,
        the worker says so in one line and ends as it starts.
      RuntimeError: this version of Hypercorn is not supported.

    >>> hook("myapp:tracker")
    hook('myapp:tracker')
    """
    if not isinstance(path, str):
        raise TypeError(
            f"hook() takes a tracker's import path, such as 'myapp:tracker', not {path!r}; "
            "wrap() takes a tracker"
        )
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
      TypeError: ``tracker`` is not a tracker, or ``config`` not a Config, which is unchanged.
      ValueError: what is there is not one; likewise.
      RuntimeError: this version of Hypercorn is not supported; likewise.

    >>> from hypercorn.config import Config
    >>> config, log = Config(), LogTracker()
    >>> wrap(config, log) is None
    True
    >>> wrap(config, ConnTracker()).trackers == (log,)
    True
    """
    check_config(config)
    previous: Tracker | str | None = getattr(config, "conn_state", None)
    composed = compose(named(previous), tracker)
    install()
    config.conn_state = composed  # type: ignore[attr-defined]
    return previous


def resolve(conn_state: Any) -> Composed:
    """The trackers that a Config's ``conn_state`` stands for, imported."""
    return compose(*_imported(named(conn_state)))


def named(conn_state: Any) -> Composed:
    """The trackers that a ``conn_state`` names, as it names them."""
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
            raise HookError(f"{tracker!r} leads to itself: it must name a tracker")
        yield from _imported(tracker.resolve(), tracker.path, *hooks)
    else:
        yield tracker
