"""LogTracker: transitions to the standard logging module."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

from ._local import ProcessLocal
from ._states import Conn, ConnState


class LogTracker(ProcessLocal):
    """A log with a line for each transition.

    A line names the connection, its new state and its ``close_reason``, if it has one:
    ``conn 3 127.0.0.1:40112 http/1.1 closed (keep_alive_timeout)``. Neither paths nor headers are
    logged.

    Each record also has fields for a formatter: ``id``, ``client`` (address and port, as in a
    URL), ``protocol``, ``state``, ``reason``, ``age`` (in seconds) and ``requests``. Their values
    are those of :class:`Conn`. (A ``LoggerAdapter`` replaces these fields with its own ``extra``,
    unless its ``merge_extra`` is set.)

    Args:
      logger: the logger to use; by default the one named ``trio_httptrack``. Like any logger, it
        shows nothing below a warning until you set its level and add a handler.
      level: a level of :mod:`logging`; by default ``logging.INFO``.

    Raises:
      TypeError: ``logger`` or ``level`` has another type, such as a string.

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
        if not self._logger.isEnabledFor(self._level):
            return
        fields = record_fields(conn, state)
        reason = fields.get("reason")
        if reason is not None:
            self._logger.log(self._level, "%s %s (%s)", conn, state, reason, extra=fields)
        else:
            self._logger.log(self._level, "%s %s", conn, state, extra=fields)

    def __repr__(self) -> str:
        return f"LogTracker({self._logger!r})"


def record_fields(conn: Hashable, state: ConnState) -> dict[str, Any]:
    """Return a log record's fields for one transition."""
    if not isinstance(conn, Conn):
        return {"state": str(state)}
    return {
        "id": conn.id,
        "client": conn._peer,
        "protocol": conn.protocol,
        "state": str(state),
        "reason": conn.close_reason if state is ConnState.CLOSED else None,
        "age": round(conn.state_since - conn.opened_at, 3),
        "requests": conn.requests,
    }
