"""What is known of a shutdown when it is over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownReport:
    """How a server's connections ended when it shut down.

    >>> print(ShutdownReport(finished=40, forced=2, seconds=3.0))
    40 of 42 connections ended by themselves and 2 by force, in 3.0 s
    """

    finished: int
    """Connections that were open when the drain began and ended in time, ``>= 0``."""

    forced: int
    """Connections that were cut off at the end of ``graceful_timeout``, ``>= 0``. If it is
    often above zero, requests take longer than that, or handlers that run for ever do not wait for
    ``conn.draining``."""

    seconds: float
    """How long the drain took, ``>= 0`` and hardly more than ``graceful_timeout``."""

    def __str__(self) -> str:
        return (
            f"{self.finished} of {self.finished + self.forced} connections ended by themselves "
            f"and {self.forced} by force, in {self.seconds:.1f} s"
        )
