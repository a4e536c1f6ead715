"""The report of a shutdown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownReport:
    """How a server's connections closed when it shut down.

    >>> print(ShutdownReport(finished=40, forced=2, seconds=3.0))
    40 of 42 connections closed by themselves and 2 by force, in 3.0 s
    """

    finished: int
    """Connections that were open when the drain began and closed in time, ``>= 0``."""

    forced: int
    """Connections that were closed by force after ``graceful_timeout``, ``>= 0``. If this is
    often above zero, requests take longer than that, or handlers that run for ever do not wait for
    ``conn.draining``."""

    seconds: float
    """Duration of the drain, ``>= 0`` and hardly more than ``graceful_timeout``."""

    def __str__(self) -> str:
        return (
            f"{self.finished} of {self.finished + self.forced} connections closed by themselves "
            f"and {self.forced} by force, in {self.seconds:.1f} s"
        )
