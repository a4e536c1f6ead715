"""hook() and wrap(): how a tracker gets into a Config.

Hypercorn's command pickles the Config into each new worker process. A hook can be pickled, and a
tracker cannot. When the hook is unpickled in the worker, it calls :func:`install` there.
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
    """A config file passes something other than an import path to hook()."""


class MalformedPathError(OneLineExit, HookError):
    """A config file passes an import path of the wrong form to hook()."""


class Hook(NamedTracker):
    """What :func:`hook` returns."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[[str], Hook], tuple[str]]:
        return hook, (self.path,)


def hook(path: str) -> Hook:
    """Name a tracker by its import path, for a Hypercorn config file.

    ``hypercorn`` pickles the Config to send it to its workers. A hook can be pickled, and a tracker
    cannot. Each worker imports the tracker by its path, so the application in that worker can
    import the same one. Use a hook wherever a tracker goes::

        # hypercorn_conf.py, for: hypercorn -k trio -c file:hypercorn_conf.py myapp:app
        from trio_httptrack import hook

        conn_state = hook("myapp:tracker")

    Args:
      path: ``"package.module:attribute"``; the attribute may have dots. If ``()`` follows, it is a
        function that each worker calls once, and that returns the tracker.

    Raises:
      TypeError: ``path`` is not a string; it may be the tracker itself.
      ValueError: the path has another form. (If nothing has this path, or it is not a tracker,
        the worker says so in one line at its start, and exits.)
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
    """Add a tracker to a Config, after the trackers that it has.

    The existing trackers are kept and run first. (But every :class:`ConnTracker` runs last.)
    Then serve as usual: ``await hypercorn.trio.serve(app, config)``.

    Returns:
      The previous ``config.conn_state``; None if there was none.

    Raises:
      TypeError: ``tracker`` is not a tracker, or ``config`` is not a Config; it is unchanged.
      ValueError: the existing ``conn_state`` does not name a tracker; ``config`` is unchanged.
      RuntimeError: this version of Hypercorn is not supported; ``config`` is unchanged.

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
