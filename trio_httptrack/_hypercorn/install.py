"""install(): make Hypercorn track."""

from __future__ import annotations


def install() -> None:
    """Make Hypercorn's trio worker honour ``config.conn_state``.

    :func:`wrap` and :func:`hook` call it. A TOML config file cannot call functions: if you have
    one, call ``install()`` yourself, anywhere in the module of your application. Nothing changes
    for a Config without ``conn_state``. A second call does nothing.

    Raises:
      RuntimeError: this version of Hypercorn is not supported; nothing was changed.

    >>> install()
    """
    # Slow to import, and not needed for the trackers alone.
    from .entry import replace_workers

    replace_workers()
