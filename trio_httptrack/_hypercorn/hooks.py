"""How a tracker gets onto a Config.

Hypercorn's command starts each worker process afresh and pickles the Config into it, so only a hook
travels: its unpickling calls :func:`install` there.
"""

from __future__ import annotations

from collections.abc import Callable

from hypercorn.config import Config

from .._local import OneLineExit
from .._trackers import Tracker, compose
from .conn_state import HookError, NamedTracker, unresolved
from .install import install
from .settings import check_config


class NotAPathError(OneLineExit, TypeError):
    """Something else than an import path, in a config file."""


class MalformedPathError(OneLineExit, HookError):
    """An import path of another form, in a config file."""


class Hook(NamedTracker):
    """What :func:`hook` returns."""

    __slots__ = ()

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
      path: ``"package.module:attribute"``; the attribute may have dots. With ``()`` behind it, it
        is a function that is called once in each worker, and returns the tracker.

    Raises:
      TypeError: ``path`` is something else, such as the tracker itself.
      ValueError: the path is of another form. If it leads nowhere, or not to a tracker,
        the worker says so in one line and ends as it starts.
      RuntimeError: this version of Hypercorn is not supported.

    >>> hook("myapp:tracker")
    hook('myapp:tracker')
    """
    if not isinstance(path, str):
        raise NotAPathError(
            f"hook() takes a tracker's import path, such as 'myapp:tracker', not {path!r}; "
            "wrap() takes a tracker"
        )
    try:
        found = Hook(path)
    except HookError as error:
        raise MalformedPathError(str(error)) from None
    install()
    return found


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
    existing = hook(previous) if isinstance(previous, str) else previous
    composed = compose(unresolved(existing), tracker)
    install()
    config.conn_state = composed  # type: ignore[attr-defined]
    return previous
