"""LogTracker: transitions to the standard logging module."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

from ._local import ProcessLocal
from ._states import ConnState


class LogTracker(ProcessLocal):
    """Logs a line for each transition.

    A line names the connection, the new state and, where there is one, the
    reason of its end: ``conn 3 127.0.0.1:40112 http/1.1 closed (keep_alive_timeout)``.
    Neither paths nor headers are logged.

    Args:
      logger: where to; by default the logger named ``trio_httptrack``. Like any other, it shows
        nothing below a warning until its level is set, and it has a handler.
      level: one of :mod:`logging`'s levels, such as ``logging.INFO``, which is the default.

    Raises:
      TypeError: ``logger`` or ``level`` is something else, such as a name.

    >>> import logging, sys
    >>> logger = logging.getLogger("doctest")
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> LogTracker(logger, logging.WARNING).track("a connection", ConnState.NEW)
    a connection new
    """

    def __init__(
        self,
        logger: logging.Logger | logging.LoggerAdapter[Any] | None = None,
        level: int = logging.INFO,
    ) -> None:
        if logger is None:
            logger = logging.getLogger("trio_httptrack")
        if not isinstance(logger, (logging.Logger, logging.LoggerAdapter)):
            raise TypeError(f"logger must be a Logger, as of logging.getLogger(), not {logger!r}")
        if not isinstance(level, int):
            raise TypeError(f"level must be a number, such as logging.INFO, not {level!r}")
        self._logger = logger
        self._level = level

    def track(self, conn: Hashable, state: ConnState) -> None:
        """Log one transition."""
        reason = getattr(conn, "close_reason", None)
        if state is ConnState.CLOSED and reason is not None:
            self._logger.log(self._level, "%s %s (%s)", conn, state, reason)
        else:
            self._logger.log(self._level, "%s %s", conn, state)

    def __repr__(self) -> str:
        return f"LogTracker({self._logger!r})"
