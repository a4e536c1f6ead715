"""How fast a client must be: so many bytes a second, after a grace period.

The rate is an average over the time in which the client could have sent, or read, and not over
the time in which it was kept waiting by us: a pace runs only while the client is waited for. That
is Kestrel's rule for ``MinRequestBodyDataRate``.

A pace has no timer. It knows when the client would be too slow, and whoever waits for the client
waits no longer than that.
"""

from __future__ import annotations

from typing import NamedTuple

# Why a connection is closed then; Kestrel's names.
SLOW_REQUEST, SLOW_RESPONSE = "min_request_body_data_rate", "min_response_data_rate"


class Rate(NamedTuple):
    """The least that a client must do."""

    bytes_per_second: float
    grace_period: float
    """Seconds in which it may do less."""


class Pace:
    """How one body moves."""

    __slots__ = ("_paused", "_rate", "_since", "moved")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._since = 0.0  # so long ago it would have begun, had it never paused
        self._paused: float | None = 0.0  # since when
        self.moved = 0
        """Bytes so far."""

    @property
    def due(self) -> float:
        """When it would be too slow, if nothing more came; infinity while it is paused."""
        if self._paused is not None:
            return float("inf")
        rate = self._rate
        return self._since + max(rate.grace_period, self.moved / rate.bytes_per_second)

    def resume(self, now: float) -> None:
        """The client is waited for from now on."""
        if self._paused is not None:
            self._since += now - self._paused
            self._paused = None

    def pause(self, now: float) -> None:
        """Nothing is to be expected of the client at the moment."""
        if self._paused is None:
            self._paused = now

    def restart(self, now: float) -> None:
        """The client is waited for from now on, whatever it has done before."""
        self._since, self._paused, self.moved = now, None, 0
