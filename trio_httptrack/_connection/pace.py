"""Minimum data rates: so many bytes a second, after a grace period.

The rate is an average over the time in which we waited for the client. The time in which the
client waited for us does not count. That is Kestrel's rule for ``MinRequestBodyDataRate``.

A pace has no timer. It computes when the client will be too slow, and the task that waits for the
client uses that as its deadline.
"""

from __future__ import annotations

from typing import NamedTuple

# Close reasons, with Kestrel's names.
SLOW_REQUEST, SLOW_RESPONSE = "min_request_body_data_rate", "min_response_data_rate"


class Rate(NamedTuple):
    """A minimum data rate."""

    bytes_per_second: float
    grace_period: float
    """Seconds in which the rate may be lower."""


class Pace:
    """The data rate of one body."""

    __slots__ = ("_paused", "_rate", "_since", "moved")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._since = 0.0  # when it began, moved forward by the length of each pause
        self._paused: float | None = 0.0  # since when it is paused
        self.moved = 0
        """Bytes sent or received so far."""

    @property
    def due(self) -> float:
        """When the client will be too slow if no more bytes move; infinity while paused."""
        if self._paused is not None:
            return float("inf")
        rate = self._rate
        return self._since + max(rate.grace_period, self.moved / rate.bytes_per_second)

    def resume(self, now: float) -> None:
        """Count time from now on: the client is waited for."""
        if self._paused is not None:
            self._since += now - self._paused
            self._paused = None

    def pause(self, now: float) -> None:
        """Stop counting time: the client waits for us."""
        if self._paused is None:
            self._paused = now

    def restart(self, now: float) -> None:
        """Begin anew, without what was counted before."""
        self._since, self._paused, self.moved = now, None, 0
