"""The function that makes Hypercorn track."""

from __future__ import annotations


def install() -> None:
    """Make Hypercorn's trio worker honour ``config.conn_state``.

    :func:`wrap` and :func:`hook` call it. Call it yourself, anywhere in the module of your
    application, if the config is a TOML file, which cannot call functions. A Config without
    ``conn_state`` is served exactly as without it. May be called again.

    Raises:
      RuntimeError: this version of Hypercorn is not supported; nothing was changed.

    >>> install()
    """
    # Who uses the trackers alone does not pay for importing a server.
    from .entry import replace_workers

    replace_workers()
